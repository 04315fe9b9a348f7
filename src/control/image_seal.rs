//! `goldrush image seal` and `unseal`: a golden image becomes read-only and fingerprinted, or stops being it.
//!
//! Knows what to check and what to say. Does not know what a seal is made of (`seal`). Works beside a server that
//! reads the image: nothing of its content changes.

use std::path::Path;

use serde::Serialize;

use super::cli_chain::{SealArgs, UnsealArgs};
use super::error::{Error, print};
use super::file::{Access, Locking, OpenedFile};
use super::open_image::{OpenError, OpenedLayer, Opener};
use super::seal::{self, Seal, Sealed};

#[derive(Debug, Serialize)]
struct SealReport {
    path: String,
    sealed: bool,
    /// The seal's file.
    seal: String,
    blake3: Option<String>,
}

/// Runs `image seal`.
pub(super) fn run(args: &SealArgs) -> Result<(), Error> {
    // Opening compares a seal that is there already, and the parents' seals.
    let chain = Opener::anywhere(Locking::Hold).open_chain(&args.path, Access::ReadOnly)?;
    for parent in chain.layers().iter().skip(1) {
        seal::suggest(parent.file().path());
    }
    let (seal, said) = if !seal::is_sealed(&args.path) {
        (seal_layer(chain.leaf())?, "sealed")
    } else if args.verify {
        let seal = seal::verify(chain.leaf().file(), true).map_err(OpenError::Seal)?;
        (found(seal, &args.path)?, "all bytes are as they were sealed")
    } else {
        (found(seal::read(&args.path).map_err(OpenError::Seal)?, &args.path)?, "sealed already")
    };
    let blake3 = seal.blake3;
    let path = args.path.display();
    if args.json {
        return report(&args.path, true, Some(blake3));
    }
    print(|out| writeln!(out, "{path}: {said}, BLAKE3 {blake3}"))
}

/// A seal that was there a moment ago.
fn found(seal: Option<Seal>, path: &Path) -> Result<Seal, Error> {
    seal.ok_or_else(|| Error::Failed(format!("{}: its seal has just been removed", path.display())))
}

/// Seals the image of an open layer.
pub(super) fn seal_layer(layer: &OpenedLayer) -> Result<Seal, Error> {
    // What children name.
    let id = layer.id();
    let unique_id = id.map(|id| id.to_string());
    seal::make(layer.file(), Sealed { format: layer.format().name(), unique_id })
}

/// Runs `image unseal`.
pub(super) fn unseal(args: &UnsealArgs) -> Result<(), Error> {
    // The file alone: what is unsealed may have been changed, and its parents may be gone.
    let file = OpenedFile::open(&args.path, Access::ReadOnly, Locking::Hold).map_err(OpenError::from)?;
    let was = seal::is_sealed(&args.path);
    if was {
        seal::remove(&file)?;
    }
    if args.json {
        return report(&args.path, false, None);
    }
    let said = if was { "no longer sealed: its children rely on it all the same" } else { "is not sealed" };
    print(|out| writeln!(out, "{}: {said}", args.path.display()))
}

fn report(path: &Path, sealed: bool, blake3: Option<String>) -> Result<(), Error> {
    let seal = seal::seal_path(path).display().to_string();
    let report = SealReport { path: path.display().to_string(), sealed, seal, blake3 };
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)
    })
}
