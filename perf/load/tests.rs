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
        let plan = Plan { verify, options, requests: Some(REQUESTS), ..plan(url, workload) };
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

fn plan(url: Url, workload: &str) -> Plan {
    Plan {
        urls: vec![url],
        workload: workload.parse().unwrap(),
        beside: None,
        rate: None,
        span: None,
        verify: None,
        options: Options::default(),
        spin: Duration::ZERO,
        may_count: true,
        requests: None,
    }
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    let stats = with_ceiling(|url| {
        let plan = Plan { rate: Some(2000.0), ..plan(url, "4k-rand80-16x3") };
        Engine::open(plan, 0, 1).unwrap().run(Duration::from_millis(500)).unwrap()
    });
    assert!(stats.is_clean(), "{:?}", stats.first_error);
    // What was answered, what was only sent, and what could not be sent, are all that was due.
    assert!((990..=1010).contains(&(stats.ended + stats.late)), "{} and {}", stats.ended, stats.late);
}

#[test]
fn an_overload_is_told_by_latency_not_hidden_by_waiting() {
    let stats = with_ceiling(|url| {
        let plan = Plan { rate: Some(50_000_000.0), ..plan(url, "4k-randread-1x1") };
        Engine::open(plan, 0, 1).unwrap().run(Duration::from_millis(200)).unwrap()
    });
    assert!(stats.late > stats.operations(), "{} late, {} answered", stats.late, stats.operations());
    // Half of all requests were due in the first half, and hardly any of them was sent.
    assert!(stats.latencies()[0] > 50_000.0, "{:?}", stats.latencies());
}

#[test]
fn a_second_kind_of_sessions_rests_until_it_is_asked_for() {
    let (alone, [own, beside]) = with_ceiling(|url| {
        let plan = Plan { beside: Some("4k-randread-64x1".parse().unwrap()), ..plan(url, "4k-randread-1x3") };
        let mut engine = Engine::open(plan, 0, 1).unwrap();
        let alone = engine.run_both(Duration::from_millis(100), false).unwrap();
        (alone, engine.run_both(Duration::from_millis(100), true).unwrap())
    });
    assert!(alone[0].operations() > 0 && alone[1].operations() == 0);
    assert!(own.operations() > 0 && beside.operations() > 0);
    assert!(own.is_clean() && beside.is_clean());
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
