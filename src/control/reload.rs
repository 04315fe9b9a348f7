//! A new configuration for a running server: what it changes, whether it can be, and the change itself.
//!
//! Knows how two configurations differ. Everything new is read, opened, locked and bound before the first shard hears of
//! it; what is wrong until then changes nothing. Does not know how shards carry it out (`shard::change`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{SocketAddr, TcpListener};

use super::boot_traces::{self, GoldenImage};
use super::catalog::{Opened, TargetSpec, open_target};
use super::config::{Config, ConfigError, Origin, TargetConfig, UnitConfig};
use super::file::identity_of;
use super::golden::GoldenFiles;
use super::keeper::StateFolder;
use super::launch::unit_config;
use super::moving::Moving;
use super::open_image::Format;
use super::roster::{Roster, ServedUnit};
use super::trace_store::TraceStore;
use crate::limits::TARGETS_MAX;
use crate::scsi::{Device, DeviceConfig, KeptUnit, Lun};
use crate::shard::{NewLayer, NewUnit, PORTAL_GROUP};
use crate::units::{SECTOR_BYTES, SectorCount};
use crate::uring::{UringIo, host};

/// What a reload did, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub targets_added: usize,
    pub targets_removed: usize,
    pub luns_added: usize,
    pub luns_removed: usize,
    pub luns_grown: usize,
    pub addresses_added: usize,
    pub addresses_removed: usize,
    /// Rules, secrets, portals, redirections, iSNS servers or `max_connections` are others now.
    pub rules_changed: bool,
}

impl core::ops::Add for Summary {
    type Output = Self;

    /// What two reloads did, one after the other.
    fn add(self, other: Self) -> Self {
        Self {
            targets_added: self.targets_added + other.targets_added,
            targets_removed: self.targets_removed + other.targets_removed,
            luns_added: self.luns_added + other.luns_added,
            luns_removed: self.luns_removed + other.luns_removed,
            luns_grown: self.luns_grown + other.luns_grown,
            addresses_added: self.addresses_added + other.addresses_added,
            addresses_removed: self.addresses_removed + other.addresses_removed,
            rules_changed: self.rules_changed || other.rules_changed,
        }
    }
}

impl fmt::Display for Summary {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.targets_added, ["target added", "targets added"]),
            (self.targets_removed, ["target removed", "targets removed"]),
            (self.luns_added, ["LUN added", "LUNs added"]),
            (self.luns_removed, ["LUN removed", "LUNs removed"]),
            (self.luns_grown, ["LUN grown", "LUNs grown"]),
            (self.addresses_added, ["address added", "addresses added"]),
            (self.addresses_removed, ["address removed", "addresses removed"]),
        ];
        let told = counts.into_iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = told
            .map(|(count, [one, more])| format!("{count} {}", if count == 1 { one } else { more }))
            .collect();
        if self.rules_changed {
            parts.push("rules changed".to_owned());
        }
        if parts.is_empty() { f.write_str("nothing changed") } else { f.write_str(&parts.join(", ")) }
    }
}

/// What one shard gets.
#[derive(Debug, Default)]
pub(super) struct CoreChange {
    pub(super) end_targets: Vec<String>,
    pub(super) end_units: Vec<(String, Lun)>,
    pub(super) layers: Vec<NewLayer<UringIo>>,
    pub(super) targets: Vec<String>,
    pub(super) units: Vec<(String, NewUnit)>,
    pub(super) grown: Vec<(String, Lun, SectorCount)>,
}

/// How a new configuration differs, by names.
#[derive(Debug, Default)]
struct Difference {
    end_targets: Vec<String>,
    end_units: Vec<(String, u16)>,
    new_targets: Vec<String>,
    /// Places in the new configuration: target, units.
    new_units: BTreeMap<usize, Vec<usize>>,
    grown: Vec<(String, u16, SectorCount)>,
}

impl Difference {
    /// The LUN is taken away, or replaced by another one.
    fn ends(&self, target: &str, lun: u16) -> bool {
        self.end_targets.iter().any(|name| name == target)
            || self.end_units.iter().any(|(name, number)| name == target && *number == lun)
    }
}

/// A change that is checked and can be made.
#[derive(Debug)]
pub(super) struct Prepared {
    difference: Difference,
    /// The core of each new target.
    owners: HashMap<String, usize>,
    moving: Vec<Moving>,
    opened: Opened,
    /// Golden images that are new to the server, with their boot traces.
    pub(super) images: Vec<GoldenImage>,
    /// New addresses as they are written, bound.
    pub(super) listeners: Vec<(SocketAddr, TcpListener)>,
    /// Places of addresses that go.
    pub(super) end_listeners: Vec<u32>,
    pub(super) summary: Summary,
}

/// What is there already.
pub(super) struct Present<'a> {
    pub(super) config: &'a Config,
    pub(super) roster: &'a Roster,
    pub(super) opened: &'a Opened,
    pub(super) state: Option<&'a StateFolder>,
    pub(super) golden: &'a GoldenFiles,
    pub(super) traces: &'a TraceStore,
    /// By the shard's places.
    pub(super) listening: &'a [Option<SocketAddr>],
    /// Slots of each ring.
    pub(super) slots_max: &'a [u32],
    /// There is a journal of pending writes.
    pub(super) journaled: bool,
}

fn wrong(origin: &Origin, reason: String) -> Vec<ConfigError> {
    vec![ConfigError { origin: origin.clone(), reason }]
}

/// LUNs of `new` whose image another LUN has open that goes, or is changed, or is being closed: they can come when it has
/// let go of it. Empty where `new` cannot be compared: [`prepare`] says why.
pub(super) fn handed_over(present: &Present<'_>, new: &Config) -> Vec<(String, u16)> {
    let Ok(difference) = compare(present, new) else { return Vec::new() };
    let ends = |target: &str, lun: u16| difference.ends(target, lun);
    let units = difference.new_units.iter().flat_map(|(place, units)| {
        let target = &new.targets[*place];
        units.iter().map(move |unit| (target, &target.units[*unit]))
    });
    let waits = units.filter(|(_, unit)| still_used(present, unit, &ends).is_some());
    waits.map(|(target, unit)| (target.name.clone(), unit.lun)).collect()
}

/// Reads nothing but what `new` names, and changes nothing.
///
/// # Errors
/// All that is wrong with the new configuration, or cannot change while the server runs.
pub(super) fn prepare(present: &Present<'_>, new: &Config) -> Result<Prepared, Vec<ConfigError>> {
    refuse_fixed(present.config, new)?;
    let difference = compare(present, new)?;
    let mut opened = present.opened.clone();
    let place = new.targets.first().map_or(Origin::CommandLine, |target| target.origin.clone());
    opened.opener.confine(&new.image_roots, new.strict).map_err(|error| wrong(&place, error.to_string()))?;
    let (specs, mut kept) = open(present, new, &difference, &mut opened)?;
    check_room(present, new, &difference, &specs)?;
    let is_known = |file| present.golden.number_of(file).is_some();
    let images = boot_traces::load(&specs, is_known, present.traces);
    let luns_added = specs.iter().map(|spec| spec.units.len()).sum();
    let owners = present.roster.owners_for(&difference.new_targets);
    let mut moving: Vec<Moving> = present.slots_max.iter().map(|_| Moving::default()).collect();
    for spec in specs {
        let served = present.roster.targets.get(&spec.name).map_or(0, |served| served.owner);
        let core = owners.get(&spec.name).copied().unwrap_or(served);
        for unit in spec.units {
            let memory = kept.remove(&(spec.name.clone(), unit.lun)).flatten();
            moving[core]
                .add(&spec.name, unit, memory, present.journaled)
                .map_err(|reason| wrong(&place, reason))?;
        }
    }
    let (listeners, end_listeners) = listen(present.listening, &new.listen, &place)?;
    let summary = Summary {
        targets_added: difference.new_targets.len(),
        targets_removed: difference.end_targets.len(),
        luns_added,
        luns_removed: difference.end_units.len()
            + difference
                .end_targets
                .iter()
                .filter_map(|name| present.roster.targets.get(name))
                .map(|it| it.units.len())
                .sum::<usize>(),
        luns_grown: difference.grown.len(),
        addresses_added: listeners.len(),
        addresses_removed: end_listeners.len(),
        rules_changed: rules_differ(present.config, new),
    };
    Ok(Prepared { difference, owners, moving, opened, images, listeners, end_listeners, summary })
}

/// Keys that are read at the start only.
fn refuse_fixed(old: &Config, new: &Config) -> Result<(), Vec<ConfigError>> {
    let shown = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let (was, is) = (&old.places, &new.places);
    let fixed = [
        (
            "state_dir",
            shown(&old.state_dir),
            shown(&new.state_dir),
            is.state_dir.as_ref().or(was.state_dir.as_ref()),
        ),
        ("control", shown(&old.control), shown(&new.control), is.control.as_ref().or(was.control.as_ref())),
        (
            "runtime_dir",
            shown(&old.runtime_dir),
            shown(&new.runtime_dir),
            is.runtime_dir.as_ref().or(was.runtime_dir.as_ref()),
        ),
        (
            "metrics",
            old.metrics.map(|at| at.to_string()),
            new.metrics.map(|at| at.to_string()),
            is.metrics.as_ref().or(was.metrics.as_ref()),
        ),
        (
            "the iSNS entity",
            old.isns.entity.clone(),
            new.isns.entity.clone(),
            new.isns.entity_place.as_ref().or(old.isns.entity_place.as_ref()),
        ),
    ];
    let errors: Vec<ConfigError> = fixed
        .into_iter()
        .filter(|(_, old, new, _)| old != new)
        .map(|(key, old, _, place)| {
            let origin = place.cloned().unwrap_or(Origin::CommandLine);
            let was = old.unwrap_or_else(|| "nothing".to_owned());
            let reason = format!("{key} cannot change while the server runs: restart it, or put {was} back");
            ConfigError { origin, reason }
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn rules_differ(old: &Config, new: &Config) -> bool {
    let rules = |target: &TargetConfig| {
        let units: Vec<_> = target.units.iter().map(|unit| (unit.lun, unit.access.clone())).collect();
        let who = (target.access.clone(), target.chap.clone());
        (who, target.redirect.clone(), target.limits, target.portals.clone(), units)
    };
    let former: HashMap<&str, &TargetConfig> =
        old.targets.iter().map(|target| (target.name.as_str(), target)).collect();
    let differs = |target: &TargetConfig| {
        former.get(target.name.as_str()).is_some_and(|former| rules(former) != rules(target))
    };
    (&old.discovery.access, &old.discovery.chap) != (&new.discovery.access, &new.discovery.chap)
        || old.max_connections != new.max_connections
        || old.hosts != new.hosts
        || old.leases != new.leases
        || old.isns.servers != new.isns.servers
        || new.targets.iter().any(differs)
}

fn compare(present: &Present<'_>, new: &Config) -> Result<Difference, Vec<ConfigError>> {
    let mut difference = Difference::default();
    let former: HashMap<&str, &TargetConfig> =
        present.config.targets.iter().map(|target| (target.name.as_str(), target)).collect();
    let mut errors = Vec::new();
    for (place, target) in new.targets.iter().enumerate() {
        let before = former.get(target.name.as_str()).copied();
        // Served elsewhere from now on, or here again: another target of the same name.
        let stays = before.filter(|before| before.redirect.is_some() == target.redirect.is_some());
        let Some(before) = stays else {
            if before.is_some() {
                difference.end_targets.push(target.name.clone());
            }
            difference.new_targets.push(target.name.clone());
            difference.new_units.insert(place, (0..target.units.len()).collect());
            continue;
        };
        compare_units(present, before, target, place, &mut difference, &mut errors);
    }
    let names: std::collections::HashSet<&str> =
        new.targets.iter().map(|target| target.name.as_str()).collect();
    let gone = present
        .config
        .targets
        .iter()
        .map(|target| &target.name)
        .filter(|name| !names.contains(name.as_str()));
    difference.end_targets.extend(gone.cloned());
    if errors.is_empty() { Ok(difference) } else { Err(errors) }
}

fn compare_units(
    present: &Present<'_>,
    before: &TargetConfig,
    target: &TargetConfig,
    place: usize,
    difference: &mut Difference,
    errors: &mut Vec<ConfigError>,
) {
    let Some(served) = present.roster.targets.get(&target.name) else { return };
    let mut stays = Vec::new();
    for (index, unit) in target.units.iter().enumerate() {
        let former = before.units.iter().find(|former| former.lun == unit.lun);
        let both = former.zip(served.units.get(&unit.lun));
        if let Some((_, open)) = both.filter(|(former, open)| is_same(former, open, unit)) {
            stays.push(unit.lun);
            match growth(open, unit) {
                Ok(Some(sectors)) => difference.grown.push((target.name.clone(), unit.lun, sectors)),
                Ok(None) => {}
                Err(reason) => errors.push(ConfigError { origin: unit.origin.clone(), reason }),
            }
        } else {
            difference.new_units.entry(place).or_default().push(index);
        }
    }
    let gone = served.units.keys().filter(|lun| !stays.contains(lun));
    difference.end_units.extend(gone.map(|lun| (target.name.clone(), *lun)));
}

/// The unit that is served is the one that is wanted: the same file, used in the same way.
fn is_same(former: &UnitConfig, open: &ServedUnit, unit: &UnitConfig) -> bool {
    let settings = |unit: &UnitConfig| {
        let habits = (unit.readonly, unit.removable, unit.write_same_to_end);
        (habits, unit.block_size, unit.physical_block_size, unit.durability, unit.reset)
    };
    let identity = identity_of(&unit.path).ok();
    settings(former) == settings(unit)
        && unit.format.is_none_or(|format| format == open.format)
        && open.files.first().is_some_and(|leaf| Some(leaf.identity()) == identity)
}

/// What a raw file has grown to. The size of other images is in their metadata, which only their user changes.
fn growth(open: &ServedUnit, unit: &UnitConfig) -> Result<Option<SectorCount>, String> {
    let Some(leaf) = open.files.first().filter(|_| open.format == Format::Raw && open.writable) else {
        return Ok(None);
    };
    let len = leaf
        .len_now()
        .map_err(|error| format!("{}: its length cannot be read: {error}", unit.path.display()))?;
    let (block, now) = (u64::from(unit.block_size.unwrap_or_default().bytes()), len / SECTOR_BYTES);
    if now < open.sectors.0 {
        return Err(format!(
            "{}: the file has {now} sectors and is served with {}: bring it back to its size, or remove the LUN first",
            unit.path.display(),
            open.sectors.0
        ));
    }
    if !len.is_multiple_of(block) {
        return Err(format!(
            "{}: {len} bytes are no whole number of {block}-byte blocks",
            unit.path.display()
        ));
    }
    Ok((now > open.sectors.0).then_some(SectorCount(now)))
}

type Opening = (Vec<TargetSpec>, HashMap<(String, u16), Option<KeptUnit>>);

/// Opens what is new, and sees that each target can be.
fn open(
    present: &Present<'_>,
    new: &Config,
    difference: &Difference,
    opened: &mut Opened,
) -> Result<Opening, Vec<ConfigError>> {
    let (mut specs, mut kept, mut errors) = (Vec::new(), HashMap::new(), Vec::new());
    let ends = |target: &str, lun: u16| difference.ends(target, lun);
    for (place, units) in &difference.new_units {
        let target = &new.targets[*place];
        let mut wanted = Vec::new();
        for unit in units.iter().map(|unit| &target.units[*unit]) {
            match still_used(present, unit, &ends) {
                Some(reason) => errors.push(ConfigError { origin: unit.origin.clone(), reason }),
                None => wanted.push(unit),
            }
        }
        let spec = open_target(&target.name, wanted, opened, &mut errors);
        for unit in &spec.units {
            let memory = present.state.map(|folder| folder.load(&target.name, unit.lun)).transpose();
            match memory {
                Ok(memory) => drop(kept.insert((target.name.clone(), unit.lun), memory)),
                Err(error) => {
                    errors.push(ConfigError { origin: target.origin.clone(), reason: error.to_string() })
                }
            }
        }
        errors.extend(check_device(target, &spec));
        specs.push(spec);
    }
    if errors.is_empty() { Ok((specs, kept)) } else { Err(errors) }
}

/// An image that is written, or was until this moment, has one user until that one has closed it.
fn still_used(present: &Present<'_>, unit: &UnitConfig, ends: &dyn Fn(&str, u16) -> bool) -> Option<String> {
    let file = identity_of(&unit.path).ok()?;
    let path = unit.path.display();
    if let Some((target, lun)) = present.roster.leaver_of(file) {
        return Some(format!(
            "{path} is still being closed by LUN {lun} of {target}: reload again in a moment"
        ));
    }
    if !unit.readonly && present.roster.is_parent_leaving(file) {
        return Some(format!(
            "{path} is still being closed, where it was only read: reload again in a moment"
        ));
    }
    let used = |it: &ServedUnit| {
        it.files.first().is_some_and(|leaf| leaf.identity() == file) && (it.writable || !unit.readonly)
    };
    let user = present.roster.targets.iter().find_map(|(name, target)| {
        let lun = target.units.iter().find(|(lun, it)| ends(name, **lun) && used(it))?.0;
        Some((name, lun))
    });
    user.map(|(target, lun)| {
        format!(
            "{path} is still open for LUN {lun} of {target}, which this configuration takes away or changes: reload again \
             when its commands have ended"
        )
    })
}

fn check_device(target: &TargetConfig, spec: &TargetSpec) -> Option<ConfigError> {
    let units: Result<Vec<_>, _> =
        spec.units.iter().map(|unit| unit_config(&target.name, unit, None)).collect();
    let reason = match units {
        Err(reason) => reason,
        Ok(units) => {
            let config = DeviceConfig { target_name: target.name.clone(), portal_group: PORTAL_GROUP, units };
            Device::new(config).err()?.to_string()
        }
    };
    Some(ConfigError { origin: target.origin.clone(), reason })
}

/// The rings have places for all new files.
fn check_room(
    present: &Present<'_>,
    new: &Config,
    difference: &Difference,
    specs: &[TargetSpec],
) -> Result<(), Vec<ConfigError>> {
    let origin = new.targets.first().map_or(Origin::CommandLine, |target| target.origin.clone());
    let served = present.roster.targets.len() + difference.new_targets.len();
    if served > TARGETS_MAX {
        return Err(wrong(&origin, format!("there are more than {TARGETS_MAX} targets")));
    }
    // As if all came to one core: the bound is far away, and nothing is half done at it.
    let most =
        specs.iter().flat_map(|spec| &spec.units).map(|unit| 2 * unit.chain.layers().len()).sum::<usize>();
    let full = (0..present.slots_max.len())
        .find(|core| present.roster.slots(*core) as usize + most > present.slots_max[*core] as usize);
    match full {
        None => Ok(()),
        Some(core) => Err(wrong(
            &origin,
            format!(
                "the new images need {most} places for open files, and core {core} has {} of {} taken: restart the server",
                present.roster.slots(core),
                present.slots_max[core]
            ),
        )),
    }
}

type Listening = (Vec<(SocketAddr, TcpListener)>, Vec<u32>);

/// Binds what is new. Addresses with port 0 are told apart by how many there are.
fn listen(
    old: &[Option<SocketAddr>],
    new: &[SocketAddr],
    origin: &Origin,
) -> Result<Listening, Vec<ConfigError>> {
    let mut left: Vec<Option<SocketAddr>> = old.to_vec();
    let mut bound = Vec::new();
    for address in new {
        match left.iter_mut().find(|known| **known == Some(*address)) {
            Some(known) => *known = None,
            None => {
                let listener = host::listen(*address).map_err(|error| {
                    wrong(origin, format!("cannot listen on {address}: {error}; free it or name another"))
                })?;
                bound.push((*address, listener));
            }
        }
    }
    let ends = (0..).zip(&left).filter(|(_, known)| known.is_some()).map(|(index, _)| index);
    Ok((bound, ends.collect()))
}

impl Prepared {
    /// Names everything anew in the roster, and says what each core gets.
    pub(super) fn apply(self, roster: &mut Roster, golden: &mut GoldenFiles) -> (Vec<CoreChange>, Opened) {
        let mut changes: Vec<CoreChange> = self.moving.iter().map(|_| CoreChange::default()).collect();
        for (target, lun) in &self.difference.end_units {
            let core = roster.targets.get(target).map_or(0, |served| served.owner);
            changes[core].end_units.extend(Lun::new(*lun).map(|lun| (target.clone(), lun)));
            roster.end_unit(target, *lun);
        }
        for target in &self.difference.end_targets {
            let core = roster.targets.get(target).map_or(0, |served| served.owner);
            changes[core].end_targets.push(target.clone());
            roster.end_target(target);
        }
        for target in &self.difference.new_targets {
            let core = self.owners.get(target).copied().unwrap_or(0);
            roster.add_target(target, core);
            changes[core].targets.push(target.clone());
        }
        for (target, lun, sectors) in &self.difference.grown {
            let Some(served) = roster.targets.get_mut(target) else { continue };
            if let (Some(unit), Some(lun)) = (served.units.get_mut(lun), Lun::new(*lun)) {
                unit.sectors = *sectors;
                changes[served.owner].grown.push((target.clone(), lun, *sectors));
            }
        }
        for (core, moving) in self.moving.into_iter().enumerate() {
            (changes[core].layers, changes[core].units) = moving.arrive(core, roster, golden);
        }
        (changes, self.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line_and_counts_right() {
        let summary = Summary { targets_added: 1, luns_added: 2, rules_changed: true, ..Summary::default() };
        assert_eq!(summary.to_string(), "1 target added, 2 LUNs added, rules changed");
        assert_eq!(Summary::default().to_string(), "nothing changed");
    }

    #[test]
    fn addresses_are_compared_one_by_one() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let old = [Some(any), None, Some(any)];
        let listen = |new: &[SocketAddr]| {
            let (bound, ends) = listen(&old, new, &Origin::CommandLine).unwrap();
            (bound.len(), ends)
        };
        assert_eq!(listen(&[any, any]), (0, vec![]));
        assert_eq!(listen(&[any]), (0, vec![2]));
        assert_eq!(listen(&[any, any, any]), (1, vec![]));
        assert_eq!(listen(&["127.0.0.2:0".parse().unwrap()]), (1, vec![0, 2]));
    }
}
