//! The footer of a VHD that a killed process has moved and not flushed.
//!
//! Knows which operations the next process may do before it has flushed. Does not know the rest of a crash (`crash_world`).

use crate::blocking::{Disk, Store, range, run_meta_op};
use crate::crash_world::new_image;
use crate::sim_disk::SimFile;
use goldrush::plan::{MetaBatch, MetaOp, OpenMode, WriteKind, WritePlan, WriteStep};
use goldrush::vhd::create::NewKind;

/// A disk whose first block is wanted, so that space for it has to be prepared.
fn wants_space(file: SimFile) -> Disk<SimFile> {
    let mut disk = Disk::open(vec![file], OpenMode::Writable).unwrap();
    let step =
        disk.images.resolve_write(&disk.chain, range(0, 1), WriteKind::Data, &mut WritePlan::default());
    assert_eq!(step, Ok(WriteStep::NeedSpace(disk.chain.leaf())));
    disk
}

fn is_footer(file: &SimFile, at: u64) -> bool {
    let mut cookie = [0; 512];
    file.read_at(at, &mut cookie).unwrap();
    cookie.starts_with(b"conectix")
}

#[test]
fn the_old_footer_goes_only_when_the_one_that_was_found_is_stable() {
    let new = new_image(NewKind::Dynamic { block_size: 1 << 20 }, 2048, 1);
    let old_footer = new.len - 512;
    let mut killed = wants_space(new);
    let mut batch = MetaBatch::default();
    assert!(killed.images.next_meta_batch(killed.chain.leaf(), &mut batch));
    for op in &batch.ops {
        run_meta_op(&mut killed.files[0], op, &batch.bytes);
    }
    let left = killed.files.remove(0);
    assert!(
        left.len - 512 > old_footer && is_footer(&left, left.len - 512),
        "it was killed behind its new footer"
    );

    let mut next = wants_space(left);
    let mut is_stable = false;
    while next.images.next_meta_batch(next.chain.leaf(), &mut batch) {
        for op in &batch.ops {
            is_stable |= *op == MetaOp::Sync;
            run_meta_op(&mut next.files[0], op, &batch.bytes);
            assert!(is_stable || is_footer(&next.files[0], old_footer), "{op:?} comes before a flush");
        }
        next.images.meta_batch_done(next.chain.leaf(), Ok(()));
    }
    assert!(!is_footer(&next.files[0], old_footer), "the group is prepared");
}
