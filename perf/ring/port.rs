//! The two buffers of one connection: bytes that came and are not yet read, and parts that go out together.
//!
//! Knows which half the kernel is using and refuses to touch it meanwhile. Does not know the ring or PDUs.

use std::net::TcpStream;
use std::sync::Arc;

use super::memory::Memory;
use super::process::Peer;

/// A connection inside a ring.
#[derive(Debug)]
pub(crate) struct Port {
    pub(super) stream: TcpStream,
    pub(crate) rx: Rx,
    pub(crate) tx: Tx,
    /// Where it connects to; the kernel reads it until the connection is there.
    pub(super) peer: Option<Box<Peer>>,
    pub(super) closing: bool,
}

#[derive(Debug)]
pub(crate) struct Rx {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    pub(super) busy: bool,
}

#[derive(Debug)]
pub(crate) struct Tx {
    arena: Box<[u8]>,
    used: usize,
    payload: Arc<Memory>,
    parts: Vec<libc::iovec>,
    parts_max: usize,
    bytes: usize,
    bytes_max: usize,
    /// The header that the kernel reads; it points into `parts`.
    message: Box<libc::msghdr>,
    pub(super) busy: bool,
}

#[cfg(test)]
impl Port {
    /// A port that no ring moves: what came is brought by hand, what goes out stays.
    pub(crate) fn alone(receive: usize, arena: usize) -> Port {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let payload = Arc::new(Memory::filled(64, |_| {}).unwrap());
        let (rx, tx) = (Rx::new(receive), Tx::new(arena, 1024, 1 << 20, payload));
        Port { stream, rx, tx, peer: None, closing: false }
    }

    pub(crate) fn bring(&mut self, bytes: &[u8]) {
        let _ = self.rx.tail(bytes.len());
        let end = self.rx.end;
        self.rx.buffer[end..end + bytes.len()].copy_from_slice(bytes);
        self.rx.filled(bytes.len());
    }
}

impl Rx {
    pub(super) fn new(len: usize) -> Rx {
        Rx { buffer: vec![0; len].into_boxed_slice(), start: 0, end: 0, busy: false }
    }

    /// What came and was not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        assert!(!self.busy, "the kernel is still writing to this buffer");
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end, "more consumed than received");
    }

    /// Where the next bytes go: at most `wanted`, after the unread ones, which move to the front first.
    pub(super) fn tail(&mut self, wanted: usize) -> (*mut u8, u32) {
        assert!(!self.busy, "one receive at a time");
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let tail = &mut self.buffer[self.end..];
        let len = tail.len().min(wanted);
        (tail.as_mut_ptr(), len as u32)
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }
}

impl Tx {
    pub(super) fn new(arena: usize, parts: usize, bytes_max: usize, payload: Arc<Memory>) -> Tx {
        // SAFETY: a msghdr of zero bytes is valid: null pointers with zero lengths.
        let message = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        Tx {
            arena: vec![0; arena].into_boxed_slice(),
            used: 0,
            payload,
            parts: Vec::with_capacity(parts),
            parts_max: parts,
            bytes: 0,
            bytes_max,
            message,
            busy: false,
        }
    }

    /// Whether `copied` bytes and a part of `shared` bytes of the payload can be added now.
    pub(crate) fn has_room(&self, copied: usize, shared: usize) -> bool {
        !self.busy
            && self.used + copied <= self.arena.len()
            && self.parts.len() + 2 <= self.parts_max
            && (self.bytes == 0 || self.bytes + copied + shared <= self.bytes_max)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Adds bytes by copying them. The caller asked `has_room` first.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.push_with(bytes.len(), |room| room.copy_from_slice(bytes));
    }

    /// Adds `len` bytes that `write` makes in place.
    pub(crate) fn push_with(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        assert!(!self.busy, "the kernel is still reading this arena");
        let room = &mut self.arena[self.used..self.used + len];
        write(room);
        let base = room.as_mut_ptr();
        self.used += len;
        self.bytes += len;
        match self.parts.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                last.iov_len += len
            }
            _ => self.parts.push(libc::iovec { iov_base: base.cast(), iov_len: len }),
        }
    }

    /// Adds a range of the ring's payload without copying it.
    pub(crate) fn push_shared(&mut self, offset: usize, len: usize) {
        assert!(!self.busy, "the kernel is still reading this list");
        let base = self.payload[offset..offset + len].as_ptr().cast_mut();
        self.parts.push(libc::iovec { iov_base: base.cast(), iov_len: len });
        self.bytes += len;
    }

    /// The message to send, good until `sent` or `clear`.
    pub(super) fn message(&mut self) -> *const libc::msghdr {
        self.message.msg_iov = self.parts.as_mut_ptr();
        self.message.msg_iovlen = self.parts.len();
        &raw const *self.message
    }

    /// Takes note of what the kernel sent; true when nothing is left.
    pub(super) fn sent(&mut self, mut bytes: usize) -> bool {
        self.bytes -= bytes;
        if self.bytes == 0 {
            self.clear();
            return true;
        }
        let whole = self.parts.iter().take_while(|part| {
            let fits = part.iov_len <= bytes;
            if fits {
                bytes -= part.iov_len;
            }
            fits
        });
        let whole = whole.count();
        self.parts.drain(..whole);
        if let Some(first) = self.parts.first_mut() {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            first.iov_len -= bytes;
        }
        false
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.used = 0;
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tx() -> Tx {
        let payload = Arc::new(Memory::filled(64, |_| {}).unwrap());
        Tx::new(64, 4, 100, payload)
    }

    #[test]
    fn copied_bytes_next_to_each_other_are_one_part() {
        let mut tx = tx();
        tx.push(&[1; 8]);
        tx.push(&[2; 8]);
        tx.push_shared(16, 32);
        tx.push(&[3; 8]);
        assert_eq!(tx.parts.iter().map(|p| p.iov_len).collect::<Vec<_>>(), [16, 32, 8]);
        assert!(!tx.has_room(8, 0), "no part left");
    }

    #[test]
    fn a_short_send_leaves_the_rest() {
        let mut tx = tx();
        tx.push(&[1; 8]);
        tx.push_shared(0, 16);
        assert!(!tx.sent(12));
        assert_eq!((tx.parts.len(), tx.parts[0].iov_len, tx.bytes), (1, 12, 12));
        assert!(tx.sent(12));
        assert!(tx.is_empty() && tx.has_room(64, 36));
    }

    #[test]
    fn received_bytes_move_to_the_front_before_more_come() {
        let mut rx = Rx::new(16);
        assert_eq!(rx.tail(100).1, 16);
        rx.filled(10);
        rx.consume(6);
        assert_eq!(rx.unread().len(), 4);
        assert_eq!(rx.tail(100).1, 12);
        assert_eq!(rx.unread().len(), 4);
        assert!(!rx.is_full());
    }
}
