//! The configuration: TOML to typed values, refused as a whole when anything in it is wrong.
//!
//! Knows keys, their bounds and the lines they stand on. Does not know images: files are opened by `catalog`.

mod admission;
pub mod isns;
mod limits;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::cli::{DurabilityPolicy, LISTEN_DEFAULT, ResetPolicy};
use super::file::folder_of;
use super::leases::{self, LeasesError};
use super::name;
use super::open_image::Format;
use super::secrets::{self, Secret};
use super::trace_store::TracePlace;
use crate::limits::{TARGETS_MAX, UNITS_PER_TARGET_MAX};
use crate::shard::{Admission, MacTable, RateLimits, Redirect};
use crate::units::BlockSize;

/// The longest configuration file: a room of 65,536 nodes fits.
const CONFIG_BYTES_MAX: u64 = 64 << 20;
/// The longest CHAP name.
const CHAP_NAME_BYTES_MAX: usize = 255;
/// Listening addresses of one server.
const LISTEN_MAX: usize = 64;

/// Everything `serve` must know, from a file or from the command line.
#[derive(Debug)]
pub struct Config {
    pub listen: Vec<SocketAddr>,
    /// Folders in which parents of images may lie.
    pub image_roots: Vec<PathBuf>,
    /// Refuse what is otherwise only warned about: a changed parent, a secret others may read.
    pub strict: bool,
    /// Where LUNs keep what outlives the server; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Where boot traces are kept, if at all; and whether the cache is filled along them before anybody is let in.
    pub boot_trace: TracePlace,
    pub warm: bool,
    /// Where pending writes are remembered; `None`: the usual folders.
    pub runtime_dir: Option<PathBuf>,
    /// Where the server may be asked; `None`: in the runtime folder.
    pub control: Option<PathBuf>,
    /// Where Prometheus may fetch metrics; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    pub discovery: DiscoveryConfig,
    /// Where targets are registered.
    pub isns: isns::IsnsConfig,
    /// Files in which a DHCP server says which address has which MAC; they change at any time.
    pub leases: Vec<PathBuf>,
    /// What the configuration says itself about that.
    pub hosts: MacTable,
    /// Connections of a session, where the command line does not say.
    pub max_connections: Option<u32>,
    pub targets: Vec<TargetConfig>,
    pub places: Places,
}

/// Where keys stand that cannot change while the server runs.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub state_dir: Option<Origin>,
    pub runtime_dir: Option<Origin>,
    pub control: Option<Origin>,
    pub metrics: Option<Origin>,
}

impl Config {
    /// What leases say, and over it what the configuration says.
    ///
    /// # Errors
    /// The file that cannot be read, and why.
    pub fn macs(&self) -> Result<MacTable, (PathBuf, LeasesError)> {
        macs(&self.leases, &self.hosts)
    }
}

/// What lease files say, and over it what is known from elsewhere.
///
/// # Errors
/// The file that cannot be read, and why.
pub(super) fn macs(files: &[PathBuf], hosts: &MacTable) -> Result<MacTable, (PathBuf, LeasesError)> {
    let mut table = MacTable::default();
    for path in files {
        table.overlay(&leases::load(path).map_err(|error| (path.clone(), error))?);
    }
    table.overlay(hosts);
    Ok(table)
}

#[derive(Debug)]
pub struct TargetConfig {
    /// Canonical: lower case.
    pub name: String,
    pub origin: Origin,
    /// Who may log in.
    pub access: Admission,
    pub chap: Option<ChapConfig>,
    /// Whoever may log in is sent there.
    pub redirect: Option<Redirect>,
    /// How fast it may be used.
    pub limits: RateLimits,
    /// Of the listening addresses, those that lead to it; `None`: all.
    pub portals: Option<Vec<SocketAddr>>,
    pub units: Vec<UnitConfig>,
}

impl TargetConfig {
    /// For everybody, at every address.
    pub fn open(name: String, origin: Origin, units: Vec<UnitConfig>) -> Self {
        Self {
            name,
            origin,
            access: Admission::default(),
            chap: None,
            redirect: None,
            limits: RateLimits::default(),
            portals: None,
            units,
        }
    }
}

/// Who may ask which targets there are.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryConfig {
    pub access: Admission,
    pub chap: Option<ChapConfig>,
}

/// How initiators prove themselves, and with `mutual` how the target does in return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapConfig {
    pub inward: Credential,
    pub mutual: Option<Credential>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub user: String,
    pub secret: Secret,
}

#[derive(Debug)]
pub struct UnitConfig {
    pub lun: u16,
    pub path: PathBuf,
    pub origin: Origin,
    /// Detected when absent.
    pub format: Option<Format>,
    pub readonly: bool,
    /// The initiator may eject the medium: until it is loaded again, the unit is NOT READY.
    pub removable: bool,
    /// WRITE SAME without a length writes up to the end of the disk, instead of being refused.
    pub write_same_to_end: bool,
    /// The disk's own when absent.
    pub block_size: Option<BlockSize>,
    /// What the unit says its medium is made of; never smaller than its logical blocks. 4096 when absent.
    pub physical_block_size: Option<BlockSize>,
    /// Who sees it, of those that may log in.
    pub access: Admission,
    pub durability: DurabilityPolicy,
    /// Of one that is until-reset.
    pub reset: ResetPolicy,
}

const NO_RESET: &str =
    "only what has durability until-reset is ever emptied: leave reset out, or set durability";

impl UnitConfig {
    fn is_until_reset(&self) -> bool {
        self.durability == DurabilityPolicy::UntilReset
    }
}

/// A physical block that holds no whole logical one.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "physical_block_size {} is less than block_size {}: a physical block holds whole logical ones",
    .physical.bytes(), .logical.bytes()
)]
pub(super) struct PhysicalTooSmall {
    pub(super) physical: BlockSize,
    pub(super) logical: BlockSize,
}

/// Where something was written, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    CommandLine,
    File { path: Arc<Path>, line: usize },
}

impl fmt::Display for Origin {
    /// `FILE:LINE`, or a name for the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One thing that is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {reason}")]
pub struct ConfigError {
    pub origin: Origin,
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    listen: Option<Spanned<Vec<Spanned<String>>>>,
    image_roots: Option<Vec<Spanned<PathBuf>>>,
    #[serde(default)]
    strict: bool,
    state_dir: Option<Spanned<PathBuf>>,
    runtime_dir: Option<Spanned<PathBuf>>,
    max_connections: Option<Spanned<u32>>,
    control: Option<Spanned<PathBuf>>,
    boot_trace: Option<String>,
    #[serde(default)]
    warm: bool,
    metrics: Option<Spanned<String>>,
    discovery: Option<RawDiscovery>,
    isns: Option<isns::RawIsns>,
    #[serde(default)]
    host: Vec<admission::RawHost>,
    #[serde(default)]
    leases: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    target: Vec<Spanned<RawTarget>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    name: Spanned<String>,
    initiators: Option<Spanned<Vec<Spanned<String>>>>,
    addresses: Option<Spanned<Vec<Spanned<String>>>>,
    macs: Option<Spanned<Vec<Spanned<String>>>>,
    chap: Option<Spanned<RawChap>>,
    redirect: Option<RawRedirect>,
    max_iops: Option<Spanned<u64>>,
    max_rate: Option<Spanned<String>>,
    portals: Option<Spanned<Vec<Spanned<String>>>>,
    block_size: Option<Spanned<i64>>,
    physical_block_size: Option<Spanned<i64>>,
    #[serde(default)]
    durability: DurabilityPolicy,
    reset: Option<Spanned<ResetPolicy>>,
    #[serde(default)]
    lun: Vec<Spanned<RawLun>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDiscovery {
    initiators: Option<Spanned<Vec<Spanned<String>>>>,
    addresses: Option<Spanned<Vec<Spanned<String>>>>,
    macs: Option<Spanned<Vec<Spanned<String>>>>,
    chap: Option<Spanned<RawChap>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedirect {
    to: Spanned<String>,
    #[serde(default)]
    permanent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChap {
    user: Spanned<String>,
    secret_file: Spanned<PathBuf>,
    mutual: Option<RawMutual>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMutual {
    user: Spanned<String>,
    secret_file: Spanned<PathBuf>,
}

/// The keys `block_size` and `physical_block_size`.
type RawBlocks = (Option<Spanned<i64>>, Option<Spanned<i64>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLun {
    lun: Spanned<i64>,
    path: Spanned<PathBuf>,
    format: Option<Format>,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    removable: bool,
    #[serde(default)]
    write_same_to_end: bool,
    block_size: Option<Spanned<i64>>,
    physical_block_size: Option<Spanned<i64>>,
    initiators: Option<Spanned<Vec<Spanned<String>>>>,
    addresses: Option<Spanned<Vec<Spanned<String>>>>,
    macs: Option<Spanned<Vec<Spanned<String>>>>,
    durability: Option<DurabilityPolicy>,
    reset: Option<Spanned<ResetPolicy>>,
}

/// Reads and checks a configuration file. All that is wrong with it comes back, in order of the file; a syntax
/// or type error hides what follows it.
pub fn load(path: &Path) -> Result<Config, Vec<ConfigError>> {
    let refuse = |reason: String| {
        vec![ConfigError { origin: Origin::File { path: Arc::from(path), line: 1 }, reason }]
    };
    let metadata = std::fs::metadata(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(refuse("is not a regular file".to_owned()));
    }
    if metadata.len() > CONFIG_BYTES_MAX {
        return Err(refuse(format!("is longer than {CONFIG_BYTES_MAX} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        vec![ConfigError {
            origin: Origin::File { path: Arc::from(path), line },
            reason: "is not UTF-8 text".to_owned(),
        }]
    })?;
    parse(path, &text)
}

/// As [`load`], with the text at hand. Relative paths in it start at `path`'s folder.
pub fn parse(path: &Path, text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut reader = Reader::new(path, text);
    let raw: RawConfig = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        vec![ConfigError { origin: reader.origin_at(at), reason: one_line(error.message()) }]
    })?;
    let config = reader.config(raw);
    if reader.errors.is_empty() { Ok(config) } else { Err(reader.errors) }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Turns raw values into typed ones and collects what is wrong with them.
struct Reader {
    path: Arc<Path>,
    folder: PathBuf,
    /// Where each line ends: a room of nodes has tens of thousands, and each value is asked for its own.
    line_ends: Vec<usize>,
    strict: bool,
    errors: Vec<ConfigError>,
}

impl Reader {
    fn new(path: &Path, text: &str) -> Self {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let line_ends =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { path: Arc::from(path), folder, line_ends, strict: false, errors: Vec::new() }
    }

    fn origin_at(&self, offset: usize) -> Origin {
        let line = 1 + self.line_ends.partition_point(|end| *end < offset);
        Origin::File { path: self.path.clone(), line }
    }

    fn origin<T>(&self, value: &Spanned<T>) -> Origin {
        self.origin_at(value.span().start)
    }

    fn line<T>(&self, value: &Spanned<T>) -> usize {
        match self.origin(value) {
            Origin::File { line, .. } => line,
            Origin::CommandLine => 0,
        }
    }

    fn refuse<T>(&mut self, at: &Spanned<T>, reason: String) {
        let origin = self.origin(at);
        self.errors.push(ConfigError { origin, reason });
    }

    fn config(&mut self, raw: RawConfig) -> Config {
        self.strict = raw.strict;
        let places = self.places(&raw);
        let listen = self.listen(raw.listen);
        let given = raw.image_roots.is_some();
        let mut image_roots = self.image_roots(raw.image_roots.unwrap_or_default());
        let mut targets: Vec<TargetConfig> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        if raw.target.len() > TARGETS_MAX {
            self.refuse(&raw.target[TARGETS_MAX], format!("there are more than {TARGETS_MAX} targets"));
        }
        for target in raw.target.into_iter().take(TARGETS_MAX) {
            let Some(name) = self.target_name(&target.get_ref().name) else { continue };
            let line = self.line(&target.get_ref().name);
            if let Some(first) = lines.insert(name.clone(), line) {
                let at = target.into_inner().name;
                self.refuse(
                    &at,
                    format!("target {name} stands a second time; it is on line {first} already"),
                );
                lines.insert(name, first);
                continue;
            }
            targets.push(self.target(name, target, &listen));
        }
        if targets.is_empty() && self.errors.is_empty() {
            let origin = self.origin_at(0);
            self.errors.push(ConfigError { origin, reason: "there is no [[target]] to serve".to_owned() });
        }
        if !given {
            image_roots.push(folder_of(&self.path).to_owned());
            let units = targets.iter().flat_map(|target| &target.units);
            let mut folders: Vec<PathBuf> = units.map(|unit| folder_of(&unit.path).to_owned()).collect();
            folders.sort();
            folders.dedup();
            image_roots.extend(folders);
        }
        let (discovery, isns) = (self.discovery(raw.discovery), self.isns(raw.isns));
        let leases = self.leases(&raw.leases);
        let hosts = self.hosts(&raw.host);
        let state_dir = raw.state_dir.map(|path| self.folder.join(path.into_inner()));
        let runtime_dir = raw.runtime_dir.map(|path| self.folder.join(path.into_inner()));
        let control = raw.control.map(|path| self.folder.join(path.into_inner()));
        let max_connections = raw.max_connections.and_then(|most| self.max_connections(&most));
        let metrics = raw.metrics.and_then(|text| self.address(&text));
        let (strict, warm) = (raw.strict, raw.warm);
        let boot_trace =
            raw.boot_trace.map_or(TracePlace::Beside, |text| TracePlace::from_key(&text, &self.folder));
        Config {
            listen,
            image_roots,
            strict,
            state_dir,
            boot_trace,
            warm,
            runtime_dir,
            control,
            metrics,
            discovery,
            isns,
            leases,
            hosts,
            max_connections,
            targets,
            places,
        }
    }

    fn image_roots(&mut self, raw: Vec<Spanned<PathBuf>>) -> Vec<PathBuf> {
        let mut image_roots = Vec::new();
        for root in raw {
            let folder = self.folder.join(root.get_ref());
            if folder.is_dir() {
                image_roots.push(folder);
            } else {
                self.refuse(&root, format!("image root {} is not a folder", folder.display()));
            }
        }
        image_roots
    }

    fn places(&self, raw: &RawConfig) -> Places {
        let origin = |key: &Option<Spanned<PathBuf>>| key.as_ref().map(|path| self.origin(path));
        Places {
            state_dir: origin(&raw.state_dir),
            runtime_dir: origin(&raw.runtime_dir),
            control: origin(&raw.control),
            metrics: raw.metrics.as_ref().map(|text| self.origin(text)),
        }
    }

    fn listen(&mut self, raw: Option<Spanned<Vec<Spanned<String>>>>) -> Vec<SocketAddr> {
        let Some(raw) = raw else { return vec![LISTEN_DEFAULT] };
        if raw.get_ref().is_empty() {
            self.refuse(
                &raw,
                "listen is empty: name an address, or remove the key to listen on 0.0.0.0:3260".into(),
            );
        }
        if raw.get_ref().len() > LISTEN_MAX {
            self.refuse(&raw, format!("listen has more than {LISTEN_MAX} addresses"));
            return Vec::new();
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for text in raw.into_inner() {
            match self.address(&text) {
                // Port 0 asks for any free port: two of those are two ports.
                Some(address) if address.port() != 0 && addresses.contains(&address) => {
                    self.refuse(&text, format!("listen address {address} stands twice"));
                }
                Some(address) => addresses.push(address),
                None => {}
            }
        }
        addresses
    }

    fn address(&mut self, text: &Spanned<String>) -> Option<SocketAddr> {
        let address = text.get_ref().parse().ok();
        if address.is_none() {
            let reason = format!(
                "\"{}\" is no listen address: write ADDRESS:PORT with a numeric address, such as 0.0.0.0:3260 or [::]:3260",
                text.get_ref()
            );
            self.refuse(text, reason);
        }
        address
    }

    fn target_name(&mut self, raw: &Spanned<String>) -> Option<String> {
        match name::target_name(raw.get_ref()) {
            Ok(name) => Some(name),
            Err(error) => {
                self.refuse(raw, format!("\"{}\" is no target name: {error}", raw.get_ref()));
                None
            }
        }
    }

    fn target(&mut self, name: String, raw: Spanned<RawTarget>, listen: &[SocketAddr]) -> TargetConfig {
        let origin = self.origin(&raw.get_ref().name);
        let raw = raw.into_inner();
        self.check_luns(&name, &raw);
        let access = self.access(raw.initiators, raw.addresses, raw.macs);
        let (redirect, portals) = (self.redirect(raw.redirect), self.portals(raw.portals, listen));
        let limits = self.limits(raw.max_iops, raw.max_rate);
        let chap = raw.chap.and_then(|chap| self.chap(chap));
        let blocks = (raw.block_size, raw.physical_block_size);
        let defaults = (&blocks, raw.durability, raw.reset.as_ref().map(|reset| *reset.get_ref()));
        let mut units: Vec<UnitConfig> = Vec::new();
        let mut lines: HashMap<u16, usize> = HashMap::new();
        for lun in raw.lun {
            let line = self.line(&lun.get_ref().lun);
            let Some(unit) = self.unit(lun, defaults, &lines) else { continue };
            lines.insert(unit.lun, line);
            units.push(unit);
        }
        units.sort_by_key(|unit| unit.lun);
        if let Some(reset) = raw.reset.filter(|_| !units.iter().any(UnitConfig::is_until_reset)) {
            self.refuse(&reset, NO_RESET.to_owned());
        }
        TargetConfig { name, origin, access, chap, redirect, limits, portals, units }
    }

    fn chap(&mut self, raw: Spanned<RawChap>) -> Option<ChapConfig> {
        let raw = raw.into_inner();
        let inward = self.credential(&raw.user, &raw.secret_file);
        let Some(mutual) = raw.mutual else { return Some(ChapConfig { inward: inward?, mutual: None }) };
        let outward = self.credential(&mutual.user, &mutual.secret_file);
        let (inward, outward) = (inward?, outward?);
        if inward.secret == outward.secret {
            let reason = "the mutual secret must differ from the initiator's (RFC 7143, 9.2.1)".to_owned();
            self.refuse(&mutual.secret_file, reason);
            return None;
        }
        Some(ChapConfig { inward, mutual: Some(outward) })
    }

    fn credential(&mut self, user: &Spanned<String>, file: &Spanned<PathBuf>) -> Option<Credential> {
        let name = user.get_ref();
        if name.is_empty() || name.len() > CHAP_NAME_BYTES_MAX || name.contains(|c: char| c.is_control()) {
            let reason = format!("the CHAP user must be one line of 1 to {CHAP_NAME_BYTES_MAX} bytes");
            self.refuse(user, reason);
            return None;
        }
        let path = self.folder.join(file.get_ref());
        match secrets::load(&path, self.strict) {
            Ok(loaded) => {
                if loaded.world_readable {
                    tracing::warn!(secret = %path.display(), "every user may read this secret: run chmod 600 on it");
                }
                Some(Credential { user: name.clone(), secret: loaded.secret })
            }
            Err(error) => {
                self.refuse(file, format!("{}: {error}", path.display()));
                None
            }
        }
    }

    fn block_size(&mut self, key: &str, raw: &Spanned<i64>) -> BlockSize {
        let size = u32::try_from(*raw.get_ref()).ok().and_then(BlockSize::from_bytes);
        size.unwrap_or_else(|| {
            self.refuse(raw, format!("{key} {} is neither 512 nor 4096", raw.get_ref()));
            BlockSize::default()
        })
    }

    /// The logical and the physical block size of a LUN, as far as its keys or its target's say them.
    fn block_sizes(&mut self, own: &RawBlocks, target: &RawBlocks) -> (Option<BlockSize>, Option<BlockSize>) {
        let logical = own.0.as_ref().or(target.0.as_ref());
        let logical = logical.map(|raw| self.block_size("block_size", raw));
        let Some(raw) = own.1.as_ref().or(target.1.as_ref()) else { return (logical, None) };
        let physical = self.block_size("physical_block_size", raw);
        if let Some(logical) = logical.filter(|logical| physical.bytes() < logical.bytes()) {
            self.refuse(raw, PhysicalTooSmall { physical, logical }.to_string());
        }
        (logical, Some(physical))
    }

    fn unit(
        &mut self,
        raw: Spanned<RawLun>,
        defaults: (&RawBlocks, DurabilityPolicy, Option<ResetPolicy>),
        lines: &HashMap<u16, usize>,
    ) -> Option<UnitConfig> {
        let raw = raw.into_inner();
        let lun = *raw.lun.get_ref();
        let (block_size, physical_block_size) =
            self.block_sizes(&(raw.block_size, raw.physical_block_size), defaults.0);
        let Some(lun) = u16::try_from(lun).ok().filter(|lun| usize::from(*lun) < UNITS_PER_TARGET_MAX) else {
            let reason = format!("LUN {lun} is out of range: 0 to {}", UNITS_PER_TARGET_MAX - 1);
            self.refuse(&raw.lun, reason);
            return None;
        };
        if let Some(first) = lines.get(&lun) {
            self.refuse(
                &raw.lun,
                format!("LUN {lun} stands twice in this target; it is on line {first} already"),
            );
            return None;
        }
        let access = self.access(raw.initiators, raw.addresses, raw.macs);
        let path = self.folder.join(raw.path.get_ref());
        let origin = self.origin(&raw.path);
        match std::fs::metadata(&path) {
            Ok(_) => {
                let durability = raw.durability.unwrap_or(defaults.1);
                if let Some(reset) = raw.reset.as_ref().filter(|_| durability == DurabilityPolicy::Persistent)
                {
                    self.refuse(reset, NO_RESET.to_owned());
                }
                let reset = raw.reset.map(Spanned::into_inner).or(defaults.2).unwrap_or_default();
                Some(UnitConfig {
                    lun,
                    path,
                    origin,
                    format: raw.format,
                    readonly: raw.readonly,
                    removable: raw.removable,
                    write_same_to_end: raw.write_same_to_end,
                    block_size,
                    physical_block_size,
                    access,
                    durability,
                    reset,
                })
            }
            Err(error) => {
                self.refuse(&raw.path, format!("image {} cannot be opened: {error}", path.display()));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
listen = ["127.0.0.1:0", "[::1]:3260"]
image_roots = ["."]
[[target]]
name = "iqn.2026-11.io.goldrush:Node-001"
initiators = ["iqn.2010-04.org.ipxe:node-001"]
chap = { user = "node-001", secret_file = "secret", mutual = { user = "room", secret_file = "mutual" } }
block_size = 4096
  [[target.lun]]
  lun = 1
  path = "image"
  readonly = true
  [[target.lun]]
  lun = 0
  path = "image"
  block_size = 512
  physical_block_size = 512
  removable = true
"#;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("image"), [0; 512]).unwrap();
        std::fs::write(folder.path().join("secret"), "a secret of the node").unwrap();
        std::fs::write(folder.path().join("mutual"), "a secret of the room").unwrap();
        folder
    }

    /// What `text` in a file `c.toml` is answered: `line: reason` for each error.
    fn errors(folder: &Path, text: &str) -> Vec<String> {
        let prefix = format!("{}:", folder.join("c.toml").display());
        let errors = parse(&folder.join("c.toml"), text).map(|_| ()).unwrap_err();
        errors.iter().map(|error| error.to_string().strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    #[test]
    fn every_key_reaches_the_typed_configuration() {
        let folder = folder();
        let config = parse(&folder.path().join("c.toml"), GOOD).unwrap();
        assert_eq!(config.listen, ["127.0.0.1:0".parse().unwrap(), "[::1]:3260".parse().unwrap()]);
        let target = &config.targets[0];
        assert_eq!(target.name, "iqn.2026-11.io.goldrush:node-001");
        let peer = "192.0.2.7".parse().unwrap();
        assert!(target.access.admits("iqn.2010-04.org.ipxe:node-001", peer, &config.hosts));
        assert!(!target.access.admits("iqn.2010-04.org.ipxe:node-002", peer, &config.hosts));
        let chap = target.chap.as_ref().unwrap();
        assert_eq!(
            (chap.inward.user.as_str(), chap.inward.secret.bytes()),
            ("node-001", &b"a secret of the node"[..])
        );
        assert_eq!(chap.mutual.as_ref().unwrap().user, "room");
        let units: Vec<_> = target
            .units
            .iter()
            .map(|unit| (unit.lun, unit.readonly, unit.removable, unit.block_size, unit.physical_block_size))
            .collect();
        let (small, large) = (Some(BlockSize::B512), Some(BlockSize::B4096));
        assert_eq!(units, [(0, false, true, small, small), (1, true, false, large, None)]);
    }

    #[test]
    fn all_errors_of_a_file_are_told_with_their_lines() {
        let folder = folder();
        let text =
            GOOD.replace("[::1]:3260", "localhost").replace("lun = 1", "lun = 256").replace("4096", "513");
        assert_eq!(
            errors(folder.path(), &text),
            [
                "2: \"localhost\" is no listen address: write ADDRESS:PORT with a numeric address, such as 0.0.0.0:3260 or [::]:3260",
                "8: block_size 513 is neither 512 nor 4096",
                "10: LUN 256 is out of range: 0 to 255",
            ]
        );
    }

    #[test]
    fn a_physical_block_holds_whole_logical_ones() {
        let folder = folder();
        let text = GOOD
            .replace("physical_block_size = 512", "")
            .replace("readonly = true", "physical_block_size = 512");
        let refused = "12: physical_block_size 512 is less than block_size 4096: a physical block holds whole logical ones";
        assert_eq!(errors(folder.path(), &text), [refused]);
    }

    #[test]
    fn a_repeated_target_names_the_first_line() {
        let folder = folder();
        let target = GOOD.split("[[target]]").nth(1).unwrap();
        let text = format!("[[target]]{target}[[target]]{target}");
        assert_eq!(
            errors(folder.path(), &text),
            ["17: target iqn.2026-11.io.goldrush:node-001 stands a second time; it is on line 2 already"]
        );
    }

    #[test]
    fn roots_default_to_the_folders_in_use() {
        let folder = folder();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("deep/image"), [0; 512]).unwrap();
        let text = "[[target]]\nname = \"iqn.2026-11.io.goldrush:a\"\n[[target.lun]]\nlun = 0\npath = \"deep/image\"\n";
        let config = parse(&folder.path().join("c.toml"), text).unwrap();
        assert_eq!(config.image_roots, [folder.path().to_owned(), folder.path().join("deep")]);
        assert_eq!(config.listen, [LISTEN_DEFAULT]);
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let folder = folder();
        for cut in 0..GOOD.len() {
            let _ = parse(&folder.path().join("c.toml"), &GOOD[..cut]);
            let _ = parse(
                &folder.path().join("c.toml"),
                &format!("{}\u{0}\u{ffff}{}", &GOOD[..cut], &GOOD[cut..]),
            );
        }
    }
}
