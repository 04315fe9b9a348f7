//! The least of an initiator: raw PDUs over TCP, for tests of the whole program.
//!
//! Knows login without security, READ(10), WRITE(10) and pings. Does not know what a test wants of them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub type Bhs = [u8; 48];

pub struct RawInitiator {
    pub stream: TcpStream,
    /// Of the next command; connections of one session share it.
    pub cmd_sn: u32,
    /// What the login PDUs say: zero until there is a session, then its handle.
    pub tsih: u16,
    pub cid: u16,
    exp_stat_sn: u32,
    /// Whom `scsi` addresses, and the sense data of its last answer.
    pub lun: u8,
    pub sense: Vec<u8>,
}

fn u32_at(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

impl RawInitiator {
    pub fn connect(port: u16) -> Self {
        Self::connect_to(("127.0.0.1", port))
    }

    pub fn connect_to(address: (&str, u16)) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, cmd_sn: 1, tsih: 0, cid: 0, exp_stat_sn: 0, lun: 0, sense: Vec::new() }
    }

    /// A login in one PDU; the status class and detail of the answer.
    pub fn login(&mut self, target: &str, isid: u32) -> io::Result<(u8, u8)> {
        let keys = format!(
            "InitiatorName=iqn.2026-11.io.goldrush:raw\0SessionType=Normal\0TargetName={target}\0InitialR2T=No\0\
             ImmediateData=Yes\0MaxRecvDataSegmentLength=65536\0MaxConnections=2\0"
        );
        self.login_with(isid, &keys)
    }

    /// A login in one PDU with these keys.
    pub fn login_with(&mut self, isid: u32, keys: &str) -> io::Result<(u8, u8)> {
        self.login_pdu(0x87, isid, keys.as_bytes())?;
        let (answer, _) = self.receive()?;
        assert_eq!(answer[0] & 0x3F, 0x23);
        self.tsih = u16::from_be_bytes([answer[14], answer[15]]);
        Ok((answer[36], answer[37]))
    }

    pub fn login_pdu(&mut self, flags: u8, isid: u32, text: &[u8]) -> io::Result<()> {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1], bhs[8]) = (0x43, flags, 0x80);
        bhs[10..14].copy_from_slice(&isid.to_be_bytes());
        bhs[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        bhs[20..22].copy_from_slice(&self.cid.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, text)
    }

    pub fn send(&mut self, mut bhs: Bhs, data: &[u8]) -> io::Result<()> {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        let mut bytes = bhs.to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes)
    }

    pub fn receive(&mut self) -> io::Result<(Bhs, Vec<u8>)> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs)?;
        let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(len);
        if bhs[0] & 0x3F != 0x25 || bhs[1] & 1 != 0 {
            self.exp_stat_sn = u32_at(&bhs, 24).wrapping_add(1);
        }
        Ok((bhs, data))
    }

    /// READ(10), or WRITE(10) of `data` as immediate data. The tag of the command is its address.
    pub fn command(&mut self, lba: u32, blocks: u16, data: &[u8]) -> io::Result<()> {
        let write = !data.is_empty();
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (1, if write { 0xA1 } else { 0xC1 });
        bhs[16..20].copy_from_slice(&lba.to_be_bytes());
        bhs[20..24].copy_from_slice(&(u32::from(blocks) * 512).to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32] = if write { 0x2A } else { 0x28 };
        bhs[34..38].copy_from_slice(&lba.to_be_bytes());
        bhs[39..41].copy_from_slice(&blocks.to_be_bytes());
        self.cmd_sn += 1;
        self.send(bhs, data)
    }

    /// WRITE(10) whose data stays here: the target will ask for it.
    pub fn announce_write(&mut self, lba: u32, blocks: u16) -> io::Result<()> {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (1, 0xA1);
        bhs[16..20].copy_from_slice(&lba.to_be_bytes());
        bhs[20..24].copy_from_slice(&(u32::from(blocks) * 512).to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32] = 0x2A;
        bhs[34..38].copy_from_slice(&lba.to_be_bytes());
        bhs[39..41].copy_from_slice(&blocks.to_be_bytes());
        self.cmd_sn += 1;
        self.send(bhs, &[])
    }

    /// Any command of at most sixteen bytes, with its data-out as immediate data or `read_len` bytes of data-in; the
    /// status and the data. A unit attention is passed over.
    pub fn scsi(&mut self, cdb: &[u8], data: &[u8], read_len: u32) -> (u8, Vec<u8>) {
        let (status, read, _) = self.attempt(cdb, data, read_len);
        (status, read)
    }

    /// The same, with the sense key and both codes of a command that did not end well.
    pub fn attempt(&mut self, cdb: &[u8], data: &[u8], read_len: u32) -> (u8, Vec<u8>, Option<[u8; 3]>) {
        const CHECK_CONDITION: u8 = 2;
        for _ in 0..4 {
            let mut bhs = [0; 48];
            let (flags, expected) =
                if data.is_empty() { (0xC1, read_len) } else { (0xA1, data.len() as u32) };
            (bhs[0], bhs[1]) = (1, if expected == 0 { 0x81 } else { flags });
            bhs[9] = self.lun;
            bhs[16..20].copy_from_slice(&0x5C51_u32.to_be_bytes());
            bhs[20..24].copy_from_slice(&expected.to_be_bytes());
            bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
            bhs[32..32 + cdb.len()].copy_from_slice(cdb);
            self.cmd_sn += 1;
            self.send(bhs, data).unwrap();
            let mut read = Vec::new();
            let (status, sense) = loop {
                let (bhs, piece) = self.receive().unwrap();
                match bhs[0] & 0x3F {
                    0x21 => break (bhs[3], piece),
                    _ => read.extend(piece),
                }
                if bhs[1] & 1 != 0 {
                    break (bhs[3], Vec::new());
                }
            };
            // SenseLength comes first.
            let attention = status == CHECK_CONDITION && sense.get(4).is_some_and(|key| key & 0x0F == 6);
            if !attention {
                self.sense = sense.get(2..).unwrap_or_default().to_vec();
                let sense = sense.get(2..).filter(|sense| status != 0 && sense.len() >= 14);
                return (status, read, sense.map(|sense| [sense[2] & 0x0F, sense[12], sense[13]]));
            }
        }
        panic!("one unit attention after another")
    }

    /// The next answer: its tag, status and the data before it.
    pub fn answer(&mut self) -> io::Result<(u32, u8, Vec<u8>)> {
        let mut data = Vec::new();
        loop {
            let (bhs, piece) = self.receive()?;
            let (opcode, tag) = (bhs[0] & 0x3F, u32_at(&bhs, 16));
            if opcode == 0x32 {
                // An asynchronous message answers nothing.
                continue;
            }
            if opcode == 0x21 {
                return Ok((tag, bhs[3], data));
            }
            data.extend(piece);
            if opcode == 0x25 && bhs[1] & 1 != 0 {
                return Ok((tag, bhs[3], data));
            }
        }
    }

    /// Reads, passing over the unit attention of a new session.
    pub fn read(&mut self, lba: u32, blocks: u16) -> Vec<u8> {
        for _ in 0..3 {
            self.command(lba, blocks, &[]).unwrap();
            let (_, status, data) = self.answer().unwrap();
            if status == 0 {
                return data;
            }
        }
        panic!("sector {lba} cannot be read")
    }

    pub fn ping(&mut self) {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[16..20].copy_from_slice(&77_u32.to_be_bytes());
        bhs[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, b"alive?").unwrap();
        let (answer, data) = self.receive().unwrap();
        assert_eq!((answer[0] & 0x3F, u32_at(&answer, 16), data.as_slice()), (0x20, 77, &b"alive?"[..]));
    }

    /// A ping that takes the next command number.
    pub fn ping_as_command(&mut self) {
        let mut bhs = [0; 48];
        bhs[1] = 0x80;
        bhs[16..20].copy_from_slice(&78_u32.to_be_bytes());
        bhs[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.cmd_sn += 1;
        self.send(bhs, b"turn").unwrap();
        let (answer, _) = self.receive().unwrap();
        assert_eq!((answer[0] & 0x3F, u32_at(&answer, 16)), (0x20, 78));
    }

    /// True when the target has closed the connection (what it still sends is passed over).
    pub fn is_closed_by_target(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}
