//! Vital product data (SPC-4, 7.8; SBC-3, 6.5): the pages behind INQUIRY with EVPD.
//!
//! Knows the pages' layouts. Does not know where names and sizes come from.

use super::capacity::Geometry;
use super::copy;
use super::device::TargetPort;
use super::identity::{UnitNames, VENDOR};
use super::sense::{SENSE_BYTES_MAX, Sense};
use crate::limits;

/// Supported pages, ascending (SPC-4, 7.8.15).
const PAGES: [u8; 10] = [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1, 0xB2];

/// The longest COMPARE AND WRITE: the field has eight bits.
pub(super) fn compare_and_write_blocks(geometry: Geometry) -> u8 {
    u8::try_from(geometry.blocks_in(limits::COMPARE_AND_WRITE_BYTES_MAX)).unwrap_or(u8::MAX)
}

/// What the pages tell about.
#[derive(Clone, Copy, Debug)]
pub(super) struct VpdSource<'a> {
    pub(super) names: &'a UnitNames,
    pub(super) port: &'a TargetPort,
    pub(super) geometry: Geometry,
    /// WRITE ATOMIC exists.
    pub(super) atomic: bool,
    /// WRITE SAME without a length writes up to the end.
    pub(super) write_same_to_end: bool,
}

impl VpdSource<'_> {
    /// The page, uncut.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB for a page this device does not have.
    pub(super) fn page(&self, code: u8) -> Result<Vec<u8>, Sense> {
        let body = match code {
            0x00 => PAGES.to_vec(),
            0x80 => self.names.serial.clone(),
            0x83 => self.device_identification(),
            0x86 => extended_inquiry(),
            // One policy for every page and subpage: shared by all I_T nexuses.
            0x87 => vec![0x3F, 0xFF, 0x00, 0x00],
            0x88 => self.scsi_ports(),
            0x8F => copy::vital_page(self.geometry),
            0xB0 => self.block_limits(),
            0xB1 => block_device_characteristics(),
            0xB2 => self.logical_block_provisioning(),
            _ => return Err(Sense::cdb_field(2, 7)),
        };
        let mut page = vec![0x00, code];
        page.extend((body.len() as u16).to_be_bytes());
        page.extend(body);
        Ok(page)
    }

    /// The unit by four kinds of name, the port by three, the target by one (SPC-4, 7.8.6).
    fn device_identification(&self) -> Vec<u8> {
        let mut t10 = VENDOR.to_vec();
        t10.extend(&self.names.serial);
        let relative = [0, 0, (self.port.relative_id >> 8) as u8, self.port.relative_id as u8];
        let mut body = Vec::new();
        push_designator(&mut body, CodeSet::Binary, Association::Unit, Kind::Naa, &self.names.naa);
        push_designator(&mut body, CodeSet::Binary, Association::Unit, Kind::Eui64, &self.names.eui64);
        push_designator(&mut body, CodeSet::Ascii, Association::Unit, Kind::T10, &t10);
        push_name(&mut body, Association::Unit, &self.names.name);
        push_designator(&mut body, CodeSet::Binary, Association::Port, Kind::RelativePort, &relative);
        push_designator(&mut body, CodeSet::Binary, Association::Port, Kind::PortGroup, &relative);
        push_name(&mut body, Association::Port, &self.port.name);
        push_name(&mut body, Association::Target, &self.port.target_name);
        body
    }

    /// One port, without saying which initiators it knows (SPC-4, 7.8.13).
    fn scsi_ports(&self) -> Vec<u8> {
        let mut name = Vec::new();
        push_name(&mut name, Association::Port, &self.port.name);
        let mut body = vec![0, 0];
        body.extend(self.port.relative_id.to_be_bytes());
        body.extend([0, 0, 0, 0, 0, 0]);
        body.extend((name.len() as u16).to_be_bytes());
        body.extend(name);
        body
    }

    /// | bytes of the page | field                          | bytes  | field                      |
    /// |-------------------|--------------------------------|--------|----------------------------|
    /// | 4                 | WSNZ                           | 20..24 | MAXIMUM UNMAP LBA COUNT    |
    /// | 5                 | MAXIMUM COMPARE AND WRITE      | 24..28 | MAXIMUM UNMAP DESCRIPTORS  |
    /// | 6..8              | OPTIMAL TRANSFER GRANULARITY   | 28..32 | OPTIMAL UNMAP GRANULARITY  |
    /// | 8..12             | MAXIMUM TRANSFER LENGTH        | 32..36 | UGAVALID, alignment        |
    /// | 12..16            | OPTIMAL TRANSFER LENGTH        | 36..44 | MAXIMUM WRITE SAME LENGTH  |
    /// | 16..20            | MAXIMUM PREFETCH LENGTH        | 44..48 | MAXIMUM ATOMIC TRANSFER    |
    fn block_limits(&self) -> Vec<u8> {
        let geometry = self.geometry;
        let mut body = vec![0; 0x3C];
        let mut put = |at: usize, value: u32| body[at - 4..at].copy_from_slice(&value.to_be_bytes());
        let compare_and_write = u32::from(compare_and_write_blocks(geometry));
        let wsnz = u32::from(!self.write_same_to_end);
        put(4, wsnz << 24 | compare_and_write << 16 | geometry.physical_blocks() & 0xFFFF);
        put(8, geometry.blocks_in(limits::TRANSFER_BYTES_MAX));
        put(12, geometry.blocks_in(limits::TRANSFER_OPTIMAL_BYTES));
        put(16, geometry.blocks_in(limits::TRANSFER_BYTES_MAX));
        if geometry.thin {
            put(20, geometry.blocks_in(limits::UNMAP_BYTES_MAX));
            put(24, limits::UNMAP_DESCRIPTORS_MAX);
            put(28, geometry.physical_blocks());
            put(32, 0x8000_0000);
        }
        put(40, geometry.blocks_in(limits::WRITE_SAME_BYTES_MAX));
        if self.atomic {
            // Any alignment, any granularity, no boundaries.
            put(44, geometry.blocks_in(limits::ATOMIC_BYTES_MAX));
        }
        body
    }

    /// LBPU, LBPWS, LBPWS10, LBPRZ and type thin; all zero for a fully provisioned unit (SBC-3, 6.5.4).
    fn logical_block_provisioning(&self) -> Vec<u8> {
        if self.geometry.thin { vec![0, 0xE4, 0x02, 0] } else { vec![0; 4] }
    }
}

/// A non-rotating medium of no particular form factor, which may be read right after BLOCK ERASE (WABEREQ; SBC-4, 6.6.2).
fn block_device_characteristics() -> Vec<u8> {
    let mut body = vec![0; 0x3C];
    body[1] = 0x01;
    body[3] = 0x40;
    body
}

/// SIMPLE, ORDERED and HEAD OF QUEUE task attributes, a volatile cache, the longest sense data (SPC-4, 7.8.7).
fn extended_inquiry() -> Vec<u8> {
    let mut body = vec![0; 0x3C];
    body[1] = 0x07;
    body[2] = 0x01;
    body[9] = SENSE_BYTES_MAX as u8;
    body
}

#[derive(Clone, Copy)]
enum CodeSet {
    Binary = 1,
    Ascii = 2,
    Utf8 = 3,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Association {
    Unit = 0,
    Port = 1,
    Target = 2,
}

#[derive(Clone, Copy)]
enum Kind {
    T10 = 1,
    Eui64 = 2,
    Naa = 3,
    RelativePort = 4,
    PortGroup = 5,
    Name = 8,
}

fn push_designator(body: &mut Vec<u8>, code: CodeSet, association: Association, kind: Kind, bytes: &[u8]) {
    const ISCSI: u8 = 5;
    // The protocol is only said, and only valid (PIV), where the name is the protocol's.
    let (protocol, valid) = if association == Association::Unit { (0, 0) } else { (ISCSI << 4, 0x80) };
    let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    body.extend([protocol | code as u8, valid | (association as u8) << 4 | kind as u8, 0, len]);
    body.extend(bytes.iter().take(usize::from(len)));
}

/// A SCSI name string: UTF-8, ended by a zero byte and padded to four bytes (SPC-4, 7.8.6.11).
fn push_name(body: &mut Vec<u8>, association: Association, name: &str) {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize((bytes.len() + 4) & !3, 0);
    push_designator(body, CodeSet::Utf8, association, Kind::Name, &bytes);
}

/// REPORT TARGET PORT GROUPS: one group of one port, active and optimized (SPC-4, 6.37).
pub(super) fn target_port_groups(port: &TargetPort, extended: bool) -> Vec<u8> {
    const IMPLICIT_ONLY: u8 = 0x01;
    let id = port.relative_id.to_be_bytes();
    let mut body = Vec::new();
    if extended {
        body.extend([0x10, 0, 0, 0]);
    }
    body.extend([0x00, IMPLICIT_ONLY, id[0], id[1], 0, 0, 0, 1]);
    body.extend([0, 0, id[0], id[1]]);
    let mut data = (body.len() as u32).to_be_bytes().to_vec();
    data.extend(body);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::identity::UnitIdentity;
    use crate::scsi::lun::Lun;
    use crate::units::BlockSize;

    const THIN: Geometry =
        Geometry { blocks: 1 << 20, block_size: BlockSize::B512, physical_exponent: 3, thin: true };

    fn page(code: u8, geometry: Geometry) -> Result<Vec<u8>, Sense> {
        let target_name = "iqn.2026-11.io.goldrush:node-001";
        let names = UnitNames::new(&UnitIdentity {
            target_name: target_name.into(),
            lun: Lun::ZERO,
            serial: Some("S-1".into()),
        });
        let port = TargetPort::new(target_name, 1);
        VpdSource { names: &names, port: &port, geometry, atomic: true, write_same_to_end: false }.page(code)
    }

    #[test]
    fn every_listed_page_exists_and_is_as_long_as_it_says() {
        let listed = page(0x00, THIN).unwrap();
        assert_eq!(listed[4..], PAGES);
        assert!(PAGES.is_sorted());
        for code in PAGES {
            let page = page(code, THIN).unwrap();
            assert_eq!(page[..2], [0, code]);
            assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4);
        }
        assert_eq!(page(0x81, THIN), Err(Sense::cdb_field(2, 7)));
    }

    #[test]
    fn block_limits_follow_the_limits() {
        let page = page(0xB0, THIN).unwrap();
        let field = |at: usize| u32::from_be_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!(page.len(), 64);
        assert_eq!(page[4], 1, "WSNZ: no length is refused");
        assert_eq!(page[5], compare_and_write_blocks(THIN));
        assert_eq!(page[6..8], [0, 8]);
        assert_eq!(field(8) as usize, limits::TRANSFER_BYTES_MAX / 512);
        assert_eq!(field(12) as usize, limits::TRANSFER_OPTIMAL_BYTES / 512);
        assert_eq!(field(20) as usize, limits::UNMAP_BYTES_MAX / 512);
        assert_eq!(field(24), limits::UNMAP_DESCRIPTORS_MAX);
        assert_eq!((field(28), field(32)), (8, 0x8000_0000));
        assert_eq!((field(36), field(40) as usize), (0, limits::WRITE_SAME_BYTES_MAX / 512));
    }

    #[test]
    fn a_thick_unit_claims_no_provisioning() {
        let thick = Geometry { thin: false, ..THIN };
        assert_eq!(page(0xB2, thick).unwrap()[4..], [0; 4]);
        assert_eq!(page(0xB2, THIN).unwrap()[4..], [0, 0xE4, 2, 0]);
        assert_eq!(page(0xB0, thick).unwrap()[20..36], [0; 16]);
    }

    #[test]
    fn designators_are_well_formed_and_name_unit_port_and_target() {
        let page = page(0x83, THIN).unwrap();
        let mut rest = &page[4..];
        let mut found = Vec::new();
        while let [_, kind, _, len, tail @ ..] = rest {
            let (body, next) = tail.split_at(usize::from(*len));
            found.push((kind >> 4 & 3, kind & 0x0F, body.to_vec()));
            rest = next;
        }
        assert!(rest.is_empty());
        let kinds: Vec<_> = found.iter().map(|(association, kind, _)| (*association, *kind)).collect();
        assert_eq!(kinds, [(0, 3), (0, 2), (0, 1), (0, 8), (1, 4), (1, 5), (1, 8), (2, 8)]);
        assert_eq!(found[2].2, b"GOLDRUSHS-1");
        assert_eq!(found[4].2, [0, 0, 0, 1]);
        assert!(found[6].2.starts_with(b"iqn.2026-11.io.goldrush:node-001,t,0x0001\0"));
        assert_eq!(found[7].2.len() % 4, 0);
    }

    #[test]
    fn target_port_groups_have_one_active_group() {
        let port = TargetPort::new("iqn.2026-11.io.goldrush:node-001", 3);
        assert_eq!(target_port_groups(&port, false), [0, 0, 0, 12, 0, 1, 0, 3, 0, 0, 0, 1, 0, 0, 0, 3]);
        let extended = target_port_groups(&port, true);
        assert_eq!(extended[..8], [0, 0, 0, 16, 0x10, 0, 0, 0]);
    }
}
