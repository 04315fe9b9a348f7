//! A file on a disk that can lose power.
//!
//! Knows what readers see now, what is on the platter, and the writes between the two. Does not know images.
//!
//! A sync makes durable what was written when it was *submitted*; anything later stays in doubt. After a failed sync the
//! writes before it are visible, some of them are durable, and no later sync makes the others so: that is what Linux does.

use crate::random::Rng;

const PAGE: u64 = 4096;
/// What a disk writes as a whole.
const GRAIN: usize = 512;

/// Sparse bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    len: u64,
    pages: Vec<Option<Box<[u8]>>>,
}

impl Pages {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let (page, start) = ((at / PAGE) as usize, (at % PAGE) as usize);
            let take = (out.len() - done).min(PAGE as usize - start);
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(bytes) => out[done..done + take].copy_from_slice(&bytes[start..start + take]),
                None => out[done..done + take].fill(0),
            }
            done += take;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, start) = ((at / PAGE) as usize, (at % PAGE) as usize);
            let take = (bytes.len() - done).min(PAGE as usize - start);
            if self.pages.len() <= page {
                self.pages.resize(page + 1, None);
            }
            let target = self.pages[page].get_or_insert_with(|| vec![0; PAGE as usize].into());
            target[start..start + take].copy_from_slice(&bytes[done..done + take]);
            done += take;
        }
    }

    /// A punched hole: the length stays.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len);
        let mut at = offset;
        while at < end {
            let (page, start) = ((at / PAGE) as usize, (at % PAGE) as usize);
            let take = (end - at).min(PAGE - start as u64) as usize;
            if let Some(slot) = self.pages.get_mut(page) {
                if take == PAGE as usize {
                    *slot = None;
                } else if let Some(bytes) = slot {
                    bytes[start..start + take].fill(0);
                }
            }
            at += take as u64;
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
            self.pages.truncate(len.div_ceil(PAGE) as usize);
        }
        self.len = len;
    }

    pub(crate) fn digest(&self) -> u64 {
        let mut hash = 0xCBF2_9CE4_8422_2325_u64 ^ self.len;
        for (index, page) in self.pages.iter().enumerate() {
            if let Some(page) = page.as_ref().filter(|page| page.iter().any(|byte| *byte != 0)) {
                hash = (hash ^ index as u64).wrapping_mul(0x0100_0000_01B3);
                for word in page.chunks_exact(8) {
                    let word = word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                    hash = (hash ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(5);
                }
            }
        }
        hash
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Len(u64),
}

impl Change {
    fn apply(&self, to: &mut Pages) {
        match self {
            Self::Write { offset, bytes } => to.write(*offset, bytes),
            Self::Zero { offset, len } => to.zero(*offset, *len),
            Self::Len(len) => to.set_len(*len),
        }
    }
}

/// How much of what was not synced survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survival {
    Nothing,
    Everything,
    /// Each 512-byte piece by itself, this many of a thousand.
    Some(u32),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SimFile {
    /// What readers see.
    pub(crate) visible: Pages,
    durable: Pages,
    /// In the order they were made, each with its number.
    unsynced: Vec<(u64, Change)>,
    next: u64,
    /// Any change is a violation.
    pub(crate) read_only: bool,
}

impl SimFile {
    /// A file whose content is on the platter.
    pub(crate) fn durable(content: Pages, read_only: bool) -> Self {
        Self { durable: content.clone(), visible: content, read_only, ..Self::default() }
    }

    pub(crate) fn change(&mut self, change: Change) {
        change.apply(&mut self.visible);
        self.unsynced.push((self.next, change));
        self.next += 1;
    }

    /// What a sync submitted now must make durable: everything before this number.
    pub(crate) fn mark(&self) -> u64 {
        self.next
    }

    pub(crate) fn sync(&mut self, mark: u64) {
        let later = self.unsynced.partition_point(|(number, _)| *number < mark);
        for (_, change) in self.unsynced.drain(..later) {
            change.apply(&mut self.durable);
        }
    }

    pub(crate) fn sync_failed(&mut self, mark: u64, rng: &mut Rng) {
        let later = self.unsynced.partition_point(|(number, _)| *number < mark);
        let survival = Survival::Some(rng.below(1001) as u32);
        for (_, change) in self.unsynced.drain(..later) {
            survive(&mut self.durable, change, survival, rng);
        }
    }

    /// The power goes: what was not synced survives in pieces.
    pub(crate) fn power_cut(&mut self, survival: Survival, rng: &mut Rng) {
        for (_, change) in std::mem::take(&mut self.unsynced) {
            survive(&mut self.durable, change, survival, rng);
        }
        self.visible = self.durable.clone();
    }
}

/// Writes what survives of a change, piece by piece.
fn survive(durable: &mut Pages, change: Change, survival: Survival, rng: &mut Rng) {
    let mut keep = || match survival {
        Survival::Nothing => false,
        Survival::Everything => true,
        Survival::Some(per_mille) => rng.chance(per_mille),
    };
    match change {
        Change::Write { mut offset, bytes } => {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let take = (GRAIN - offset as usize % GRAIN).min(rest.len());
                if keep() {
                    durable.write(offset, &rest[..take]);
                }
                offset += take as u64;
                rest = &rest[take..];
            }
        }
        Change::Zero { offset, len } => {
            let mut at = offset;
            while at < offset + len {
                let take = (PAGE - at % PAGE).min(offset + len - at);
                if keep() {
                    durable.zero(at, take);
                }
                at += take;
            }
        }
        Change::Len(len) => {
            if keep() {
                durable.set_len(len);
            }
        }
    }
}

#[test]
fn a_sync_covers_what_was_written_before_it_was_submitted() {
    let mut file = SimFile::default();
    file.change(Change::Write { offset: 0, bytes: vec![1; 600] });
    let mark = file.mark();
    file.change(Change::Write { offset: 512, bytes: vec![2; 512] });
    file.sync(mark);
    file.power_cut(Survival::Nothing, &mut Rng::new(1));
    let mut bytes = [9; 700];
    file.visible.read(0, &mut bytes);
    assert_eq!((bytes[0], bytes[599], bytes[600], file.visible.len()), (1, 1, 0, 600));
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_saves() {
    let mut file = SimFile::default();
    file.change(Change::Write { offset: 0, bytes: vec![1; 512] });
    let lost = (0..20).any(|seed| {
        let mut file = file.clone();
        file.sync_failed(file.mark(), &mut Rng::new(seed));
        file.sync(file.mark());
        file.power_cut(Survival::Everything, &mut Rng::new(seed));
        file.visible.len() == 0
    });
    assert!(lost);
}
