//! Files of other writers: every VHDX row of the corpus manifest, its verdict and its content.
//!
//! Verdicts as in `vhd_corpus`. An image whose log is not empty is replayed in memory here, and in the file in the
//! test that says so.

use crate::blocking::{Disk, Store, run_meta_op};
use crate::vhd_corpus::{Row, content_sha, rows, unpack};
use goldrush::image::{Chain, Images, Layer};
use goldrush::parent_path::ParentOrigin;
use goldrush::plan::{FileSlot, OpenMode};
use goldrush::vhdx::{OpenError, VhdxErrorKind, VhdxImage, open_with, replay_with};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

fn open(file: &File, mode: OpenMode) -> Result<VhdxImage, OpenError<io::Error>> {
    open_with(Store::len(file), mode, |offset, bytes| Store::read_at(file, offset, bytes))
}

/// Where the locator says the parent is, relative to the child. What the control plane does, in small.
fn parent_path(child: &Path, image: &VhdxImage) -> Result<PathBuf, String> {
    let parent = image.parent().ok_or("no parent")?;
    let relative = parent.candidates.iter().find(|candidate| candidate.origin == ParentOrigin::Relative);
    let relative = relative.ok_or("no relative path")?;
    let path = child.parent().unwrap().join(&relative.path);
    if path.exists() { Ok(path) } else { Err("the parent was not found".to_owned()) }
}

fn open_chain(path: &Path) -> Result<Disk<File>, String> {
    let mut images = Images::new();
    let (mut files, mut layers) = (Vec::new(), Vec::new());
    let mut next = Some(path.to_path_buf());
    while let Some(path) = next.take() {
        assert!(files.len() < 8, "the chain does not end");
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let mut image = open(&file, OpenMode::ReadOnly).map_err(|error| error.to_string())?;
        // So few that they are forgotten all the time.
        image.limit_bitmaps(1);
        if image.parent().is_some() {
            next = Some(parent_path(&path, &image)?);
        }
        layers.push(images.add(Layer::vhdx(FileSlot(files.len() as u32), image)));
        files.push(file);
    }
    let chain = Chain::new(&images, layers).map_err(|error| error.to_string())?;
    Ok(Disk { images, chain, files })
}

/// `None`: the row's verdict holds.
fn complaint(root: &Path, row: &Row) -> Option<String> {
    let opened = open_chain(&root.join(&row.file));
    let verdict = row.verdict.split(':').next().unwrap_or_default();
    let mut disk = match (verdict, opened) {
        ("reject", Err(_)) | ("either", Err(_)) => return None,
        ("reject", Ok(_)) => return Some("was opened".to_owned()),
        (_, Err(error)) => return Some(format!("was refused: {error}")),
        (_, Ok(disk)) => disk,
    };
    if row.size.is_some_and(|size| size != disk.sectors() * 512) {
        return Some(format!("has {} sectors", disk.sectors()));
    }
    let sha = content_sha(&mut disk);
    // Of a sequence that ends early only that reading it does no harm is known.
    let unknown = row.sha.is_empty() && verdict == "either";
    (!unknown && sha != row.sha && sha != row.alt_sha).then(|| format!("has content {sha}"))
}

#[test]
fn every_vhdx_of_the_corpus_gets_its_verdict_and_content() {
    let folder = unpack();
    let rows = rows("vhdx");
    let mut complaints = Vec::new();
    for row in &rows {
        if let Some(complaint) = complaint(folder.path(), row) {
            complaints.push(format!("{} ({}) {complaint}", row.file, row.verdict));
        }
    }
    println!("{} VHDX rows checked", rows.len());
    assert_eq!(rows.len(), 52);
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), rows.len(), complaints.join("\n"));
}

#[test]
fn a_log_is_replayed_into_the_file_before_it_is_opened_for_writing() {
    let folder = unpack();
    let mut replayed = 0;
    for row in rows("vhdx").iter().filter(|row| row.verdict == "open") {
        let path = folder.path().join(&row.file);
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        let read = |file: &File| {
            let len = Store::len(file);
            replay_with(len, |offset, bytes| Store::read_at(file, offset, bytes)).unwrap()
        };
        let batches = read(&file);
        match open(&file, OpenMode::Writable) {
            Ok(_) => assert!(batches.is_empty(), "{}", row.file),
            Err(OpenError::Vhdx(error)) => assert_eq!(error.kind, VhdxErrorKind::LogPending, "{}", row.file),
            Err(error) => panic!("{}: {error}", row.file),
        }
        if batches.is_empty() {
            continue;
        }
        for batch in &batches {
            for op in &batch.ops {
                run_meta_op(&mut file, op, &batch.bytes);
            }
        }
        assert!(read(&file).is_empty(), "{}: the log is not empty afterwards", row.file);
        assert!(!open(&file, OpenMode::Writable).unwrap().needs_replay());
        assert_eq!(content_sha(&mut open_chain(&path).unwrap()), row.sha, "{}", row.file);
        replayed += 1;
    }
    assert!(replayed >= 2, "{replayed}");
}
