//! Whole PDUs over a blocking TCP stream, with CRC32C digests when agreed on.
//!
//! Knows framing, padding and digests. Does not know what the PDUs mean.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::fail::{Result, failure};
use crate::wire::{BHS, Header, ahs_length, data_length, padded};

/// A PDU as it came: header and data segment.
#[derive(Debug)]
pub(crate) struct Pdu {
    pub(crate) header: Header,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Stream {
    tcp: TcpStream,
    peer: SocketAddr,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl Stream {
    pub(crate) fn connect(peer: SocketAddr, timeout: Duration) -> Result<Stream> {
        let told = |e| failure!("cannot connect to {peer}: {e}; is the target listening there?");
        let tcp = TcpStream::connect_timeout(&peer, timeout).map_err(told)?;
        tcp.set_nodelay(true).map_err(told)?;
        tcp.set_read_timeout(Some(timeout)).map_err(told)?;
        tcp.set_write_timeout(Some(timeout)).map_err(told)?;
        Ok(Stream { tcp, peer, header_digest: false, data_digest: false })
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    pub(crate) fn send(&mut self, header: &Header, data: &[u8]) -> Result<()> {
        let mut head = header.to_vec();
        if self.header_digest {
            head.extend(crc32c::crc32c(header).to_le_bytes());
        }
        let mut tail = vec![0; padded(data.len()) - data.len()];
        if self.data_digest && !data.is_empty() {
            let crc = crc32c::crc32c_append(crc32c::crc32c(data), &tail);
            tail.extend(crc.to_le_bytes());
        }
        let mut parts = [IoSlice::new(&head), IoSlice::new(data), IoSlice::new(&tail)];
        let mut left: &mut [IoSlice<'_>] = &mut parts;
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.tcp.write_vectored(left) {
                Ok(0) => return Err(failure!("{} takes no more bytes: look at the target's log", self.peer)),
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(failure!("cannot send to {}: {e}; look at the target's log", self.peer));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> Result<Pdu> {
        let mut header = [0; BHS];
        self.fill(&mut header)?;
        let mut ahs = vec![0; ahs_length(&header)];
        self.fill(&mut ahs)?;
        if self.header_digest {
            self.check(crc32c::crc32c_append(crc32c::crc32c(&header), &ahs), "header")?;
        }
        let len = data_length(&header);
        let mut data = vec![0; padded(len)];
        self.fill(&mut data)?;
        if self.data_digest && len > 0 {
            self.check(crc32c::crc32c(&data), "data")?;
        }
        data.truncate(len);
        Ok(Pdu { header, data })
    }

    fn check(&mut self, computed: u32, what: &str) -> Result<()> {
        let mut received = [0; 4];
        self.fill(&mut received)?;
        let received = u32::from_le_bytes(received);
        if received == computed {
            return Ok(());
        }
        Err(failure!(
            "the {what} digest from {} is {received:08x} but its bytes give {computed:08x}: the target sends wrong digests or data",
            self.peer
        ))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.tcp.read_exact(buffer).map_err(|e| {
            use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
            match e.kind() {
                UnexpectedEof => {
                    failure!("{} closed the connection in the middle: look at the target's log", self.peer)
                }
                TimedOut | WouldBlock => {
                    failure!("{} did not answer in time: look at the target's log", self.peer)
                }
                _ => failure!("cannot receive from {}: {e}; look at the target's log", self.peer),
            }
        })
    }
}
