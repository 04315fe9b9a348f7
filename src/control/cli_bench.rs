//! The command line of `image bench`, and what its `--help` says below the options.
//!
//! Knows words and bounds. Does not know what is measured how (`image_bench`).

use std::path::PathBuf;

use clap::Args;

use super::cli::ImageFormat;
use super::size::Size;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A folder, or an image in it: the scratch child is a child of that image, which is read and never written
    pub path: PathBuf,
    /// The part of the disk that is written to, 16M to 64G; taken down to a power of two
    #[arg(long, default_value = "256M")]
    pub size: Size,
    /// Commands begun and not answered at any moment
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub queue_depth: u32,
    /// How long to measure once the files are there; every case has its turn at least once
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub seconds: u32,
    /// The format of the scratch child in a folder, vhd or vhdx [default: vhd]; a child of an image has its format
    #[arg(long, value_enum)]
    pub format: Option<ImageFormat>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

pub(super) const BENCH: &str = "\
What is measured:
  The code that serves, driven on one thread without a network: commands, write plans, commits and the journal of pending
  writes, over io_uring. Beside each case runs the same pattern on a plain file through the same ring, slice by slice in
  turn, so that a busy machine is busy for both. Ratios are medians over pairs of slices; above 1 the child is faster.
    random 4 KiB, allocated        sectors the child has, their bitmaps in memory
    random 4 KiB, bitmap on disk   the same, over more blocks than bitmaps are kept of: most writes read one first
    random 4 KiB, first write      sectors the child does not have; the plain file has a hole there
    random 4 KiB, new block        each in a block that the child does not have; the plain file has a hole there
    64 KiB in a row, allocated
    64 KiB in a row, first write
    32 writes and a flush          random 4 KiB, allocated, then SYNCHRONIZE CACHE; fdatasync for the plain file
    32 first writes and a flush
  Files are in a hidden folder .goldrush-bench-* beside the image or in the folder named, which is removed at the end; what
  a killed run left, the next run in that place removes. About three times --size is written to.

Examples:
  goldrush image bench /srv/overlays
  goldrush image bench golden.vhd --seconds 60 --json | jq '.cases[] | {name, ratio}'

JSON:
  {path, format, block_size, size, queue_depth, rotations, journal (first writes are remembered in one, else they wait for
  the disk), cases: [{name, bytes (of one operation), child_per_s, plain_per_s, ratio, child_cpu_us, plain_cpu_us (of one
  operation, of the whole process)}...]}

Exit codes:
  0  measured
  1  failed, such as for want of space: the scratch folder was removed
  2  wrong usage
  3  the image is being written by another process";
