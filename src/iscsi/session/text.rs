//! Text Request and Response (RFC 7143, 11.10, 11.11): SendTargets, and what may be renegotiated after login.
//!
//! Knows how text is spread over PDUs in both directions. Does not know targets: the shard writes the list.
//!
//! | exchange  | request without TTT       | request with our TTT                                          |
//! |-----------|---------------------------|---------------------------------------------------------------|
//! | Idle      | collects                  | Reject                                                        |
//! | Collecting| starts anew               | collects; with C asks for more, else answers                  |
//! | Asked     | Reject until the shard has answered | the same                                            |
//! | Sending   | starts anew               | the next piece of the answer; the last one ends the exchange  |

use bytes::Bytes;

use super::output::Answer;
use super::{ConnectionId, Session, SessionEvent};
use crate::iscsi::command_window::Place;
use crate::iscsi::negotiate::negotiate_text;
use crate::iscsi::pdu::bhs::Bhs;
use crate::iscsi::pdu::reject::RejectReason;
use crate::iscsi::pdu::text::TextRequest;
use crate::iscsi::pdu::{InitiatorTaskTag, TargetTransferTag};
use crate::iscsi::text_keys::{TextCollector, TextKeys};

/// The one text exchange a connection may have (11.10.3).
#[derive(Debug, Default)]
pub(super) enum TextExchange {
    #[default]
    Idle,
    Collecting {
        task_tag: InitiatorTaskTag,
        transfer_tag: TargetTransferTag,
        text: TextCollector,
    },
    /// The shard is asked for targets; what other keys had to be answered comes first.
    Asked {
        task_tag: InitiatorTaskTag,
        place: Place,
        answer: Vec<u8>,
        is_final: bool,
    },
    /// The rest of the answer. Shared, so that a piece is cut off without moving what follows: a list of many
    /// targets goes out in thousands of pieces when the initiator takes 512 bytes at a time.
    Sending {
        task_tag: InitiatorTaskTag,
        transfer_tag: TargetTransferTag,
        answer: Bytes,
    },
}

impl Session {
    pub(super) fn take_text(&mut self, on: ConnectionId, bhs: &Bhs, data: &[u8], place: Place) {
        let request = TextRequest::decode(bhs);
        let is_first = request.transfer_tag == TargetTransferTag::RESERVED;
        match core::mem::take(&mut self.connections[on].text) {
            _ if request.is_final && request.text_continues => {
                self.refuse_text(on, RejectReason::InvalidPduField, place);
            }
            asked @ TextExchange::Asked { .. } => {
                self.connections[on].text = asked;
                self.refuse_text(on, RejectReason::ProtocolError, place);
            }
            _ if is_first => self.collect_text(on, &request, TextCollector::default(), data, place),
            TextExchange::Collecting { task_tag, transfer_tag, text }
                if task_tag == request.task_tag && transfer_tag == request.transfer_tag =>
            {
                self.collect_text(on, &request, text, data, place);
            }
            TextExchange::Sending { task_tag, transfer_tag, answer }
                if task_tag == request.task_tag
                    && transfer_tag == request.transfer_tag
                    && data.is_empty() =>
            {
                self.send_text(on, task_tag, answer, request.is_final, place);
            }
            other => {
                self.connections[on].text = other;
                self.refuse_text(on, RejectReason::InvalidPduField, place);
            }
        }
    }

    fn refuse_text(&mut self, on: ConnectionId, reason: RejectReason, place: Place) {
        self.window.revoke(place);
        self.reject(on, reason);
    }

    fn collect_text(
        &mut self,
        on: ConnectionId,
        request: &TextRequest,
        mut text: TextCollector,
        data: &[u8],
        place: Place,
    ) {
        if text.push(data).is_err() {
            return self.refuse_text(on, RejectReason::LongOperationReject, place);
        }
        if request.text_continues {
            let transfer_tag = self.take_transfer_tag();
            self.connections[on].text =
                TextExchange::Collecting { task_tag: request.task_tag, transfer_tag, text };
            return self.answer_text(on, request.task_tag, transfer_tag, false, &[], place);
        }
        match text.finish() {
            Ok(keys) => self.answer_keys(on, request, &keys, place),
            Err(_) => self.refuse_text(on, RejectReason::ProtocolError, place),
        }
    }

    fn answer_keys(&mut self, on: ConnectionId, request: &TextRequest, keys: &TextKeys, place: Place) {
        let Ok(outcome) = negotiate_text(keys, self.kind, &mut self.connections[on].params) else {
            return self.refuse_text(on, RejectReason::ProtocolError, place);
        };
        let (task_tag, is_final) = (request.task_tag, request.is_final);
        let answer = outcome.answers.into_bytes();
        match outcome.send_targets {
            Some(request) => {
                self.connections[on].text = TextExchange::Asked { task_tag, place, answer, is_final };
                self.events.push_back(SessionEvent::SendTargets { connection: on, request });
            }
            None => self.send_text(on, task_tag, answer.into(), is_final, place),
        }
    }

    /// The shard's answer to [`SessionEvent::SendTargets`]: `TargetName=` and `TargetAddress=` pairs, each
    /// ended by NUL. Sent in as many Text Responses as the initiator's segment length makes of it.
    pub fn send_targets_reply(&mut self, on: ConnectionId, text: &[u8]) {
        match core::mem::take(&mut self.connections[on].text) {
            TextExchange::Asked { task_tag, place, mut answer, is_final } => {
                answer.extend_from_slice(text);
                self.send_text(on, task_tag, answer.into(), is_final, place);
            }
            other => self.connections[on].text = other,
        }
    }

    /// Sends the next piece of an answer. `is_final` is the request's: a response is never final before the
    /// initiator is (11.11.1).
    fn send_text(
        &mut self,
        on: ConnectionId,
        task_tag: InitiatorTaskTag,
        mut answer: Bytes,
        is_final: bool,
        place: Place,
    ) {
        let piece = answer.split_to(answer.len().min(self.connections[on].params.max_send_segment as usize));
        if answer.is_empty() && is_final {
            self.connections[on].text = TextExchange::Idle;
            return self.answer_text(on, task_tag, TargetTransferTag::RESERVED, false, &piece, place);
        }
        let transfer_tag = self.take_transfer_tag();
        let continues = !answer.is_empty();
        self.connections[on].text = if continues {
            TextExchange::Sending { task_tag, transfer_tag, answer }
        } else {
            TextExchange::Collecting { task_tag, transfer_tag, text: TextCollector::default() }
        };
        self.answer_text(on, task_tag, transfer_tag, continues, &piece, place);
    }

    fn answer_text(
        &mut self,
        on: ConnectionId,
        task_tag: InitiatorTaskTag,
        transfer_tag: TargetTransferTag,
        text_continues: bool,
        data: &[u8],
        place: Place,
    ) {
        let is_final = transfer_tag == TargetTransferTag::RESERVED;
        let data = Box::from(data);
        self.answer(on, Answer::Text { task_tag, transfer_tag, is_final, text_continues, data }, Some(place));
    }
}
