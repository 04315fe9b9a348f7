//! Attributes (RFC 4171, 5.3 and 6): tag, length, value, padded to four bytes.
//!
//! Knows how values are written. Does not know which attributes a message has (`request`).

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What a value is (6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

impl Tag {
    pub const DELIMITER: Self = Self(0);
    pub const ENTITY: Self = Self(1);
    pub const PROTOCOL: Self = Self(2);
    /// Seconds (6.2.6).
    pub const REGISTRATION_PERIOD: Self = Self(6);
    pub const PORTAL_ADDRESS: Self = Self(16);
    pub const PORTAL_PORT: Self = Self(17);
    pub const ISCSI_NAME: Self = Self(32);
    pub const NODE_TYPE: Self = Self(33);
    pub const GROUP_ADDRESS: Self = Self(49);
    pub const GROUP_PORT: Self = Self(50);
    pub const GROUP_TAG: Self = Self(51);
}

/// A port field says UDP with this bit (6.3.2).
const UDP: u32 = 0x1_0000;

/// Attributes one after the other, as they stand in a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeList(pub Vec<u8>);

impl AttributeList {
    fn put(&mut self, tag: Tag, value: &[u8]) {
        let len = value.len().next_multiple_of(4);
        self.0.extend_from_slice(&tag.0.to_be_bytes());
        self.0.extend_from_slice(&(len as u32).to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len() + len - value.len(), 0);
    }

    /// In a query: this is wanted. Of a portal group tag: there is none. Of the delimiter: all it has.
    pub fn empty(&mut self, tag: Tag) {
        self.put(tag, &[]);
    }

    pub fn number(&mut self, tag: Tag, value: u32) {
        self.put(tag, &value.to_be_bytes());
    }

    /// `text` has no NUL; one is appended.
    pub fn text(&mut self, tag: Tag, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(tag, &value);
    }

    /// An IPv4 address is written as an IPv6 one that maps it (6.3.1).
    pub fn address(&mut self, tag: Tag, address: IpAddr) {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        self.put(tag, &address.octets());
    }

    /// A TCP portal by its two keys.
    pub fn portal(&mut self, (address, port): (Tag, Tag), portal: SocketAddr) {
        self.address(address, portal.ip());
        self.number(port, u32::from(portal.port()));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    pub tag: Tag,
    /// With its padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn number(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// What comes before the first NUL.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0)?;
        core::str::from_utf8(&self.value[..end]).ok()
    }

    pub fn address(&self) -> Option<IpAddr> {
        let octets: [u8; 16] = self.value.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
    }

    /// A TCP port.
    pub fn tcp_port(&self) -> Option<u16> {
        self.number().filter(|number| number & UDP == 0).map(|number| number as u16)
    }
}

/// Bytes that are no attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attribute that does not end where its message does")]
pub struct AttributeError;

/// The attributes of a payload. An error is the last item.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Attribute<'a>, &'a [u8])> {
        let (tag, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| len.is_multiple_of(4))?;
        let (value, rest) = rest.split_at_checked(len)?;
        Some((Attribute { tag: Tag(u32::from_be_bytes(*tag)), value }, rest))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, AttributeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((attribute, rest)) = Self::split(self.0) else {
            self.0 = &[];
            return Some(Err(AttributeError));
        };
        self.0 = rest;
        Some(Ok(attribute))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Vec<Attribute<'_>> {
        Attributes(bytes).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn text_ends_with_a_nul_and_is_padded_with_more() {
        let mut list = AttributeList::default();
        list.text(Tag::ENTITY, "abc");
        list.text(Tag::ISCSI_NAME, "abcd");
        assert_eq!(list.0[..12], [0, 0, 0, 1, 0, 0, 0, 4, b'a', b'b', b'c', 0]);
        assert_eq!(list.0[12..], [0, 0, 0, 32, 0, 0, 0, 8, b'a', b'b', b'c', b'd', 0, 0, 0, 0]);
    }

    #[test]
    fn addresses_of_both_families_have_sixteen_bytes() {
        let mut list = AttributeList::default();
        let keys = (Tag::PORTAL_ADDRESS, Tag::PORTAL_PORT);
        list.portal(keys, "192.0.2.1:3260".parse().unwrap());
        list.portal(keys, "[2001:db8::1]:860".parse().unwrap());
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 192, 0, 2, 1];
        assert_eq!(list.0[..24], [&[0, 0, 0, 16, 0, 0, 0, 16][..], &mapped].concat());
        let read = all(&list.0);
        assert_eq!((read[0].address(), read[1].tcp_port()), ("192.0.2.1".parse().ok(), Some(3260)));
        assert_eq!((read[2].address(), read[3].tcp_port()), ("2001:db8::1".parse().ok(), Some(860)));
    }

    #[test]
    fn a_udp_port_is_no_tcp_port() {
        let mut list = AttributeList::default();
        list.number(Tag::PORTAL_PORT, UDP | 3260);
        assert_eq!(all(&list.0)[0].tcp_port(), None);
    }

    #[test]
    fn attributes_that_do_not_fit_are_an_error_once() {
        let mut list = AttributeList::default();
        list.number(Tag::PROTOCOL, 2);
        for cut in 1..list.0.len() {
            let found: Vec<_> = Attributes(&list.0[..cut]).collect();
            assert_eq!(found, [Err(AttributeError)], "{cut}");
        }
        let odd = [0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4];
        assert_eq!(Attributes(&odd).collect::<Vec<_>>(), [Err(AttributeError)]);
    }

    #[test]
    fn values_of_another_kind_are_none() {
        let short = Attribute { tag: Tag::PROTOCOL, value: &[1, 2, 3, 4] };
        assert_eq!((short.text(), short.address()), (None, None));
        let empty = Attribute { tag: Tag::PROTOCOL, value: &[] };
        assert_eq!((empty.text(), empty.number(), empty.address()), (None, None, None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "[^\u{0}]{0,60}", number: u32, address: u128, v4: u32) {
            let mut list = AttributeList::default();
            list.text(Tag(7), &text);
            list.number(Tag(8), number);
            list.address(Tag(9), IpAddr::V6(Ipv6Addr::from(address)));
            list.address(Tag(10), IpAddr::V4(v4.into()));
            list.empty(Tag(11));
            let read = all(&list.0);
            prop_assert_eq!(read[0].text(), Some(text.as_str()));
            prop_assert_eq!(read[1].number(), Some(number));
            prop_assert_eq!(read[2].address(), Some(IpAddr::V6(Ipv6Addr::from(address)).to_canonical()));
            prop_assert_eq!(read[3].address(), Some(IpAddr::V4(v4.into())));
            prop_assert_eq!((read[4], read.len()), (Attribute { tag: Tag(11), value: &[] }, 5));
        }
    }
}
