//! Fuzzing of what an iSNS server may send: any bytes as a stream, as attributes, and as answers to a registrar.
//!
//! Knows what must hold whatever comes. Does not know what a right answer is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::attribute::Attributes;
use super::pdu::{Assembler, Message, PduError};
use super::registrar::{Inventory, Next, Registrar};
use super::request::{Answer, Entity};
use crate::clock::{Duration, Instant};
use crate::limits::ISNS_MESSAGE_BYTES_MAX;

/// Reads `input` as a stream, whole and in pieces (its first byte says of which size): both tell the same, within bounds.
/// Then a registrar that has asked something is told it. Panics when an invariant does not hold.
pub fn fuzz_isns(input: &[u8]) {
    let [size, stream @ ..] = input else { return };
    let whole = assemble(stream, stream.len().max(1));
    assert_eq!(whole, assemble(stream, usize::from(*size) + 1));
    for message in &whole.0 {
        assert!(message.payload.len() <= ISNS_MESSAGE_BYTES_MAX);
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(assemble(&again, 7), (vec![message.clone()], None));
        let attributes: usize =
            Attributes(&message.payload).flatten().map(|attribute| 8 + attribute.value.len()).sum();
        assert!(attributes <= message.payload.len());
        let _ = Answer::parse(&message.payload).map(|answer| (answer.period_s(), answer.names("iqn.a:b")));
    }
    answer(stream, usize::from(*size) + 1);
}

fn assemble(stream: &[u8], size: usize) -> (Vec<Message>, Option<PduError>) {
    let (mut assembler, mut messages) = (Assembler::default(), Vec::new());
    for mut piece in stream.chunks(size) {
        loop {
            match assembler.next(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

/// Whatever is answered, a registrar says something finite, and ends when it is asked to.
fn answer(stream: &[u8], size: usize) {
    let mut now = Instant(0);
    let mut registrar = Registrar::new(Entity { name: "store".to_owned(), period_s: 300 }, now);
    let portal = core::net::SocketAddr::from(([192, 0, 2, 1], 3260));
    let reached = Arc::new(BTreeMap::from([(portal, 1)]));
    let names = (0..3).map(|number| (format!("iqn.2026-11.a:{number}"), Arc::clone(&reached)));
    registrar.want(Inventory::new([portal], names));
    let mut pieces = stream.chunks(size);
    for step in 0..1000 {
        match registrar.next(now) {
            Next::Connect => registrar.connected(),
            Next::Send(bytes) => assert!(bytes.len() <= ISNS_MESSAGE_BYTES_MAX),
            Next::End => return,
            Next::Wait(until) => match pieces.next() {
                Some(piece) if step < 500 => {
                    let _ = registrar.received(piece, now);
                }
                None if step < 500 => now = until.unwrap_or(now).max(now).after(Duration::from_millis(1)),
                _ => {
                    registrar.end();
                    now = until.unwrap_or(now).max(now).after(Duration::from_millis(1));
                }
            },
        }
        registrar.take_notices();
        assert!(registrar.report().targets <= 3);
        if step == 900 {
            registrar.end();
        }
    }
    panic!("it did not end");
}

#[cfg(test)]
mod tests {
    use super::super::attribute::{AttributeList, Tag};
    use super::super::pdu::{Function, Sender};
    use super::*;

    fn message(function: Function, transaction: u16, payload: Vec<u8>) -> Vec<u8> {
        let mut bytes = vec![9];
        Message { function, sender: Sender::Server, replace: false, transaction, payload }.encode(&mut bytes);
        bytes
    }

    fn corpus() -> Vec<Vec<u8>> {
        let mut found = AttributeList(vec![0; 4]);
        found.text(Tag::ISCSI_NAME, "iqn.2026-11.a:0");
        found.empty(Tag::DELIMITER);
        found.text(Tag::ISCSI_NAME, "iqn.2026-11.a:0");
        found.number(Tag::REGISTRATION_PERIOD, 60);
        let registered = message(Function::REGISTER.answer(), 1, found.0.clone());
        let queried = message(Function::QUERY.answer(), 2, found.0.clone());
        let inquiry = message(Function::STATUS_INQUIRY, 3, found.0[4..].to_vec());
        let refused = message(Function::REGISTER.answer(), 1, vec![0, 0, 0, 3]);
        let long = message(Function::QUERY, 9, vec![1; 70_000]);
        let both = [&registered[..], &queried[1..], &inquiry[1..]].concat();
        vec![registered, queried, inquiry, refused, long, both, vec![0], Vec::new()]
    }

    #[test]
    fn fuzz_corpus_does_no_harm() {
        for bytes in corpus() {
            fuzz_isns(&bytes);
            for at in (0..bytes.len()).take(160) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x14;
                fuzz_isns(&damaged);
                fuzz_isns(&bytes[..at]);
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            fuzz_isns(&bytes);
        }
    }
}
