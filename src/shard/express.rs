//! The short way of a READ: answered where its header is read, when all it asks for is at hand.
//!
//! Knows what must be true for that: nothing of its session, its unit or its data is to be waited for. Does not know what a
//! command does otherwise: whatever is not plain goes the long way (`session`, `begin`, `executor`), unchanged.
//!
//! A command that goes this way leaves no task: nothing can find it, abort it or wait for it, as if it had a turn of its
//! own. What is counted, limited and hinted at on the long way is so here: shares of a turn, rates, metrics, boot traces,
//! read-ahead.

use crate::cache::CHUNK_BYTES;
use crate::io::Part;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::session::Passing;
use crate::limits;
use crate::plan::Source;
use crate::scsi::Nexus;

use super::connection::{Connection, Phase};
use super::executor::{BootWatch, Core};
use super::fairness::Turn;
use super::session::{Member, Sessions};

/// All data of a read, in order.
type AtHand = (Part, Option<Part>);

impl Connection {
    /// Answers the commands at the front of `input` that can be answered at once; stops before the first that cannot.
    pub(super) fn express(
        &mut self,
        core: &mut Core,
        sessions: &mut Sessions,
        turn: &mut Turn,
        input: &mut &[u8],
    ) {
        let Phase::Full(Member { session: key, on }) = self.phase else { return };
        // What has ended and is not told of yet comes first.
        if self.within_pdu || !core.finished.is_empty() || !core.express {
            return;
        }
        let Some(session) = sessions.get_mut(key) else { return };
        let Some(target) = session.target.filter(|_| session.machine.lets_pass(on)) else { return };
        while turn.has_left(&mut self.share, false)
            && self.tx.queued_bytes() < limits::CONNECTION_SEND_BYTES_MAX
            && let Some(header) = self.framer.bare(input)
        {
            let bhs = Bhs(*header);
            let Some(read) = session.machine.passing(on, &bhs) else { return };
            if !session.lets_pass(core, on, read.expected) || !self.tx.can_stage(&core.pool) {
                return;
            }
            let Some((first, more)) = core.at_hand(target, session.nexus, &read) else { return };
            self.framer.pass_bare(input);
            turn.spend(&mut self.share, false, &bhs);
            let answer = session.machine.pass(on, &read, core.now);
            self.tx.stage_whole(&answer, first, more);
            session.passed(core, target, read.expected, &mut self.timing, self.tx.queued_bytes());
            self.last_progress = core.now;
        }
    }
}

impl Core {
    /// The data of a read that nothing stands in the way of: from here on it counts as answered. `None`: nothing has
    /// happened.
    fn at_hand(&mut self, target: u32, nexus: Nexus, read: &Passing) -> Option<AtHand> {
        let owner = &self.targets[target as usize];
        if owner.is_held() {
            return None;
        }
        let (unit, blocks) = owner.device.plain_read(nexus, read.lun.0, &read.cdb)?;
        owner.rate.ready(self.now).ok()?;
        let index = owner.lun(unit);
        let lun = &self.luns[index as usize];
        let range = blocks.sectors(lun.block_size)?;
        let len = read.expected;
        if range.bytes().0 != u64::from(len)
            || len as usize > CHUNK_BYTES
            || !lun.order.lets_pass()
            || !lun.turns.lets_reads_pass()
        {
            return None;
        }
        let source = self.images.one_run(&lun.chain, range)?;
        let data = match source {
            Source::Zero => (Part { buf: self.pool.zero_chunk(), start: 0, len }, None),
            Source::File { file, offset, immutable: true } => {
                let (first, more) = self.cache.hit(file, offset, len)?;
                (Part::all(first), more.map(Part::all))
            }
            Source::File { .. } => return None,
        };
        let boot = &mut self.luns[index as usize].boot;
        boot.began(range);
        if *boot != BootWatch::Idle
            && let Source::File { file, offset, .. } = source
        {
            self.watch_boot(index, file, offset, len);
        }
        self.read_ahead(index, range, false);
        Some(data)
    }
}
