//! What `--help` and the manual pages say below the options: examples, schemas, exit codes.
//!
//! Knows words. A section is a line that ends in a colon at the margin, and indented lines below it (`man` makes
//! headings of them).

/// Of the program: every command keeps to it.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done; image check: clean; image diff: the same
  1  failed, and nothing was changed that was not said; image check: findings; image diff: different
  2  wrong usage or configuration; image check and diff: no verdict
  3  the image is in use by another process: nothing was done";

pub(super) const STATUS: &str = "\
Examples:
  goldrush status
  goldrush status --targets --sessions
  goldrush status --json --targets | jq -r '.targets[] | select(.phase == \"gap\") | .name'
  goldrush status --control /run/goldrush/control-4711.sock

What the phases are:
  A target knows of its machine what its sessions tell, and no more.
  offline  no session: there never was one, or the last was a system's
  loader   a loader's session: firmware, iPXE. It declares segments of 64 KiB at most, and never has two commands at once
  gap      the loader has gone and no system has come: a kernel is starting, or the machine is stuck
  system   an operating system's session (all others are), which has not been quiet yet
  settled  one that was quiet once: less than 1 MiB read in each of 10 seconds; the boot ended when that began
  A loader's login begins a boot, unless it comes within a minute of a loader's end: then it tries again. A system that
  returns after a loss of the network goes on with the boot it had.

How latencies are measured:
  From the turn of the core in which a command arrived until the kernel has taken the last byte of its answer, the time an
  initiator takes to send its data included. Kept in histograms that are right within one percent.

JSON:
  {about: {program, pid, uptime_ms, listening: [address...], cores: [core of each shard...], targets, golden_cache_bytes,
  golden_asked_bytes, golden_ahead_used_bytes},
  phases: {phase: count...}, shards: [shard...], isns: [registration...], targets: [target...], sessions: [session...]}. A
  registration has server, entity, state (connecting, unreachable, registering, registered or refused), portals, targets,
  targets_refused and, where not all is registered, problem; isns is missing without iSNS. A shard has connections,
  sessions, tasks, tasks_parked, sessions_stalled, operations, chunks_free, smalls_free (buffers of 64 KiB and of 8 KiB),
  counts: {name: sum since the server began...}, read_latency and write_latency: {sum_us, counts: [[microseconds, how
  many]...]}. A target has name, sessions, phase, phase_ms and, as far as they are over, loader_ms, gap_ms, system_ms,
  boot_ms, resets (how often its overlays were emptied) and reset_ms (how long ago last); a session target, initiator, peer, connections, age_ms, tasks, commands, read_bytes, written_bytes.

Exit codes:
  0  the server has answered
  1  none answers, or it says no
  2  wrong usage, or several servers answer: name one with --control";

pub(super) const TOP: &str = "\
Examples:
  goldrush top
  goldrush top --interval 5
  goldrush top --once --interval 0.5

What is shown:
  What \"goldrush status --targets\" shows, over the last interval. Targets that never had a session are only counted; those
  that boot come first. Where standard output is no terminal, page follows page. Control-C ends it.

Exit codes:
  0  nobody reads any more, or --once is done
  1  no server answers, or it has ended
  2  wrong usage, or several servers answer: name one with --control";

pub(super) const IMAGE: &str = "\
What all of them have in common:
  A result goes to standard output, everything else to standard error. --json makes the result one JSON object.
  Progress is a bar on a terminal; elsewhere, commands that take more than two seconds log percentages.
  Images are locked while a command works: exclusively where it writes, together with other readers where it reads.
  An image that a running server holds is not touched: the command says who holds it, and ends with code 3. Only
  \"image info\" looks at such an image all the same.
  A new file appears under its name when it is complete and stable. A killed command leaves at most a hidden file
  .NAME.*.part beside it, which the next command for the same name removes.

Exit codes:
  0  done; image check: clean; image diff: the same
  1  failed, and nothing was changed that was not said; image check: findings; image diff: different
  2  wrong usage or configuration; image check and diff: no verdict
  3  the image is in use by another process: nothing was done";

pub(super) const CREATE: &str = "\
Examples:
  goldrush image create disk.vhd --size 40G
  goldrush image create fixed.vhd --size 512M --type fixed
  goldrush image create node-001.vhd --parent golden.vhd
  goldrush image create large.vhdx --size 20T --logical-sector-size 4096

JSON:
  {path, format, virtual_size, parent: path or null}

Exit codes:
  0  the image is there
  1  failed: no file was left
  2  wrong usage
  3  the parent is being written by another process";

pub(super) const INFO: &str = "\
Examples:
  goldrush image info node-001.vhd
  goldrush image info node-001.vhd --json | jq '.chain[].path'

JSON:
  {chain: [layer...], chain_error: text or null}, the leaf first. A layer has path, format, virtual_size, file_size,
  disk_usage (bytes on the file system), sealed, in_use, in_use_by ({pid, command} or null) and, as far as its format has
  them, type, block_size, blocks, allocated_blocks, creator, parent, warnings; a VHD's has unique_id, creator_host,
  created, a VHDX's logical_sector_size, physical_sector_size, disk_id, data_write_guid (what children know it by) and
  log (true: it holds changes that a crash left).

Exit codes:
  0  the image and all its parents open
  1  one of them does not
  2  wrong usage";

pub(super) const CHECK: &str = "\
Examples:
  goldrush image check node-001.vhd
  goldrush image check node-001.vhd --json | jq '.chain[].findings'
  goldrush image check node-001.vhd --repair --dry-run
  goldrush image check node-001.vhd --repair
  goldrush image check node-001.vhd --restore-backup node-001.vhd.repair-backup-1

JSON:
  {clean, chain: [file...], chain_error: text or null, repair: object or null}, the leaf first. A file has path, format,
  allocated_blocks, orphaned_blocks, unreferenced_bytes (which no structure refers to, padding left out) and findings:
  [{severity (info, warning or error), structure, offset, message}].
  repair has steps: [{structure, offset, found, action, loss: text or null}], unrepairable: [text...], loses_data, done,
  and backup: path or null.

Exit codes:
  0  clean, if need be after the repair
  1  there are findings, or a repair that was not done
  2  no verdict: wrong usage, or a file that cannot be read
  3  the image is in use by another process";

pub(super) const CONVERT: &str = "\
Examples:
  goldrush image convert debian.raw golden.vhd
  goldrush image convert golden.vhd fixed.vhd --type fixed
  goldrush image convert node-001.vhd flat.raw
  goldrush image convert debian.qcow2 golden.vhd
  goldrush image convert golden.vhd golden.vhdx --block-size 2M

JSON:
  {path, format, virtual_size, file_size, disk_usage (bytes on the file system)}

Exit codes:
  0  the destination is complete
  1  failed: no destination was left, and an existing one is as it was
  2  wrong usage
  3  the source is being written, or the destination used, by another process";

pub(super) const COMPACT: &str = "\
Examples:
  goldrush image compact node-001.vhd
  goldrush image compact golden.vhd --dry-run
  goldrush image compact disk.raw --json

JSON:
  {path, done, freed_blocks, moved_blocks, file_size_before, file_size_after, disk_usage_before, disk_usage_after}. With
  --dry-run, done is false and the sizes after are those that would be; disk_usage_after is null.

After a crash:
  The image has the content it had, and opens. Running the command again finishes it.

Exit codes:
  0  done, or nothing to do
  1  failed: the content is as it was
  2  wrong usage
  3  the image is in use by another process";

pub(super) const RESIZE: &str = "\
Examples:
  goldrush image resize disk.vhd --size 60G
  goldrush image resize disk.raw --size 8G --shrink

JSON:
  {path, virtual_size_before, virtual_size, file_size}

After a crash:
  The disk has the old size or the new one. Where the two footers of a VHD differ then, the one at the end rules, and
  \"image check --repair\" writes the other. A VHDX's change is in its log, and whoever opens it finishes it.

Exit codes:
  0  the disk has the size
  1  failed: the disk has the size it had
  2  wrong usage
  3  the image is in use by another process";

pub(super) const RELOAD: &str = "\
Examples:
  goldrush reload
  goldrush reload --control /run/goldrush/control.sock

What it does:
  The server reads its configuration file, opens and checks all that is new, then changes what differs: targets, LUNs, raw
  files that have grown, rules, secrets, redirections, addresses. Sessions that are not concerned notice nothing. A line
  says what has changed. SIGHUP does the same, and tells the log.

Exit codes:
  0  done
  1  nothing has changed: the new configuration is wrong, or no server answers
  2  wrong usage, or several servers answer";

pub(super) const RESET: &str = "\
Examples:
  goldrush reset iqn.2026-11.io.goldrush:node-001
  goldrush reset iqn.2026-11.io.goldrush:node-001 --force

What it does:
  What was written to the target's overlays with durability until-reset is gone, and their golden image shows through
  everywhere. Commands of the target wait meanwhile, which is milliseconds. Overlays that are persistent are left alone.
  For machines whose start the server cannot tell from a return (key reset): tools that start them call it before.
  While somebody is logged in it is refused: a running system would lose its disk. With --force every session is dropped
  first; whoever logs in again finds the golden image.

Exit codes:
  0  done
  1  refused, or it failed, or no server answers
  2  wrong usage, or several servers answer";

pub(super) const GROW: &str = "\
Examples:
  goldrush resize iqn.2026-11.io.goldrush:node-001/0 80G

What it does:
  Commands of the target wait, the image is closed, made larger and opened again: milliseconds, unless a VHD's table needs
  room that blocks take, which are moved first. Initiators are told that the capacity has changed; the rest is theirs
  (rescan the disk, grow the partition and the file system). A raw file, a VHD that is no child, and any VHDX can grow; a
  VHD's child has the size of its parent. Nothing that is served is ever made smaller: take the LUN out of the
  configuration for that, and use \"goldrush image resize\".

Exit codes:
  0  done, or it has that size already
  1  refused, or it failed, or no server answers
  2  wrong usage, or several servers answer";
