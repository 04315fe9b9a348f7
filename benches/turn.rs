//! A whole turn of a shard: commands in a receive buffer become one vectored send, over a world in memory.
//!
//! Knows reads of golden data that is in the cache. Does not know the ring, sockets or disks: those are not measured.
//!
//! One iteration is one turn with `DEPTH` commands, and the completion of the send before.

#[path = "fixture/memory_io.rs"]
mod memory_io;
#[path = "fixture/served.rs"]
mod served;

use criterion::{Criterion, criterion_group, criterion_main};
use goldrush::io::SocketSlot;
use served::{SECTORS, Served, read_10};

const DEPTH: u32 = 32;
const BLOCKS: u16 = 8;

/// A session whose commands come in batches.
struct Load {
    served: Served,
    socket: SocketSlot,
    cmd_sn: u32,
    stat_sn: u32,
    lba: u32,
    batch: Vec<u8>,
}

impl Load {
    fn new(express: bool) -> Self {
        let mut served = Served::new(express, 1024);
        let socket = served.log_in("load", 256 * 1024);
        let mut this = Self { served, socket, cmd_sn: 1, stat_sn: 1, lba: 0, batch: Vec::new() };
        // The unit attention of a new session, then all data.
        for _ in 0..1 + SECTORS as u32 / u32::from(BLOCKS) / DEPTH {
            this.batch();
            this.served.settle();
        }
        this
    }

    fn batch(&mut self) {
        self.batch.clear();
        for _ in 0..DEPTH {
            self.lba = (self.lba + 4099 * u32::from(BLOCKS)) % (SECTORS as u32);
            // Every second half of a MiB of the golden image is zeros.
            let lba = self.lba & !1024;
            self.batch.extend_from_slice(&read_10(self.cmd_sn, self.stat_sn, lba, BLOCKS));
            self.cmd_sn += 1;
            self.stat_sn += 1;
        }
        self.served.shard.io().feed(self.socket, &self.batch);
    }
}

fn golden_hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    for (name, express) in [("golden_4k_hits", true), ("golden_4k_hits_long_way", false)] {
        let mut load = Load::new(express);
        load.served.shard.io().take_sent(load.socket);
        let before = load.served.report().counts.reads;
        load.batch();
        load.served.shard.turn();
        assert_eq!(load.served.report().counts.reads - before, u64::from(DEPTH));
        let sent = load.served.shard.io().take_sent(load.socket).len();
        assert_eq!(sent, DEPTH as usize * (48 + usize::from(BLOCKS) * 512), "all of them were hits");
        load.served.shard.io().keeps_sent = false;
        group.bench_function(name, |b| {
            b.iter(|| {
                load.batch();
                load.served.shard.turn();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, golden_hits);
criterion_main!(benches);
