//! `goldrush serve --explain`: what a server would be here, and why, without being one.
//!
//! Knows every choice and its reason. Binds no port, takes no lock, writes to no image; it asks the kernel for one ring, and
//! the runtime folder whether it will do.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::admin::socket;
use super::cli::{DataPlaneArgs, DurabilityPolicy, ResetPolicy, ServeArgs};
use super::config::{Config, ConfigError};
use super::error::{Error, print};
use super::file::{Access, FileIdentity, Locking};
use super::golden;
use super::isns;
use super::launch::{self, DataPlane, POOL};
use super::open_image::{OpenedLayer, Opener};
use super::runtime::RuntimeFolder;
use super::seal;
use super::serve::memory_available;
use super::size::{Size, human};
use super::trace_store::TracePlace;
use crate::buf::Pool;
use crate::limits;
use crate::shard::RateLimits;
use crate::uring::host;
use crate::uring::{FileWrites, UringIo, WrittenBy, probe};

/// What a server would be, in words.
#[derive(Default)]
struct Page(String);

impl Page {
    /// One choice: what it is about, what was chosen, why and what changes it.
    fn say(&mut self, about: &str, chosen: impl Display, why: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{about:17}{chosen}\n{:17}{why}", "");
    }
}

/// Prints the page.
///
/// # Errors
/// What would keep `serve` from starting, as far as it can be told.
pub(super) fn run(args: &ServeArgs, config: &Config, plane: &DataPlane) -> Result<(), Error> {
    let mut page = Page::default();
    let open_files = host::raise_open_files();
    let images = look_at_images(config);
    source(&mut page, args, config, &images);
    let report = probe::probe().map_err(|error| Error::Failed(error.to_string()))?;
    page.say("system", &report, format_args!("{} is the oldest that will do", probe::KERNEL_MIN));
    placement(&mut page, &args.data_plane, config, plane)?;
    memory(&mut page, &args.data_plane, plane, images.files + images.parents.len())?;
    golden_data(&mut page, &args.data_plane, plane, &images);
    sending(&mut page, &args.data_plane, config);
    folders(&mut page, config, plane);
    file_writes(&mut page, &images);
    durability(&mut page, args, config);
    rates(&mut page, args, config);
    listeners(&mut page, args, config, plane);
    bounds(&mut page, open_files, &images, &args.data_plane);
    print(|out| out.write_all(page.0.as_bytes()))?;
    if images.errors.is_empty() { Ok(()) } else { Err(Error::Config(images.errors)) }
}

/// What the images of a configuration are, at a look.
#[derive(Default)]
struct Images {
    /// Children that are there, files of them and their parents, and children that are not there yet.
    present: usize,
    files: usize,
    missing: usize,
    /// Files that are written, by the file system they are on.
    written: BTreeMap<&'static str, (WrittenBy, usize)>,
    /// Everything that is only read, once each.
    parents: BTreeMap<PathBuf, Parent>,
    errors: Vec<ConfigError>,
}

struct Parent {
    bytes: u64,
    sealed: bool,
    /// Why the file system takes no direct reads.
    direct: Result<(), String>,
}

fn look_at_images(config: &Config) -> Images {
    let mut images = Images::default();
    let mut seen: Vec<FileIdentity> = Vec::new();
    let mut opener = Opener::anywhere(Locking::Ignore);
    for unit in config.targets.iter().flat_map(|target| &target.units) {
        if !unit.path.exists() && unit.origin == super::config::Origin::CommandLine {
            images.missing += 1;
            images.note_written(FileWrites::in_folder(unit.path.parent().unwrap_or(Path::new("/"))));
            continue;
        }
        let chain = match opener.open_chain_as(&unit.path, Access::ReadOnly, unit.format) {
            Ok(chain) => chain,
            Err(error) => {
                images.errors.push(ConfigError { origin: unit.origin.clone(), reason: error.to_string() });
                continue;
            }
        };
        images.present += 1;
        images.files += chain.layers().len();
        let own = usize::from(!unit.readonly);
        if let Some(leaf) = chain.layers().iter().take(own).next() {
            images.note_written(FileWrites::of(leaf.file().file()));
        }
        for layer in chain.layers().iter().skip(own) {
            let identity = layer.file().identity();
            if !seen.contains(&identity) {
                seen.push(identity);
                images.parents.insert(layer.file().path().to_owned(), parent(layer));
            }
        }
    }
    images
}

impl Images {
    fn note_written(&mut self, writes: FileWrites) {
        self.written.entry(writes.on).or_insert((writes.by, 0)).1 += 1;
    }
}

fn parent(layer: &OpenedLayer) -> Parent {
    let file = layer.file();
    Parent {
        bytes: file.len(),
        sealed: seal::is_sealed(file.path()),
        direct: golden::takes_direct_reads(file).map_err(|error| error.to_string()),
    }
}

fn source(page: &mut Page, args: &ServeArgs, config: &Config, images: &Images) {
    let units: usize = config.targets.iter().map(|target| target.units.len()).sum();
    let found = format!(
        "{} targets, {units} LUNs; {} images are there, {} would be created",
        config.targets.len(),
        images.present,
        images.missing
    );
    let why = match (&args.config, &args.golden) {
        (Some(path), _) => format!("from {} (--config)", path.display()),
        (None, golden) => {
            let golden = golden.as_deref().unwrap_or(Path::new(""));
            format!("children of {} (--golden, --overlays, --nodes)", golden.display())
        }
    };
    page.say("targets", found, why);
    for (path, parent) in &images.parents {
        let seal = if parent.sealed { "sealed" } else { "not sealed: a change of it could go unnoticed" };
        page.say("golden data", path.display(), format_args!("{}, read only, {seal}", human(parent.bytes)));
    }
}

fn placement(page: &mut Page, args: &DataPlaneArgs, config: &Config, plane: &DataPlane) -> Result<(), Error> {
    let cores = launch::cores(plane)?;
    let list: Vec<_> = cores.iter().map(ToString::to_string).collect();
    let why = if args.cores.is_some() {
        "as --cores asks"
    } else {
        "all this process may use; --cores names others"
    };
    page.say(
        "cores",
        list.join(", "),
        format_args!("{why}; one pinned thread each, with a ring and buffers of its own"),
    );
    let most = config.targets.len().div_ceil(cores.len().max(1));
    page.say(
        "placement",
        format_args!("at most {most} targets a core"),
        "in turn, as they are listed: a target and all its connections belong to one core; the first core accepts",
    );
    let idle = if args.spin == 0 { "sleep at once" } else { "look for work first" };
    page.say(
        "waiting",
        format_args!("{} us of looking before a thread sleeps", args.spin),
        format_args!("{} (--spin): threads without work {idle}", origin(args.spin == 0)),
    );
    Ok(())
}

fn origin(is_default: bool) -> &'static str {
    if is_default { "the default" } else { "as asked" }
}

fn memory(page: &mut Page, args: &DataPlaneArgs, plane: &DataPlane, files: usize) -> Result<(), Error> {
    let pool = Pool::new(POOL)
        .map_err(|error| Error::Failed(format!("no memory for the buffers of a core: {error}")))?;
    let config = launch::ring_config(plane, files);
    let (io, _) = UringIo::new(&config, &pool, Vec::new(), Vec::new())
        .map_err(|error| Error::Failed(error.to_string()))?;
    let report = io.report();
    page.say(
        "ring",
        format_args!(
            "{}, {} submissions, {} completions",
            report.flags, report.sq_entries, report.cq_entries
        ),
        "tried just now, with one ring of those that each core will have",
    );
    let bytes = u64::from(POOL.chunks) * limits::CHUNK_BYTES as u64
        + u64::from(POOL.smalls) * limits::SMALL_BYTES as u64;
    page.say(
        "buffers",
        format_args!("{} a core: {} of 64 KiB, {} of 8 KiB", human(bytes), POOL.chunks, POOL.smalls),
        "for data on its way in and out; fixed",
    );
    page.say(
        "registered",
        format_args!("buffers {}, files {}", report.fixed_buffers, report.fixed_files),
        format_args!(
            "{} (--register-buffers {}): cheaper I/O, for memory that is taken at once",
            origin(args.register_buffers),
            args.register_buffers
        ),
    );
    Ok(())
}

fn golden_data(page: &mut Page, args: &DataPlaneArgs, plane: &DataPlane, images: &Images) {
    let available = memory_available().map_or("memory that is not told".to_owned(), human);
    let bytes = plane.golden_cache_bytes;
    let why = match args.golden_cache {
        None => {
            format!("half of the {available} that are available now (--golden-cache); taken as it is filled")
        }
        Some(Size(asked)) if asked != bytes => {
            format!(
                "half of what is available: {} were asked for (--golden-cache), and there are {available}",
                human(asked)
            )
        }
        Some(_) => format!("as --golden-cache asks, of {available} available; taken as it is filled"),
    };
    page.say("golden cache", format_args!("{}, one for all cores", human(bytes)), why);
    let huge = if golden::huge_pages_are_refused() {
        "ordinary: the kernel refuses huge ones"
    } else {
        "huge, where the kernel has them"
    };
    page.say("its pages", huge, format_args!("{} decides", golden::HUGE_PAGES));
    let refusing: Vec<_> = images
        .parents
        .iter()
        .filter_map(|(path, parent)| Some((path, parent.direct.as_ref().err()?)))
        .collect();
    let direct = match (args.direct_reads, refusing.first()) {
        (false, _) => "no".to_owned(),
        (true, None) => "yes: the page cache keeps no second copy".to_owned(),
        (true, Some((path, error))) => format!(
            "not of {} files, which are read through the page cache: {}: {error}",
            refusing.len(),
            path.display()
        ),
    };
    let why = format!("{} (--direct-reads {})", origin(args.direct_reads), args.direct_reads);
    page.say("direct reads", direct, format_args!("{why}; tried on each golden file"));
    page.say(
        "read-ahead",
        format_args!("{} at most", args.read_ahead),
        format_args!(
            "{} (--read-ahead), for nodes that read in order",
            origin(args.read_ahead.0 == 512 << 10)
        ),
    );
    let place = match &plane.boot_trace {
        TracePlace::Off => "none".to_owned(),
        TracePlace::Beside => "beside the golden images".to_owned(),
        TracePlace::Folder(folder) => format!("in {}", folder.display()),
    };
    let warm =
        if plane.warm { "the cache is filled along them first" } else { "read ahead of booting nodes" };
    let why =
        format!("{} (--boot-trace, --warm)", origin(plane.boot_trace == TracePlace::Beside && !plane.warm));
    page.say("boot traces", format_args!("{place}, {warm}"), why);
}

fn sending(page: &mut Page, args: &DataPlaneArgs, config: &Config) {
    page.say(
        "sends",
        format_args!("of {} at most", args.send_batch),
        format_args!(
            "{} (--send-batch): answers of a connection leave together",
            origin(args.send_batch.0 == 1 << 20)
        ),
    );
    let when = args.zero_copy.to_possible_value();
    let when = when.as_ref().map_or("", |value| value.get_name());
    page.say(
        "zero copy",
        when,
        format_args!("{} (--zero-copy): auto means long sends to other machines, where the kernel does not copy all the same", origin(when == "auto")),
    );
    let most = launch::max_connections(args.max_connections, config);
    let is_default = args.max_connections.or(config.max_connections).is_none();
    page.say(
        "connections",
        format_args!("{most} a session at most"),
        format_args!("{} (--max-connections, or the key max_connections)", origin(is_default)),
    );
}

fn folders(page: &mut Page, config: &Config, plane: &DataPlane) {
    let runtime = RuntimeFolder::for_server();
    match &runtime {
        Some(folder) => {
            let given = config.runtime_dir.is_some() || super::runtime::is_given();
            let why = if given { "as asked" } else { "the first of the usual ones that will do" };
            page.say("runtime folder", folder.path().display(), format_args!("{why} (--runtime-dir)"));
            page.say(
                "journal",
                "one a core",
                "in the runtime folder: first writes are answered before their metadata is on the disk",
            );
        }
        None => {
            page.say("runtime folder", "none", "no usual one will do, the log says why (--runtime-dir)");
            page.say(
                "journal",
                "none",
                "there is no runtime folder: each first write to a sector waits for the disk",
            );
        }
    }
    match (&plane.control, &runtime) {
        (Some(path), _) => page.say("control socket", path.display(), "as asked (--control)"),
        (None, Some(folder)) => {
            let others = socket::in_folder(folder.path()).len();
            let why = "in the runtime folder (--control)";
            let more = if others == 0 {
                ""
            } else {
                "; control-PID.sock while another server that lives has this name"
            };
            page.say(
                "control socket",
                folder.path().join("control.sock").display(),
                format_args!("{why}{more}"),
            );
        }
        (None, None) => page.say("control socket", "none", "there is no runtime folder (--control)"),
    }
    match &plane.state_dir {
        Some(path) => page.say(
            "state folder",
            path.display(),
            "as asked (--state-dir): LUNs keep there what outlives the server",
        ),
        None => page.say(
            "state folder",
            "none",
            "the default (--state-dir): APTPL, saved mode pages and WRITE ATOMIC are refused",
        ),
    }
}

fn file_writes(page: &mut Page, images: &Images) {
    for (on, (by, count)) in &images.written {
        let (who, why) = match by {
            WrittenBy::Ring => {
                ("the ring", "writes run on the core's own thread, and wait elsewhere when they must")
            }
            WrittenBy::Threads => (
                "threads",
                "this file system refuses writes that must not wait: one thread a core does them, others help when it waits",
            ),
        };
        page.say("file writes", format_args!("by {who}, to {count} images on {on}"), why);
    }
}

fn durability(page: &mut Page, args: &ServeArgs, config: &Config) {
    let units = || config.targets.iter().flat_map(|target| &target.units);
    let count = |policy| units().filter(|unit| !unit.readonly && unit.durability == policy).count();
    let until_reset = count(DurabilityPolicy::UntilReset);
    let why = match (&args.config, args.durability) {
        (Some(_), _) => {
            "as the file says, persistent where it does not (key durability; --durability without a file)"
        }
        (None, None) => "the default (--durability)",
        (None, Some(_)) => "as --durability asks",
    };
    page.say(
        "durability",
        format_args!(
            "{} LUNs persistent, {until_reset} until reset, {} read only",
            count(DurabilityPolicy::Persistent),
            units().filter(|unit| unit.readonly).count()
        ),
        why,
    );
    let emptied = match (until_reset, &args.config, args.reset.unwrap_or_default()) {
        (0, ..) => "nothing is",
        (_, Some(_), _) => "when the server starts, and as each LUN's key says",
        (_, None, ResetPolicy::Boot) => "when the server starts, and each when its machine does",
        (_, None, ResetPolicy::Start) => "when the server starts",
    };
    let why = match (until_reset, &args.config, args.reset) {
        (0, ..) => "only until-reset ever is (key reset; --reset without a file)",
        (_, Some(_), _) => "key reset, boot where the file does not say (--reset without a file)",
        (_, None, None) => "the default (--reset); goldrush reset does it at any time",
        (_, None, Some(_)) => "as --reset asks; goldrush reset does it at any time",
    };
    page.say("emptied", emptied, why);
}

fn rates(page: &mut Page, args: &ServeArgs, config: &Config) {
    let bounded = config.targets.iter().filter(|target| target.limits != RateLimits::default()).count();
    let why = match (&args.config, bounded) {
        (Some(_), _) => "as the file says (keys max_iops and max_rate of a target)",
        (None, 0) => "the default (--max-iops, --max-rate)",
        (None, _) => "as --max-iops and --max-rate ask",
    };
    page.say("rates", format_args!("{bounded} of {} targets have a bound", config.targets.len()), why);
}

fn listeners(page: &mut Page, args: &ServeArgs, config: &Config, plane: &DataPlane) {
    let addresses: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
    let why = if args.config.is_some() {
        "the key listen, 0.0.0.0:3260 where there is none (--listen without a file)"
    } else if args.listen.is_empty() {
        "the default (--listen)"
    } else {
        "as --listen asks"
    };
    page.say(
        "listening",
        addresses.join(", "),
        format_args!("{why}; not bound now, whether they are free is not known"),
    );
    match plane.metrics {
        Some(address) => {
            page.say("metrics", format_args!("http://{address}/metrics"), "as asked (--metrics)")
        }
        None => page.say("metrics", "none", "the default (--metrics)"),
    }
    registrations(page, config, plane);
}

fn registrations(page: &mut Page, config: &Config, plane: &DataPlane) {
    let servers: Vec<_> = isns::servers(&plane.isns, config).iter().map(ToString::to_string).collect();
    if servers.is_empty() {
        page.say("iSNS", "none", "the default (--isns and --isns-entity, or the table isns): initiators are told addresses by hand");
        return;
    }
    let why = if plane.isns.is_empty() { "the table isns (--isns)" } else { "as --isns asks" };
    page.say("iSNS", servers.join(", "), format_args!("{why}; all targets and portals are registered there"));
    let (entity, why) = match &plane.isns_entity {
        Some(entity) => (entity.clone(), "as asked"),
        None => (isns::entity_of(&config.listen), "the host name, and the port where it is not 3260"),
    };
    page.say(
        "iSNS entity",
        entity,
        format_args!("{why} (--isns-entity, or the key entity): no other server may use it"),
    );
}

fn bounds(page: &mut Page, open_files: std::io::Result<u64>, images: &Images, args: &DataPlaneArgs) {
    let need = images.files + images.parents.len() + images.missing;
    let open_files = match open_files {
        Ok(u64::MAX) => "any number of open files".to_owned(),
        Ok(number) => format!("{number} open files"),
        Err(error) => format!("open files cannot be raised: {error}"),
    };
    page.say(
        "this process",
        open_files,
        format_args!(
            "RLIMIT_NOFILE, raised to its hard limit; {need} are for images, the rest for connections"
        ),
    );
    page.say(
        "a core",
        format_args!("{} connections, {} commands at once", limits::CONNECTIONS_MAX, limits::SHARD_TASKS_MAX),
        "fixed; what comes above is refused or waits",
    );
    page.say(
        "a session",
        format_args!(
            "{} commands at once, {} a command",
            args.queue_depth,
            human(limits::TRANSFER_BYTES_MAX as u64)
        ),
        format_args!(
            "the number {} (--queue-depth), their size fixed; initiators are told both",
            origin(args.queue_depth == limits::COMMAND_WINDOW_DEFAULT)
        ),
    );
}
