//! PDUs (RFC 4171, 5.1 and 5.2): a message is cut into them, and put together from them.
//!
//! Knows the 12 header bytes and the order of PDUs. Does not know what a message says (`attribute`, `request`).

use crate::limits::{ISNS_MESSAGE_BYTES_MAX, ISNS_PDU_BYTES_MAX};

/// | bytes | field       | bytes | field          |
/// |-------|-------------|-------|----------------|
/// | 0     | version     | 6     | flags          |
/// | 2     | function    | 8     | transaction    |
/// | 4     | length of what follows the header | 10 | sequence number |
pub const HEADER_BYTES: usize = 12;
const VERSION: u16 = 1;

const FROM_CLIENT: u16 = 0x8000;
const FROM_SERVER: u16 = 0x4000;
const SIGNED: u16 = 0x2000;
const REPLACE: u16 = 0x1000;
const LAST: u16 = 0x0800;
const FIRST: u16 = 0x0400;

/// What a message asks for, or answers (4.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u16);

impl Function {
    pub const REGISTER: Self = Self(0x0001);
    pub const QUERY: Self = Self(0x0002);
    pub const DEREGISTER: Self = Self(0x0004);
    pub const STATUS_INQUIRY: Self = Self(0x000D);
    /// A heartbeat has no answer (5.6.5.14).
    pub const HEARTBEAT: Self = Self(0x000E);

    pub fn is_answer(self) -> bool {
        self.0 & 0x8000 != 0
    }

    /// The function of the answer.
    pub fn answer(self) -> Self {
        Self(self.0 | 0x8000)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Server,
}

/// A message, whatever PDUs it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub function: Function,
    pub sender: Sender,
    /// A registration takes the place of what there is (5.6.5.1).
    pub replace: bool,
    pub transaction: u16,
    /// At most `ISNS_MESSAGE_BYTES_MAX` bytes, a multiple of four.
    pub payload: Vec<u8>,
}

impl Message {
    /// Appends all its PDUs.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.payload.len() <= ISNS_MESSAGE_BYTES_MAX && self.payload.len().is_multiple_of(4));
        let mut parts: Vec<&[u8]> = self.payload.chunks(ISNS_PDU_BYTES_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            let mut flags = if self.sender == Sender::Client { FROM_CLIENT } else { FROM_SERVER };
            flags |= if self.replace { REPLACE } else { 0 };
            flags |= if number == 0 { FIRST } else { 0 };
            flags |= if number + 1 == count { LAST } else { 0 };
            // Lengths and numbers fit: see the assertions in `limits`.
            let fields =
                [VERSION, self.function.0, part.len() as u16, flags, self.transaction, number as u16];
            out.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
            out.extend_from_slice(part);
        }
    }
}

/// Bytes that are no message; what follows them cannot be understood either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    #[error("it speaks version {0} of iSNS, not 1")]
    Version(u16),
    #[error("a PDU of {0} bytes, which is no multiple of four")]
    Unaligned(u16),
    #[error("a signed message: authentication is not supported")]
    Signed,
    #[error("PDUs of a message out of order")]
    Order,
    #[error("a message of more than {ISNS_MESSAGE_BYTES_MAX} bytes")]
    TooLong,
}

struct Header {
    function: Function,
    len: usize,
    flags: u16,
    transaction: u16,
    sequence: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, PduError> {
        let field = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        if field(0) != VERSION {
            return Err(PduError::Version(field(0)));
        }
        if !field(4).is_multiple_of(4) {
            return Err(PduError::Unaligned(field(4)));
        }
        if field(6) & SIGNED != 0 {
            return Err(PduError::Signed);
        }
        let (function, len, flags) = (Function(field(2)), usize::from(field(4)), field(6));
        Ok(Self { function, len, flags, transaction: field(8), sequence: field(10) })
    }
}

/// Puts messages together from a stream, whatever pieces it comes in. It holds no more than was received, and no more than
/// one message.
#[derive(Debug, Default)]
pub struct Assembler {
    header: Vec<u8>,
    /// Of the PDU whose header is complete: bytes to come, and whether it is the last of its message.
    open: Option<(usize, bool)>,
    message: Option<Message>,
    /// The sequence number of the next PDU.
    sequence: u16,
}

impl Assembler {
    /// Takes bytes off `input`, at most up to the end of a message, and gives the message when it is complete.
    ///
    /// # Errors
    /// The stream is no iSNS, and cannot be read any further.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Message>, PduError> {
        loop {
            let Some((left, last)) = self.open else {
                self.header.extend_from_slice(take(input, HEADER_BYTES - self.header.len()));
                let Ok(header) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) else {
                    return Ok(None);
                };
                self.header.clear();
                self.begin(&Header::parse(&header)?)?;
                continue;
            };
            let part = take(input, left);
            if let Some(message) = &mut self.message {
                message.payload.extend_from_slice(part);
            }
            if part.len() < left {
                self.open = Some((left - part.len(), last));
                return Ok(None);
            }
            self.open = None;
            if last {
                return Ok(self.message.take());
            }
        }
    }

    fn begin(&mut self, header: &Header) -> Result<(), PduError> {
        let first = header.flags & FIRST != 0;
        match &mut self.message {
            None if first && header.sequence == 0 => {
                let sender = if header.flags & FROM_CLIENT != 0 { Sender::Client } else { Sender::Server };
                let replace = header.flags & REPLACE != 0;
                let (function, transaction) = (header.function, header.transaction);
                self.message = Some(Message { function, sender, replace, transaction, payload: Vec::new() });
                self.sequence = 0;
            }
            Some(message)
                if !first
                    && header.sequence == self.sequence
                    && header.function == message.function
                    && header.transaction == message.transaction => {}
            _ => return Err(PduError::Order),
        }
        let held = self.message.as_ref().map_or(0, |message| message.payload.len());
        if held + header.len > ISNS_MESSAGE_BYTES_MAX {
            return Err(PduError::TooLong);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.open = Some((header.len, header.flags & LAST != 0));
        Ok(())
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (part, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(payload: Vec<u8>) -> Message {
        let (function, sender) = (Function::REGISTER, Sender::Client);
        Message { function, sender, replace: true, transaction: 7, payload }
    }

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    fn first(bytes: &[u8]) -> Result<Option<Message>, PduError> {
        Assembler::default().next(&mut &*bytes)
    }

    #[test]
    fn the_header_lies_where_the_standard_says() {
        let bytes = encoded(&message(vec![1, 2, 3, 4]));
        assert_eq!(bytes, [0, 1, 0, 1, 0, 4, 0x9C, 0, 0, 7, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_long_message_is_cut_into_numbered_pdus() {
        let long = message(vec![5; ISNS_PDU_BYTES_MAX + 8]);
        let bytes = encoded(&long);
        let second = &bytes[HEADER_BYTES + ISNS_PDU_BYTES_MAX..];
        assert_eq!((&bytes[4..8], &second[4..8]), (&[0xFF, 0xFC, 0x94, 0][..], &[0, 8, 0x98, 0][..]));
        assert_eq!(second[10..12], [0, 1]);
        assert_eq!(first(&bytes), Ok(Some(long)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let good = encoded(&message(vec![0; 4]));
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            first(&bytes)
        };
        assert_eq!(with(1, 2), Err(PduError::Version(2)));
        assert_eq!(with(5, 3), Err(PduError::Unaligned(3)));
        assert_eq!(with(6, 0xBC), Err(PduError::Signed));
        assert_eq!(with(6, 0x98), Err(PduError::Order));
        assert_eq!(with(11, 1), Err(PduError::Order));
    }

    #[test]
    fn pdus_of_other_messages_do_not_come_in_between() {
        let bytes = encoded(&message(vec![5; ISNS_PDU_BYTES_MAX + 8]));
        for (at, byte) in [(3, 2), (9, 8), (11, 2), (6, 0x9C)] {
            let mut other = bytes.clone();
            other[HEADER_BYTES + ISNS_PDU_BYTES_MAX + at] = byte;
            assert_eq!(first(&other), Err(PduError::Order), "{at}");
        }
    }

    #[test]
    fn an_endless_message_ends_at_the_limit() {
        let mut assembler = Assembler::default();
        let mut held = 0;
        for number in 0..u16::MAX {
            let flags = if number == 0 { FIRST } else { 0 };
            let fields = [VERSION, 0x8002, ISNS_PDU_BYTES_MAX as u16, flags, 0, number];
            let header: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
            match assembler.next(&mut &*header) {
                Err(error) => return assert_eq!(error, PduError::TooLong),
                Ok(_) => held += ISNS_PDU_BYTES_MAX,
            }
            assert!(held <= ISNS_MESSAGE_BYTES_MAX);
            assert_eq!(assembler.next(&mut &*vec![0; ISNS_PDU_BYTES_MAX]), Ok(None));
        }
        panic!("there was no limit");
    }

    proptest! {
        #[test]
        fn messages_survive_any_split(
            words in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..40), 1..5),
            big in 0_usize..3,
            size in 1_usize..200,
        ) {
            let mut messages: Vec<Message> = Vec::new();
            for (number, words) in words.into_iter().enumerate() {
                let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
                payload.resize(payload.len() + big * ISNS_PDU_BYTES_MAX / 2 / 4 * 4, 9);
                let sender = if number % 2 == 0 { Sender::Client } else { Sender::Server };
                messages.push(Message { sender, transaction: number as u16, ..message(payload) });
            }
            let bytes: Vec<u8> = messages.iter().flat_map(encoded).collect();
            let (mut assembler, mut found) = (Assembler::default(), Vec::new());
            for mut piece in bytes.chunks(size) {
                while let Some(message) = assembler.next(&mut piece).unwrap() {
                    found.push(message);
                }
            }
            prop_assert_eq!(found, messages);
        }
    }
}
