//! The catalog: every target of a server with its images open, or every reason why not.
//!
//! Knows which files serve which units. Plain data, sent to the threads that serve it. Does
//! not know sessions or rings.

use std::collections::HashMap;

use super::cli::{DurabilityPolicy, ResetPolicy};
use super::config::{Config, ConfigError, Origin, PhysicalTooSmall, UnitConfig};
use super::file::{Access, FileIdentity};
use super::open_image::{Format, OpenError, OpenedChain, Opener};
use super::overlay;
use crate::units::BlockSize;
use crate::uring::host;

/// All targets, in order of the configuration.
#[derive(Debug)]
pub struct Catalog {
    pub targets: Vec<TargetSpec>,
    /// Which files are open, for what is opened later.
    pub opened: Opened,
}

/// The files of a server, and which unit was the first to name each.
#[derive(Clone, Debug)]
pub struct Opened {
    pub opener: Opener,
    pub users: HashMap<FileIdentity, Origin>,
}

impl Opened {
    pub fn forget(&mut self, file: FileIdentity) {
        self.opener.forget(file);
        self.users.remove(&file);
    }
}

#[derive(Debug)]
pub struct TargetSpec {
    /// Canonical: lower case.
    pub name: String,
    /// Ascending by LUN.
    pub units: Vec<UnitSpec>,
}

#[derive(Debug)]
pub struct UnitSpec {
    pub lun: u16,
    pub readonly: bool,
    pub removable: bool,
    pub write_same_to_end: bool,
    pub block_size: BlockSize,
    pub physical_block_size: BlockSize,
    pub durability: DurabilityPolicy,
    pub reset: ResetPolicy,
    pub chain: OpenedChain,
}

impl UnitSpec {
    pub(super) fn is_writable(&self) -> bool {
        !self.readonly && self.chain.leaf().file().is_writable()
    }
}

impl Catalog {
    /// Opens and locks every image. All that is wrong comes back, each with the place that named the image.
    pub fn open(config: &Config) -> Result<Self, Vec<ConfigError>> {
        // A child each, a socket each: the soft limit of 1024 files is soon met. Opening says when it is.
        if let Err(error) = host::raise_open_files() {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
        let opener = Opener::confined(&config.image_roots, config.strict);
        let opener = opener
            .map_err(|error| vec![ConfigError { origin: Origin::CommandLine, reason: error.to_string() }])?;
        let mut opened = Opened { opener, users: HashMap::new() };
        let mut targets = Vec::with_capacity(config.targets.len());
        let mut errors = Vec::new();
        for target in &config.targets {
            targets.push(open_target(&target.name, &target.units, &mut opened, &mut errors));
        }
        if errors.is_empty() { Ok(Self { targets, opened }) } else { Err(errors) }
    }
}

/// Opens the images of these units; what is wrong goes to `errors`.
pub(super) fn open_target<'a>(
    name: &str,
    units: impl IntoIterator<Item = &'a UnitConfig>,
    opened: &mut Opened,
    errors: &mut Vec<ConfigError>,
) -> TargetSpec {
    let mut specs = Vec::new();
    for unit in units {
        match open_unit(unit, opened) {
            Ok(unit) => specs.push(unit),
            Err(reason) => errors.push(ConfigError { origin: unit.origin.clone(), reason }),
        }
    }
    TargetSpec { name: name.to_owned(), units: specs }
}

fn open_unit(unit: &UnitConfig, opened: &mut Opened) -> Result<UnitSpec, String> {
    let Opened { opener, users } = opened;
    let access = if unit.readonly { Access::ReadOnly } else { Access::Writable };
    if unit.durability == DurabilityPolicy::UntilReset && !unit.readonly {
        overlay::empty(&unit.path, unit.format).map_err(|error| error.to_string())?;
    }
    let chain = opener.open_chain_as(&unit.path, access, unit.format).map_err(|error| match error {
        OpenError::Shared { path } => {
            let user = super::file::identity_of(&path).ok().and_then(|identity| users.get(&identity));
            let user = user.map_or_else(|| "another image of this server".to_owned(), ToString::to_string);
            format!("{} is used by {user} already: an image that is written has one user", path.display())
        }
        other => other.to_string(),
    })?;
    for layer in chain.layers() {
        users.entry(layer.file().identity()).or_insert_with(|| unit.origin.clone());
    }
    let sectors = chain.sectors().0;
    let block_size = unit.block_size.unwrap_or(chain.leaf().logical_sector());
    if !sectors.is_multiple_of(block_size.sectors()) {
        return Err(format!(
            "{}: the disk has {sectors} sectors of 512 bytes, no whole number of 4096-byte blocks: use block_size 512",
            unit.path.display()
        ));
    }
    let (block, sector) = (block_size.bytes(), chain.leaf().logical_sector().bytes());
    if chain.leaf().format() == Format::Vhdx && block != sector {
        return Err(format!(
            "{}: the disk was made for sectors of {sector} bytes, and a unit shows its disk's own: use block_size \
             {sector}",
            unit.path.display()
        ));
    }
    let physical_block_size = unit.physical_block_size.unwrap_or(BlockSize::B4096);
    if physical_block_size.bytes() < block {
        let small = PhysicalTooSmall { physical: physical_block_size, logical: block_size };
        return Err(format!("{}: {small}", unit.path.display()));
    }
    let UnitConfig { lun, readonly, removable, write_same_to_end, durability, reset, .. } = *unit;
    Ok(UnitSpec {
        lun,
        readonly,
        removable,
        write_same_to_end,
        block_size,
        physical_block_size,
        durability,
        reset,
        chain,
    })
}
