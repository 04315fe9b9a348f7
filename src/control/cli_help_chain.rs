//! What `--help` and the manual pages say below the options of the commands that work on chains.
//!
//! Knows words; laid out as in `cli_help`.

pub(super) const MAP: &str = "\
Output:
  One line for each run of the disk: offset, length, kind, layer (0 is the image itself, 1 its parent ...), and the
  offset in that layer's file. Kinds: data; hole (the layer holds the range, and its file has a hole there: zeros);
  zero (a VHDX layer says zeros, or, without a layer, none holds it).

Examples:
  goldrush image map node-001.vhd
  goldrush image map node-001.vhd --json | jq '[.map[] | select(.layer == 0) | .length] | add'

JSON:
  {layers: [{layer, path, format}...], virtual_size, map: [{offset, length, kind, layer, file_offset}...], totals:
  [{layer, data, hole}...], zero}, all in bytes. file_offset is null for kind zero, layer where no layer holds it.

Exit codes:
  0  done
  1  the image or a parent does not open
  2  wrong usage
  3  the image is in use by another process";

pub(super) const DIFF: &str = "\
Output:
  One line for each range in which the disks differ: offset and length in bytes, whole sectors of 512 bytes. Ranges
  that both take from the same place of the same file (a common parent) are not read. A disk that ends before the
  other counts as zeros from there.

Examples:
  goldrush image diff golden.vhd node-001.vhd
  goldrush image diff --quiet a.vhd b.raw && echo same

JSON:
  {a, b, size_a, size_b, differences: [{offset, length}...], bytes, same}

Exit codes:
  0  the disks have the same size and content
  1  they differ
  2  could not be compared, or wrong usage
  3  an image is in use by another process";

pub(super) const SEAL: &str = "\
What a seal is:
  A file NAME.seal beside the image: the BLAKE3 fingerprint of all bytes of the image's file (b3sum gives the same), and
  its length, times and inode. While it is there, no goldrush command and no server writes the image, and each open of
  it, above all as a parent, compares length, times and inode. Where they differ, as after a copy, all bytes are read:
  when they are the same the seal is renewed; otherwise the image, and every child of it, is refused.
  Seal every image that others are children of. Copy NAME.seal along with the image.

Examples:
  goldrush image seal golden.vhd
  goldrush image seal golden.vhd --verify

JSON:
  {path, sealed, seal: the seal's file, blake3}

Exit codes:
  0  sealed, or sealed already and unchanged
  1  failed, or changed since it was sealed
  2  wrong usage
  3  the image is being written by another process";

pub(super) const UNSEAL: &str = "\
Examples:
  goldrush image unseal golden.vhd

JSON:
  {path, sealed: false, seal, blake3: null}

Exit codes:
  0  not sealed any more
  1  failed: the seal is where it was
  2  wrong usage
  3  the image is being written by another process";
