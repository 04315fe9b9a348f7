//! A session against words of a scripted target: what must end it.

use super::*;
use crate::wire::{DataIn, LoginResponse, R2t, Window};

const WINDOW: Window = Window { exp_cmd_sn: 1, max_cmd_sn: 64 };

struct Nothing;

impl Content for Nothing {
    fn wants(&self, _: u32) -> bool {
        true
    }
    fn came(&mut self, _: u32, _: u32, _: &[u8]) {}
    fn compose(&mut self, _: u32, _: u32, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

/// A session that has logged in, with one read of 1024 bytes (tag 0x400) under way, and its port.
fn logged_in(way: Way) -> (Session, Port) {
    let mut session = Session::new(&Options::default(), "iqn.2026-11.x:a", 0, 4);
    let mut port = Port::alone(256 << 10, ARENA_BYTES);
    let mut told = Vec::new();
    for stage in 0..2 {
        assert!(session.pay(&mut port, &mut Nothing));
        let reply = LoginResponse {
            transit: true,
            more: false,
            current: stage,
            next: 1 + 2 * stage,
            data_len: 0,
            isid: [0; 6],
            tsih: 1,
            tag: 0,
            stat_sn: u32::from(stage),
            window: WINDOW,
            class: 0,
            detail: 0,
        };
        port.bring(&reply.encode());
        session.received(&mut port, &mut Nothing, &mut told).unwrap();
    }
    assert!(matches!(told[..], [Told::LoggedIn]));
    let command = Command { id: 9, cdb: [0; 16], way, len: 1024 };
    assert!(session.can_start(&port, way, 1024));
    session.start(&mut port, command, Instant::now(), &mut Nothing);
    (session, port)
}

fn data_in(tag: u32, offset: u32, data_len: u32, status: Option<(u8, u32)>) -> Header {
    DataIn { last: true, status, data_len, tag, window: WINDOW, data_sn: 0, offset, residual: 0 }.encode()
}

#[test]
fn a_read_ends_with_its_last_byte_however_it_is_cut() {
    let (mut session, mut port) = logged_in(Way::In);
    let mut stream = data_in(0x400, 0, 1000, None).to_vec();
    stream.extend([1; 1000]);
    stream.extend(data_in(0x400, 1000, 24, Some((0, 2))));
    stream.extend([2; 24]);
    let mut told = Vec::new();
    for byte in stream {
        assert!(told.is_empty());
        port.bring(&[byte]);
        session.received(&mut port, &mut Nothing, &mut told).unwrap();
    }
    assert!(matches!(told[..], [Told::Done(Done { id: 9, status: 0, received: 1024, .. })]));
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_target_that_breaks_the_rules_is_left() {
    let wrong = |way: Way, header: Header| {
        let (mut session, mut port) = logged_in(way);
        port.bring(&header);
        session.received(&mut port, &mut Nothing, &mut Vec::new()).unwrap_err().to_string()
    };
    assert!(wrong(Way::In, data_in(0x401, 0, 512, None)).contains("not under way"));
    assert!(wrong(Way::In, data_in(0x400, 512, 512, None)).contains("does not follow"));
    assert!(wrong(Way::In, data_in(0x400, 0, 1028, None)).contains("does not follow"));
    assert!(wrong(Way::In, data_in(0x400, 0, 1024, Some((0, 7)))).contains("StatSN 7"));
    let r2t = |offset, len| {
        R2t { lun: 0, tag: 0x400, transfer_tag: 5, stat_sn: 2, window: WINDOW, r2t_sn: 0, offset, len }
            .encode()
    };
    assert!(wrong(Way::Out, r2t(512, 513)).contains("breaks the agreed sizes"));
    assert!(wrong(Way::In, r2t(0, 512)).contains("breaks the agreed sizes"));
    let mut unknown = [0; BHS];
    unknown[0] = 0x3c;
    assert!(wrong(Way::In, unknown).contains("nothing asked for"));
    unknown[4] = 1;
    assert!(wrong(Way::In, unknown).contains("additional header"));
}

#[test]
fn data_that_was_asked_for_goes_out_in_pieces() {
    let (mut session, mut port) = logged_in(Way::Out);
    let before = port.tx.len();
    let r2t = R2t {
        lun: 0,
        tag: 0x400,
        transfer_tag: 5,
        stat_sn: 2,
        window: WINDOW,
        r2t_sn: 0,
        offset: 0,
        len: 1024,
    };
    port.bring(&r2t.encode());
    session.received(&mut port, &mut Nothing, &mut Vec::new()).unwrap();
    assert!(session.pay(&mut port, &mut Nothing));
    assert_eq!(port.tx.len() - before, BHS + 1024);
}
