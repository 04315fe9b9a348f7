//! How a file is written: by the ring, or by threads.
//!
//! Knows what file systems do with a buffered write that must not wait. Does not write.
//!
//! The ring runs a write on the shard's own thread only where the file system takes a buffered write that must not wait.
//! XFS and btrfs do. ext4, tmpfs and most others refuse every one of them, whether it would have waited or not; the ring then
//! gives it to one of the kernel's worker threads, behind the flushes that keep those busy for milliseconds. Threads of our
//! own (`writers`) write as soon as they are given something, many writes in one go.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenBy {
    Ring,
    Threads,
}

/// What a file lies on and how it is written therefore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileWrites {
    pub by: WrittenBy,
    /// The file system, as people call it.
    pub on: &'static str,
}

/// File systems by the number that statfs gives, and whether they take buffered writes that must not wait. Those that are not
/// listed do not, as far as is known.
const FILE_SYSTEMS: [(u32, &str, bool); 9] = [
    (0x5846_5342, "XFS", true),
    (0x9123_683E, "btrfs", true),
    (0xEF53, "ext4", false),
    (0x0102_1994, "tmpfs", false),
    (0xF2F5_2010, "F2FS", false),
    (0x2FC1_2FC1, "ZFS", false),
    (0xCA45_1A4E, "bcachefs", false),
    (0x6969, "NFS", false),
    (0x794C_7630, "overlayfs", false),
];

impl FileWrites {
    /// Asks the kernel what the file lies on.
    pub fn of(file: &File) -> Self {
        let on_ring = |on| Self { by: WrittenBy::Ring, on };
        let is_regular = |file| {
            rustix::fs::fstat(file)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        };
        if !is_regular(file) {
            return on_ring("no file system");
        }
        if rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::DIRECT)) {
            return on_ring("a file opened for direct writes");
        }
        let kind = rustix::fs::fstatfs(file).map_or(0, |stat| stat.f_type as u32);
        Self::on(kind)
    }

    /// Of a file that will be made in this folder, or in one that will be made there.
    pub fn in_folder(folder: &Path) -> Self {
        let kind = folder.ancestors().find_map(|folder| rustix::fs::statfs(named(folder)).ok());
        Self::on(kind.map_or(0, |stat| stat.f_type as u32))
    }

    fn on(kind: u32) -> Self {
        let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == kind);
        match known.copied() {
            Some((_, on, true)) => Self { by: WrittenBy::Ring, on },
            Some((_, on, false)) => Self { by: WrittenBy::Threads, on },
            None => Self { by: WrittenBy::Threads, on: "another file system" },
        }
    }
}

/// The folder of a bare name is the current one.
fn named(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn only_file_systems_known_to_take_them_get_writes_from_the_ring() {
        assert_eq!(FileWrites::on(0x5846_5342), FileWrites { by: WrittenBy::Ring, on: "XFS" });
        assert_eq!(FileWrites::on(0xEF53), FileWrites { by: WrittenBy::Threads, on: "ext4" });
        assert_eq!(FileWrites::on(0).by, WrittenBy::Threads);
    }

    #[test]
    fn what_is_no_file_is_left_to_the_ring() {
        let event: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(FileWrites::of(&File::from(event)).by, WrittenBy::Ring);
    }

    #[test]
    fn memory_is_written_by_threads() {
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return println!("SKIPPED: no /dev/shm") };
        let expected = FileWrites { by: WrittenBy::Threads, on: "tmpfs" };
        assert_eq!(FileWrites::of(&file), expected);
        assert_eq!(FileWrites::in_folder(Path::new("/dev/shm/none/yet")), expected);
    }
}
