//! The golden image of a storm: stamps wherever the boot reads, holes elsewhere.
//!
//! Knows files. Does not know servers or nodes.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};

use super::Script;
use crate::ceiling::SEED;
use crate::fail::{Result, failure};
use crate::pattern;
use crate::scsi::SECTOR;

/// A dynamic VHD allocates so much at once; an image is no emptier than that.
const BLOCK_SECTORS: u64 = (2 << 20) / SECTOR;

/// The files of one golden image.
#[derive(Debug, Clone)]
pub(crate) struct Golden {
    pub(crate) raw: PathBuf,
    pub(crate) image: PathBuf,
}

impl Golden {
    /// Makes the raw file and, by the server's own program, the VHD. The stamps are those of the ceiling's memory.
    pub(crate) fn make(script: &Script, dir: &Path, goldrush: &Path) -> Result<Golden> {
        let golden = Golden { raw: dir.join("golden.raw"), image: dir.join("golden.vhd") };
        write_raw(script, &golden.raw).map_err(|e| {
            failure!("cannot write {}: {e}; free some space or choose another --dir", golden.raw.display())
        })?;
        let arguments = ["image", "convert", "--type", "dynamic"];
        let output = Command::new(goldrush).args(arguments).arg(&golden.raw).arg(&golden.image).output();
        let program = goldrush.display();
        let output =
            output.map_err(|e| failure!("cannot run {program}: {e}; build it, or give --goldrush PATH"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(failure!("{program} image convert ended with {}: {said}", output.status));
        }
        Ok(golden)
    }
}

fn write_raw(script: &Script, path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; (BLOCK_SECTORS * SECTOR) as usize];
    // A disk ends where a VHD's geometry can tell it: at whole megabytes.
    let sectors = script.sectors.next_multiple_of(2048);
    for number in script.runs_read(BLOCK_SECTORS) {
        let lba = number * BLOCK_SECTORS;
        let len = (BLOCK_SECTORS.min(sectors - lba) * SECTOR) as usize;
        pattern::stamp_bytes(SEED, lba * SECTOR, &mut block[..len]);
        file.seek(SeekFrom::Start(lba * SECTOR))?;
        file.write_all(&block[..len])?;
    }
    file.set_len(sectors * SECTOR)
}

/// Lets the kernel forget what it holds of a file, so that the next reader goes to the disk.
pub(crate) fn forget(path: &Path) -> Result<()> {
    let told = |e: &dyn std::fmt::Display| {
        failure!("cannot take {} out of the page cache: {e}; start with a cold one by hand", path.display())
    };
    let file = fs::File::open(path).map_err(|e| told(&e))?;
    // Dirty pages would stay.
    file.sync_all().map_err(|e| told(&e))?;
    fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| told(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_raw_image_holds_stamps_where_the_boot_reads() {
        let text = "time_us,op,lba,blocks,session\n1,R,5000,8,loader1\n2,W,20000,8,os1\n";
        let script = Script::of(&Trace::parse(text).unwrap());
        let path = std::env::temp_dir().join(format!("perf-storm-golden-{}", std::process::id()));
        write_raw(&script, &path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 20480 * SECTOR);
        let (mut got, mut expected) = ([0; 512], [0; 512]);
        file.read_exact_at(&mut got, 5007 * SECTOR).unwrap();
        pattern::stamp(SEED, 5007, &mut expected);
        assert_eq!(got, expected);
        file.read_exact_at(&mut got, 20000 * SECTOR).unwrap();
        assert_eq!(got, [0; 512]);
        forget(&path).unwrap();
        fs::remove_file(&path).unwrap();
    }
}
