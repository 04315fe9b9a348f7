//! A small iSCSI initiator that waits for its answers: the second opinion on a target.
//!
//! Knows login, discovery, one-connection sessions with several tasks at once, and the usual commands.
//! Does not know rings, load or statistics, and shares no code with the server it talks to.

mod chap;
mod commands;
mod handshake;
mod login;
mod session;
mod stream;

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::{Window, serial_le};

pub(crate) use handshake::{Handshake, Step};
pub(crate) use login::{discover, open};
pub(crate) use session::{Command, Session};

/// What to ask for at login, and how patient to be.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) initiator_name: String,
    pub(crate) isid: [u8; 6],
    /// User and secret.
    pub(crate) chap: Option<(String, String)>,
    pub(crate) max_recv_segment: u32,
    pub(crate) max_burst: u32,
    pub(crate) first_burst: u32,
    pub(crate) immediate_data: bool,
    pub(crate) initial_r2t: bool,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            initiator_name: "iqn.2026-11.io.goldrush:perf".to_string(),
            isid: [0x80, 0, 0, 0, 0, 1],
            chap: None,
            max_recv_segment: 262_144,
            max_burst: 1 << 20,
            first_burst: 65_536,
            immediate_data: true,
            initial_r2t: false,
            header_digest: false,
            data_digest: false,
            timeout: Duration::from_secs(20),
        }
    }
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// The target's MaxRecvDataSegmentLength: what we may send in one PDU.
    pub(crate) max_send_segment: u32,
    pub(crate) max_recv_segment: u32,
    pub(crate) max_burst: u32,
    pub(crate) first_burst: u32,
    pub(crate) immediate_data: bool,
    pub(crate) initial_r2t: bool,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl Negotiated {
    /// How many bytes of a write of `len` bytes travel with its command.
    pub(crate) fn immediate(&self, len: u32) -> u32 {
        if self.immediate_data { len.min(self.first_burst).min(self.max_send_segment) } else { 0 }
    }

    /// How many bytes of a write of `len` bytes go out before any R2T.
    pub(crate) fn unsolicited(&self, len: u32) -> u32 {
        if self.initial_r2t { self.immediate(len) } else { len.min(self.first_burst) }
    }
}

/// Where a session stands when its stream is handed to another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

impl Numbers {
    /// Another command may be sent.
    pub(crate) fn window_is_open(&self) -> bool {
        serial_le(self.cmd_sn, self.max_cmd_sn)
    }

    /// A reply says how far the window goes; an older one says nothing new.
    pub(crate) fn widen(&mut self, window: Window) {
        if serial_le(self.max_cmd_sn, window.max_cmd_sn) {
            self.max_cmd_sn = window.max_cmd_sn;
        }
    }

    /// A status came; their numbers follow each other without a gap. The error says what is wrong with this one.
    pub(crate) fn count(&mut self, stat_sn: u32) -> std::result::Result<(), String> {
        let due = self.exp_stat_sn;
        if stat_sn != due {
            return Err(format!("StatSN {stat_sn} where {due} was due"));
        }
        self.exp_stat_sn = due.wrapping_add(1);
        Ok(())
    }
}

/// The target to log in to.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) target: String,
    pub(crate) lun: u16,
}
