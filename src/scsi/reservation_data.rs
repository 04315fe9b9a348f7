//! The bytes of PERSISTENT RESERVE IN and OUT (SPC-4, 6.15 and 6.16).
//!
//! Knows parameter data and lists. Does not know what a registration allows (`reservation`).

use super::cdb::PersistentIn;
use super::device::{InitiatorPort, TargetPort};
use super::reservation::{ReservationType, Reservations};
use super::sense::Sense;
use crate::limits;

/// Bytes of the basic parameter list (SPC-4, table 227). Only lists with TransportIDs are longer.
pub(super) const LIST_BYTES: usize = 24;
/// The shortest TransportID: header and twenty bytes of name.
const TRANSPORT_ID_BYTES_MIN: usize = 24;

/// The parameter data of a PERSISTENT RESERVE IN service action, uncut.
pub(super) fn read(
    action: PersistentIn,
    reservations: &Reservations,
    port: &TargetPort,
    can_keep: bool,
) -> Vec<u8> {
    match action {
        PersistentIn::ReadKeys => read_keys(reservations),
        PersistentIn::ReadReservation => read_reservation(reservations),
        PersistentIn::ReportCapabilities => report_capabilities(can_keep, reservations.aptpl()),
        PersistentIn::ReadFullStatus => read_full_status(reservations, port),
    }
}

/// PRGENERATION and ADDITIONAL LENGTH before the body.
fn with_generation(reservations: &Reservations, body: &[u8]) -> Vec<u8> {
    let mut data = reservations.generation().to_be_bytes().to_vec();
    data.extend((body.len() as u32).to_be_bytes());
    data.extend(body);
    data
}

fn read_keys(reservations: &Reservations) -> Vec<u8> {
    let keys: Vec<u8> =
        reservations.registrants().iter().flat_map(|registrant| registrant.key.to_be_bytes()).collect();
    with_generation(reservations, &keys)
}

fn read_reservation(reservations: &Reservations) -> Vec<u8> {
    let Some(kind) = reservations.kind() else {
        return with_generation(reservations, &[]);
    };
    let mut body = [0; 16];
    body[..8].copy_from_slice(&reservations.holder_key().to_be_bytes());
    body[13] = kind as u8;
    with_generation(reservations, &body)
}

/// CRH: RESERVE and RELEASE of a holder do nothing. SIP_C: SPEC_I_PT is taken. ATP_C: with one target port every
/// registration covers all ports. PTPL_C where there is a place to keep reservations in; PTPL_A while they are kept.
/// All six types (SPC-4, 6.15.4).
fn report_capabilities(can_keep: bool, kept: bool) -> Vec<u8> {
    const CRH: u8 = 0x10;
    const SIP_C: u8 = 0x08;
    const ATP_C: u8 = 0x04;
    const PTPL_C: u8 = 0x01;
    const TYPE_MASK_VALID: u8 = 0x80;
    const PTPL_A: u8 = 0x01;
    let capabilities = CRH | SIP_C | ATP_C | if can_keep { PTPL_C } else { 0 };
    let active = TYPE_MASK_VALID | if kept { PTPL_A } else { 0 };
    vec![0, 8, capabilities, active, 0xEA, 0x01, 0, 0]
}

fn read_full_status(reservations: &Reservations, port: &TargetPort) -> Vec<u8> {
    let kind = reservations.kind().map_or(0, |kind| kind as u8);
    let mut body = Vec::new();
    for (index, registrant) in reservations.registrants().iter().enumerate() {
        let holds = reservations.holds(index);
        let transport_id = transport_id(&registrant.port);
        body.extend(registrant.key.to_be_bytes());
        body.extend([0; 4]);
        let all_ports = if registrant.all_ports { 0x02 } else { 0 };
        body.extend([all_ports | u8::from(holds), if holds { kind } else { 0 }]);
        body.extend([0; 4]);
        let relative_id = if registrant.all_ports { 0 } else { port.relative_id };
        body.extend(relative_id.to_be_bytes());
        body.extend((transport_id.len() as u32).to_be_bytes());
        body.extend(transport_id);
    }
    with_generation(reservations, &body)
}

/// TransportID of an iSCSI initiator port: format 01b, `name,i,0x` and the ISID (SPC-4, 7.6.4.6).
fn transport_id(port: &InitiatorPort) -> Vec<u8> {
    let mut name = port.to_string().into_bytes();
    name.resize(((name.len() + 4) & !3).max(20), 0);
    let mut bytes = vec![0x45, 0];
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend(name);
    bytes
}

/// An iSCSI TransportID of a parameter list (SPC-4, 7.6.4.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TransportId {
    pub(super) name: String,
    /// `None`: all ports of that name that are known (format 00b).
    pub(super) isid: Option<[u8; 6]>,
}

/// The basic parameter list of a PERSISTENT RESERVE OUT, and the TransportIDs that SPEC_I_PT adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReserveOutList {
    pub(super) key: u64,
    /// SERVICE ACTION RESERVATION KEY: a new key, or the key of a victim.
    pub(super) action_key: u64,
    /// `Some` with SPEC_I_PT.
    pub(super) initiators: Option<Vec<TransportId>>,
    pub(super) all_ports: bool,
    pub(super) aptpl: bool,
}

/// The parameter list of REGISTER AND MOVE (SPC-4, 6.16.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MoveList {
    pub(super) key: u64,
    pub(super) action_key: u64,
    pub(super) unregister: bool,
    pub(super) aptpl: bool,
    /// RELATIVE TARGET PORT IDENTIFIER of the new holder's nexus.
    pub(super) relative_port: u16,
    pub(super) to: TransportId,
}

const APTPL: u8 = 0x01;

fn key(list: &[u8], at: usize) -> u64 {
    list[at..at + 8].iter().fold(0, |key: u64, byte| key << 8 | u64::from(*byte))
}

/// Reads the parameter list of every service action but REGISTER AND MOVE. `registers`: it is REGISTER, which alone
/// may name other initiator ports.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR unless it is 24 bytes and, with SPEC_I_PT, what these announce; INVALID FIELD IN
/// PARAMETER LIST for SPEC_I_PT elsewhere and for a TransportID that is none.
pub(super) fn parse_out(list: &[u8], registers: bool) -> Result<ReserveOutList, Sense> {
    const SPEC_I_PT: u8 = 0x08;
    const ALL_TG_PT: u8 = 0x04;
    if list.len() < LIST_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let (basic, more) = list.split_at(LIST_BYTES);
    let flags = basic[20];
    let initiators = match flags & SPEC_I_PT != 0 {
        true if !registers => return Err(Sense::parameter_field(20, 3)),
        true => Some(transport_ids(more)?),
        false if more.is_empty() => None,
        false => return Err(Sense::PARAMETER_LIST_LENGTH),
    };
    Ok(ReserveOutList {
        key: key(basic, 0),
        action_key: key(basic, 8),
        initiators,
        all_ports: flags & ALL_TG_PT != 0,
        aptpl: flags & APTPL != 0,
    })
}

/// TRANSPORTID PARAMETER DATA LENGTH and the IDs; `more` begins at byte 24 of the list.
fn transport_ids(more: &[u8]) -> Result<Vec<TransportId>, Sense> {
    let (len, mut rest) = more.split_first_chunk::<4>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    if u32::from_be_bytes(*len) as usize != rest.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let mut ids = Vec::new();
    while !rest.is_empty() {
        let at = LIST_BYTES + more.len() - rest.len();
        let (id, len) = parse_transport_id(rest).ok_or(Sense::parameter_field(at as u16, 7))?;
        ids.push(id);
        rest = &rest[len..];
    }
    Ok(ids)
}

/// One TransportID and its length; `None` when it is not an iSCSI one, or cut, or no name.
fn parse_transport_id(bytes: &[u8]) -> Option<(TransportId, usize)> {
    const ISCSI: u8 = 0x05;
    let (header, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] & 0x0F != ISCSI || len + 4 < TRANSPORT_ID_BYTES_MIN || !len.is_multiple_of(4) {
        return None;
    }
    let text = rest.get(..len)?;
    let end = text.iter().position(|byte| *byte == 0)?;
    let text = core::str::from_utf8(&text[..end]).ok()?.to_ascii_lowercase();
    let (name, isid) = match header[0] >> 6 {
        0 => (text.as_str(), None),
        1 => {
            let (name, digits) = text.split_once(",i,0x")?;
            (name, Some(isid(digits)?))
        }
        _ => return None,
    };
    let id = TransportId { name: name.to_owned(), isid };
    ((1..=limits::ISCSI_NAME_BYTES_MAX).contains(&name.len())).then_some((id, len + 4))
}

/// Twelve hexadecimal digits.
fn isid(digits: &str) -> Option<[u8; 6]> {
    if digits.len() != 12 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let [_, _, isid @ ..] = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some(isid)
}

/// Reads the parameter list of REGISTER AND MOVE.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR; INVALID FIELD IN PARAMETER LIST for a TransportID that is none or names no one port.
pub(super) fn parse_move(list: &[u8]) -> Result<MoveList, Sense> {
    const UNREG: u8 = 0x02;
    if list.len() < LIST_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let (basic, rest) = list.split_at(LIST_BYTES);
    let len = u32::from_be_bytes([basic[20], basic[21], basic[22], basic[23]]);
    if len as usize != rest.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let (to, used) = parse_transport_id(rest).ok_or(Sense::parameter_field(24, 7))?;
    if used != rest.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    Ok(MoveList {
        key: key(basic, 0),
        action_key: key(basic, 8),
        unregister: basic[17] & UNREG != 0,
        aptpl: basic[17] & APTPL != 0,
        relative_port: u16::from_be_bytes([basic[18], basic[19]]),
        to,
    })
}

/// Refuses a scope or type that RESERVE cannot have; points into the CDB.
pub(super) fn reservation_type(scope: u8, kind: u8) -> Result<ReservationType, Sense> {
    check_scope(scope)?;
    ReservationType::from_code(kind).ok_or(Sense::cdb_field(2, 3))
}

/// Only logical units are reserved, nothing smaller.
pub(super) fn check_scope(scope: u8) -> Result<(), Sense> {
    if scope == 0 { Ok(()) } else { Err(Sense::cdb_field(2, 7)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::reservation::Registration;

    fn port(name: &str) -> InitiatorPort {
        InitiatorPort { name: name.into(), isid: [0, 2, 0x3D, 0, 0, 1] }
    }

    fn target_port() -> TargetPort {
        TargetPort::new("iqn.2026-11.io.goldrush:node-001", 1)
    }

    #[test]
    fn full_status_names_the_initiator_port() {
        let mut reservations = Reservations::default();
        reservations.register(&port("iqn.a:b"), Some(0), 7, Registration::default()).unwrap();
        reservations.reserve(&port("iqn.a:b"), 7, ReservationType::ExclusiveAccess).unwrap();
        let data = read(PersistentIn::ReadFullStatus, &reservations, &target_port(), false);
        assert_eq!(data[..8], [0, 0, 0, 1, 0, 0, 0, (data.len() - 8) as u8]);
        assert_eq!(data[8..32], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32]);
        assert_eq!(data[32..36], [0x45, 0, 0, 28]);
        assert_eq!(data[36..64], *b"iqn.a:b,i,0x00023d000001\0\0\0\0");
    }

    #[test]
    fn all_registrants_reservations_have_no_holder_key() {
        let mut reservations = Reservations::default();
        reservations.register(&port("iqn.a:b"), Some(0), 7, Registration::default()).unwrap();
        reservations.reserve(&port("iqn.a:b"), 7, ReservationType::WriteExclusiveAllRegistrants).unwrap();
        let data = read(PersistentIn::ReadReservation, &reservations, &target_port(), false);
        assert_eq!(data, [0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0]);
        let keys = read(PersistentIn::ReadKeys, &reservations, &target_port(), false);
        assert_eq!(keys[8..], [0, 0, 0, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn out_lists_are_24_bytes_and_only_register_names_others() {
        assert_eq!(parse_out(&[0; 23], true), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(parse_out(&[0; 25], true), Err(Sense::PARAMETER_LIST_LENGTH));
        let mut list = [0; 24];
        list[7] = 1;
        list[15] = 2;
        list[20] = 0x05;
        let parsed = parse_out(&list, false).unwrap();
        assert_eq!((parsed.key, parsed.action_key, parsed.all_ports, parsed.aptpl), (1, 2, true, true));
        assert_eq!(parsed.initiators, None);
        list[20] = 0x08;
        assert_eq!(parse_out(&list, false), Err(Sense::parameter_field(20, 3)));
        assert_eq!(
            parse_out(&list, true),
            Err(Sense::PARAMETER_LIST_LENGTH),
            "the length of the IDs is missing"
        );
    }

    fn with_ids(ids: &[&[u8]]) -> Vec<u8> {
        let ids = ids.concat();
        let mut list = vec![0; 24];
        list[20] = 0x08;
        list.extend((ids.len() as u32).to_be_bytes());
        list.extend(ids);
        list
    }

    #[test]
    fn transport_ids_are_read_as_they_are_written() {
        let other = port("iqn.2026-11.example:a-rather-long-name");
        let mut by_name = vec![0x05, 0, 0, 20];
        by_name.extend(*b"iqn.A:Others\0\0\0\0\0\0\0\0");
        let parsed = parse_out(&with_ids(&[&transport_id(&other), &by_name]), true).unwrap();
        let ids = parsed.initiators.unwrap();
        assert_eq!(ids[0], TransportId { name: other.name.clone(), isid: Some(other.isid) });
        assert_eq!(ids[1], TransportId { name: "iqn.a:others".into(), isid: None });
        assert_eq!(parse_out(&with_ids(&[]), true).unwrap().initiators, Some(vec![]));
    }

    #[test]
    fn damaged_transport_ids_are_pointed_at() {
        let good = transport_id(&port("iqn.a:b"));
        for (change, at) in
            [((0, 0x46), 28), ((0, 0x85), 28), ((3, 27), 28), ((3, 16), 28), ((4 + 18, b'g'), 28)]
        {
            let mut bad = good.clone();
            bad[change.0] = change.1;
            assert_eq!(parse_out(&with_ids(&[&bad]), true), Err(Sense::parameter_field(at, 7)), "{change:?}");
            let second = Sense::parameter_field(28 + good.len() as u16, 7);
            assert_eq!(parse_out(&with_ids(&[&good, &bad]), true), Err(second));
        }
        let mut list = with_ids(&[&good]);
        list[27] -= 4;
        assert_eq!(parse_out(&list, true), Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn a_move_names_exactly_one_port() {
        let id = transport_id(&port("iqn.a:b"));
        let mut list = vec![0; 24];
        (list[7], list[15], list[17], list[19], list[23]) = (1, 2, 0x03, 1, id.len() as u8);
        list.extend(&id);
        let parsed = parse_move(&list).unwrap();
        assert_eq!((parsed.key, parsed.action_key, parsed.relative_port), (1, 2, 1));
        assert!(parsed.unregister && parsed.aptpl);
        assert_eq!(parsed.to.isid, Some([0, 2, 0x3D, 0, 0, 1]));
        list.push(0);
        assert_eq!(parse_move(&list), Err(Sense::PARAMETER_LIST_LENGTH));
        list.truncate(24);
        list[23] = 0;
        assert_eq!(parse_move(&list), Err(Sense::parameter_field(24, 7)));
    }
}
