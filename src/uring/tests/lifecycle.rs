//! Waking, sleeping, spinning and the end of a ring.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::io::{Part, Waker};
use crate::plan::FileSlot;
use crate::units::ByteOffset;

#[test]
fn a_wait_ends_at_its_deadline() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let start = bench.io.now();
    bench.io.wait(Some(start), &mut bench.done);
    bench.io.wait(Some(start.after(Duration::from_millis(30))), &mut bench.done);
    let waited = bench.io.now().since(start);
    assert!(bench.done.is_empty());
    assert!(waited >= Duration::from_millis(30), "{waited:?}");
}

#[test]
fn a_wake_before_the_wait_is_not_lost() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    bench.waker.wake();
    bench.waker.wake();
    let wake = bench.submit(Op::AwaitWake);
    assert!(matches!(bench.next(wake), Outcome::Woken));
    // Both wakes were one; a second await sleeps.
    bench.submit(Op::AwaitWake);
    bench.turn();
    assert!(bench.done.is_empty());
}

#[test]
fn a_cancelled_await_ends() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let wake = bench.submit(Op::AwaitWake);
    bench.turn();
    bench.submit(Op::Cancel { token: wake });
    assert!(matches!(bench.next(wake), Outcome::Woken));
}

/// A counter handed over ten thousand times: a lost wake hangs, and the deadline of `next` tells.
fn ping_pong(config: &UringConfig) {
    const ROUNDS: u32 = 10_000;
    let Some(mut bench) = bench(config, vec![], vec![]) else { return };
    let (to_peer, from_ring) = std::sync::mpsc::channel::<u32>();
    let (to_ring, from_peer) = std::sync::mpsc::channel::<u32>();
    let waker = bench.waker.clone();
    let peer = std::thread::spawn(move || {
        for n in from_ring {
            to_ring.send(n + 1).unwrap();
            waker.wake();
        }
    });
    let mut sum = 0;
    for n in 0..ROUNDS {
        to_peer.send(n).unwrap();
        loop {
            let wake = bench.submit(Op::AwaitWake);
            assert!(matches!(bench.next(wake), Outcome::Woken));
            if let Ok(answer) = from_peer.try_recv() {
                assert_eq!(answer, n + 1);
                break;
            }
        }
        sum += 1;
    }
    assert_eq!(sum, ROUNDS);
    drop(to_peer);
    peer.join().unwrap();
}

#[test]
fn no_wake_is_lost_between_two_threads() {
    ping_pong(&small_config());
}

#[test]
fn no_wake_is_lost_to_a_spinning_ring() {
    ping_pong(&UringConfig { spin: Duration::from_micros(20), ..small_config() });
}

#[test]
fn a_spinning_ring_sees_the_network() {
    let config = UringConfig { spin: Duration::from_millis(2), ..small_config() };
    let Some(mut bench) = bench(&config, vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    let mut recv = bench.submit(Op::Recv { socket });
    for n in 0..50u8 {
        peer.write_all(&[n]).unwrap();
        assert_eq!(bench.receive(socket, &mut recv, 1), [n]);
    }
}

#[test]
fn a_signal_interrupts_a_sleep_and_harms_nothing() {
    let Some(mut bench) = bench(&small_config(), vec![], vec![]) else { return };
    let (socket, mut peer) = bench.connect();
    let mut recv = bench.submit(Op::Recv { socket });
    // SIGURG is ignored by default, but a handler makes the kernel return EINTR.
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, so it is safe at any point of any thread.
    let old = unsafe { libc::signal(libc::SIGURG, nothing as *const () as libc::sighandler_t) };
    assert_ne!(old, libc::SIG_ERR);
    // SAFETY: no precondition.
    let this_thread = unsafe { libc::pthread_self() };
    let target = this_thread as usize;
    let other = std::thread::spawn(move || {
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            // SAFETY: the target joins this thread before it ends, so it lives.
            let failed = unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGURG) };
            assert_eq!(failed, 0);
        }
        peer.write_all(b"after").unwrap();
        peer
    });
    assert_eq!(bench.receive(socket, &mut recv, 5), b"after");
    other.join().unwrap();
}

/// Everything that can be in flight at once, and buffers of the pool in it.
#[test]
fn a_ring_dropped_with_operations_in_flight_gives_every_buffer_back() {
    let file = tempfile::tempfile().unwrap();
    let listener = host::listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    // Reads of an eventfd wait for ever: a file operation that only a cancel ends.
    let endless: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let files = vec![file, File::from(endless)];
    let Some(mut bench) = bench(&small_config(), files, vec![listener]) else { return };
    bench.submit(Op::Accept { listener: crate::io::ListenerSlot(0) });
    bench.submit(Op::AwaitWake);
    let mut peers = Vec::new();
    for _ in 0..4 {
        let (socket, peer) = bench.connect();
        bench.submit(Op::Recv { socket });
        let mut buf = bench.pool.take_chunk().unwrap();
        buf.as_mut_slice().fill(1);
        let part = Part { buf: buf.share(), start: 0, len: 65_536 };
        bench.submit(Op::Send { socket, parts: vec![part; 256] });
        peers.push(peer);
    }
    for n in 0..8 {
        let buf = bench.pool.take_small().unwrap();
        bench.submit(Op::Read { file: FileSlot(1), offset: ByteOffset(0), buf, start: 0, len: 8 });
        let part = Part { buf: bench.pool.take_small().unwrap().share(), start: 0, len: 8192 };
        bench.submit(Op::Write { file: FileSlot(0), offset: ByteOffset(n * 8192), part });
        if n == 3 {
            bench.turn();
        }
    }
    bench.submit(Op::Sync { file: FileSlot(0) });
    assert!(bench.io.operations_pending() >= 18, "{:?}", bench.io);
    let start = host::now();
    let Bench { io, pool, done, .. } = bench;
    drop(io);
    println!("drained in {:?}", host::now().since(start));
    assert!(host::now().since(start) < Duration::from_secs(8), "a drain that leaks takes 10 s");
    drop(done);
    assert_eq!((pool.chunks_free(), pool.smalls_free()), (8, 32));
}

/// What `drop` does when a completion does not come in time.
#[test]
fn what_the_kernel_still_owns_is_leaked_rather_than_freed() {
    let endless = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let writer = endless.try_clone().unwrap();
    let Some(mut bench) = bench(&small_config(), vec![endless], vec![]) else { return };
    let buf = bench.pool.take_small().unwrap();
    bench.submit(Op::Read { file: FileSlot(0), offset: ByteOffset(0), buf, start: 0, len: 8 });
    bench.turn();
    bench.io.leak();
    let Bench { io, pool, .. } = bench;
    drop(io);
    (&writer).write_all(&1u64.to_ne_bytes()).unwrap();
    assert_eq!(pool.smalls_free(), 31, "the buffer of the read is never handed out again");
}

#[test]
fn a_ring_without_deferred_task_work_does_the_same() {
    let config = UringConfig { defer_taskrun: false, ..small_config() };
    ping_pong(&config);
    let file = tempfile::tempfile().unwrap();
    let Some(mut bench) = bench(&config, vec![file], vec![]) else { return };
    assert!(!bench.io.report().flags.contains("DEFER"));
    let (socket, mut peer) = bench.connect();
    let mut recv = bench.submit(Op::Recv { socket });
    peer.write_all(&pattern(100_000)).unwrap();
    assert!(bench.receive(socket, &mut recv, 100_000) == pattern(100_000));
    let part = Part { buf: bench.pool.zero_chunk(), start: 0, len: 4096 };
    let write = Op::Write { file: FileSlot(0), offset: ByteOffset(0), part };
    assert!(matches!(bench.run(write), Outcome::Wrote { result: Ok(4096), .. }));
}

#[test]
fn a_new_ring_has_the_slots_it_was_given_in_order() {
    let config = UringConfig { files_max: 1, ..small_config() };
    let files = || vec![tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    match UringIo::new(&config, &small_pool(), files().into_iter().map(Into::into).collect(), vec![]) {
        Err(UringError::TooMany { what: "files", max: 1, given: 2 }) => {}
        Err(UringError::Probe(error)) => println!("SKIPPED, no ring here: {error}"),
        other => panic!("{other:?}"),
    }
}
