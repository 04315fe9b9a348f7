//! `goldrush serve`: from a file or a golden image to a running server.
//!
//! Knows the order: read, open and lock everything, only then bind. Does not know how it is served (`launch`).

use std::collections::BTreeSet;
use std::io::Write;

use super::catalog::Catalog;
use super::cli::{DataPlaneArgs, DurabilityPolicy, LISTEN_DEFAULT, ServeArgs};
use super::config::{self, Config};
use super::error::{Error, print};
use super::file::identity_of;
use super::launch::DataPlane;
use super::open_image::OpenedChain;
use super::overlay::Missing;
use super::seal;
use super::{explain, overlay, runtime, server};
use crate::shard::RateLimits;

/// Of the available memory, the share golden data may take by default.
const GOLDEN_CACHE_SHARE: u64 = 2;

/// Runs the command until the server is told to stop.
pub(super) fn run(args: &ServeArgs) -> Result<(), Error> {
    let config = configuration(args)?;
    if let Some(folder) = &config.runtime_dir {
        runtime::give(folder);
    }
    if args.explain {
        return explain::run(args, &config, &data_plane(&args.data_plane, &config));
    }
    let catalog = Catalog::open(&config).map_err(Error::Config)?;
    if let Some(golden) = &args.golden {
        let golden = identity_of(golden).map_err(Error::io(golden, "looking for the golden image"))?;
        let is_child = |chain: &OpenedChain| {
            chain.layers().get(1).is_some_and(|parent| parent.file().identity() == golden)
        };
        let mut units = catalog.targets.iter().flat_map(|target| &target.units);
        if let Some(stranger) = units.find(|unit| !is_child(&unit.chain)) {
            return Err(Error::Usage(format!(
                "{} is not a child of the golden image: remove it, or name the golden image it was made from",
                stranger.chain.leaf().file().path().display()
            )));
        }
    }
    suggest_seals(&catalog);
    announce_targets(&catalog)?;
    let plane = data_plane(&args.data_plane, &config);
    server::run(catalog, config, args.config.as_deref(), &plane, &mut |addresses, metrics| {
        let mut out = std::io::stdout().lock();
        if let Some(address) = metrics {
            let _ = writeln!(out, "metrics at http://{address}/metrics");
        }
        for address in addresses {
            // Nobody reads: the server serves all the same.
            let _ = writeln!(out, "listening on {address}");
        }
        let _ = out.flush();
    })
}

fn configuration(args: &ServeArgs) -> Result<Config, Error> {
    match (&args.config, &args.golden, &args.overlays, args.nodes) {
        (Some(path), ..) => config::load(path).map_err(Error::Config),
        (None, Some(golden), Some(overlays), Some(nodes)) => {
            let listen = if args.listen.is_empty() { vec![LISTEN_DEFAULT] } else { args.listen.clone() };
            let missing = if args.explain { Missing::Leave } else { Missing::Create };
            if args.reset.is_some() && args.durability != Some(DurabilityPolicy::UntilReset) {
                let why = "--reset is for --durability until-reset: nothing else is ever emptied";
                return Err(Error::Usage(why.to_owned()));
            }
            let durability = (args.durability.unwrap_or_default(), args.reset.unwrap_or_default());
            let mut config = overlay::prepare((golden, overlays, missing), nodes, listen, durability)?;
            for target in &mut config.targets {
                target.limits = RateLimits { commands: args.max_iops, bytes: args.max_rate };
            }
            Ok(config)
        }
        // The command line does not parse like this.
        _ => Err(Error::Usage("serve needs --config, or --golden, --overlays and --nodes".to_owned())),
    }
}

/// Says, once for each, which parents could change unnoticed.
fn suggest_seals(catalog: &Catalog) {
    let mut known = BTreeSet::new();
    let units = catalog.targets.iter().flat_map(|target| &target.units);
    for parent in units.flat_map(|unit| unit.chain.layers().iter().skip(1)) {
        if known.insert(parent.file().identity()) {
            seal::suggest(parent.file().path());
        }
    }
}

/// One line a target.
fn announce_targets(catalog: &Catalog) -> Result<(), Error> {
    print(|out| catalog.targets.iter().try_for_each(|target| writeln!(out, "target {}", target.name)))
}

fn data_plane(args: &DataPlaneArgs, config: &Config) -> DataPlane {
    DataPlane {
        cores: args.cores.as_ref().map(|list| list.0.clone()),
        spin_us: args.spin,
        // The command line admits a few MiB at most.
        queue_depth: args.queue_depth,
        max_connections: args.max_connections,
        send_batch_bytes: usize::try_from(args.send_batch.0).unwrap_or(usize::MAX),
        register_buffers: args.register_buffers,
        zero_copy: args.zero_copy.into(),
        direct_reads: args.direct_reads,
        read_ahead_bytes: args.read_ahead.0,
        boot_trace: args.boot_trace.as_ref().unwrap_or(&config.boot_trace).clone(),
        warm: args.warm || config.warm,
        state_dir: args.state_dir.as_ref().or(config.state_dir.as_ref()).cloned(),
        control: args.control.control.as_ref().or(config.control.as_ref()).cloned(),
        metrics: args.metrics.or(config.metrics),
        isns: args.isns.clone(),
        isns_entity: args.isns_entity.as_ref().or(config.isns.entity.as_ref()).cloned(),
        golden_cache_bytes: golden_cache_bytes(args.golden_cache.map(|size| size.0), memory_available()),
    }
}

/// As asked for, but never more than there is: the kernel would promise it, and kill the server later.
fn golden_cache_bytes(asked: Option<u64>, available: Option<u64>) -> u64 {
    let share = available.map_or(256 << 20, |bytes| bytes / GOLDEN_CACHE_SHARE);
    match (asked, available) {
        (None, _) => share,
        (Some(asked), Some(available)) if asked > available => {
            tracing::warn!(
                asked,
                available,
                taken = share,
                "--golden-cache is more than the available memory"
            );
            share
        }
        (Some(asked), _) => asked,
    }
}

pub(super) fn memory_available() -> Option<u64> {
    std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text))
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kib() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available_bytes(text), Some(20_000_000 * 1024));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_cache_larger_than_memory_becomes_half_of_it() {
        assert_eq!(golden_cache_bytes(None, Some(8 << 30)), 4 << 30);
        assert_eq!(golden_cache_bytes(Some(5), Some(8 << 30)), 5);
        assert_eq!(golden_cache_bytes(Some(9 << 30), Some(8 << 30)), 4 << 30);
        assert_eq!(golden_cache_bytes(Some(9 << 30), None), 9 << 30);
    }
}
