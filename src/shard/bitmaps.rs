//! Reads block bitmaps that `image` asks for: one read a bitmap, however many tasks want it.
//!
//! Knows who waits. Does not know what a bit means.

use crate::buf::Buf;
use crate::io::{Errno, Op};
use crate::limits;
use crate::plan::{BitmapRead, IoFault, LayerId};
use crate::scsi::UnitFault;
use crate::units::ByteOffset;

use super::executor::{Core, TaskKey};
use super::token::{Kind, Token};

#[derive(Debug)]
pub(super) struct BitmapLoad {
    read: BitmapRead,
    done: u32,
    waiters: Vec<TaskKey>,
}

impl BitmapLoad {
    pub(super) fn layer(&self) -> LayerId {
        self.read.layer
    }
}

impl Core {
    /// The task goes on when the bitmap is there (or fails with it).
    pub(super) fn load_bitmap(&mut self, read: BitmapRead, task: TaskKey) {
        let same = |load: &BitmapLoad| load.read.layer == read.layer && load.read.block == read.block;
        if let Some((_, load)) = self.bitmaps.iter_mut().find(|(_, load)| same(load)) {
            load.waiters.push(task);
            return;
        }
        let small = read.len as usize <= limits::SMALL_BYTES;
        let buf = if small { self.pool.take_small() } else { self.pool.take_chunk() };
        let Some(buf) = buf else {
            self.park(task);
            return;
        };
        match self.bitmaps.insert(BitmapLoad { read, done: 0, waiters: vec![task] }) {
            Ok(key) => {
                let op = Op::Read { file: read.file, offset: read.offset, buf, start: 0, len: read.len };
                self.submit(Token::of(Kind::Bitmap, key, 0), op);
            }
            Err(_) => self.park(task),
        }
    }

    pub(super) fn bitmap_read(&mut self, token: Token, result: Result<u32, Errno>, buf: Buf) {
        let Some(key) = token.key(&self.bitmaps) else { return };
        let Some(load) = self.bitmaps.get_mut(key) else { return };
        if let Ok(moved @ 1..) = result {
            load.done += moved;
            if load.done < load.read.len {
                let offset = ByteOffset(load.read.offset.0 + u64::from(load.done));
                let op = Op::Read {
                    file: load.read.file,
                    offset,
                    buf,
                    start: load.done,
                    len: load.read.len - load.done,
                };
                self.submit(token, op);
                return;
            }
        }
        let Some(load) = self.bitmaps.remove(key) else { return };
        let complete = load.done == load.read.len;
        if complete {
            self.images.bitmap_loaded(load.read, Ok(&buf.as_slice()[..load.read.len as usize]));
        } else {
            tracing::error!(block = load.read.block.0, ?result, "a block bitmap cannot be read");
            self.images.bitmap_loaded(load.read, Err(IoFault::Failed));
        }
        for task in load.waiters {
            if complete || self.tasks.get(task).is_some_and(|task| task.aborted) {
                self.ready.push_back(task);
            } else {
                self.fail_io(task, UnitFault::Read);
            }
        }
    }
}
