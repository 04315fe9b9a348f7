//! Fuzz entry point of the commands that change chains: random chains, random commands, each of them stopped before one
//! of its changes and run again, against a model of sectors.
//!
//! All images of a chain are VHDs, or all are VHDXs. Knows files in a folder of its own, in memory where the system has such a folder. A stop is what a kill is: nothing
//! is changed any more, and the locks are gone. Power cuts are the crash tests' (`tests/it`) and `vhd::relink`'s.

use std::cell::Cell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::block_io::ChainReader;
use super::chain_writer::ChainWriter;
use super::error::Error;
use super::file::{Access, Locking};
use super::image_compact::compact;
use super::image_create::{create_child_of, write_new};
use super::image_flatten::flatten;
use super::image_merge::{merge, merge_into_new, renew};
use super::image_rebase::rebase;
use super::image_snapshot::{continue_in, freeze_as};
use super::new_image::{NewDisk, Wanted};
use super::open_image::Opener;
use super::size::Size;
use super::watch::Watch;
use crate::control::cli::DiskKind;
use crate::units::BlockSize;

/// Sectors of a disk, in whole logical sectors of 4096 bytes.
const SECTORS: u64 = 2104;
const SECTOR: usize = 512;
/// Images beyond the first ones.
const IMAGES_MAX: usize = 12;

/// Lets so many changes happen, and none after.
struct StopAfter {
    left: Cell<u64>,
    stopped: Cell<bool>,
}

impl StopAfter {
    fn new(changes: u64) -> Self {
        Self { left: Cell::new(changes), stopped: Cell::new(false) }
    }
}

impl Watch for StopAfter {
    fn at(&self, _: u64) {}

    fn before_change(&self) -> Result<(), Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.stopped.set(true);
                Err(Error::Failed("stopped".to_owned()))
            }
        }
    }
}

/// An image, its parent's number, and the byte each of its sectors is filled with.
#[derive(Clone, Debug)]
struct Image {
    path: PathBuf,
    parent: Option<usize>,
    content: Vec<u8>,
}

#[derive(Debug)]
struct World {
    folder: PathBuf,
    kind: Kind,
    images: Vec<Image>,
    leaf: usize,
}

/// What all images of a world are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    ending: &'static str,
    /// Sectors of 512 bytes that can only be written together.
    grain: u64,
    /// The smallest block.
    block_bytes: u32,
}

impl Kind {
    const VHD: Self = Self { ending: "vhd", grain: 1, block_bytes: 512 << 10 };
    const VHDX: Self = Self { ending: "vhdx", grain: 1, block_bytes: 1 << 20 };
    const VHDX_4096: Self = Self { grain: 8, ..Self::VHDX };

    fn wanted(self, shape: u8) -> Wanted {
        let (kind, block) = match shape % 3 {
            0 => (DiskKind::Fixed, None),
            1 => (DiskKind::Dynamic, Some(Size(u64::from(self.block_bytes)))),
            _ => (DiskKind::Dynamic, Some(Size(2 << 20))),
        };
        let logical_sector = (self != Self::VHD).then_some(match self.grain {
            8 => BlockSize::B4096,
            _ => BlockSize::B512,
        });
        Wanted { size: Size(SECTORS * 512), kind, block_size: block, logical_sector }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Makes a chain of one to four images from the first bytes, and runs commands of six bytes each.
///
/// The first byte counts kinds of the base below, and formats above: VHD, VHDX, VHDX with sectors of 4096 bytes.
///
/// # Panics
/// When a sector of any image reads something else than the model says, also after a stopped command; when a command
/// that should succeed fails.
pub fn fuzz_chain_commands(data: &[u8]) {
    let Some((shape, ops)) = data.split_at_checked(2) else { return };
    let Ok(mut world) = World::new(shape[0]) else { return };
    for depth in 0..usize::from(shape[1] % 4) {
        world.add_child(world.kind.block_bytes << ((usize::from(shape[1] >> 2) + depth) % 3));
        world.write(7 * depth as u64 * 40, 300, 10 + depth as u8);
        world.write(2000 - 10 * depth as u64, 40, if depth == 1 { 0 } else { 20 });
    }
    world.compare_all();
    for op in ops.chunks_exact(6).take(24) {
        world.run(op);
    }
}

impl World {
    fn new(shape: u8) -> Result<Self, Error> {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = root.join(format!("goldrush-fuzz-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).map_err(Error::io(&folder, "creating the folder"))?;
        let kind = [Kind::VHD, Kind::VHDX, Kind::VHDX_4096][usize::from(shape / 3) % 3];
        let path = folder.join(format!("image-0.{}", kind.ending));
        let world_image = Image { path: path.clone(), parent: None, content: vec![0; SECTORS as usize] };
        let mut world = Self { folder, kind, images: vec![world_image], leaf: 0 };
        let mut wanted = kind.wanted(shape);
        let disk = if kind == Kind::VHD {
            if wanted.kind == DiskKind::Fixed {
                wanted.block_size = None;
            }
            NewDisk::vhd(&wanted)?
        } else {
            NewDisk::vhdx(&wanted)?
        };
        write_new(&path, &disk)?;
        world.write(u64::from(shape), 500, 1);
        Ok(world)
    }

    fn fresh(&self) -> PathBuf {
        self.folder.join(format!("image-{}.{}", self.images.len(), self.kind.ending))
    }

    /// A new leaf on the present one.
    fn add_child(&mut self, block_size: u32) {
        let path = self.fresh();
        let parent = self.images[self.leaf].clone();
        let chain = Opener::anywhere(Locking::Hold).open_chain(&parent.path, Access::ReadOnly);
        create_child_of(&path, &chain.expect("the parent opens"), Some(block_size))
            .expect("a child is created");
        self.images.push(Image { path, parent: Some(self.leaf), content: parent.content });
        self.leaf = self.images.len() - 1;
    }

    fn write(&mut self, start: u64, sectors: u64, value: u8) {
        let image = &mut self.images[self.leaf];
        let grain = self.kind.grain;
        let start = start % SECTORS / grain * grain;
        let sectors = sectors.next_multiple_of(grain).min(SECTORS - start);
        let watch = StopAfter::new(u64::MAX);
        let chain = Opener::anywhere(Locking::Hold).open_chain(&image.path, Access::Writable);
        let mut writer = ChainWriter::new(chain.expect("the leaf opens"), &watch).expect("a chain");
        let bytes = vec![value; sectors as usize * SECTOR];
        let bytes = (value != 0).then_some(&bytes[..]);
        writer.write(start * 512, sectors * 512, bytes).expect("the leaf takes a write");
        writer.close().expect("the leaf closes");
        image.content[start as usize..(start + sectors) as usize].fill(value);
    }

    /// The bytes an image reads, one for each sector.
    fn read(&self, index: usize) -> Vec<u8> {
        let path = &self.images[index].path;
        let chain = Opener::anywhere(Locking::Hold).open_chain(path, Access::ReadOnly);
        let chain = chain.unwrap_or_else(|error| panic!("{error}"));
        let mut reader = ChainReader::new(chain).expect("a chain");
        let mut bytes = vec![0; SECTORS as usize * SECTOR];
        reader.read(0, &mut bytes).expect("the disk reads");
        bytes.chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    fn compare_all(&self) {
        for index in 0..self.images.len() {
            self.compare(index);
        }
    }

    fn compare(&self, index: usize) {
        let found = self.read(index);
        let differs = found.iter().zip(&self.images[index].content).position(|(a, b)| a != b);
        assert!(differs.is_none(), "image {index} differs at sector {differs:?}: {self:?}");
    }

    /// Runs a command until it is stopped after `changes` changes, then once more to its end. True where it was stopped.
    fn twice(
        &self,
        changes: u8,
        mut command: impl FnMut(&dyn Watch) -> Result<(), Error>,
        between: impl Fn(&Self),
    ) -> bool {
        let watch = StopAfter::new(u64::from(changes));
        let first = command(&watch);
        assert!(first.is_ok() || watch.stopped.get(), "{first:?}");
        between(self);
        if first.is_err() {
            let again = command(&StopAfter::new(u64::MAX));
            assert!(again.is_ok(), "{again:?}");
        }
        first.is_err()
    }

    fn run(&mut self, op: &[u8]) {
        let place = u64::from(u16::from_be_bytes([op[1], op[2]]));
        // Some commands make hundreds of changes, others two.
        let changes = op[5] >> (op[5] % 8);
        match op[0] % 8 {
            0 | 1 => self.write(place, u64::from(op[3]) * 3 + 1, op[4]),
            2 => drop(self.merge(changes)),
            3 => drop(self.flatten(changes)),
            4 => drop(self.rebase(usize::from(op[3]), changes)),
            5 if self.images.len() < IMAGES_MAX => drop(self.snapshot(op[3].is_multiple_of(2), changes)),
            6 if self.images.len() < IMAGES_MAX => drop(self.merge_into(changes)),
            7 if !self.has_children(self.leaf) => drop(self.compact(changes)),
            _ => self.compare(self.leaf),
        }
    }

    /// The leaf into its parent, when that has no other child. As all that follow: true where it was stopped.
    fn merge(&mut self, changes: u8) -> bool {
        let child = self.images[self.leaf].clone();
        let Some(parent) = child.parent else { return false };
        if self.images.iter().filter(|image| image.parent == Some(parent)).count() > 1 {
            return false;
        }
        let parent_path = self.images[parent].path.clone();
        // A snapshot may have frozen it, which binds all but the superuser.
        let writable = Permissions::from_mode(0o644);
        std::fs::set_permissions(&parent_path, writable).expect("the parent is ours");
        let before = self.images[parent].content.clone();
        let command = |watch: &dyn Watch| {
            merge(&child.path, &parent_path, watch)?;
            renew(&child.path, &parent_path, watch)
        };
        let stopped = self.twice(changes, command, |world| {
            world.compare(world.leaf);
            let now = world.read(parent);
            let known = now.iter().enumerate();
            let mut known = known.map(|(at, byte)| *byte == before[at] || *byte == child.content[at]);
            assert!(known.all(|known| known), "the parent holds something else: {world:?}");
        });
        self.images[parent].content = child.content;
        self.compare_all();
        stopped
    }

    fn flatten(&mut self, changes: u8) -> bool {
        let path = self.images[self.leaf].path.clone();
        let command = |watch: &dyn Watch| {
            let chain = Opener::anywhere(Locking::Hold).open_chain(&path, Access::Writable)?;
            if chain.layers().len() > 1 { flatten(chain, watch) } else { Ok(()) }
        };
        let stopped = self.twice(changes, command, Self::compare_all);
        self.images[self.leaf].parent = None;
        self.compare_all();
        stopped
    }

    /// The leaf onto any image that is no child of it.
    fn rebase(&mut self, target: usize, changes: u8) -> bool {
        let target = target % self.images.len();
        let (leaf, new) = (self.images[self.leaf].clone(), self.images[target].path.clone());
        if target == self.leaf || leaf.parent.is_none() || self.descends(target, self.leaf) {
            return false;
        }
        let command = |watch: &dyn Watch| rebase(&leaf.path, &new, true, watch).map(|_| ());
        let stopped = self.twice(changes, command, Self::compare_all);
        self.images[self.leaf].parent = Some(target);
        self.compare_all();
        stopped
    }

    fn has_children(&self, image: usize) -> bool {
        self.images.iter().any(|other| other.parent == Some(image))
    }

    /// The leaf, which nobody is a child of.
    fn compact(&mut self, changes: u8) -> bool {
        let path = self.images[self.leaf].path.clone();
        let stopped = self.twice(changes, |watch| compact(&path, watch), Self::compare_all);
        self.compare_all();
        stopped
    }

    fn descends(&self, mut image: usize, from: usize) -> bool {
        while let Some(parent) = self.images[image].parent {
            if parent == from {
                return true;
            }
            image = parent;
        }
        false
    }

    /// Under whatever name, the state that was is complete after each change, and so is the child once it has a name.
    fn snapshot(&mut self, renames: bool, changes: u8) -> bool {
        let (path, fresh) = (self.images[self.leaf].path.clone(), self.fresh());
        let command = |watch: &dyn Watch| match renames {
            true => freeze_as(&path, &fresh, watch).map(|_| ()),
            false => continue_in(&path, &fresh, watch).map(|_| ()),
        };
        if renames && self.has_children(self.leaf) {
            assert!(command(&StopAfter::new(u64::from(changes))).is_err());
            self.compare_all();
            return false;
        }
        let content = self.images[self.leaf].content.clone();
        let stopped = self.twice(changes, command, |world| {
            world.compare_all();
            assert!(!fresh.exists() || world.read_path(&fresh) == content, "half an image has a name");
        });
        let frozen = if renames { &fresh } else { &path };
        let mode = std::fs::metadata(frozen).map(|metadata| metadata.permissions().mode());
        assert_eq!(mode.map_or(0o222, |mode| mode & 0o222), 0, "the frozen image could be written");
        let old = self.images[self.leaf].clone();
        if renames {
            // The leaf's name is the child's now, and the frozen image is the new one of the two.
            self.images.push(Image { path: fresh, ..old });
            self.images[self.leaf].parent = Some(self.images.len() - 1);
        } else {
            self.images.push(Image { path: fresh, parent: Some(self.leaf), content: old.content });
            self.leaf = self.images.len() - 1;
        }
        self.compare_all();
        stopped
    }

    fn merge_into(&mut self, changes: u8) -> bool {
        let leaf = self.images[self.leaf].clone();
        let Some(parent) = leaf.parent else { return false };
        let fresh = self.fresh();
        let command = |watch: &dyn Watch| {
            let chain = Opener::anywhere(Locking::Hold).open_chain(&leaf.path, Access::ReadOnly)?;
            merge_into_new(chain, &fresh, watch).map(|_| ())
        };
        let stopped = self.twice(changes, command, |world| {
            world.compare_all();
            assert!(!fresh.exists() || world.read_path(&fresh) == leaf.content, "half an image has a name");
        });
        let grandparent = self.images[parent].parent;
        self.images.push(Image { path: fresh, parent: grandparent, content: leaf.content });
        self.compare_all();
        stopped
    }

    fn read_path(&self, path: &Path) -> Vec<u8> {
        let image = Image { path: path.to_owned(), parent: None, content: Vec::new() };
        let look = Self {
            folder: self.folder.join("nothing-to-remove"),
            kind: self.kind,
            images: vec![image],
            leaf: 0,
        };
        look.read(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::Rng;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    #[test]
    fn commands_on_random_chains_keep_every_disk_also_when_they_are_stopped() {
        let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for round in 0..90 {
            let mut data = vec![0; 2 + 6 * (4 + rng.next_u32() % 8) as usize];
            rng.fill_bytes(&mut data);
            // Every kind of base in every format.
            data[0] = round % 9;
            fuzz_chain_commands(&data);
        }
    }

    /// A chain of three whose leaf has something of its own, and a block that is its parent's and compacting gives back.
    fn chain(shape: u8) -> World {
        let mut world = World::new(shape).unwrap();
        for (depth, value) in [(0, 10), (1, 11)] {
            world.add_child(world.kind.block_bytes);
            world.write(70 * depth, 600, value);
            world.write(2050, 40, 30);
        }
        world.write(1500, 30, 0);
        world
    }

    /// One of the commands that change chains, by name, stopped after so many changes.
    type Command = (&'static str, u8, fn(&mut World, u8) -> bool);

    /// With the fewest changes each has.
    const COMMANDS: [Command; 7] = [
        ("merge", 2, |world, changes| world.merge(changes)),
        ("merge --into", 1, |world, changes| world.merge_into(changes)),
        ("flatten", 1, |world, changes| world.flatten(changes)),
        ("rebase", 2, |world, changes| world.rebase(0, changes)),
        ("compact", 1, |world, changes| world.compact(changes)),
        ("snapshot --name", 3, |world, changes| world.snapshot(true, changes)),
        ("snapshot --child", 2, |world, changes| world.snapshot(false, changes)),
    ];

    #[test]
    fn each_command_stopped_before_each_of_its_changes_is_gone_on_with_by_the_next() {
        for shape in [1, 4, 7] {
            for (name, least, command) in COMMANDS {
                let mut changes = 0;
                while command(&mut chain(shape), changes) {
                    changes += 1;
                }
                assert!(changes >= least, "{name} has only {changes} changes with shape {shape}");
            }
        }
    }

    /// The canary of the test above: a parent that changed under its child is seen by it.
    #[test]
    #[should_panic(expected = "differs at sector")]
    fn a_merge_that_forgot_its_siblings_would_be_noticed() {
        let mut world = World::new(1).unwrap();
        world.add_child(512 << 10);
        let first = world.leaf;
        world.write(10, 10, 9);
        world.leaf = 0;
        world.add_child(512 << 10);
        let (child, parent) = (world.images[first].path.clone(), world.images[0].path.clone());
        merge(&child, &parent, &StopAfter::new(u64::MAX)).unwrap();
        world.compare_all();
    }

    /// The same with VHDXs, whose children know their parent's data: the sibling does not even open.
    #[test]
    fn the_sibling_of_a_merged_vhdx_is_refused_and_no_child_of_a_compacted_one() {
        let mut world = World::new(4).unwrap();
        world.add_child(1 << 20);
        let first = world.leaf;
        world.write(10, 10, 9);
        world.leaf = 0;
        world.add_child(1 << 20);
        let never = StopAfter::new(u64::MAX);
        compact(&world.images[0].path, &never).unwrap_err();
        let [parent, child, sibling] = [0, first, world.leaf].map(|index| world.images[index].path.clone());
        merge(&child, &parent, &never).unwrap();
        renew(&child, &parent, &never).unwrap();
        world.compare(first);
        let error = Opener::anywhere(Locking::Hold).open_chain(&sibling, Access::ReadOnly).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("should have the id") && said.contains("image-0.vhdx"), "{said}");
    }
}
