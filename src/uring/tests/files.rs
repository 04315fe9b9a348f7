//! File operations on a real ring.

use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::*;
use crate::io::{Errno, Part};
use crate::limits::{CHUNK_BYTES, SMALL_BYTES};
use crate::plan::FileSlot;
use crate::units::ByteOffset;
use crate::uring::Registered;

const FILE: FileSlot = FileSlot(0);

fn with_file(config: &UringConfig) -> Option<(Bench, File)> {
    let file = tempfile::tempfile().unwrap();
    let ours = file.try_clone().unwrap();
    Some((bench(config, vec![file], vec![])?, ours))
}

/// Writes, syncs, reads back, also off the start of buffer and file.
fn write_and_read_back(bench: &mut Bench, file: &File) {
    let mut buf = bench.pool.take_chunk().unwrap();
    buf.as_mut_slice().copy_from_slice(&pattern(CHUNK_BYTES));
    let part = Part { buf: buf.share(), start: 512, len: 60_000 };
    let Outcome::Wrote { result, part } =
        bench.run(Op::Write { file: FILE, offset: ByteOffset(3 * 512), part })
    else {
        panic!("a write completes as a write")
    };
    assert_eq!(result, Ok(60_000));
    assert_eq!((part.start, part.len), (512, 60_000));
    assert!(matches!(bench.run(Op::Sync { file: FILE }), Outcome::Done { result: Ok(()) }));
    let mut written = vec![0; 60_000];
    file.read_exact_at(&mut written, 3 * 512).unwrap();
    assert_eq!(written, &pattern(CHUNK_BYTES)[512..60_512]);

    let mut buf = bench.pool.take_chunk().unwrap();
    buf.as_mut_slice().fill(0xEE);
    let read = Op::Read { file: FILE, offset: ByteOffset(3 * 512), buf, start: 100, len: 60_000 };
    let Outcome::Read { result, buf } = bench.run(read) else { panic!("a read completes as a read") };
    assert_eq!(result, Ok(60_000));
    assert_eq!(buf.as_slice()[100..60_100], written);
    assert!(buf.as_slice()[..100].iter().chain(&buf.as_slice()[60_100..]).all(|byte| *byte == 0xEE));
}

#[test]
fn a_write_is_read_back() {
    let Some((mut bench, file)) = with_file(&small_config()) else { return };
    println!("{}", bench.io.report());
    write_and_read_back(&mut bench, &file);
}

#[test]
fn registered_buffers_carry_the_same_bytes() {
    let config = UringConfig { register_buffers: true, writers_max: 0, ..small_config() };
    let Some((mut bench, file)) = with_file(&config) else { return };
    println!("{}", bench.io.report());
    write_and_read_back(&mut bench, &file);

    // A buffer of a pool the ring does not know must not be taken for one of the registered arena.
    let other = small_pool();
    let mut buf = other.take_small().unwrap();
    buf.as_mut_slice().fill(7);
    let part = Part { buf: buf.share(), start: 0, len: 100 };
    let outcome = bench.run(Op::Write { file: FILE, offset: ByteOffset(0), part });
    assert!(matches!(outcome, Outcome::Wrote { result: Ok(100), .. }));
    let mut bytes = [0; 100];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 100]);
}

#[test]
fn the_ring_writes_where_there_are_to_be_no_threads() {
    let Some((mut bench, file)) = with_file(&UringConfig { writers_max: 0, ..small_config() }) else {
        return;
    };
    write_and_read_back(&mut bench, &file);
}

/// As often as it takes for the two sides to sleep and to miss each other in every way.
#[test]
fn one_write_after_another_is_never_forgotten() {
    for spin in [Duration::ZERO, Duration::from_micros(20)] {
        let Some((mut bench, _file)) = with_file(&UringConfig { spin, ..small_config() }) else { return };
        bench.submit(Op::AwaitWake);
        let zero = bench.pool.zero_chunk();
        for n in 0..3000 {
            let part = Part { buf: zero.clone(), start: 0, len: 512 };
            let outcome = bench.run(Op::Write { file: FILE, offset: ByteOffset(n * 512), part });
            assert!(matches!(outcome, Outcome::Wrote { result: Ok(512), .. }));
        }
        assert!(bench.done.is_empty(), "nobody was woken who asked for something else");
    }
}

#[test]
fn a_write_that_cannot_be_is_an_error_and_a_pending_one_is_not_cancelled() {
    let place = tempfile::NamedTempFile::new().unwrap();
    let files = vec![File::open(place.path()).unwrap()];
    let Some(mut bench) = bench(&small_config(), files, vec![]) else { return };
    let part = Part { buf: bench.pool.zero_chunk(), start: 0, len: 512 };
    let write = bench.submit(Op::Write { file: FILE, offset: ByteOffset(0), part });
    let cancel = bench.submit(Op::Cancel { token: write });
    assert!(matches!(bench.next(cancel), Outcome::Done { result: Err(_) }));
    assert!(matches!(bench.next(write), Outcome::Wrote { result: Err(Errno(libc::EBADF)), .. }));
    assert_eq!(bench.io.operations_pending(), 0);
}

#[test]
fn a_read_across_the_end_of_the_file_is_short() {
    let Some((mut bench, file)) = with_file(&small_config()) else { return };
    file.set_len(1000).unwrap();
    let read = |bench: &mut Bench, offset| {
        let buf = bench.pool.take_small().unwrap();
        match bench.run(Op::Read { file: FILE, offset: ByteOffset(offset), buf, start: 0, len: 4096 }) {
            Outcome::Read { result, .. } => result,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read(&mut bench, 0), Ok(1000));
    assert_eq!(read(&mut bench, 1000), Ok(0));
}

#[test]
fn a_punched_hole_reads_as_zeros_and_keeps_the_length() {
    let Some((mut bench, file)) = with_file(&small_config()) else { return };
    file.write_all_at(&vec![9; 256 * 1024], 0).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap();
    let hole = Op::PunchHole { file: FILE, offset: ByteOffset(64 * 1024), len: 128 * 1024 };
    match bench.run(hole) {
        Outcome::Done { result: Ok(()) } => {}
        Outcome::Done { result: Err(Errno(libc::EOPNOTSUPP)) } => {
            return println!("SKIPPED: no holes on this file system");
        }
        other => panic!("{other:?}"),
    }
    let after = file.metadata().unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after.blocks() < before.blocks());
    let mut bytes = vec![1; 256 * 1024];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[64 * 1024..192 * 1024].iter().all(|byte| *byte == 0));
    assert!(bytes[192 * 1024..].iter().all(|byte| *byte == 9));
}

#[test]
fn the_length_is_set() {
    let Some((mut bench, file)) = with_file(&small_config()) else { return };
    for len in [10_000, 77, 0] {
        assert!(matches!(bench.run(Op::SetLen { file: FILE, len }), Outcome::Done { result: Ok(()) }));
        assert_eq!(file.metadata().unwrap().len(), len);
    }
}

#[test]
fn ranges_outside_of_the_buffer_and_empty_slots_are_refused() {
    let Some((mut bench, _file)) = with_file(&small_config()) else { return };
    let buf = bench.pool.take_small().unwrap();
    let beyond = Op::Read { file: FILE, offset: ByteOffset(0), buf, start: 1, len: SMALL_BYTES as u32 };
    assert!(matches!(bench.run(beyond), Outcome::Read { result: Err(Errno(libc::EINVAL)), .. }));
    let part = Part { buf: bench.pool.zero_chunk(), start: u32::MAX, len: 2 };
    let beyond = Op::Write { file: FILE, offset: ByteOffset(0), part };
    assert!(matches!(bench.run(beyond), Outcome::Wrote { result: Err(Errno(libc::EINVAL)), .. }));
    for slot in [FileSlot(1), FileSlot(u32::MAX)] {
        let outcome = bench.run(Op::Sync { file: slot });
        assert!(matches!(outcome, Outcome::Done { result: Err(Errno(libc::EBADF)) }));
    }
    assert_eq!((bench.pool.chunks_free(), bench.pool.smalls_free()), (8, 32));
}

#[test]
fn more_operations_than_the_ring_holds_all_complete() {
    let config = UringConfig { sq_entries: 8, cq_entries: 16, file_ops_max: 8, ..small_config() };
    let Some((mut bench, file)) = with_file(&config) else { return };
    file.write_all_at(&pattern(300 * 16), 0).unwrap();
    let zero = bench.pool.zero_chunk();
    let writes: Vec<OpToken> = (0..300)
        .map(|n| {
            let part = Part { buf: zero.clone(), start: 0, len: 8 };
            bench.submit(Op::Write { file: FILE, offset: ByteOffset(n * 16), part })
        })
        .collect();
    for token in writes {
        assert!(matches!(bench.next(token), Outcome::Wrote { result: Ok(8), .. }));
    }
    assert_eq!(bench.io.operations_pending(), 0);
    let mut bytes = vec![0; 300 * 16];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut expected = pattern(300 * 16);
    expected.chunks_exact_mut(16).for_each(|row| row[..8].fill(0));
    assert_eq!(bytes, expected);
}

#[test]
fn files_come_and_go_while_the_ring_runs() {
    let Some((mut bench, _file)) = with_file(&small_config()) else { return };
    for round in 0..3u8 {
        let file = tempfile::tempfile().unwrap();
        let other = file.try_clone().unwrap();
        other.write_all_at(&[round; 64], 0).unwrap();
        let slot = bench.io.adopt_file(file.into()).unwrap();
        assert_eq!(slot, FileSlot(1));
        let buf = bench.pool.take_small().unwrap();
        let token = bench.submit(Op::Read { file: slot, offset: ByteOffset(0), buf, start: 0, len: 64 });
        assert!(bench.io.release_file(slot).is_none(), "an operation is pending");
        let Outcome::Read { result: Ok(64), buf } = bench.next(token) else { panic!("the read failed") };
        assert_eq!(buf.as_slice()[..64], [round; 64]);
        assert!(bench.io.release_file(slot).is_some());
        assert!(bench.io.release_file(slot).is_none());
    }
}

/// An ordinary user: the limit bounds what a ring may register, and the data plane works without.
#[test]
fn a_small_memlock_limit_costs_registration_and_nothing_else() {
    std::thread::spawn(|| {
        // Capabilities are the thread's own; the soft limit is the process's, but binds only threads without them.
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective.remove(CapabilitySet::IPC_LOCK);
        capabilities.permitted.remove(CapabilitySet::IPC_LOCK);
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let limit = 8 * 1024 * 1024;
        let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
        let lowered = Rlimit { current: Some(maximum.unwrap_or(limit).min(limit)), maximum };
        rustix::process::setrlimit(Resource::Memlock, lowered).unwrap();
        assert!(host::memlock_limit().is_some_and(|bytes| bytes <= limit));

        let config = UringConfig { register_buffers: true, ..small_config() };
        let ring = |chunks| {
            let pool = Pool::new(PoolConfig { chunks, smalls: 8, huge_pages: false }).unwrap();
            let file = tempfile::tempfile().unwrap();
            let ours = file.try_clone().unwrap();
            let made = UringIo::new(&config, &pool, vec![file.into()], vec![]);
            let (io, waker) = match made {
                Ok(made) => made,
                Err(error) => {
                    println!("SKIPPED, no ring here: {error}");
                    return None;
                }
            };
            println!("{chunks} chunks: {}", io.report());
            Some((Bench { io, waker, pool, done: Vec::new(), next_token: 0 }, ours))
        };
        // Beyond the limit: not even asked. Then rings that fit one by one, until the kernel has had enough.
        let Some((mut bench, file)) = ring(400) else { return };
        assert!(matches!(bench.io.report().fixed_buffers, Registered::No { .. }));
        write_and_read_back(&mut bench, &file);
        let mut rings = Vec::new();
        let mut refused = false;
        for _ in 0..4 {
            let Some((mut bench, file)) = ring(48) else { return };
            refused |= bench.io.report().fixed_buffers != Registered::Yes;
            write_and_read_back(&mut bench, &file);
            rings.push(bench);
        }
        assert!(refused, "4 rings of 3 MiB exceed 8 MiB of lockable memory");
    })
    .join()
    .unwrap();
}
