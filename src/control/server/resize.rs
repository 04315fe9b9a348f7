//! A disk that grows while it is served: the size of its image is changed between two commands.
//!
//! Knows what may grow, and the order: hold the commands, close the image, change it, open it, go on. Does not know what a
//! format needs for it (`vhd::resize`, `vhdx::resize`), nor how commands are held (`shard::suspend`).

use std::sync::Arc;

use super::super::admin::Resized;
use super::super::file::OpenedFile;
use super::super::image_format::parse;
use super::super::image_resize;
use super::super::open_image::{Format, LayerTable};
use super::super::roster::ServedUnit;
use super::super::size::human;
use super::{CoreChange, Server, WATCH};
use crate::scsi::Lun;
use crate::shard::{Change, LayerName, NewDurability, NewLayer, ResumedUnit};
use crate::units::{SECTOR_BYTES, SectorCount};
use crate::uring::UringIo;

/// A LUN and the core that serves it.
struct Place<'a> {
    core: usize,
    target: &'a str,
    lun: Lun,
}

impl Server {
    /// Gives a served disk `size` bytes.
    ///
    /// # Errors
    /// A sentence; the LUN then goes on as it was, unless the sentence says otherwise.
    pub(super) fn resize(&mut self, target: &str, lun: u16, size: u64) -> Result<Resized, String> {
        self.hear();
        let served = self.roster.targets.get(target).ok_or_else(|| format!("there is no target {target}"))?;
        let unit = served.units.get(&lun).cloned().ok_or_else(|| format!("{target} has no LUN {lun}"))?;
        let number = Lun::new(lun).ok_or_else(|| format!("LUN {lun} is out of range"))?;
        let place = Place { core: served.owner, target, lun: number };
        let before = unit.sectors.bytes().0;
        let leaf = unit.files.first().ok_or_else(|| format!("{target} has no LUN {lun}"))?;
        if size != before {
            self.may_grow(target, lun, &unit, size)
                .map_err(|why| format!("{} {why}", leaf.path().display()))?;
            self.grow(&place, &unit, leaf, size)?;
            tracing::info!(target, lun, before, size, "resized while it is served");
        }
        Ok(Resized { before, now: size })
    }

    /// What can be told before anything is done; the error goes on from the name of the image.
    fn may_grow(&self, target: &str, lun: u16, unit: &ServedUnit, size: u64) -> Result<(), String> {
        let before = unit.sectors.bytes().0;
        let config = self.config.targets.iter().find(|it| it.name == target);
        let config = config.and_then(|it| it.units.iter().find(|unit| unit.lun == lun));
        let block = config.and_then(|unit| unit.block_size).map_or(SECTOR_BYTES, |it| u64::from(it.bytes()));
        if !unit.writable {
            return Err("is only read here, and others may read it as well: resize a copy of it".to_owned());
        }
        if size < before {
            return Err(format!(
                "has {}, and a disk that is served is never made smaller: take the LUN out, then goldrush image resize \
                 --shrink",
                human(before)
            ));
        }
        if !size.is_multiple_of(block) {
            return Err(format!("has blocks of {block} bytes, and {size} bytes are no whole number of them"));
        }
        if unit.files.first().is_some_and(|leaf| leaf.is_block_device()) {
            return Err("is a block device: make that larger, then goldrush reload".to_owned());
        }
        Ok(())
    }

    fn grow(
        &mut self,
        place: &Place<'_>,
        unit: &ServedUnit,
        leaf: &Arc<OpenedFile>,
        size: u64,
    ) -> Result<(), String> {
        let (path, sectors) = (leaf.path().display(), SectorCount(size / SECTOR_BYTES));
        let number = place.lun.number();
        if unit.format == Format::Raw {
            leaf.file().set_len(size).map_err(|error| format!("{path} cannot be made longer: {error}"))?;
            let grown = vec![(place.target.to_owned(), place.lun, sectors)];
            let change = self.change(CoreChange { grown, ..CoreChange::default() });
            self.send(place.core, change);
            let unit = self.roster.targets.get_mut(place.target).and_then(|it| it.units.get_mut(&number));
            if let Some(unit) = unit {
                unit.sectors = sectors;
            }
            return Ok(());
        }
        let told = |error: super::Error| error.to_string();
        let now = leaf.looked_at_again().map_err(|error| format!("{path} cannot be looked at: {error}"))?;
        image_resize::may_grow(&now, unit.format, size).map_err(told)?;
        self.suspend(place, &path.to_string())?;
        let closed = leaf.looked_at_again().map_err(|error| error.to_string());
        let grown = closed.and_then(|file| image_resize::grow(&file, unit.format, size).map_err(told));
        // Whatever became of it: what the file is now goes on.
        match self.open_again(place, unit, leaf) {
            Ok((layer, resumed)) => {
                self.resume(place, Some(layer), resumed);
                grown
            }
            Err(why) => {
                let (target, lun, durability) =
                    (place.target.to_owned(), place.lun, NewDurability::GroupCommit);
                self.resume(place, None, ResumedUnit { target, lun, chain: None, durability });
                self.roster.end_unit(place.target, number);
                let files = self.roster.unit_gone(place.core, place.target, number);
                self.forget(files.0);
                self.drop_layers(place.core, files.1);
                Err(format!("{path} could not be opened again, and LUN {number} is gone: {why}"))
            }
        }
    }

    /// Holds the commands of the LUN's target, and waits until its image is closed.
    fn suspend(&mut self, place: &Place<'_>, path: &str) -> Result<(), String> {
        let suspend = vec![(place.target.to_owned(), place.lun)];
        self.suspended = None;
        let change = Change { suspend, ..self.change(CoreChange::default()) };
        self.send(place.core, change);
        loop {
            if let Some((_, _, closed)) = self.suspended.take() {
                let busy = "has commands that did not end within seconds: try again";
                return if closed { Ok(()) } else { Err(format!("{path} {busy}")) };
            }
            if self.shards[place.core].thread.is_finished() {
                return Err("the core of this target has ended: see the server's log".to_owned());
            }
            if let Ok((shard, news)) = self.news.1.recv_timeout(WATCH) {
                self.note(shard, news);
            }
        }
    }

    /// The image as it is now, under a new name.
    fn open_again(
        &mut self,
        place: &Place<'_>,
        unit: &ServedUnit,
        leaf: &Arc<OpenedFile>,
    ) -> Result<(NewLayer<UringIo>, ResumedUnit), String> {
        let number = place.lun.number();
        let file = Arc::new(leaf.looked_at_again().map_err(|error| error.to_string())?);
        let opened = parse(Arc::clone(&file), Some(unit.format)).map_err(|error| error.to_string())?;
        let sectors = opened.sectors();
        let mut table = LayerTable::default();
        let id = table.add_alone(opened).map_err(|error| error.to_string())?;
        let config = self.config.targets.iter().find(|it| it.name == place.target);
        let config = config.and_then(|it| it.units.iter().find(|unit| unit.lun == number));
        let policy = config.map(|unit| (unit.durability, unit.reset)).unwrap_or_default();
        let durability = table.durability(policy, id, self.journaled);
        let layer = table.images.remove(id).ok_or("it is not there")?;
        let parents = unit.files.iter().skip(1).map(|file| self.roster.parent(place.core, file));
        let parents: Option<Vec<LayerName>> = parents.collect();
        let mut chain = parents.ok_or("a parent of it is not there")?;
        let shared = file.shared();
        let name = self.roster.leaf_again(place.target, number, file, sectors).ok_or("it is not served")?;
        chain.insert(0, name);
        let (target, lun, chain) = (place.target.to_owned(), place.lun, Some(chain));
        let layer = NewLayer { name, layer, file: shared, golden: None };
        Ok((layer, ResumedUnit { target, lun, chain, durability }))
    }

    fn resume(&mut self, place: &Place<'_>, layer: Option<NewLayer<UringIo>>, resumed: ResumedUnit) {
        let change = self.change(CoreChange { layers: layer.into_iter().collect(), ..CoreChange::default() });
        self.send(place.core, Change { resume: vec![resumed], ..change });
    }
}
