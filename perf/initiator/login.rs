//! Login over a blocking stream, and SendTargets discovery (RFC 7143, appendix C).
//!
//! Knows who sends and who waits. Does not know the stages of a login, nor SCSI commands.

use std::net::SocketAddr;

use super::handshake::{Handshake, Step};
use super::session::Session;
use super::stream::Stream;
use super::{Endpoint, Negotiated, Numbers, Options};
use crate::fail::{Failure, Result, failure};
use crate::keys::Keys;
use crate::wire::{NO_TAG, Reply, Text};

/// Opens a normal session with one LUN.
pub(crate) fn open(endpoint: &Endpoint, options: &Options) -> Result<Session> {
    let (stream, negotiated, numbers) = log_in(endpoint.address, Some(&endpoint.target), options)?;
    Ok(Session::new(stream, negotiated, numbers, endpoint.lun))
}

/// The names of all targets of a portal.
pub(crate) fn discover(address: SocketAddr, options: &Options) -> Result<Vec<String>> {
    let (mut stream, _, mut numbers) = log_in(address, None, options)?;
    let mut keys = Keys::default();
    keys.push("SendTargets", "All");
    let mut question = keys.encode();
    let mut transfer_tag = NO_TAG;
    let mut answer = Vec::new();
    loop {
        let request = Text {
            data_len: question.len() as u32,
            tag: 1,
            transfer_tag,
            cmd_sn: numbers.cmd_sn,
            exp_stat_sn: numbers.exp_stat_sn,
        };
        stream.send(&request.encode(), &question)?;
        numbers.cmd_sn = numbers.cmd_sn.wrapping_add(1);
        let pdu = stream.receive()?;
        let Reply::Text(reply) = Reply::decode(&pdu.header) else {
            return Err(failure!(
                "{address} answered SendTargets with opcode {:#04x}: look at its log",
                pdu.header[0]
            ));
        };
        numbers.exp_stat_sn = reply.stat_sn.wrapping_add(1);
        answer.extend(pdu.data);
        if !reply.more && reply.transfer_tag == NO_TAG {
            break;
        }
        transfer_tag = reply.transfer_tag;
        question.clear();
    }
    let listed = Keys::decode(&answer)?;
    let mut session = Session::new(stream, Negotiated::minimal(), numbers, 0);
    session.logout()?;
    Ok(listed.iter().filter(|(key, _)| *key == "TargetName").map(|(_, name)| name.to_string()).collect())
}

fn log_in(
    address: SocketAddr,
    target: Option<&str>,
    options: &Options,
) -> Result<(Stream, Negotiated, Numbers)> {
    let mut stream = Stream::connect(address, options.timeout)?;
    let peer = address.to_string();
    let (mut login, mut header, mut text) = Handshake::begin(options, target);
    loop {
        stream.send(&header, &text)?;
        let pdu = stream.receive()?;
        match login.answer(&peer, &pdu.header, &pdu.data)? {
            Step::Send(next, keys) => (header, text) = (next, keys),
            Step::Later(told) => return Err(Failure(told)),
            Step::Done(agreed, numbers) => {
                stream.header_digest = agreed.header_digest;
                stream.data_digest = agreed.data_digest;
                return Ok((stream, agreed, numbers));
            }
        }
    }
}
