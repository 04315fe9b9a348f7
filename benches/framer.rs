//! The byte stream of a connection: headers, Data-Out, digests.
//!
//! Knows streams as an initiator sends them, whole and in the pieces a socket gives. Does not know what they say.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use goldrush::iscsi::digest::{DIGEST_BYTES, digest_of};
use goldrush::iscsi::framer::{Framer, Step};
use goldrush::iscsi::params::DigestKind::{self, Crc32c, None as Off};
use goldrush::iscsi::pdu::InitiatorTaskTag;
use goldrush::iscsi::pdu::bhs::{BHS_BYTES, Bhs};
use goldrush::iscsi::pdu::data_out::{DataOut, Solicitation};
use goldrush::iscsi::serial::{DataSn, StatSn};
use goldrush::limits::RECV_SEGMENT_BYTES_MAX;
use std::hint::black_box;

const SEGMENT_BYTES: u32 = 64 << 10;
/// What one receive brings.
const PIECE_BYTES: usize = 64 << 10;

fn framer(header: DigestKind, data: DigestKind) -> Framer {
    let mut framer = Framer::new(RECV_SEGMENT_BYTES_MAX);
    framer.set_digests(header, data);
    framer
}

/// Frames the stream in pieces; how many PDUs it held.
fn frame(framer: &mut Framer, stream: &[u8]) -> u32 {
    let mut complete = 0;
    for mut piece in stream.chunks(PIECE_BYTES) {
        loop {
            match framer.next(&mut piece) {
                Step::NeedMore => break,
                Step::End => complete += 1,
                Step::Header | Step::Payload { .. } => {}
                wrong => panic!("{wrong:?}"),
            }
        }
    }
    complete
}

fn headers(c: &mut Criterion) {
    const COUNT: u32 = 1000;
    let mut group = c.benchmark_group("framer_headers");
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    for (name, digest) in [("plain", Off), ("header_digest", Crc32c)] {
        let mut pdu = vec![0x01; BHS_BYTES];
        pdu[4..8].fill(0);
        if digest == Crc32c {
            pdu.extend_from_slice(&digest_of(&[&pdu]));
        }
        let stream = pdu.repeat(COUNT as usize);
        let mut framer = framer(digest, Off);
        assert_eq!(frame(&mut framer, &stream), COUNT, "{name}: PDUs are lost");
        group.bench_function(name, |b| b.iter(|| frame(&mut framer, black_box(&stream))));
    }
    group.finish();
}

fn data_out(offset: u32) -> Bhs {
    DataOut {
        is_final: offset > 0,
        task_tag: InitiatorTaskTag(1),
        answers: Solicitation::Unsolicited,
        exp_stat_sn: StatSn(1),
        data_sn: DataSn(offset / SEGMENT_BYTES),
        buffer_offset: offset,
        data_len: SEGMENT_BYTES,
    }
    .encode()
}

fn data_outs(c: &mut Criterion) {
    const COUNT: u32 = 16;
    let segment = vec![0x5A; SEGMENT_BYTES as usize];
    let mut group = c.benchmark_group("framer_data_out_64k");
    // PDUs, not bytes: without a data digest no byte of payload is touched.
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    for (name, header, data) in
        [("plain", Off, Off), ("header_digest", Crc32c, Off), ("both_digests", Crc32c, Crc32c)]
    {
        let mut stream = Vec::new();
        for index in 0..COUNT {
            let bhs = data_out(index * SEGMENT_BYTES);
            stream.extend_from_slice(&bhs.0);
            if header == Crc32c {
                stream.extend_from_slice(&digest_of(&[&bhs.0]));
            }
            stream.extend_from_slice(&segment);
            if data == Crc32c {
                stream.extend_from_slice(&digest_of(&[&segment]));
            }
        }
        let mut framer = framer(header, data);
        assert_eq!(frame(&mut framer, &stream), COUNT, "{name}: PDUs are lost");
        group.bench_function(name, |b| b.iter(|| frame(&mut framer, black_box(&stream))));
    }
    group.finish();
}

fn digest(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    for len in [BHS_BYTES, 4096, 64 << 10] {
        let bytes = vec![0x5A; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |b, bytes| {
            b.iter(|| -> [u8; DIGEST_BYTES] { digest_of(&[bytes]) });
        });
    }
    group.finish();
}

criterion_group!(benches, headers, data_outs, digest);
criterion_main!(benches);
