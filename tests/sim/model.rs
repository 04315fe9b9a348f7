//! What each sector of a disk may hold: the judge of every read and of every image after a crash.
//!
//! Knows tags (the content of a sector, as a number) and sets of them. Does not know how sectors travel.
//!
//! | set       | what it answers                        | shrinks when                                          |
//! |-----------|----------------------------------------|-------------------------------------------------------|
//! | `visible` | what may a READ return now?            | a write is answered GOOD                              |
//! | `durable` | what may be there after a power cut?   | a flush, or a write with FUA, is answered GOOD        |

pub(crate) const SECTOR: usize = 512;
/// The tag of a sector of zeros.
pub(crate) const ZERO: u64 = 0;

/// The content of a sector with this tag.
pub(crate) fn fill(tag: u64, out: &mut [u8]) {
    if tag == ZERO {
        out.fill(0);
        return;
    }
    for (index, word) in out.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(tag ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes());
    }
}

/// The tag of a sector; `None` when its bytes are those of no tag (torn, or foreign).
pub(crate) fn tag_of(sector: &[u8]) -> Option<u64> {
    let mut first = [0; 8];
    first.copy_from_slice(&sector[..8]);
    let tag = u64::from_le_bytes(first);
    let mut expected = [0; SECTOR];
    fill(tag, &mut expected);
    (sector == expected).then_some(tag)
}

#[derive(Clone, Debug)]
struct Sector {
    visible: Vec<u64>,
    /// Each with the moment its write was sent.
    durable: Vec<(u64, u64)>,
}

/// The sectors of one disk.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    sectors: Vec<Sector>,
    moment: u64,
    /// Atomic writes that are not known to have ended: where, and their tags.
    atomic: Vec<(u64, Vec<u64>)>,
}

/// What a read may find, sector by sector.
pub(crate) type Allowed = Vec<Vec<u64>>;

/// A flush on its way: what was visible when it was sent.
#[derive(Clone, Debug)]
pub(crate) struct FlushMark {
    moment: u64,
    start: u64,
    visible: Allowed,
}

impl Model {
    pub(crate) fn new(tags: impl Iterator<Item = u64>) -> Self {
        let sectors = tags.map(|tag| Sector { visible: vec![tag], durable: vec![(tag, 0)] }).collect();
        Self { sectors, moment: 1, atomic: Vec::new() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// A write of these tags is sent.
    pub(crate) fn sent(&mut self, start: u64, tags: &[u64]) {
        self.moment += 1;
        let end = start + tags.len() as u64;
        // Of one that is overwritten in part nothing can be said any more; this may be the atomic write itself.
        self.atomic.retain(|(at, its)| its == tags || *at >= end || start >= at + its.len() as u64);
        for (sector, tag) in self.sectors[start as usize..].iter_mut().zip(tags) {
            if !sector.visible.contains(tag) {
                sector.visible.push(*tag);
            }
            sector.durable.push((*tag, self.moment));
        }
    }

    /// The next write of these tags is done as a whole or not at all.
    pub(crate) fn sent_atomic(&mut self, start: u64, tags: &[u64]) {
        self.atomic.push((start, tags.to_vec()));
    }

    /// It is answered GOOD.
    pub(crate) fn done(&mut self, start: u64, tags: &[u64], fua: bool) {
        self.atomic.retain(|(_, its)| its != tags);
        for (sector, tag) in self.sectors[start as usize..].iter_mut().zip(tags) {
            sector.visible.clear();
            sector.visible.push(*tag);
            if fua {
                sector.durable.clear();
                sector.durable.push((*tag, self.moment));
            }
        }
    }

    pub(crate) fn visible(&self, start: u64, count: u64) -> Allowed {
        self.sectors[start as usize..(start + count) as usize]
            .iter()
            .map(|sector| sector.visible.clone())
            .collect()
    }

    pub(crate) fn flush_sent(&mut self, start: u64, count: u64) -> FlushMark {
        self.moment += 1;
        FlushMark { moment: self.moment, start, visible: self.visible(start, count) }
    }

    pub(crate) fn flush_done(&mut self, mark: &FlushMark) {
        for (sector, visible) in self.sectors[mark.start as usize..].iter_mut().zip(&mark.visible) {
            sector.durable.retain(|(tag, moment)| *moment > mark.moment || visible.contains(tag));
        }
    }

    /// What every sector holds after a restart. From here on it is that; `settled` also on the platter.
    ///
    /// # Errors
    /// The first sector that holds what it must not.
    pub(crate) fn restarted(
        &mut self,
        found: impl Iterator<Item = Option<u64>>,
        power_cut: bool,
    ) -> Result<(), String> {
        let found: Vec<Option<u64>> = found.collect();
        for (start, tags) in std::mem::take(&mut self.atomic) {
            let there =
                found[start as usize..].iter().zip(&tags).filter(|(found, tag)| **found == Some(**tag));
            let there = there.count();
            if there != 0 && there != tags.len() {
                let len = tags.len();
                return Err(format!("of the {len} sectors of an atomic write at {start} there are {there}"));
            }
        }
        for (index, (sector, found)) in self.sectors.iter_mut().zip(found).enumerate() {
            let Some(tag) = found else { return Err(format!("sector {index} is torn")) };
            let allowed = if power_cut {
                sector.durable.iter().any(|(durable, _)| *durable == tag)
            } else {
                sector.visible.contains(&tag)
            };
            if !allowed {
                return Err(format!("sector {index} holds {tag:x}, which it must not: {sector:x?}"));
            }
            sector.visible = vec![tag];
            if power_cut {
                sector.durable = vec![(tag, 0)];
            }
        }
        Ok(())
    }
}

/// Judges the data of a read.
///
/// # Errors
/// The first sector that is wrong.
pub(crate) fn judge(start: u64, data: &[u8], allowed: &Allowed) -> Result<(), String> {
    for (index, (sector, allowed)) in data.chunks_exact(SECTOR).zip(allowed).enumerate() {
        let lba = start + index as u64;
        match tag_of(sector) {
            None => return Err(format!("sector {lba} is torn or foreign: {:02x?}", &sector[..16])),
            Some(tag) if !allowed.contains(&tag) => {
                return Err(format!("sector {lba} holds {tag:x}, allowed is {allowed:x?}"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[test]
fn an_answered_write_is_the_only_content() {
    let mut model = Model::new([1, 2, 3].into_iter());
    model.sent(1, &[7]);
    assert_eq!(model.visible(1, 1), [vec![2, 7]]);
    model.done(1, &[7], false);
    assert_eq!(model.visible(1, 1), [vec![7]]);
    assert!(model.clone().restarted([Some(1), Some(2), Some(3)].into_iter(), false).is_err());
    assert!(model.clone().restarted([Some(1), Some(2), Some(3)].into_iter(), true).is_ok());
    let mark = model.flush_sent(0, 3);
    model.sent(0, &[9]);
    model.flush_done(&mark);
    assert!(model.clone().restarted([Some(1), Some(2), Some(3)].into_iter(), true).is_err());
    assert!(model.clone().restarted([Some(9), Some(7), Some(3)].into_iter(), true).is_ok());
    assert!(model.restarted([None, Some(7), Some(3)].into_iter(), true).is_err());
}

#[test]
fn an_atomic_write_is_there_as_a_whole_or_not_at_all() {
    let mut model = Model::new([1, 2, 3].into_iter());
    model.sent_atomic(0, &[7, 8]);
    model.sent(0, &[7, 8]);
    let restarted =
        |model: &Model, found: [u64; 3]| model.clone().restarted(found.into_iter().map(Some), false);
    assert!(restarted(&model, [1, 2, 3]).is_ok() && restarted(&model, [7, 8, 3]).is_ok());
    assert!(restarted(&model, [7, 2, 3]).is_err());
    model.sent(1, &[9]);
    assert!(restarted(&model, [7, 9, 3]).is_ok() && restarted(&model, [7, 2, 3]).is_ok());
}

#[test]
fn a_torn_sector_has_no_tag() {
    let mut sector = [0; SECTOR];
    fill(0x1234, &mut sector);
    assert_eq!(tag_of(&sector), Some(0x1234));
    sector[300] ^= 1;
    assert_eq!(tag_of(&sector), None);
}
