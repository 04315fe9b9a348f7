//! Every bound in the program, related by compile-time assertions.
//!
//! Knows numbers and why they are what they are. Does not know who obeys them.

/// Bytes of a data chunk: the unit of the golden cache and of task buffers.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a small buffer: PDU headers, VHD metadata, small replies.
pub const SMALL_BYTES: usize = 8 * 1024;

/// The longest SCSI transfer (VPD page B0h, MAXIMUM TRANSFER LENGTH).
pub const TRANSFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Data chunks one task may hold; one more than the transfer, for an unaligned start.
pub const TASK_CHUNKS_MAX: usize = TRANSFER_BYTES_MAX / CHUNK_BYTES + 1;
/// Up to this many extents, a read is sent from where its bytes lie.
pub const IN_PLACE_EXTENTS_MAX: usize = 16;
/// Buffers that tasks leave for responses: a shard that cannot send can never free anything.
pub const SEND_RESERVE_CHUNKS: u32 = 8;
pub const SEND_RESERVE_SMALLS: u32 = 16;
/// Buffers that all tasks leave to the one that has waited longest. A read takes its buffers portion by portion, so
/// without them every task could hold some and wait for more: enough for all of the largest read, copied together.
pub const TASK_RESERVE_CHUNKS: u32 = 2 * TASK_CHUNKS_MAX as u32 + 2 * IN_PLACE_EXTENTS_MAX as u32 + 1;
pub const TASK_RESERVE_SMALLS: u32 = IN_PLACE_EXTENTS_MAX as u32;
/// Buffers that must be free before a command begins: its data-out, and what is left to others.
pub const ADMIT_CHUNKS: u32 = TASK_CHUNKS_MAX as u32 + TASK_RESERVE_CHUNKS + SEND_RESERVE_CHUNKS;
pub const ADMIT_SMALLS: u32 = 1 + TASK_RESERVE_SMALLS + SEND_RESERVE_SMALLS + IN_PLACE_EXTENTS_MAX as u32;
/// Extents of one resolved read or write; a longer answer is given in parts.
pub const PLAN_EXTENTS_MAX: usize = 256;
/// Golden data one operation reads: what a disk moves at once, without one reader holding up others for long.
pub const FILL_BYTES_MAX: u32 = 1024 * 1024;
/// Fills one such operation serves: one for each chunk it touches, and some for pages that are there already.
pub const FILL_PARTS_MAX: usize = FILL_BYTES_MAX as usize / CHUNK_BYTES + 1;
/// What a unit that is read in order may be ahead of its reads at most, and unless told otherwise.
pub const READ_AHEAD_BYTES_MAX: u64 = 8 * 1024 * 1024;
pub const READ_AHEAD_BYTES_DEFAULT: u64 = 512 * 1024;
/// Files whose content the golden cache knows: a room has few golden images, and chains add some.
pub const GOLDEN_FILES_MAX: usize = 4096;
/// Parameter data of one command (UNMAP, MODE SELECT, PERSISTENT RESERVE OUT, EXTENDED COPY, SANITIZE).
pub const PARAMETER_BYTES_MAX: usize = 8 * 1024;
/// Data one non-READ command may return (INQUIRY, REPORT LUNS of 256 units, READ FULL STATUS of all registrants):
/// one chunk.
pub const REPLY_BYTES_MAX: usize = CHUNK_BYTES;
/// What initiators are told is best (VPD page B0h, OPTIMAL TRANSFER LENGTH): one burst.
pub const TRANSFER_OPTIMAL_BYTES: usize = 1024 * 1024;
/// The longest WRITE SAME (VPD page B0h).
pub const WRITE_SAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest COMPARE AND WRITE, each half (VPD page B0h).
pub const COMPARE_AND_WRITE_BYTES_MAX: usize = 64 * 1024;
/// EXTENDED COPY: CSCD and segment descriptors of one list, and the bytes of both.
pub const COPY_DEVICES_MAX: usize = 16;
pub const COPY_SEGMENTS_MAX: usize = 64;
pub const COPY_DESCRIPTOR_BYTES_MAX: usize = 4096;
/// The longest segment: its count of blocks has 16 bits.
pub const COPY_SEGMENT_BYTES_MAX: u32 = u16::MAX as u32 * 4096;
/// Copies of one unit that run or may be asked about.
pub const COPY_RECORDS_MAX: usize = 64;
/// What a copy reads before it writes.
pub const COPY_PORTION_BYTES: u64 = 1024 * 1024;
/// Portions of all copies of a shard that have to do with units of other shards at a time: so many portions of memory at
/// most, and so many tasks at any one of those.
pub const COPY_PORTIONS_ABROAD: usize = 16;
/// Ranges of one POPULATE TOKEN or WRITE USING TOKEN, the bytes of all of them, and what is best (VPD page 8Fh): a copy
/// that is waited for ends within seconds.
pub const ROD_RANGES_MAX: usize = 64;
pub const ROD_BYTES_MAX: usize = 256 * 1024 * 1024;
pub const ROD_OPTIMAL_BYTES: usize = 64 * 1024 * 1024;
/// Seconds after which an unused token expires, unless it was asked for otherwise, and the most that may be asked for.
pub const ROD_INACTIVITY_S: u32 = 60;
pub const ROD_INACTIVITY_MAX_S: u32 = 600;
/// Seconds after which any token expires.
pub const ROD_LIFETIME_MAX_S: u32 = 24 * 3600;
/// Tokens of one unit: the one that was unused for longest makes room.
pub const RODS_PER_UNIT_MAX: usize = 64;
/// What SANITIZE overwrites or erases at a time, and the most it overwrites in a second: others use the disks too.
pub const SANITIZE_PORTION_BYTES: u64 = 8 * 1024 * 1024;
pub const SANITIZE_ERASE_BYTES: u64 = 256 * 1024 * 1024;
pub const SANITIZE_BYTES_PER_S: u64 = 160 * 1024 * 1024;
/// The longest WRITE ATOMIC (VPD page B0h): it is written down before it is written.
pub const ATOMIC_BYTES_MAX: usize = 1024 * 1024;
/// All ranges of one UNMAP together (VPD page B0h).
pub const UNMAP_BYTES_MAX: usize = 512 * 1024 * 1024;
/// What one GET LBA STATUS looks at; the initiator asks on from there. Bounds the bitmaps it may have to read.
pub const LBA_STATUS_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Ranges of one UNMAP (VPD page B0h).
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// What we declare as MaxRecvDataSegmentLength (RFC 7143, 13.12).
pub const RECV_SEGMENT_BYTES_MAX: u32 = 256 * 1024;
/// The most we agree to as MaxBurstLength (13.13) and FirstBurstLength (13.14).
pub const BURST_BYTES_MAX: u32 = 1024 * 1024;
pub const FIRST_BURST_BYTES_MAX: u32 = 256 * 1024;
/// The longest segment we send, whatever the initiator declares: keeps a Data-In inside few chunks.
pub const SEND_SEGMENT_BYTES_MAX: u32 = 256 * 1024;
/// R2Ts one task may have outstanding (13.17).
pub const OUTSTANDING_R2T_MAX: u32 = 1;
/// Commands the CmdSN window of one session holds at most, and unless told otherwise.
pub const COMMAND_WINDOW_MAX: u32 = 512;
pub const COMMAND_WINDOW_DEFAULT: u32 = 128;
/// Immediate commands one session may have beside the window (TMF, NOP-Out, immediate SCSI commands).
pub const IMMEDIATE_TASKS_MAX: usize = 16;
/// Connections one session may have, whatever is negotiated (13.2).
pub const SESSION_CONNECTIONS_MAX: usize = 8;
/// Connections a session is granted unless told otherwise.
pub const SESSION_CONNECTIONS_DEFAULT: u32 = 4;
/// Tasks of one session whose window holds so many commands.
pub const fn session_tasks(window: u32) -> usize {
    window as usize + IMMEDIATE_TASKS_MAX
}
pub const SESSION_TASKS_MAX: usize = session_tasks(COMMAND_WINDOW_MAX);

/// Control data of requests that came ahead of their turn, per session; beyond it they count as not received.
pub const HELD_BYTES_MAX: usize = 64 * 1024;
/// Answers one session may have waiting: every task and place of the window, and some Rejects.
pub const SESSION_ANSWERS_MAX: usize = 2 * SESSION_TASKS_MAX + 64;
/// Seconds a write may wait for its next Data-Out before the session is closed.
pub const DATA_OUT_STALL_S: u64 = 60;
/// Sense bytes of one response (SPC-4, 4.5.1).
pub const SENSE_BYTES_MAX: usize = 252;

/// Text of one login or text negotiation over all its PDUs (RFC 7143, 6.1 wants at least 8192).
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Keys in one negotiation.
pub const TEXT_KEYS_MAX: usize = 128;
/// The longest data segment of a login PDU, either way: nothing else is declared yet (RFC 7143, 13.12).
pub const LOGIN_SEGMENT_BYTES_MAX: u32 = 8192;
/// Bytes of a key's name (6.1).
pub const TEXT_KEY_BYTES_MAX: usize = 63;
/// Bytes of a CHAP challenge or response, decoded (RFC 7143, 12.1.3).
pub const CHAP_BINARY_BYTES_MAX: usize = 1024;
/// Bytes of an iSCSI name (RFC 7143, 4.2.7.1).
pub const ISCSI_NAME_BYTES_MAX: usize = 223;
/// Login PDUs before the full-feature phase.
pub const LOGIN_PDUS_MAX: u32 = 64;
/// Data of a NOP-Out ping that is echoed.
pub const PING_BYTES_MAX: usize = 32 * 1024;

/// What one connection may begin in one turn of its shard, in commands; bytes to be moved count as commands too. What
/// came beyond it waits for the next turn, behind the others' share.
pub const TURN_COMMANDS: u32 = 64;
pub const TURN_COMMAND_BYTES: u32 = 16 * 1024;
/// Login and text PDUs of connections that log in, one turn of a shard: a storm of logins delays a command by no more.
pub const TURN_LOGIN_PDUS: u32 = 32;
/// Connections of one shard.
pub const CONNECTIONS_MAX: usize = 8192;
/// Tasks of one shard that are being executed; more wait in their connections.
pub const SHARD_TASKS_MAX: usize = 16 * 1024;
/// Bytes queued for sending on one connection before it stops executing commands.
pub const CONNECTION_SEND_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Data-in one connection may have begun and not yet queued for sending (one command always may).
pub const CONNECTION_READ_BYTES_MAX: usize = 4 * 1024 * 1024;
/// PDUs one connection may have queued for sending.
pub const CONNECTION_SEND_PDUS_MAX: usize = 4096;
/// iovecs of one send: the kernel's UIO_MAXIOV.
pub const SEND_PARTS_MAX: usize = 1024;
/// Received buffers a blocked connection may keep before its receive is stopped.
pub const CONNECTION_UNREAD_BUFFERS_MAX: usize = 8;
/// Received bytes a blocked connection keeps outside of the ring's buffers, before its receive is stopped: they are
/// moved there when other connections find no receive buffer.
pub const CONNECTION_CARRIED_BYTES_MAX: usize = 64 * 1024;

/// Files one shard holds open.
pub const SHARD_FILES_MAX: usize = 16 * 1024;
/// File operations (and cancels, shutdowns, closes) one shard has in the kernel; more wait in its queue.
pub const SHARD_FILE_OPS_MAX: usize = 4096;

/// Layers of a chain, leaf and base included.
pub const CHAIN_DEPTH_MAX: usize = 64;
/// VHD: the format's own limit, 2040 GiB.
pub const VHD_SECTORS_MAX: u64 = 0xFF00_0000;
/// VHD: table entries of the largest disk with the smallest blocks we write (512 KiB): 16 MiB of memory.
pub const VHD_BLOCKS_MAX: u64 = VHD_SECTORS_MAX / 1024;
/// VHD: a table entry is a 32-bit sector number, so a file ends below 2 TiB.
pub const VHD_FILE_BYTES_MAX: u64 = 1 << 41;
/// Bytes of the largest block bitmap (32 MiB blocks).
pub const BITMAP_BYTES_MAX: usize = 8 * 1024;
/// Bytes of blocks an image prepares ahead of its first writes, and once it has grown (`growth`); the most blocks that is.
pub const EXTEND_BYTES: u64 = 32 * 1024 * 1024;
pub const EXTEND_BYTES_MAX: u64 = 1024 * 1024 * 1024;
pub const EXTEND_BLOCKS_MAX: u64 = 512;
/// Block bitmaps one layer keeps in memory.
pub const LAYER_BITMAPS_MAX: usize = 4096;
/// VHDX: the format's own limit, 64 TiB, and the blocks of such a disk where they are smallest (1 MiB). Four bytes of
/// memory each, in pages of those that are not in their first state: 256 MiB for a disk of that kind that is full.
pub const VHDX_SECTORS_MAX: u64 = 1 << 37;
pub const VHDX_BLOCKS_MAX: u64 = VHDX_SECTORS_MAX / 2048;
/// VHDX: a file of the largest disk ends well below; bounds what finding overlaps costs (16 MiB).
pub const VHDX_FILE_BYTES_MAX: u64 = 1 << 47;
/// VHDX: the longest log that is read to be replayed. Its makers write 1 MiB.
pub const VHDX_LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// VHDX: a parent locator, all its paths together.
pub const VHDX_LOCATOR_BYTES_MAX: usize = 64 * 1024;
/// VHDX: pages one entry of the log holds: three entries fit the smallest log, and any block with its bitmap fits one.
pub const VHDX_ENTRY_PAGES_MAX: usize = 64;
/// VHDX: blocks and bitmap pages that wait for a commit before further writes that need one wait too.
pub const VHDX_PENDING_MAX: usize = 1024;
/// VHDX: pages of sector bitmaps one layer keeps in memory, 4 KiB each.
pub const LAYER_BITMAP_PAGES_MAX: usize = 1024;
/// Records of pending writes one shard's journal holds; when half of them are taken commits begin.
pub const JOURNAL_RECORDS: u32 = 64 * 1024;
/// Seconds after which a recorded write is committed although nobody asks for it.
pub const COMMIT_DELAY_S: u64 = 1;
/// Commits that begin for that reason in one second: thousands of leaves do not all flush at once.
pub const COMMITS_PER_TICK: usize = 256;
/// Blocks of one layer with pending bits after which a commit begins: their bitmaps cannot be forgotten.
pub const COMMIT_BLOCKS_MAX: usize = LAYER_BITMAPS_MAX / 2;
/// Targets of one server and units of one target.
pub const TARGETS_MAX: usize = 65_536;

/// The longest payload of an iSNS PDU: its length has 16 bits and is a multiple of four (RFC 4171, 5.1.3).
pub const ISNS_PDU_BYTES_MAX: usize = 65_532;
/// The longest iSNS message that is put together or sent: a server echoes what a registration says, and may add to it.
pub const ISNS_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// The longest request that is sent to an iSNS server: Open-iSNS ends the connection of whoever sends a longer one.
pub const ISNS_REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Targets of one registration, in bytes; its echo, which has names beside each portal, is not much longer.
pub const ISNS_BATCH_BYTES: usize = 3 * 1024;
/// Portals that are registered: a listening address that stands for all of a machine is many.
pub const ISNS_PORTALS_MAX: usize = 64;
/// Bytes of an entity identifier, without its NUL (RFC 4171, 6.2.1).
pub const ISNS_ENTITY_BYTES_MAX: usize = 255;
/// iSNS servers one program registers with.
pub const ISNS_SERVERS_MAX: usize = 8;
pub const UNITS_PER_TARGET_MAX: usize = 256;
/// I_T nexuses (sessions) of one target.
pub const NEXUSES_PER_TARGET_MAX: usize = 256;
/// Persistent reservation registrants of one unit; they outlive sessions.
pub const REGISTRANTS_PER_UNIT_MAX: usize = 240;
/// One registrant in READ FULL STATUS: descriptor, TransportID header, `name,i,0x` and ISID, padding.
pub const REGISTRANT_BYTES_MAX: usize = 24 + 4 + (ISCSI_NAME_BYTES_MAX + 5 + 12 + 4) / 4 * 4;

const _: () = assert!(ISNS_PDU_BYTES_MAX <= u16::MAX as usize && ISNS_PDU_BYTES_MAX.is_multiple_of(4));
const _: () = assert!(ISNS_MESSAGE_BYTES_MAX / ISNS_PDU_BYTES_MAX < u16::MAX as usize);
// One target that is reached at all portals is no more than a batch; a registration is that, all portals and its keys.
const _: () = assert!(36 * ISNS_PORTALS_MAX + ISCSI_NAME_BYTES_MAX + 64 <= ISNS_BATCH_BYTES);
const _: () = assert!(ISNS_BATCH_BYTES + 36 * ISNS_PORTALS_MAX + 1024 <= ISNS_REQUEST_BYTES_MAX);
const _: () = assert!(ISNS_REQUEST_BYTES_MAX <= ISNS_PDU_BYTES_MAX);
const _: () = assert!(COMMIT_BLOCKS_MAX < LAYER_BITMAPS_MAX && JOURNAL_RECORDS > 1);
const _: () = assert!(EXTEND_BYTES <= EXTEND_BYTES_MAX && EXTEND_BLOCKS_MAX < COMMIT_BLOCKS_MAX as u64);
const _: () = assert!(TRANSFER_BYTES_MAX.is_multiple_of(CHUNK_BYTES));
const _: () = assert!(READ_AHEAD_BYTES_DEFAULT <= READ_AHEAD_BYTES_MAX && FILL_PARTS_MAX <= 1024);
const _: () = assert!(COPY_PORTION_BYTES <= TRANSFER_BYTES_MAX as u64 && COPY_PORTIONS_ABROAD > 0);
const _: () = assert!(FIRST_BURST_BYTES_MAX <= BURST_BYTES_MAX);
const _: () = assert!(BURST_BYTES_MAX as usize <= TRANSFER_BYTES_MAX);
const _: () = assert!(TEXT_BYTES_MAX >= LOGIN_SEGMENT_BYTES_MAX as usize);
const _: () = assert!(RECV_SEGMENT_BYTES_MAX >= 8192 && SEND_SEGMENT_BYTES_MAX >= 512);
const _: () = assert!(CONNECTION_SEND_BYTES_MAX >= 2 * TRANSFER_BYTES_MAX);
const _: () = assert!(SESSION_TASKS_MAX <= SHARD_TASKS_MAX);
const _: () = assert!(0 < COMMAND_WINDOW_DEFAULT && COMMAND_WINDOW_DEFAULT <= COMMAND_WINDOW_MAX);
const _: () = assert!(SESSION_CONNECTIONS_DEFAULT as usize <= SESSION_CONNECTIONS_MAX);
const _: () = assert!(SESSION_CONNECTIONS_MAX <= u8::MAX as usize);
// One function and one other immediate request for each connection (RFC 7143, 4.2.2.1).
const _: () = assert!(IMMEDIATE_TASKS_MAX >= 2 * SESSION_CONNECTIONS_MAX);
const _: () = assert!(PARAMETER_BYTES_MAX <= SMALL_BYTES);
const _: () = assert!(BITMAP_BYTES_MAX <= SMALL_BYTES);
const _: () = assert!(8 + REGISTRANTS_PER_UNIT_MAX * REGISTRANT_BYTES_MAX <= REPLY_BYTES_MAX);
const _: () = assert!(8 + 16 * UNMAP_DESCRIPTORS_MAX as usize <= PARAMETER_BYTES_MAX);
const _: () = assert!(8 + 8 * UNITS_PER_TARGET_MAX <= REPLY_BYTES_MAX);
const _: () = assert!(2 * COMPARE_AND_WRITE_BYTES_MAX <= TRANSFER_BYTES_MAX);
const _: () = assert!(16 + COPY_DESCRIPTOR_BYTES_MAX <= PARAMETER_BYTES_MAX);
const _: () = assert!(536 + 16 * ROD_RANGES_MAX <= PARAMETER_BYTES_MAX);
const _: () = assert!(ROD_INACTIVITY_S <= ROD_INACTIVITY_MAX_S && ROD_INACTIVITY_MAX_S <= ROD_LIFETIME_MAX_S);
const _: () = assert!(ATOMIC_BYTES_MAX <= TRANSFER_BYTES_MAX);
const _: () = assert!(COPY_PORTION_BYTES as usize <= TRANSFER_BYTES_MAX);
const _: () = assert!(COPY_RECORDS_MAX <= u8::MAX as usize);
const _: () = assert!(TRANSFER_OPTIMAL_BYTES <= TRANSFER_BYTES_MAX);
