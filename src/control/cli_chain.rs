//! The command line of the `image` commands that work on chains, as types.
//!
//! Knows what may be written there. Does not know what any of it does.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub struct MapArgs {
    /// The image: all its parents are looked at as well
    pub path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// One image
    pub a: PathBuf,
    /// The other
    pub b: PathBuf,
    /// Say nothing: the exit code tells, at the first difference
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SealArgs {
    /// The image: a regular file
    pub path: PathBuf,
    /// Read all of a sealed image and compare, whatever its time stamps say
    #[arg(long)]
    pub verify: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct UnsealArgs {
    /// The image
    pub path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
