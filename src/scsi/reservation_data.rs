//! The bytes of PERSISTENT RESERVE IN and OUT (SPC-4, 6.15 and 6.16).
//!
//! Knows parameter data and lists. Does not know what a registration allows (`reservation`).

use super::cdb::PersistentIn;
use super::device::{InitiatorPort, TargetPort};
use super::reservation::{ReservationType, Reservations};
use super::sense::Sense;

/// Bytes of the basic parameter list; nothing longer is accepted.
const LIST_BYTES: usize = 24;

/// The parameter data of a PERSISTENT RESERVE IN service action, uncut.
pub(super) fn read(action: PersistentIn, reservations: &Reservations, port: &TargetPort) -> Vec<u8> {
    match action {
        PersistentIn::ReadKeys => read_keys(reservations),
        PersistentIn::ReadReservation => read_reservation(reservations),
        PersistentIn::ReportCapabilities => report_capabilities(),
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

/// CRH and ATP_C: RESERVE and RELEASE of a holder do nothing; with one target port every registration covers all
/// ports. No SIP_C, no PTPL_C. All six types (SPC-4, 6.15.4).
fn report_capabilities() -> Vec<u8> {
    const CRH: u8 = 0x10;
    const ATP_C: u8 = 0x04;
    const TYPE_MASK_VALID: u8 = 0x80;
    vec![0, 8, CRH | ATP_C, TYPE_MASK_VALID, 0xEA, 0x01, 0, 0]
}

fn read_full_status(reservations: &Reservations, port: &TargetPort) -> Vec<u8> {
    let kind = reservations.kind().map_or(0, |kind| kind as u8);
    let mut body = Vec::new();
    for (index, registrant) in reservations.registrants().iter().enumerate() {
        let holds = reservations.holds(index);
        let transport_id = transport_id(&registrant.port);
        body.extend(registrant.key.to_be_bytes());
        body.extend([0; 4]);
        body.extend([u8::from(holds), if holds { kind } else { 0 }]);
        body.extend([0; 4]);
        body.extend(port.relative_id.to_be_bytes());
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

/// The keys of a PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReserveOutList {
    pub(super) key: u64,
    /// SERVICE ACTION RESERVATION KEY: a new key, or the key of a victim.
    pub(super) action_key: u64,
}

/// Reads the basic parameter list.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR unless it is 24 bytes; INVALID FIELD IN PARAMETER LIST for SPEC_I_PT and APTPL, which
/// REPORT CAPABILITIES does not claim.
pub(super) fn parse_out(list: &[u8]) -> Result<ReserveOutList, Sense> {
    const SPEC_I_PT: u8 = 0x08;
    const APTPL: u8 = 0x01;
    let list: &[u8; LIST_BYTES] = list.try_into().map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
    if list[20] & SPEC_I_PT != 0 {
        return Err(Sense::parameter_field(20, 3));
    }
    if list[20] & APTPL != 0 {
        return Err(Sense::parameter_field(20, 0));
    }
    let key = |at: usize| list[at..at + 8].iter().fold(0, |key: u64, byte| key << 8 | u64::from(*byte));
    Ok(ReserveOutList { key: key(0), action_key: key(8) })
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

    fn port(name: &str) -> InitiatorPort {
        InitiatorPort { name: name.into(), isid: [0, 2, 0x3D, 0, 0, 1] }
    }

    fn target_port() -> TargetPort {
        TargetPort::new("iqn.2026-11.io.goldrush:node-001", 1)
    }

    #[test]
    fn full_status_names_the_initiator_port() {
        let mut reservations = Reservations::default();
        reservations.register(&port("iqn.a:b"), Some(0), 7).unwrap();
        reservations.reserve(&port("iqn.a:b"), 7, ReservationType::ExclusiveAccess).unwrap();
        let data = read(PersistentIn::ReadFullStatus, &reservations, &target_port());
        assert_eq!(data[..8], [0, 0, 0, 1, 0, 0, 0, (data.len() - 8) as u8]);
        assert_eq!(data[8..32], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32]);
        assert_eq!(data[32..36], [0x45, 0, 0, 28]);
        assert_eq!(data[36..64], *b"iqn.a:b,i,0x00023d000001\0\0\0\0");
    }

    #[test]
    fn all_registrants_reservations_have_no_holder_key() {
        let mut reservations = Reservations::default();
        reservations.register(&port("iqn.a:b"), Some(0), 7).unwrap();
        reservations.reserve(&port("iqn.a:b"), 7, ReservationType::WriteExclusiveAllRegistrants).unwrap();
        let data = read(PersistentIn::ReadReservation, &reservations, &target_port());
        assert_eq!(data, [0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0]);
        let keys = read(PersistentIn::ReadKeys, &reservations, &target_port());
        assert_eq!(keys[8..], [0, 0, 0, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn out_lists_are_exactly_24_bytes_without_unsupported_bits() {
        assert_eq!(parse_out(&[0; 23]), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(parse_out(&[0; 25]), Err(Sense::PARAMETER_LIST_LENGTH));
        let mut list = [0; 24];
        list[7] = 1;
        list[15] = 2;
        list[20] = 0x04;
        assert_eq!(parse_out(&list), Ok(ReserveOutList { key: 1, action_key: 2 }));
        list[20] = 0x01;
        assert_eq!(parse_out(&list), Err(Sense::parameter_field(20, 0)));
        list[20] = 0x08;
        assert_eq!(parse_out(&list), Err(Sense::parameter_field(20, 3)));
    }
}
