//! The command line: subcommands, flags and their defaults, as types.
//!
//! Knows what may be written on the command line. Does not know what any of it does.

use core::num::NonZeroU64;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::cli_bench::{self, BenchArgs};
use super::cli_chain::{
    DiffArgs, FlattenArgs, MapArgs, MergeArgs, RebaseArgs, SealArgs, SnapshotArgs, UnsealArgs,
};
use super::cli_help;
use super::cli_help_chain;
use super::cli_trace::TraceCommand;
use super::config::isns;
use super::image_format::{ForeignFormat, Format};
use super::size::Size;
use super::trace_store::TracePlace;
use crate::shard::ResetAt;
use crate::units::BlockSize;
use crate::uring::ZeroCopy;

/// The port IANA gave to iSCSI.
pub const ISCSI_PORT: u16 = 3260;
/// Where `serve` listens unless told otherwise.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), ISCSI_PORT);

/// An iSCSI block server that boots diskless machines from one golden VHD.
#[derive(Debug, Parser)]
#[command(name = "goldrush", version, after_help = cli_help::EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub log: LogArgs,
    /// Where writes are remembered that a killed server has acknowledged and an image does not say yet: a folder on a
    /// tmpfs [default: the key runtime_dir, else /run/goldrush or /dev/shm/goldrush-UID]
    #[arg(long, value_name = "FOLDER", env = "GOLDRUSH_RUNTIME_DIR", global = true)]
    pub runtime_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct LogArgs {
    /// How log lines are written to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// The least important level that is logged; connection life-cycles are info
    #[arg(long, value_enum, default_value_t = LogLevel::Info, global = true)]
    pub log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve images to iSCSI initiators until SIGINT or SIGTERM
    Serve(Box<ServeArgs>),
    /// Ask a running server what it is doing
    #[command(after_long_help = cli_help::STATUS)]
    Status(StatusArgs),
    /// Watch a running server: the page of status, again and again
    #[command(after_long_help = cli_help::TOP)]
    Top(TopArgs),
    /// Tell a running server to read its configuration again
    #[command(after_long_help = cli_help::RELOAD)]
    Reload(ReloadArgs),
    /// Make a disk larger while it is served
    #[command(after_long_help = cli_help::GROW)]
    Resize(ServedResizeArgs),
    /// Empty the overlays of a target whose durability is until-reset, while the server runs
    #[command(after_long_help = cli_help::RESET)]
    Reset(ResetArgs),
    /// Create, describe, check and convert disk images
    #[command(subcommand, after_long_help = cli_help::IMAGE)]
    Image(ImageCommand),
    /// Look at the boot traces that a server records: what nodes read of a golden image while they boot
    #[command(subcommand, after_long_help = super::cli_trace::TRACE)]
    Trace(TraceCommand),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: Shell,
    },
    /// Write the manual pages, one for each subcommand, into a folder
    Man(ManArgs),
}

/// Which server is meant.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The control socket of the server [default: of serve, the key control, else control.sock in the runtime folder;
    /// of others, the one server of the runtime folder]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// Also every target: how far its machine has booted, and how long each part took
    #[arg(long)]
    pub targets: bool,
    /// Also every session
    #[arg(long)]
    pub sessions: bool,
    /// Over how long rates and latencies are taken, in seconds; 0: since the server began, at once
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// One JSON object instead of text, at once: sums since the server began
    #[arg(long, conflicts_with = "interval")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    /// How long a page stands, in seconds (0.1 to 3600)
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = pause)]
    pub interval: f64,
    /// One page, for a script
    #[arg(long)]
    pub once: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "write a number of seconds, at most 3600".to_owned())
}

fn pause(text: &str) -> Result<f64, String> {
    let seconds = seconds(text).ok().filter(|seconds| *seconds >= 0.1);
    seconds.ok_or_else(|| "write a number of seconds from 0.1 to 3600".to_owned())
}

#[derive(Debug, Args)]
pub struct ServedResizeArgs {
    /// The target and the LUN's number, such as iqn.2026-11.io.goldrush:node-001/0
    #[arg(value_name = "TARGET/LUN", value_parser = target_and_lun)]
    pub lun: (String, u16),
    /// The new size of the disk, such as 40G; not less than it has
    #[arg(value_name = "SIZE")]
    pub size: Size,
    #[command(flatten)]
    pub control: ControlArgs,
}

fn target_and_lun(text: &str) -> Result<(String, u16), String> {
    let parts =
        text.rsplit_once('/').and_then(|(target, lun)| Some((target.to_lowercase(), lun.parse().ok()?)));
    parts.ok_or_else(|| format!("{text} is not TARGET/LUN, such as iqn.2026-11.io.goldrush:node-001/0"))
}

#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The target, as it is configured or as "goldrush status --targets" shows it
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Also while somebody is logged in: every session is dropped first
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder, created when it is missing; `man -l DIR/goldrush.1` shows the first page
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["config", "golden"])))]
pub struct ServeArgs {
    /// Serve the targets of this TOML file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["overlays", "nodes", "listen"])]
    pub config: Option<PathBuf>,
    /// Without a file: the golden VHD all nodes share; it is never written
    #[arg(long, value_name = "VHD", requires_all = ["overlays", "nodes"])]
    pub golden: Option<PathBuf>,
    /// The folder of the nodes' children; missing ones are created (node-001.vhd ...)
    #[arg(long, value_name = "DIR", requires = "golden")]
    pub overlays: Option<PathBuf>,
    /// How many nodes: targets ...:node-001 and so on, one child each
    #[arg(long, value_name = "N", requires = "golden", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub nodes: Option<u32>,
    /// Where to listen without a file; may be repeated [default: 0.0.0.0:3260]
    #[arg(long, value_name = "ADDR:PORT", requires = "golden")]
    pub listen: Vec<SocketAddr>,
    /// What acknowledged writes to the nodes' children outlive: see --help [default: persistent]
    ///
    /// persistent: a killed server loses no acknowledged write, a power cut loses no flushed one. until-reset: flushes
    /// are answered at once, and every child is emptied when the server starts.
    #[arg(long, value_enum, value_name = "POLICY", requires = "golden")]
    pub durability: Option<DurabilityPolicy>,
    /// When the children of nodes with --durability until-reset are emptied: see --help [default: boot]
    ///
    /// boot: when the machine is started again, as far as its logins show that. start: only when the server starts. In
    /// both cases also with goldrush reset.
    #[arg(long, value_enum, value_name = "WHEN", requires = "durability")]
    pub reset: Option<ResetPolicy>,
    /// The most commands a second each node is granted
    #[arg(long, value_name = "N", requires = "golden")]
    pub max_iops: Option<NonZeroU64>,
    /// The most bytes a second each node is granted, read and written together, such as 100M
    #[arg(long, value_name = "SIZE", requires = "golden", value_parser = rate)]
    pub max_rate: Option<NonZeroU64>,
    /// Say what would be chosen and why, and end: no port is bound, no image is written, locked or created
    #[arg(long)]
    pub explain: bool,
    #[command(flatten)]
    pub data_plane: DataPlaneArgs,
}

/// What acknowledged writes outlive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityPolicy {
    /// A killed server loses no acknowledged write, a power cut loses no flushed one.
    #[default]
    Persistent,
    /// Nothing: flushes are answered at once, and the overlay is emptied when the server starts.
    UntilReset,
}

/// When an overlay that is until-reset is emptied, beside when the server starts and when somebody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetPolicy {
    /// When its machine is started again, as far as its logins show that.
    #[default]
    Boot,
    /// Never.
    Start,
}

impl ResetPolicy {
    pub(super) fn at(self) -> ResetAt {
        match self {
            Self::Boot => ResetAt::Boot,
            Self::Start => ResetAt::Command,
        }
    }
}

/// When sends leave without being copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ZeroCopyArg {
    Off,
    Auto,
    On,
}

impl From<ZeroCopyArg> for ZeroCopy {
    fn from(arg: ZeroCopyArg) -> Self {
        match arg {
            ZeroCopyArg::Off => Self::Off,
            ZeroCopyArg::Auto => Self::Auto,
            ZeroCopyArg::On => Self::On,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Data plane")]
pub struct DataPlaneArgs {
    /// Cores to run on, one pinned thread each, such as 0-3 or 0,2 [default: all this process may use]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreList>,
    /// How long a thread looks for work before it sleeps, in microseconds
    #[arg(long, value_name = "MICROS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub spin: u32,
    /// Whether long sends leave without being copied: see --help [default: auto]
    ///
    /// auto: sends of 32 KiB and more to other machines, and a connection goes back to ordinary sends when the kernel says
    /// that it copied all the same. off: never. on: always, whatever the kernel says; for measurements. Needs Linux 6.2.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ZeroCopyArg::Auto, hide_default_value = true)]
    pub zero_copy: ZeroCopyArg,
    /// The most bytes one send gathers for a connection (16K to 8M)
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = send_batch)]
    pub send_batch: Size,
    /// Commands an initiator may have under way in a session (1 to 512): what it is told as MaxCmdSN
    #[arg(long, value_name = "N", default_value_t = crate::limits::COMMAND_WINDOW_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::limits::COMMAND_WINDOW_MAX)))]
    pub queue_depth: u32,
    /// The most connections one session may have (1 to 8); 1: none may join [default: the configuration's, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=crate::limits::SESSION_CONNECTIONS_MAX as i64))]
    pub max_connections: Option<u32>,
    /// Memory for golden data, shared by all cores and taken as it is filled; 0 leaves caching to the kernel
    /// [default: half of the available memory]
    #[arg(long, value_name = "SIZE")]
    pub golden_cache: Option<Size>,
    /// How far ahead of a node that reads in order golden data is read, at most (0 to 8M); 0: not at all
    #[arg(long, value_name = "SIZE", default_value = "512K", value_parser = read_ahead)]
    pub read_ahead: Size,
    /// Boot traces: what nodes read while they boot is recorded, and read ahead of later boots. on keeps a trace as
    /// NAME.boot-trace beside its golden image (in the state folder where that cannot be written), FOLDER all there, off
    /// keeps and uses none [default: the key boot_trace, else on]
    #[arg(long, value_name = "on|off|FOLDER")]
    pub boot_trace: Option<TracePlace>,
    /// Before anybody is let in, read into the golden cache what the boot traces name [or: the key warm]
    #[arg(long)]
    pub warm: bool,
    /// Read golden data past the kernel's page cache, which then keeps no second copy of it
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub direct_reads: bool,
    /// Register the buffers of each core with the kernel: cheaper I/O, but all of them take real memory at once
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub register_buffers: bool,
    /// Where LUNs keep what outlives the server, such as reservations with APTPL [default: the key state_dir, else
    /// nothing is kept]
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub control: ControlArgs,
    /// Tell Prometheus at http://ADDR:PORT/metrics, whoever can connect [default: the key metrics, else not at all]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Register all targets and portals with this iSNS server, port 3205 unless it names one; may be repeated [default: the
    /// key servers of the table isns, else none]
    #[arg(long, value_name = "HOST[:PORT]", value_parser = isns::IsnsServer::from_str)]
    pub isns: Vec<isns::IsnsServer>,
    /// The iSNS entity all of it belongs to, this server's alone [default: the key entity of the table isns, else the host
    /// name, and the port where it is not 3260]
    #[arg(long, value_name = "NAME", value_parser = isns::entity)]
    pub isns_entity: Option<String>,
}

fn read_ahead(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: super::size::SizeError| error.to_string())?;
    let max = crate::limits::READ_AHEAD_BYTES_MAX;
    if size.0 <= max { Ok(size) } else { Err(format!("{size} is out of range: 0 to {}", Size(max))) }
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let bytes = text.parse::<Size>().map_err(|error| error.to_string())?;
    NonZeroU64::new(bytes.0).ok_or_else(|| "0 would stop the nodes: leave it out for no bound".to_owned())
}

fn send_batch(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: super::size::SizeError| error.to_string())?;
    if (16 << 10..=crate::limits::CONNECTION_SEND_BYTES_MAX as u64).contains(&size.0) {
        Ok(size)
    } else {
        Err(format!(
            "{size} is out of range: 16K to {}",
            Size(crate::limits::CONNECTION_SEND_BYTES_MAX as u64)
        ))
    }
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Create an empty VHD or VHDX, or the child of a parent
    ///
    /// A child holds what is written to it and takes everything else from its parent, which it names by a relative
    /// path: both may be moved together. The parent is opened read-only and is never written; once it has children it
    /// must not change.
    #[command(after_long_help = cli_help::CREATE)]
    Create(CreateArgs),
    /// Describe an image and its chain of parents
    ///
    /// Takes no lock: an image that a server holds can be looked at, and the answer says who holds it.
    #[command(after_long_help = cli_help::INFO)]
    Info(InfoArgs),
    /// Check the structure of a VHD or VHDX and of its parents: 0 clean, 1 findings, 2 could not be checked
    ///
    /// Looks, in a VHD, at both footers, the header, the parent locators, every table entry and every block's bitmap,
    /// and in dynamic disks at sectors that must be zero; in a VHDX, at headers, log, region tables, metadata and every
    /// table entry. Guest data is not judged.
    ///
    /// --repair answers what it can: a footer from its copy, a header whose damaged bytes can be told for certain,
    /// bitmaps that contradict the data, table entries that point nowhere or into another block. It tells its plan
    /// first, and only offers a plan under which the image, as it would be, checks clean. What would make sectors read
    /// otherwise than they were written is marked, and done only with --accept-loss. A block that may hold data stays
    /// in the file: no byte of it is overwritten, and two entries that claim one place both keep what they read. Of a
    /// VHDX, headers and region tables are written again from their copies, and the log is replayed into the file.
    /// Before anything changes, the metadata concerned is kept in NAME.repair-backup-N.
    #[command(after_long_help = cli_help::CHECK)]
    Check(CheckArgs),
    /// Copy an image's content into another format; a child is flattened through its parents
    ///
    /// Holes and zeros of the source are holes of the destination. The destination appears under its name only when
    /// it is complete and stable: a killed convert leaves nothing that looks whole.
    ///
    /// QCOW2, VMDK and VDI files, told by their names or by --source-format, are read through qemu-img, which must be
    /// installed.
    #[command(after_long_help = cli_help::CONVERT)]
    Convert(ConvertArgs),
    /// Show which layer of a chain holds which range of the disk
    #[command(after_long_help = cli_help_chain::MAP)]
    Map(MapArgs),
    /// Compare the disks of two images: 0 the same, 1 different, 2 could not be compared
    ///
    /// What both take from a common parent is not read. Formats, block sizes and chains may differ: only what a guest
    /// would read counts.
    #[command(after_long_help = cli_help_chain::DIFF)]
    Diff(DiffArgs),
    /// Make an image's file smaller; its content stays as it is
    ///
    /// A dynamic VHD or VHDX gives up blocks that are all zero, a child those that read as its parent does: a child's zeros
    /// stay as long as the parent has something else there. Blocks from the end of the file move into the room, and the
    /// file is cut. In every kind of image, raw ones too, ranges of zeros become holes of the file.
    #[command(after_long_help = cli_help::COMPACT)]
    Compact(CompactArgs),
    /// Give a disk another size
    ///
    /// What a larger disk has more reads as zeros; partitions and file systems are the guest's to grow. A disk becomes
    /// smaller only with --shrink, and only when all it gives up is zero. A VHD child has the size of its
    /// parent and cannot be resized, a VHDX child can grow; an image that has children in its folder keeps its size.
    #[command(after_long_help = cli_help::RESIZE)]
    Resize(ResizeArgs),
    /// Move what a child holds into its parent, or merge both into a new image
    #[command(after_long_help = cli_help_chain::MERGE)]
    Merge(MergeArgs),
    /// Make a child independent of its parents
    #[command(after_long_help = cli_help_chain::FLATTEN)]
    Flatten(FlattenArgs),
    /// Give a child another parent; what its disk reads stays
    #[command(after_long_help = cli_help_chain::REBASE)]
    Rebase(RebaseArgs),
    /// Freeze an image and go on in a new child
    #[command(after_long_help = cli_help_chain::SNAPSHOT)]
    Snapshot(SnapshotArgs),
    /// Make a golden image read-only and fingerprint it, so that no change goes unnoticed
    #[command(after_long_help = cli_help_chain::SEAL)]
    Seal(SealArgs),
    /// Let a sealed image be written again
    #[command(after_long_help = cli_help_chain::UNSEAL)]
    Unseal(UnsealArgs),
    /// Measure what writing into a child costs here, beside writing into a plain file
    #[command(after_long_help = cli_bench::BENCH)]
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("origin").required(true).args(["size", "parent"])))]
pub struct CreateArgs {
    /// The file to create; it must not exist
    pub path: PathBuf,
    /// The size of the disk, a multiple of its sectors, at most 2040G (VHD) or 64T (VHDX)
    #[arg(long)]
    pub size: Option<Size>,
    /// Create a differencing child of this image, which is opened read-only and never written
    #[arg(long, value_name = "IMAGE", conflicts_with = "kind")]
    pub parent: Option<PathBuf>,
    /// Seal the parent first, if it is not sealed
    #[arg(long, requires = "parent")]
    pub seal: bool,
    /// Whether blocks are allocated when they are written, or all of them now [default: dynamic]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub kind: Option<DiskKind>,
    /// The unit of allocation, a power of two: 512K to 32M in a VHD [default: 2M, or the parent's], 1M to 256M in a
    /// VHDX [default: 32M, of a child 2M]
    #[arg(long)]
    pub block_size: Option<Size>,
    /// The format to create [default: by the ending: .vhdx is vhdx, all else vhd; a child's is its parent's]
    #[arg(long, value_enum)]
    pub format: Option<ImageFormat>,
    /// The sector a VHDX shows its users, 512 or 4096 bytes [default: 512, or the parent's]
    #[arg(long, value_name = "BYTES")]
    pub logical_sector_size: Option<SectorSize>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// A logical sector: 512 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSize(pub BlockSize);

impl FromStr for SectorSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = text.parse::<Size>().ok().and_then(|size| u32::try_from(size.0).ok());
        let size = bytes.and_then(BlockSize::from_bytes);
        size.map(Self).ok_or_else(|| format!("\"{text}\" is no sector size: write 512 or 4096"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiskKind {
    Fixed,
    Dynamic,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    pub path: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    pub path: PathBuf,
    /// First repair the image (its parents are never touched): the plan is told, and a backup is kept
    #[arg(long)]
    pub repair: bool,
    /// With --repair: tell the plan and do nothing
    #[arg(long, requires = "repair")]
    pub dry_run: bool,
    /// With --repair: also do what makes some sectors read otherwise than they were written
    #[arg(long, requires = "repair")]
    pub accept_loss: bool,
    /// Give up what a killed server has acknowledged and the file does not say, and the mark of a failed flush
    #[arg(long, conflicts_with = "restore_backup")]
    pub forget_pending: bool,
    /// Undo a repair: put back what this file kept, as long as the image was not used since
    #[arg(long, value_name = "FILE", conflicts_with = "repair")]
    pub restore_backup: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompactArgs {
    pub path: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ResizeArgs {
    pub path: PathBuf,
    /// The new size of the disk, a multiple of 512 bytes
    #[arg(long)]
    pub size: Size,
    /// Allow a smaller size, as long as all that is given up is zero
    #[arg(long)]
    pub shrink: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The image to read: a VHD by its footer, a VHDX or a file of another program by its name, otherwise raw
    pub source: PathBuf,
    /// The file to write; it appears under this name only when it is complete
    pub destination: PathBuf,
    /// The format of the source, when its name does not tell; qcow2, vmdk and vdi are read through qemu-img
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub source_format: Option<SourceFormat>,
    /// The format to write [default: by the destination's ending: .vhd is vhd, .vhdx is vhdx, all else raw]
    #[arg(long, value_enum)]
    pub format: Option<ImageFormat>,
    /// The kind of VHD or VHDX to write [default: dynamic]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub kind: Option<DiskKind>,
    /// The unit of allocation, a power of two: 512K to 32M in a VHD [default: 2M], 1M to 256M in a VHDX [default: 32M]
    #[arg(long)]
    pub block_size: Option<Size>,
    /// The sector a VHDX shows its users, 512 or 4096 bytes [default: the source's]
    #[arg(long, value_name = "BYTES")]
    pub logical_sector_size: Option<SectorSize>,
    /// Replace an existing destination
    #[arg(long)]
    pub force: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    Raw,
    Vhd,
    Vhdx,
}

impl ImageFormat {
    /// As it is written on command lines and in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }
}

/// What `image convert` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    Raw,
    Vhd,
    Vhdx,
    Qcow2,
    Vmdk,
    Vdi,
}

impl SourceFormat {
    /// One that goldrush reads itself.
    pub(super) fn known(self) -> Option<Format> {
        match self {
            Self::Raw => Some(Format::Raw),
            Self::Vhd => Some(Format::Vhd),
            Self::Vhdx => Some(Format::Vhdx),
            Self::Qcow2 | Self::Vmdk | Self::Vdi => None,
        }
    }

    /// One that another program reads.
    pub(super) fn foreign(self) -> Option<ForeignFormat> {
        match self {
            Self::Qcow2 => Some(ForeignFormat::Qcow2),
            Self::Vmdk => Some(ForeignFormat::Vmdk),
            Self::Vdi => Some(ForeignFormat::Vdi),
            Self::Raw | Self::Vhd | Self::Vhdx => None,
        }
    }
}

/// A set of processor cores: `0-3`, `0,2`, `0-1,6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

/// The highest core number a Linux CPU set holds, plus one.
const CORES_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no list of cores below 1024: write numbers and ranges, such as 0-3 or 0,2")]
pub struct CoreListError {
    text: String,
}

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, CoreListError> {
        let wrong = || CoreListError { text: text.to_owned() };
        let core = |digits: &str| match digits.parse::<usize>() {
            Ok(core) if core < CORES_MAX => Ok(core),
            _ => Err(wrong()),
        };
        let mut cores = BTreeSet::new();
        for item in text.split(',') {
            match item.split_once('-') {
                Some((first, last)) => {
                    let (first, last) = (core(first)?, core(last)?);
                    if first > last {
                        return Err(wrong());
                    }
                    cores.extend(first..=last);
                }
                None => {
                    cores.insert(core(item)?);
                }
            }
        }
        Ok(Self(cores.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn core_lists_are_numbers_and_ranges() {
        assert_eq!("0-3".parse(), Ok(CoreList(vec![0, 1, 2, 3])));
        assert_eq!("6,0-1,1".parse(), Ok(CoreList(vec![0, 1, 6])));
        for text in ["", "a", "3-1", "1-", "-1", "0,,1", "1024", "0-99999999999"] {
            assert!(text.parse::<CoreList>().is_err(), "{text}");
        }
    }

    #[test]
    fn serve_needs_exactly_one_source() {
        assert!(parse("goldrush serve").is_err());
        assert!(parse("goldrush serve --config a --golden b --overlays c --nodes 1").is_err());
        assert!(parse("goldrush serve --golden b --nodes 1").is_err());
        assert!(parse("goldrush serve --config a --listen 127.0.0.1:1").is_err());
        assert!(parse("goldrush serve --golden b --overlays c --nodes 0").is_err());
        assert!(parse("goldrush serve --golden b --overlays c --nodes 2 --listen [::1]:0").is_ok());
        assert!(
            parse("goldrush serve --config a --cores 0-1 --spin 20 --send-batch 64K --max-connections 8")
                .is_ok()
        );
        assert!(parse("goldrush serve --config a --send-batch 1K").is_err());
    }

    #[test]
    fn create_needs_a_size_or_a_parent() {
        assert!(parse("goldrush image create a.vhd").is_err());
        assert!(parse("goldrush image create a.vhd --size 1G --parent b.vhd").is_err());
        assert!(parse("goldrush image create a.vhd --parent b.vhd --type fixed").is_err());
        assert!(parse("goldrush image create a.vhd --size 1G --type fixed").is_ok());
    }

    #[test]
    fn log_flags_may_follow_the_subcommand() {
        let cli = parse("goldrush serve --config a --log-format json --log-level debug").unwrap();
        assert_eq!((cli.log.log_format, cli.log.log_level), (LogFormat::Json, LogLevel::Debug));
    }
}
