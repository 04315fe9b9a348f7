//! The command line of the `trace` commands, as types.
//!
//! Knows what may be written there, and its help. Does not know what any of it does.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Below the options of `trace`.
pub(super) const TRACE: &str = "\
What a boot trace is:
  The pages of a golden image that nodes read while they boot, in order. A server records the first boots of a golden
  image by itself and keeps their trace as NAME.boot-trace beside it (in its state folder where that cannot be written).
  Later it reads ahead of booting nodes along the trace, and with --warm all of it before it lets anybody in. A
  trace belongs to one version of the image: after a change it is not used, and recorded anew.

Examples:
  goldrush trace show golden.vhd
  goldrush trace show golden.vhd --json | jq '.ranges[0]'
  goldrush trace replay golden.vhd
  goldrush trace forget golden.vhd

JSON:
  show: {trace, golden_bytes, boots, settled, bytes, usual_bytes, fits: bool or null, ranges: [{offset, bytes, boots}...]}
  replay: {trace, bytes, reads, seconds}
  forget: {removed: [path...]}

Exit codes:
  0  done
  1  there is no trace, or it is damaged or of another version of the image; replay: the image cannot be read
  2  wrong usage";

#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Describe a boot trace
    Show(ShowArgs),
    /// Read what a trace names, as a server does before its nodes boot, and say how long it takes
    ///
    /// Reads past the kernel's page cache where the file system takes it. Nothing is written, and a server that has the
    /// image open is not disturbed but for the disk.
    Replay(ReplayArgs),
    /// Remove the trace of a golden image: the next boots are recorded anew
    ///
    /// A running server goes on with the trace it has.
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub struct TraceFolderArgs {
    /// Where the server keeps its traces (its --boot-trace or --state-dir), if not beside the image
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The golden image, or a trace file
    pub path: PathBuf,
    #[command(flatten)]
    pub folder: TraceFolderArgs,
    /// Also list the ranges, in the order in which they are read
    #[arg(long)]
    pub ranges: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The golden image
    pub golden: PathBuf,
    #[command(flatten)]
    pub folder: TraceFolderArgs,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The golden image
    pub golden: PathBuf,
    #[command(flatten)]
    pub folder: TraceFolderArgs,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
