//! The initiator's view of the wire: its own encoder and decoder, so that a wrong layout in the target is seen.
//!
//! Knows offsets of RFC 7143, 11. Does not know what an answer should be.

use crate::random::Rng;

pub(crate) const BHS: usize = 48;
pub(crate) const NO_TAG: u32 = u32::MAX;

/// One PDU, either way.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) bhs: [u8; BHS],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn new(opcode: u8, flags: u8) -> Self {
        let mut bhs = [0; BHS];
        (bhs[0], bhs[1]) = (opcode, flags);
        Self { bhs, data: Vec::new() }
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3F
    }

    pub(crate) fn flags(&self) -> u8 {
        self.bhs[1]
    }

    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bhs[at], self.bhs[at + 1], self.bhs[at + 2], self.bhs[at + 3]])
    }

    pub(crate) fn put32(mut self, at: usize, value: u32) -> Self {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bhs[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn with_data(mut self, data: &[u8]) -> Self {
        self.bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        self.data = data.to_vec();
        self
    }

    pub(crate) fn tag(&self) -> u32 {
        self.u32_at(16)
    }

    pub(crate) fn encode(&self, digests: Digests) -> Vec<u8> {
        let mut out = self.bhs.to_vec();
        if digests.header {
            out.extend(crc32c::crc32c(&self.bhs).to_le_bytes());
        }
        if !self.data.is_empty() {
            let mut data = self.data.clone();
            data.resize(data.len().next_multiple_of(4), 0);
            let crc = crc32c::crc32c(&data);
            out.extend(data);
            if digests.data {
                out.extend(crc.to_le_bytes());
            }
        }
        out
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// Takes the first whole PDU out of `bytes`.
pub(crate) fn decode(bytes: &mut Vec<u8>, digests: Digests) -> Result<Option<Pdu>, String> {
    let header = BHS + if digests.header { 4 } else { 0 };
    if bytes.len() < header {
        return Ok(None);
    }
    let mut bhs = [0; BHS];
    bhs.copy_from_slice(&bytes[..BHS]);
    if bhs[4] != 0 {
        return Err(format!("a response has additional header segments: {bhs:02x?}"));
    }
    let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
    let padded = len.next_multiple_of(4);
    let total = header + padded + if digests.data && len > 0 { 4 } else { 0 };
    if digests.header && bytes[BHS..BHS + 4] != crc32c::crc32c(&bhs).to_le_bytes() {
        return Err("a header digest is wrong".to_owned());
    }
    if bytes.len() < total {
        return Ok(None);
    }
    let data = bytes[header..header + len].to_vec();
    let padding = &bytes[header + len..header + padded];
    if padding.iter().any(|byte| *byte != 0) {
        return Err("padding is not zero".to_owned());
    }
    if digests.data && len > 0 {
        let crc = crc32c::crc32c(&bytes[header..header + padded]).to_le_bytes();
        if bytes[header + padded..total] != crc {
            return Err("a data digest is wrong".to_owned());
        }
    }
    bytes.drain(..total);
    Ok(Some(Pdu { bhs, data }))
}

/// `key=value` pairs of a text.
pub(crate) fn keys(data: &[u8]) -> Vec<(String, String)> {
    data.split(|byte| *byte == 0)
        .filter_map(|pair| {
            let pair = String::from_utf8_lossy(pair);
            pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

pub(crate) fn text(pairs: &[(&str, String)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

/// READ, WRITE and friends, in the 10- or 16-byte form.
pub(crate) fn cdb_rw(
    opcode10: u8,
    opcode16: u8,
    flags: u8,
    lba: u64,
    blocks: u32,
    rng: &mut Rng,
) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[1] = flags;
    if rng.chance(500) {
        cdb[0] = opcode10;
        cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
        cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
    } else {
        cdb[0] = opcode16;
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    }
    cdb
}
