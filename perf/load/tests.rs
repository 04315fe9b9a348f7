//! Load against the ceiling inside this process: both engines, whole path, a bounded number of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Base, Engine, Plan, Stats};
use crate::ceiling::{Ceiling, SEED, Setup, TARGET};
use crate::initiator::{self, Options};
use crate::url::Url;

const REQUESTS: u64 = 2_000;

/// Runs `test` against a ceiling on a free port; `None` where the kernel refuses rings.
fn with_ceiling<T>(test: impl FnOnce(Url) -> T) -> T {
    let listen = "127.0.0.1:0".parse().unwrap();
    let setup = Setup { listen, memory: 4 << 20, send_bytes: 64 << 10, spin: Duration::ZERO };
    let ceiling = Ceiling::bind(setup).unwrap();
    let portal = ceiling.address().unwrap().to_string();
    let stop = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || ceiling.run(Instant::now() + Duration::from_secs(60), &stop)
    });
    let result = test(Url { chap: None, portal, target: TARGET.to_string(), lun: 0 });
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap().unwrap();
    result
}

fn load(workload: &str, options: Options, verify: Option<Base>) -> Stats {
    with_ceiling(|url| {
        let plan = Plan {
            urls: vec![url],
            workload: workload.parse().unwrap(),
            span: None,
            verify,
            options,
            spin: Duration::ZERO,
            may_count: true,
            requests: Some(REQUESTS),
        };
        let mut engine = Engine::open(plan, 0, 1).unwrap();
        engine.run(Duration::from_secs(50)).unwrap()
    })
}

#[test]
fn counted_reads_add_up() {
    let stats = load("4k-randread-32x2", Options::default(), None);
    assert!(stats.is_clean(), "{:?}", stats.first_error);
    assert_eq!((stats.operations(), stats.bytes, stats.fallbacks), (REQUESTS, REQUESTS * 4096, 0));
}

#[test]
fn verified_reads_and_writes_in_small_segments_add_up() {
    let options = Options { max_recv_segment: 8192, initial_r2t: true, ..Options::default() };
    let stats = load("36k-rand50-4x3", options, Some(Base::Stamp(SEED)));
    assert!(stats.is_clean(), "{:?}", stats.first_error);
    assert_eq!(stats.operations(), REQUESTS);
}

#[test]
fn large_payloads_are_discarded_and_counted() {
    let options = Options { immediate_data: false, max_burst: 65536, ..Options::default() };
    let stats = load("128k-seq70-3x1", options, None);
    assert!(stats.is_clean(), "{:?}", stats.first_error);
    assert_eq!(stats.bytes, REQUESTS * (128 << 10));
}

#[test]
fn wrong_content_is_noticed() {
    let stats = load("4k-seqread-8x1", Options::default(), Some(Base::Zero));
    assert!(stats.mismatches > 0);
}

#[test]
fn the_initiator_speaks_with_the_ceiling() {
    with_ceiling(|url| {
        let options = Options::default();
        let address = url.address().unwrap();
        assert_eq!(initiator::discover(address, &options), Ok(vec![TARGET.to_string()]));
        let endpoint = initiator::Endpoint { address, target: url.target, lun: 0 };
        let mut session = initiator::open(&endpoint, &options).unwrap();
        session.ready().unwrap();
        assert_eq!(session.capacity().unwrap(), session.capacity_16().unwrap());
        assert_eq!(session.inquiry().unwrap().product, "CEILING");
        assert_eq!(session.luns(), Ok(vec![0]));
        session.write(8, vec![1; 300 << 10]).unwrap();
        session.flush().unwrap();
        assert_eq!(session.read(0, 17).unwrap().len(), 17 * 512);
        assert!(session.read(4 << 20, 1).is_err(), "beyond the end");
        session.logout().unwrap();
    });
}
