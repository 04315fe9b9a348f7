//! The journal of one LUN's atomic writes: the blocks of one write, in a file that is made once and written in place.
//!
//! Knows the layout of that file, and what a crash may leave of it. Does not know whose journal it is, nor when its write
//! is done (`scsi`, `shard::atomic`).
//!
//! | bytes   | field                                                                       |
//! |---------|-----------------------------------------------------------------------------|
//! | 0..8    | `GRATOMIC`                                                                  |
//! | 8..12   | 1, the version                                                              |
//! | 12..16  | bytes of the data; 0: no write is written down                              |
//! | 16..24  | LBA of the first block                                                      |
//! | 24..28  | CRC32C of the bytes before it and of the data                               |
//! | 4096..  | the data, `ATOMIC_BYTES_MAX` at most                                         |
//!
//! Numbers are big-endian. All of the file is written when it is made, so a write into it changes nothing else in the file
//! system, and one fdatasync makes it stable: no name is changed, no block is allocated, no other file is waited for.
//!
//! What was cut off in the middle has a wrong sum, and is no write: nobody was told that it is there. A cleared journal
//! whose header has not reached the disk gives the same write once more after a power failure: that does no harm unless
//! something newer was stable by then, so a flush of the LUN waits until the journal is stable too (`shard::keep`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::limits;
use crate::scsi::KeptAtomic;
use crate::units::Lba;

const MAGIC: &[u8; 8] = b"GRATOMIC";
const VERSION: u32 = 1;
const SUMMED_BYTES: usize = 24;
const HEADER_BYTES: usize = 28;
const DATA_AT: u64 = 4096;
const FILE_BYTES: u64 = DATA_AT + limits::ATOMIC_BYTES_MAX as u64;

fn header(lba: Lba, data: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_be_bytes());
    header[12..16].copy_from_slice(&(data.len() as u32).to_be_bytes());
    header[16..24].copy_from_slice(&lba.0.to_be_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..SUMMED_BYTES]), data);
    header[24..].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The write these bytes hold; `None`: none, or not all of one.
fn parse(bytes: &[u8]) -> Option<KeptAtomic> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (lba, _) = rest.split_first_chunk::<8>()?;
    let len = u32::from_be_bytes(*len) as usize;
    if magic != MAGIC || u32::from_be_bytes(*version) != VERSION || len == 0 || len > limits::ATOMIC_BYTES_MAX
    {
        return None;
    }
    let lba = Lba(u64::from_be_bytes(*lba));
    let data = bytes.get(DATA_AT as usize..)?.get(..len)?;
    (bytes.get(..HEADER_BYTES)? == header(lba, data)).then(|| KeptAtomic::new(lba, data))
}

/// A journal that is open.
#[derive(Debug)]
pub(super) struct AtomicJournal(File);

impl AtomicJournal {
    /// Makes the file if need be.
    ///
    /// # Errors
    /// It cannot be opened, or there is no room for all of it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() < FILE_BYTES {
            // Zeros that are written: a hole would be allocated later.
            file.write_all_at(&vec![0; FILE_BYTES as usize], 0)?;
            file.sync_all()?;
            if let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(Self(file))
    }

    /// Writes a write down; stable when this returns.
    ///
    /// # Errors
    /// It is not stable, and may be there or not.
    pub(super) fn store(&self, atomic: &KeptAtomic) -> io::Result<()> {
        self.0.write_all_at(atomic.data(), DATA_AT)?;
        self.0.write_all_at(&header(atomic.lba(), atomic.data()), 0)?;
        self.settle()
    }

    /// Nothing is written down any more; stable after [`Self::settle`].
    ///
    /// # Errors
    /// It may still be there.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.0.write_all_at(&header(Lba(0), &[]), 0)
    }

    /// # Errors
    /// What was written last may be there or not.
    pub(super) fn settle(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// The write that a journal holds; `None` also without a file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn load(path: &Path) -> io::Result<Option<KeptAtomic>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(parse(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file_of(atomic: &KeptAtomic) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES as usize];
        bytes[..HEADER_BYTES].copy_from_slice(&header(atomic.lba(), atomic.data()));
        bytes[DATA_AT as usize..][..atomic.data().len()].copy_from_slice(atomic.data());
        bytes
    }

    #[test]
    fn a_write_is_there_until_it_is_cleared_and_the_file_never_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.atomic");
        assert_eq!(load(&path).unwrap(), None);
        for len in [limits::ATOMIC_BYTES_MAX, 512] {
            let atomic = KeptAtomic::new(Lba(7), &vec![0xA5; len]);
            let journal = AtomicJournal::open(&path).unwrap();
            assert_eq!(load(&path).unwrap(), None, "of what is longer nothing is left");
            journal.store(&atomic).unwrap();
            assert_eq!(load(&path).unwrap(), Some(atomic));
            assert_eq!(path.metadata().unwrap().len(), FILE_BYTES);
            journal.clear().unwrap();
            assert_eq!(load(&path).unwrap(), None);
        }
    }

    #[test]
    fn a_file_that_was_not_finished_is_made_again_and_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.atomic");
        std::fs::write(&path, &file_of(&KeptAtomic::new(Lba(1), &[1; 512]))[..5000]).unwrap();
        assert!(load(&path).unwrap().is_some(), "its data is all there");
        std::fs::write(&path, [0; 100]).unwrap();
        assert_eq!(load(&path).unwrap(), None);
        AtomicJournal::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), FILE_BYTES);
    }

    #[test]
    fn damage_anywhere_is_no_write() {
        let whole = file_of(&KeptAtomic::new(Lba(7), &[0xA5; 1024]));
        assert!(parse(&whole).is_some());
        for at in (0..HEADER_BYTES).chain([4096, 4600, 4096 + 1023]) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(parse(&damaged), None, "byte {at}");
        }
        for len in [0, 27, 4096, 4096 + 1023] {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        /// A power failure between two writes leaves any of their sectors, each old or new: the old write, the new one or
        /// none, and never a mixture.
        #[test]
        fn what_a_crash_leaves_is_one_write_or_none(
            before in prop::collection::vec(any::<u8>(), 0..3), now in any::<u8>(), kept in prop::collection::vec(any::<bool>(), 16)
        ) {
            let write = |byte: u8, sectors: usize| KeptAtomic::new(Lba(u64::from(byte)), &vec![byte; sectors * 512]);
            let old = before.first().map(|byte| write(*byte, 1 + before.len()));
            let new = write(now, 3);
            let (mut bytes, after) = (old.as_ref().map_or_else(|| vec![0; FILE_BYTES as usize], file_of), file_of(&new));
            for (at, is_new) in (0..bytes.len()).step_by(512).zip(kept) {
                if is_new {
                    bytes[at..at + 512].copy_from_slice(&after[at..at + 512]);
                }
            }
            let found = parse(&bytes);
            prop_assert!(found.is_none() || found == old || found.as_ref() == Some(&new));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..6000), real in any::<bool>()) {
            if real && bytes.len() > 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
            }
            prop_assert_eq!(parse(&bytes), None, "a sum of 32 bits is not met by chance");
        }
    }
}
