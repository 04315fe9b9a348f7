//! Moving the data of one disk into a new file, several pieces at a time.
//!
//! Knows reads, zeros and writes. Reads run on a ring of its own (tokio-uring), several at a time, or as blocking calls
//! where the kernel gives no ring. Writes go to the page cache, which a plain call does sooner than a ring: most file
//! systems cannot begin such a write without waiting, so that a ring hands each to another thread. Does not know which piece comes next (`block_io`) nor the format written (`vhd::build`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use tokio_uring::buf::BoundedBuf;

use super::block_io::{PIECE_BYTES, Piece, Pieces, nonzero_runs};
use super::error::Error;
use super::file::{FileIdentity, OpenedFile};
use super::open_image::OpenError;
use crate::vhd::build::Builder;
use crate::vhdx;

/// Zeros are left out in steps of this many bytes: a page of the file.
const GRAIN_BYTES: usize = 4096;
/// Pieces in flight.
const IN_FLIGHT: usize = 8;

/// Where data goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// To the offset it has on the disk.
    Flat,
    /// Into blocks.
    Blocks(Builder),
    /// Into blocks of a VHDX.
    VhdxBlocks(vhdx::build::Builder),
}

/// A write: a range of the piece's bytes, or a bitmap, and its place in the file.
enum Write {
    Data { start: usize, end: usize, offset: u64 },
    Bitmap { bytes: Vec<u8>, offset: u64 },
}

impl Sink {
    /// The writes for the parts of a piece that are not zero.
    fn writes(&mut self, disk_offset: u64, bytes: &[u8], path: &Path) -> Result<Vec<Write>, Error> {
        let mut writes = Vec::new();
        for (start, end) in nonzero_runs(bytes, GRAIN_BYTES) {
            let at = disk_offset + start as u64;
            let offset = match self {
                Self::Flat => at,
                Self::Blocks(builder) => {
                    let refused = |error| Error::Failed(format!("{}: {error}", path.display()));
                    let placed = builder.place(at).map_err(refused)?;
                    writes.extend(placed.bitmap.map(|(offset, bytes)| Write::Bitmap { bytes, offset }));
                    placed.offset.0
                }
                Self::VhdxBlocks(builder) => {
                    let refused = |error| Error::Failed(format!("{}: {error}", path.display()));
                    builder.place(at).map_err(refused)?.0
                }
            };
            writes.push(Write::Data { start, end, offset });
        }
        Ok(writes)
    }
}

/// Copies all pieces. `progress` hears how far the source has been handed out, in bytes.
pub(super) fn run(
    pieces: &mut Pieces,
    sink: &mut Sink,
    into: &File,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let builder = tokio_uring::builder();
    match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => runtime.block_on(on_a_ring(pieces, sink, into, path, progress)),
        Err(error) => {
            tracing::debug!(%error, "no io_uring for this process: copying with blocking calls");
            blocking(pieces, sink, into, path, progress)
        }
    }
}

fn read_failed(piece: &Piece) -> impl FnOnce(std::io::Error) -> Error {
    let (path, offset, len) = (piece.file.path().to_owned(), piece.file_offset, piece.len);
    move |source| OpenError::Read { path, offset, len, source }.into()
}

fn blocking(
    pieces: &mut Pieces,
    sink: &mut Sink,
    into: &File,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let mut buffer = vec![0; PIECE_BYTES as usize];
    while let Some(piece) = pieces.next()? {
        let bytes = &mut buffer[..piece.len];
        piece.file.read_at(piece.file_offset, bytes).map_err(read_failed(&piece))?;
        put(sink, piece.disk_offset, bytes, into, path)?;
        progress(pieces.position());
    }
    Ok(())
}

/// Writes the parts of a piece that are not zero.
fn put(sink: &mut Sink, disk_offset: u64, bytes: &[u8], into: &File, path: &Path) -> Result<(), Error> {
    for write in sink.writes(disk_offset, bytes, path)? {
        let written = match write {
            Write::Data { start, end, offset } => into.write_all_at(&bytes[start..end], offset),
            Write::Bitmap { bytes, offset } => into.write_all_at(&bytes, offset),
        };
        written.map_err(Error::io(path, "writing"))?;
    }
    Ok(())
}

/// What the workers of one copy share; they run on one thread and hold it only between two waits.
struct Shared<'a> {
    pieces: &'a mut Pieces,
    sink: &'a mut Sink,
    sources: HashMap<FileIdentity, Rc<tokio_uring::fs::File>>,
    progress: &'a dyn Fn(u64),
    failed: bool,
}

impl Shared<'_> {
    /// The next piece, unless a worker has failed.
    fn next(&mut self) -> Result<Option<(Piece, Rc<tokio_uring::fs::File>)>, Error> {
        if self.failed {
            return Ok(None);
        }
        let Some(piece) = self.pieces.next()? else { return Ok(None) };
        (self.progress)(self.pieces.position());
        let source = self.source(&piece.file)?;
        Ok(Some((piece, source)))
    }

    fn source(&mut self, file: &OpenedFile) -> Result<Rc<tokio_uring::fs::File>, Error> {
        if let Some(source) = self.sources.get(&file.identity()) {
            return Ok(source.clone());
        }
        let own = file.file().try_clone().map_err(Error::io(file.path(), "opening again"))?;
        let source = Rc::new(tokio_uring::fs::File::from_std(own));
        self.sources.insert(file.identity(), source.clone());
        Ok(source)
    }
}

async fn on_a_ring(
    pieces: &mut Pieces,
    sink: &mut Sink,
    into: &File,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let shared = RefCell::new(Shared { pieces, sink, sources: HashMap::new(), progress, failed: false });
    let workers = (0..IN_FLIGHT).map(|_| Box::pin(worker(&shared, into, path))).collect();
    all(workers).await
}

/// Polls all futures until each is done; the first error is the answer.
async fn all<F: Future<Output = Result<(), Error>> + Unpin>(mut workers: Vec<F>) -> Result<(), Error> {
    let mut result = Ok(());
    std::future::poll_fn(move |context| {
        workers.retain_mut(|worker| match std::pin::Pin::new(worker).poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(outcome) => {
                if result.is_ok() {
                    result = outcome;
                }
                false
            }
        });
        if workers.is_empty() {
            std::task::Poll::Ready(std::mem::replace(&mut result, Ok(())))
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

/// Reads and writes one piece after the other. A worker that fails lets the others finish what they have.
async fn worker(shared: &RefCell<Shared<'_>>, into: &File, path: &Path) -> Result<(), Error> {
    let mut buffer = vec![0; PIECE_BYTES as usize];
    loop {
        // Taken on a line of its own: the borrow must end before the wait.
        let next = shared.borrow_mut().next();
        let step = match next {
            Ok(None) => return Ok(()),
            Ok(Some((piece, source))) => copy_piece(shared, &piece, &source, buffer, into, path).await,
            Err(error) => Err(error),
        };
        match step {
            Ok(back) => buffer = back,
            Err(error) => {
                shared.borrow_mut().failed = true;
                return Err(error);
            }
        }
    }
}

async fn copy_piece(
    shared: &RefCell<Shared<'_>>,
    piece: &Piece,
    source: &tokio_uring::fs::File,
    mut buffer: Vec<u8>,
    into: &File,
    path: &Path,
) -> Result<Vec<u8>, Error> {
    let (result, slice) = source.read_exact_at(buffer.slice(..piece.len), piece.file_offset).await;
    buffer = slice.into_inner();
    result.map_err(read_failed(piece))?;
    // The other reads go on in the kernel meanwhile.
    put(shared.borrow_mut().sink, piece.disk_offset, &buffer[..piece.len], into, path)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::block_io::ChainReader;
    use crate::control::file::{Access, Locking};
    use crate::control::open_image::Opener;

    const LEN: u64 = (5 << 20) + 512;

    fn source() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LEN).unwrap();
        for at in [0, 4096 * 7 + 512, PIECE_BYTES - 512, LEN - 512] {
            file.as_file().write_all_at(&[at as u8 | 1; 512], at).unwrap();
        }
        file
    }

    fn pieces(source: &Path) -> Pieces {
        let chain = Opener::anywhere(Locking::Ignore).open_chain(source, Access::ReadOnly).unwrap();
        Pieces::new(ChainReader::new(chain).unwrap())
    }

    #[test]
    fn with_a_ring_and_without_one_the_copy_is_the_same() {
        let source = source();
        type Copy = fn(&mut Pieces, &mut Sink, &File, &Path, &dyn Fn(u64)) -> Result<(), Error>;
        let copies: [Copy; 2] = [run, blocking];
        for copy in copies {
            let target = tempfile::NamedTempFile::new().unwrap();
            target.as_file().set_len(LEN).unwrap();
            let mut pieces = pieces(source.path());
            copy(&mut pieces, &mut Sink::Flat, target.as_file(), target.path(), &|_| {}).unwrap();
            assert!(std::fs::read(target.path()).unwrap() == std::fs::read(source.path()).unwrap());
        }
    }
}
