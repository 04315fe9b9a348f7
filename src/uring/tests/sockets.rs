//! Sockets on a real ring.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use super::*;
use crate::io::{Errno, ListenerSlot, Part};
use crate::limits::SEND_PARTS_MAX;
use crate::uring::{ZeroCopy, ZeroCopyCounts};

#[test]
fn one_accept_takes_many_connections() {
    let listener = host::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let Some(mut bench) = bench(&small_config(), vec![], vec![listener]) else { return };
    let accept = bench.submit(Op::Accept { listener: ListenerSlot(0) });
    for n in 0..5 {
        let mut peer = TcpStream::connect(address).unwrap();
        let Outcome::Accepted { socket, peer: peer_address, more } = bench.next(accept) else {
            panic!("connection {n} was not accepted")
        };
        assert!(more);
        assert_eq!(peer_address, peer.local_addr().unwrap());
        let mut recv = bench.submit(Op::Recv { socket });
        peer.write_all(b"hello").unwrap();
        assert_eq!(bench.receive(socket, &mut recv, 5), b"hello");
    }
    bench.submit(Op::Cancel { token: accept });
    let outcome = bench.next(accept);
    assert!(matches!(outcome, Outcome::AcceptEnded { error: Errno(libc::ECANCELED) }), "{outcome:?}");
}

#[test]
fn a_connection_beyond_the_table_is_closed_and_counted() {
    let listener = host::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let config = UringConfig { sockets_max: 1, ..small_config() };
    let Some(mut bench) = bench(&config, vec![], vec![listener]) else { return };
    let accept = bench.submit(Op::Accept { listener: ListenerSlot(0) });
    let _first = TcpStream::connect(address).unwrap();
    assert!(matches!(bench.next(accept), Outcome::Accepted { .. }));
    let mut second = TcpStream::connect(address).unwrap();
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    while bench.io.refused_connections() == 0 {
        bench.turn();
    }
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "closed at once");
}

#[test]
fn the_end_of_the_stream_ends_the_receive() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    let mut recv = bench.submit(Op::Recv { socket });
    peer.write_all(&pattern(10_000)).unwrap();
    assert_eq!(bench.receive(socket, &mut recv, 10_000), pattern(10_000));
    peer.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(bench.next(recv), Outcome::RecvEnded { error: None }));
    assert!(matches!(bench.run(Op::Close { socket }), Outcome::Done { result: Ok(()) }));
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_send_of_the_most_parts_arrives_in_order() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    let bytes = pattern(64 * 1024);
    let mut buf = bench.pool.take_chunk().unwrap();
    buf.as_mut_slice().copy_from_slice(&bytes);
    let buf = buf.share();
    let part_of = |n: usize| {
        let start = n * 37 % 60_000;
        (start, 1 + n * 11 % 5000)
    };
    let parts: Vec<Part> = (0..SEND_PARTS_MAX)
        .map(|n| {
            let (start, len) = part_of(n);
            Part { buf: buf.clone(), start: start as u32, len: len as u32 }
        })
        .collect();
    let total: usize = (0..SEND_PARTS_MAX).map(|n| part_of(n).1).sum();
    assert!(total > 2 * 1024 * 1024, "more than the socket buffers hold");
    let memory = (parts.as_ptr(), parts.capacity());
    let send = bench.submit(Op::Send { socket, parts });
    bench.turn();
    let reader = std::thread::spawn(move || {
        let mut received = vec![0; total];
        peer.read_exact(&mut received).unwrap();
        received
    });
    let Outcome::Sent { result, parts } = bench.next(send) else { panic!("a send completes as one") };
    assert_eq!(result, Ok(total as u32));
    assert_eq!((parts.as_ptr(), parts.capacity()), memory, "the same list comes back");
    let received = reader.join().unwrap();
    let mut at = 0;
    for n in 0..SEND_PARTS_MAX {
        let (start, len) = part_of(n);
        assert_eq!(received[at..at + len], bytes[start..start + len], "part {n}");
        at += len;
    }
    drop((buf, parts));
    assert_eq!(bench.pool.chunks_free(), 8);
}

#[test]
fn parts_beyond_the_most_are_a_short_send() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, _peer) = bench.connect();
    let parts = vec![Part { buf: bench.pool.zero_chunk(), start: 0, len: 1 }; SEND_PARTS_MAX + 10];
    let outcome = bench.run(Op::Send { socket, parts });
    assert!(matches!(outcome, Outcome::Sent { result: Ok(1024), .. }), "{outcome:?}");
}

#[test]
fn an_echo_of_two_megabytes_is_exact() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, peer) = bench.connect();
    let bytes = pattern(2 * 1024 * 1024);
    let (mut writer, mut reader) = (peer.try_clone().unwrap(), peer);
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let expected = bytes.clone();
    let reading = std::thread::spawn(move || {
        let mut echoed = vec![0; expected.len()];
        reader.read_exact(&mut echoed).unwrap();
        assert!(echoed == expected, "the echo differs");
    });
    let mut recv = bench.submit(Op::Recv { socket });
    let mut echoed = 0;
    while echoed < bytes.len() {
        let some = (bytes.len() - echoed).min(10_000);
        let received = bench.receive(socket, &mut recv, some);
        for piece in received.chunks(crate::limits::SMALL_BYTES) {
            let mut buf = bench.pool.take_small().unwrap();
            buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
            let parts = vec![Part { buf: buf.share(), start: 0, len: piece.len() as u32 }];
            let outcome = bench.run(Op::Send { socket, parts });
            let Outcome::Sent { result: Ok(len), .. } = outcome else { panic!("{outcome:?}") };
            assert_eq!(len as usize, piece.len());
        }
        echoed += received.len();
    }
    writing.join().unwrap();
    reading.join().unwrap();
}

#[test]
fn a_receive_starved_of_buffers_ends_and_goes_on_without_loss() {
    let config = UringConfig { rx_buffers: 4, rx_buffer_bytes: 512, ..small_config() };
    let Some(mut bench) = bench(&config, vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    peer.write_all(&pattern(20_000)).unwrap();
    let recv = bench.submit(Op::Recv { socket });
    let mut held = Vec::new();
    let error = loop {
        match bench.next(recv) {
            Outcome::Received { buf, .. } => held.push(buf),
            Outcome::RecvEnded { error } => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error, Some(Errno(libc::ENOBUFS)));
    assert_eq!(held.len(), 4);
    let mut bytes = Vec::new();
    for buf in held {
        bytes.extend_from_slice(bench.io.rx_bytes(&buf));
        bench.io.rx_release(buf);
    }
    let mut recv = bench.submit(Op::Recv { socket });
    let rest = 20_000 - bytes.len();
    bytes.extend(bench.receive(socket, &mut recv, rest));
    assert!(bytes == pattern(20_000));
}

#[test]
fn a_socket_in_use_is_neither_closed_nor_given_away() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, _peer) = bench.connect();
    let recv = bench.submit(Op::Recv { socket });
    assert!(bench.io.release_socket(socket).is_none());
    assert!(matches!(bench.run(Op::Close { socket }), Outcome::Done { result: Err(Errno(libc::EBUSY)) }));
    // A shutdown ends the receive; then the socket can go.
    assert!(matches!(bench.run(Op::Shutdown { socket }), Outcome::Done { result: Ok(()) }));
    assert!(matches!(bench.next(recv), Outcome::RecvEnded { error: None }));
    assert!(matches!(bench.run(Op::Close { socket }), Outcome::Done { result: Ok(()) }));
    assert!(matches!(bench.run(Op::Recv { socket }), Outcome::RecvEnded { error: Some(Errno(libc::EBADF)) }));
}

/// Submission queue and send lists are both too small, so most sends wait; a waiting one can still be cancelled.
#[test]
fn operations_that_wait_for_room_keep_their_order() {
    let config = UringConfig { sq_entries: 8, cq_entries: 16, ..small_config() };
    let Some(mut bench) = bench(&config, vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    let mut buf = bench.pool.take_small().unwrap();
    buf.as_mut_slice()[..200].copy_from_slice(&pattern(200));
    let buf = buf.share();
    let sends: Vec<OpToken> = (0..200)
        .map(|start| {
            let parts = vec![Part { buf: buf.clone(), start, len: 1 }];
            bench.submit(Op::Send { socket, parts })
        })
        .collect();
    let outcome = bench.run(Op::Cancel { token: sends[199] });
    assert!(matches!(outcome, Outcome::Done { result: Ok(()) }));
    let outcome = bench.next(sends[199]);
    assert!(matches!(outcome, Outcome::Sent { result: Err(Errno(libc::ECANCELED)), .. }), "{outcome:?}");
    for send in &sends[..199] {
        assert!(matches!(bench.next(*send), Outcome::Sent { result: Ok(1), .. }));
    }
    let mut received = [0; 199];
    peer.read_exact(&mut received).unwrap();
    assert_eq!(received[..], pattern(199));
}

#[test]
fn a_cancel_without_a_target_says_so() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let outcome = bench.run(Op::Cancel { token: OpToken(4711) });
    assert!(matches!(outcome, Outcome::Done { result: Err(Errno(libc::ENOENT)) }));
}

#[test]
fn a_send_to_a_reader_that_sleeps_can_be_cancelled() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, _peer) = bench.connect();
    let parts = vec![Part { buf: bench.pool.zero_chunk(), start: 0, len: 65_536 }; 512];
    let send = bench.submit(Op::Send { socket, parts });
    for _ in 0..20 {
        bench.turn();
    }
    let cancel = bench.submit(Op::Cancel { token: send });
    let Outcome::Sent { result, parts } = bench.next(send) else { panic!("a send completes as one") };
    assert_eq!(parts.len(), 512);
    println!("cancelled after {result:?}");
    assert!(result.is_err() || result.is_ok_and(|len| len < 512 * 65_536));
    bench.next(cancel);
}

/// A stream moves from ring to ring, again and again, while it flows.
#[test]
fn a_handoff_between_two_rings_loses_no_byte() {
    const BYTES: usize = 4 * 1024 * 1024;
    const LEG: usize = 100_000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let writing = std::thread::spawn(move || {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(&pattern(BYTES)).is_ok()
    });
    let (first, _) = listener.accept().unwrap();
    let (to_second, from_first) = std::sync::mpsc::channel();
    let (to_first, from_second) = std::sync::mpsc::channel();
    to_first.send((std::os::fd::OwnedFd::from(first), Vec::new())).unwrap();

    let leg = |from: std::sync::mpsc::Receiver<(std::os::fd::OwnedFd, Vec<u8>)>,
               to: std::sync::mpsc::Sender<(std::os::fd::OwnedFd, Vec<u8>)>| {
        move || {
            let mut bench = bench(&small_config(), vec![], vec![])?;
            let mut whole = None;
            for (fd, mut bytes) in from {
                let number = fd.as_raw_fd();
                let socket = bench.io.adopt_socket(fd).unwrap();
                let mut recv = bench.submit(Op::Recv { socket });
                let want = LEG.min(BYTES - bytes.len());
                bytes.extend(bench.receive(socket, &mut recv, want));
                bench.submit(Op::Cancel { token: recv });
                // What was received before the cancel took effect still comes.
                loop {
                    match bench.next(recv) {
                        Outcome::Received { buf, more } => {
                            bytes.extend_from_slice(bench.io.rx_bytes(&buf));
                            bench.io.rx_release(buf);
                            if !more {
                                break;
                            }
                        }
                        Outcome::RecvEnded { .. } => break,
                        other => panic!("{other:?}"),
                    }
                }
                let fd = bench.io.release_socket(socket).unwrap();
                assert_eq!(fd.as_raw_fd(), number);
                if bytes.len() >= BYTES {
                    whole = Some(bytes);
                    break;
                }
                if to.send((fd, bytes)).is_err() {
                    break;
                }
            }
            whole
        }
    };
    let one = std::thread::spawn(leg(from_second, to_second));
    let two = std::thread::spawn(leg(from_first, to_first));
    let (one, two) = (one.join().unwrap(), two.join().unwrap());
    match one.or(two) {
        Some(bytes) => {
            assert!(writing.join().unwrap());
            assert_eq!(bytes.len(), BYTES);
            assert!(bytes == pattern(BYTES), "the stream differs");
        }
        None => println!("SKIPPED, no ring here"),
    }
}

/// Sends all of it, however often that takes; returns how many sends that were.
fn send_all(bench: &mut Bench, socket: SocketSlot, buf: &crate::buf::BufRef, len: u32) -> u32 {
    let (mut sent, mut sends) = (0, 0);
    while sent < len {
        let part = Part { buf: buf.clone(), start: sent, len: len - sent };
        let outcome = bench.run(Op::Send { socket, parts: vec![part] });
        let Outcome::Sent { result: Ok(moved), parts } = outcome else { panic!("{outcome:?}") };
        assert_eq!(parts.len(), 1, "the parts come back");
        (sent, sends) = (sent + moved, sends + 1);
    }
    sends
}

/// The bytes and the counts after two sends of one chunk under this policy.
fn two_chunks(zero_copy: ZeroCopy) -> Option<ZeroCopyCounts> {
    let config = UringConfig { zero_copy, ..small_config() };
    let mut bench = bench(&config, vec![], vec![])?;
    let (socket, mut peer) = bench.connect();
    let mut chunk = bench.pool.take_chunk().unwrap();
    let expected = pattern(crate::limits::CHUNK_BYTES);
    chunk.as_mut_slice().copy_from_slice(&expected);
    let chunk = chunk.share();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 2 * crate::limits::CHUNK_BYTES];
        peer.read_exact(&mut got).unwrap();
        got
    });
    for _ in 0..2 {
        send_all(&mut bench, socket, &chunk, crate::limits::CHUNK_BYTES as u32);
    }
    let got = reader.join().unwrap();
    assert!(got[..expected.len()] == expected && got[expected.len()..] == expected);
    Some(bench.io.zero_copy_counts())
}

#[test]
fn sends_without_a_copy_arrive_whole_and_loopback_is_found_to_copy() {
    let Some(counts) = two_chunks(ZeroCopy::On) else { return };
    if counts == ZeroCopyCounts::default() {
        println!("SKIPPED: this kernel does not report the use of zero-copy sends");
        return;
    }
    assert_eq!(counts.sends, 2, "{counts:?}");
    assert!(counts.copied == 2 || counts.refused > 0, "{counts:?}");
}

#[test]
fn connections_on_this_machine_are_not_tried_without_being_asked() {
    for mode in [ZeroCopy::Auto, ZeroCopy::Off] {
        let Some(counts) = two_chunks(mode) else { return };
        assert_eq!(counts, ZeroCopyCounts::default());
    }
}

#[test]
fn a_shutdown_ends_a_send_without_a_copy_that_nobody_takes() {
    let config = UringConfig { zero_copy: ZeroCopy::On, ..small_config() };
    let Some(mut bench) = bench(&config, vec![], vec![]) else { return };
    let (socket, _peer) = bench.connect();
    let chunk = bench.pool.take_chunk().unwrap().share();
    let len = crate::limits::CHUNK_BYTES as u32;
    // More than the socket's buffers hold.
    let parts = (0..SEND_PARTS_MAX).map(|_| Part { buf: chunk.clone(), start: 0, len }).collect();
    let send = bench.submit(Op::Send { socket, parts });
    bench.run(Op::Shutdown { socket });
    assert!(matches!(bench.next(send), Outcome::Sent { .. }));
    assert!(matches!(bench.run(Op::Close { socket }), Outcome::Done { result: Ok(()) }));
}
