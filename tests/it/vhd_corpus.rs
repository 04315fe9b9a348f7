//! Files of other writers: every VHD row of the corpus manifest, its verdict and its content.
//!
//! Verdicts: `open`, `recover` (with a warning, read-only until repaired), `warn` (parent time stamp), `reject:why`,
//! `either:why` (refused, or the listed content).

use crate::blocking::{Disk, Store, open, range};
use goldrush::image::{Chain, Images, Layer};
use goldrush::plan::FileSlot;
use goldrush::vhd::check::check;
use goldrush::vhd::create::timestamp_from_unix;
use goldrush::vhd::parent_locator::{ParentOrigin, PathShape};
use goldrush::vhd::repair::plan;
use goldrush::vhd::{OpenMode, VhdImage};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

pub struct Row {
    pub file: String,
    pub verdict: String,
    pub size: Option<u64>,
    pub sha: String,
    pub alt_sha: String,
}

pub fn rows(format: &str) -> Vec<Row> {
    let manifest = include_str!("../corpus/MANIFEST.tsv");
    let rows = manifest.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter(|fields| fields[2] == format)
        .map(|fields| Row {
            file: fields[0].to_owned(),
            verdict: fields[1].to_owned(),
            size: fields[4].parse().ok(),
            sha: fields[8].to_owned(),
            alt_sha: fields[9].to_owned(),
        })
        .collect()
}

pub fn unpack() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    unpack_into(folder.path());
    folder
}

/// All VHDs and VHDXs of the corpus, as sparse as they were packed, with their modification times.
pub fn unpack_into(folder: &Path) {
    let packed = include_bytes!("../corpus/vhd-corpus.tar.zst");
    let unpacked = zstd::stream::read::Decoder::new(&packed[..]).unwrap();
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = folder.join(entry.path().unwrap());
        if entry.header().entry_type().is_dir() {
            std::fs::create_dir_all(&path).unwrap();
        } else if path.extension().is_some_and(|extension| extension == "vhd" || extension == "vhdx") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(&path).unwrap();
            copy_sparse(&mut entry, &file);
            let seconds = std::time::Duration::from_secs(entry.header().mtime().unwrap());
            file.set_modified(std::time::UNIX_EPOCH + seconds).unwrap();
        }
    }
}

/// The images are mostly holes, and stay so.
fn copy_sparse(from: &mut impl Read, to: &File) {
    let mut piece = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let len = from.read(&mut piece).unwrap();
        if len == 0 {
            break;
        }
        if piece[..len].iter().any(|byte| *byte != 0) {
            to.write_all_at(&piece[..len], at).unwrap();
        }
        at += len as u64;
    }
    to.set_len(at).unwrap();
}

/// The path below `root` that a locator names, as long as it stays there. What the control plane does, in small.
fn parent_path(root: &Path, child: &Path, image: &VhdImage) -> Result<PathBuf, String> {
    let parent = image.parent().ok_or("no parent")?;
    let folder = child.parent().unwrap();
    for candidate in &parent.candidates {
        match candidate.shape() {
            PathShape::Unc => return Err("a UNC path is not followed".to_owned()),
            PathShape::Relative if candidate.origin == ParentOrigin::Relative => {
                let mut path = folder.to_path_buf();
                for component in Path::new(&candidate.path).components() {
                    match component {
                        Component::Normal(name) => path.push(name),
                        Component::ParentDir => {
                            path.pop();
                            if !path.starts_with(root) {
                                return Err("the parent lies outside the image folder".to_owned());
                            }
                        }
                        _ => {}
                    }
                }
                if path.exists() {
                    return Ok(path);
                }
            }
            _ => {
                if let Some(path) =
                    candidate.base_name().map(|name| folder.join(name)).filter(|path| path.exists())
                {
                    return Ok(path);
                }
            }
        }
    }
    Err("the parent was not found".to_owned())
}

/// Opens a file and all its parents; also whether each parent's time stamp is the expected one.
fn open_chain(root: &Path, path: &Path) -> Result<(Disk<File>, bool), String> {
    let mut images = Images::new();
    let (mut files, mut layers, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let mut times_good = true;
    let mut next = Some(path.to_path_buf());
    let mut wanted_time = None;
    while let Some(path) = next.take() {
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let metadata = file.metadata().unwrap();
        if seen.contains(&metadata.ino()) {
            return Err("the parent links form a circle".to_owned());
        }
        seen.push(metadata.ino());
        let image = open(&file, OpenMode::ReadOnly).map_err(|error| error.to_string())?;
        if let Some(wanted) = wanted_time {
            let mtime = timestamp_from_unix(metadata.mtime() as u64);
            times_good &= wanted == mtime || wanted == image.timestamp();
        }
        wanted_time = image.parent().map(|parent| parent.timestamp);
        if image.parent().is_some() {
            next = Some(parent_path(root, &path, &image)?);
        }
        layers.push(images.add(Layer::vhd(FileSlot(files.len() as u32), image)));
        files.push(file);
    }
    let chain = Chain::new(&images, layers).map_err(|error| error.to_string())?;
    Ok((Disk { images, chain, files }, times_good))
}

pub fn content_sha(disk: &mut Disk<File>) -> String {
    let mut sha = Sha256::new();
    let sectors = disk.sectors();
    let mut at = 0;
    while at < sectors {
        let count = (sectors - at).min(8192);
        sha.update(disk.read(range(at, count)));
        at += count;
    }
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn last_sector_sha(disk: &mut Disk<File>) -> String {
    let bytes = disk.read(range(disk.sectors() - 1, 1));
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `None`: the row's verdict holds.
fn complaint(root: &Path, row: &Row) -> Option<String> {
    let opened = open_chain(root, &root.join(&row.file));
    let verdict = row.verdict.split(':').next().unwrap_or_default();
    let (mut disk, times_good) = match (verdict, opened) {
        ("reject", Err(_)) | ("either", Err(_)) => return None,
        ("reject", Ok(_)) => return Some("was opened".to_owned()),
        (_, Err(error)) => return Some(format!("was refused: {error}")),
        (_, Ok(opened)) => opened,
    };
    let leaf = disk.images.layer(disk.chain.leaf()).unwrap().as_vhd().unwrap();
    if (verdict == "recover") != leaf.needs_repair() && verdict != "either" {
        return Some(format!("needs repair: {}", leaf.needs_repair()));
    }
    if (verdict == "warn") == times_good && verdict != "either" && row.file.starts_with("bad/diff-parent") {
        return Some(format!("time stamps good: {times_good}"));
    }
    if row.size.is_some_and(|size| size != disk.sectors() * 512) {
        return Some(format!("has {} sectors", disk.sectors()));
    }
    if row.sha.is_empty() {
        let manifest = include_str!("../corpus/MANIFEST.tsv");
        let sha = last_sector_sha(&mut disk);
        return (!manifest.contains(&sha)).then(|| format!("last sector has {sha}"));
    }
    let sha = content_sha(&mut disk);
    (sha != row.sha && sha != row.alt_sha).then(|| format!("has content {sha}"))
}

#[test]
fn every_vhd_of_the_corpus_gets_its_verdict_and_content() {
    let folder = unpack();
    let rows = rows("vhd");
    let mut complaints = Vec::new();
    for row in &rows {
        if let Some(complaint) = complaint(folder.path(), row) {
            complaints.push(format!("{} ({}) {complaint}", row.file, row.verdict));
        }
    }
    println!("{} VHD rows checked", rows.len());
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), rows.len(), complaints.join("\n"));
}

#[test]
fn good_images_check_clean_and_damaged_ones_do_not() {
    let folder = unpack();
    for row in rows("vhd") {
        // What the check does not judge: links to parents, time stamps, bounds of opening that are a matter of taste.
        let structural =
            row.verdict == "open" || row.verdict == "recover" || row.file == "bad/dyn-bitmap-clear-data.vhd";
        if !structural || row.size.is_some_and(|size| size > 1 << 36) {
            continue;
        }
        let file = File::open(folder.path().join(&row.file)).unwrap();
        let report = check(Store::len(&file), |offset, bytes| Store::read_at(&file, offset, bytes)).unwrap();
        let locators_only = report.findings.iter().all(|finding| {
            finding.sentence.contains("locator") || finding.severity == goldrush::vhd::check::Severity::Info
        });
        assert_eq!(locators_only, row.verdict == "open", "{} {:?}", row.file, report.findings);
    }
}

#[test]
fn recovered_images_open_for_writing_only_after_repair() {
    let folder = unpack();
    let mut repaired = 0;
    for row in rows("vhd").iter().filter(|row| row.verdict == "recover") {
        let path = folder.path().join(&row.file);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(open(&file, OpenMode::Writable).is_err(), "{}", row.file);
        let read = |offset, bytes: &mut [u8]| Store::read_at(&file, offset, bytes);
        let plan = plan(Store::len(&file), read, |_| false).unwrap();
        assert!(!plan.loses_data() && plan.copies.is_empty(), "{}: {:?}", row.file, plan.steps);
        for write in plan.stages.iter().flatten() {
            file.write_all_at(&write.bytes, write.offset).unwrap();
        }
        open(&file, OpenMode::Writable).unwrap();
        let (mut disk, _) = open_chain(folder.path(), &path).unwrap();
        assert_eq!(content_sha(&mut disk), row.sha, "{}", row.file);
        repaired += 1;
    }
    assert!(repaired >= 7, "{repaired}");
}

#[test]
fn writes_into_images_of_other_writers_keep_the_rest() {
    let folder = unpack();
    let mut written = 0;
    for row in rows("vhd").iter().filter(|row| row.verdict == "open" && !row.sha.is_empty()) {
        let path = folder.path().join(&row.file);
        let Ok((mut before, _)) = open_chain(folder.path(), &path) else { panic!("{}", row.file) };
        let sectors = before.sectors();
        let mut expected = before.read(range(0, sectors));
        let mut files = before.files;
        files[0] = File::options().read(true).write(true).open(&path).unwrap();
        let mut disk = Disk::open(files, OpenMode::Writable).unwrap();
        for (index, start) in [1, sectors / 3, sectors / 2 + 5, sectors - 9].into_iter().enumerate() {
            let bytes = vec![index as u8 + 1; 8 * 512];
            disk.write(start, &bytes).unwrap();
            expected[start as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
        }
        disk.write_zeros(sectors / 2, 40).unwrap();
        expected[sectors as usize / 2 * 512..][..40 * 512].fill(0);
        assert!(disk.read(range(0, sectors)) == expected, "{} before closing", row.file);
        let files = disk.close();
        let leaf = &files[0];
        let report = check(Store::len(leaf), |offset, bytes| Store::read_at(leaf, offset, bytes)).unwrap();
        assert!(report.is_clean() || row.file.contains("loc"), "{} {:?}", row.file, report.findings);
        let mut disk = Disk::open(files, OpenMode::ReadOnly).unwrap();
        assert!(disk.read(range(0, sectors)) == expected, "{} after closing", row.file);
        written += 1;
    }
    println!("{written} images written");
    assert!(written >= 30, "{written}");
}
