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

pub(super) const MERGE: &str = "\
What happens:
  Every sector the child holds is written into the parent, then the parent is flushed. The child is left as it is and
  reads the same before, meanwhile and after; --remove-child removes it at the end. A merge that was killed is complete
  after it was run again. A sealed parent is refused, and so is one that has other children in its folder or the
  child's; children elsewhere cannot be known. Afterwards children of the child can be given the parent with
  \"image rebase\".

Examples:
  goldrush image merge node-001.vhd --remove-child
  goldrush image merge update.vhd --into golden-2.vhd

JSON:
  {child, into, bytes, removed}

Exit codes:
  0  done
  1  failed: the child is as it was
  2  wrong usage
  3  an image is in use by another process";

pub(super) const FLATTEN: &str = "\
What happens:
  A dynamic VHD with the content, unique id and times of the child takes the child's place in one step when it is
  complete. Children of the child go on as they are.

Examples:
  goldrush image flatten node-001.vhd
  goldrush image flatten node-001.vhd --output standalone.vhd

JSON:
  {path, virtual_size, changed}

Exit codes:
  0  done, or the image has no parent
  1  failed: the child is as it was
  2  wrong usage
  3  an image is in use by another process";

pub(super) const REBASE: &str = "\
What happens:
  Where the child does not hold a sector itself, both parents must read the same; what they take from the same place of
  the same file is not read. Where they differ the child is refused, or, with --copy, gets what it had from the old
  parent. Then the child names the new parent by id, relative path and, a VHD, time stamp. A kill leaves the old parent
  or the new one. Child and parent have the same format and sectors; a VHDX may be larger than its parent. Where the old parent is not found, the new one must have its unique id: it has moved.

Examples:
  goldrush image rebase node-001.vhd --parent golden-2.vhd --copy
  goldrush image rebase node-001.vhd --parent /srv/moved/golden.vhd

JSON:
  {child, parent, how (renewed, moved or compared), copied_bytes}

Exit codes:
  0  done
  1  failed: the disk of the child is as it was
  2  wrong usage
  3  an image is in use by another process";

pub(super) const SNAPSHOT: &str = "\
What happens:
  With --name the file of the image gets the name FROZEN, a new child of it takes the name of the image in one step, and the
  frozen file loses write permission. With --child the image keeps its name and is frozen, and NEW goes on.

After a crash:
  The old chain or the new one is there, complete. Running the command again finishes it.

Examples:
  goldrush image snapshot node-001.vhd --name node-001-monday.vhd
  goldrush image snapshot node-001.vhd --child node-001-b.vhd --seal

JSON:
  {frozen, child, sealed}

Exit codes:
  0  done
  1  failed: the image is as it was
  2  wrong usage
  3  the image is in use by another process, such as a server: stop it first";
