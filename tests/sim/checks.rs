//! The rules of RFC 7143 that every answer of a target is held to.
//!
//! Knows one connection's numbers and one task's data. Does not know what was asked or what sectors hold.

use crate::wire::{NO_TAG, Pdu};

pub(crate) fn before(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) > 0
}

/// StatSN, ExpCmdSN and MaxCmdSN of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    stat_sn: Option<u32>,
    exp_cmd_sn: Option<u32>,
    max_cmd_sn: Option<u32>,
}

impl Numbers {
    /// What we acknowledge.
    pub(crate) fn exp_stat_sn(&self) -> u32 {
        self.stat_sn.unwrap_or(0)
    }

    pub(crate) fn max_cmd_sn(&self) -> u32 {
        self.max_cmd_sn.unwrap_or(0)
    }

    /// `next_cmd_sn` is the number of our next command.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn observe(&mut self, pdu: &Pdu, next_cmd_sn: u32) -> Result<(), String> {
        let opcode = pdu.opcode();
        let has_status = opcode != 0x25 || pdu.flags() & 1 != 0;
        let advances = has_status && opcode != 0x31 && !(opcode == 0x20 && pdu.tag() == NO_TAG);
        if has_status {
            let stat_sn = pdu.u32_at(24);
            if let Some(expected) = self.stat_sn
                && stat_sn != expected
            {
                return Err(format!("opcode {opcode:#x} has StatSN {stat_sn:#x}, expected {expected:#x}"));
            }
            self.stat_sn = Some(if advances { stat_sn.wrapping_add(1) } else { stat_sn });
        }
        let (exp, max) = (pdu.u32_at(28), pdu.u32_at(32));
        if let Some(former) = self.exp_cmd_sn
            && before(exp, former)
        {
            return Err(format!("ExpCmdSN went back from {former:#x} to {exp:#x}"));
        }
        if before(next_cmd_sn, exp) {
            return Err(format!("ExpCmdSN {exp:#x} is beyond our next command, {next_cmd_sn:#x}"));
        }
        if let Some(former) = self.max_cmd_sn
            && before(max, former)
        {
            return Err(format!("MaxCmdSN shrank from {former:#x} to {max:#x}"));
        }
        if before(max.wrapping_add(1), exp) {
            return Err(format!("MaxCmdSN {max:#x} is below ExpCmdSN {exp:#x} - 1"));
        }
        (self.exp_cmd_sn, self.max_cmd_sn) = (Some(exp), Some(max));
        Ok(())
    }
}

/// What was negotiated and a task's data must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataLimits {
    pub(crate) segment: u32,
    pub(crate) burst: u32,
}

/// Data-In and R2T of one task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) received: u32,
    data_sn: u32,
    burst: u32,
    /// Data-out sent or solicited so far.
    pub(crate) solicited: u32,
    r2t_sn: u32,
}

impl Transfer {
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn data_in(&mut self, pdu: &Pdu, expected_len: u32, limits: DataLimits) -> Result<(), String> {
        let (offset, len, sn) = (pdu.u32_at(40), pdu.data.len() as u32, pdu.u32_at(36));
        if offset != self.received {
            return Err(format!("Data-In at {offset}, expected {}", self.received));
        }
        if sn != self.data_sn {
            return Err(format!("DataSN {sn}, expected {}", self.data_sn));
        }
        if len > limits.segment {
            return Err(format!("a Data-In of {len} bytes; we declared {}", limits.segment));
        }
        self.received += len;
        self.burst += len;
        if self.received > expected_len {
            return Err(format!("{} bytes of Data-In, expected at most {expected_len}", self.received));
        }
        if self.burst > limits.burst {
            return Err(format!("a sequence of {} bytes; MaxBurstLength is {}", self.burst, limits.burst));
        }
        let is_final = pdu.flags() & 0x80 != 0;
        if pdu.flags() & 1 != 0 && !is_final {
            return Err("a Data-In with status is not final".to_owned());
        }
        if is_final {
            self.burst = 0;
        }
        self.data_sn += 1;
        Ok(())
    }

    /// # Errors
    /// The rule that is broken.
    pub(crate) fn r2t(&mut self, pdu: &Pdu, expected_len: u32, limits: DataLimits) -> Result<(), String> {
        let (sn, offset, len) = (pdu.u32_at(36), pdu.u32_at(40), pdu.u32_at(44));
        if sn != self.r2t_sn {
            return Err(format!("R2TSN {sn}, expected {}", self.r2t_sn));
        }
        if offset != self.solicited {
            return Err(format!("R2T for offset {offset}, expected {}", self.solicited));
        }
        if len == 0 || len > limits.burst || offset + len > expected_len {
            return Err(format!("R2T for {len} bytes at {offset} of {expected_len}"));
        }
        if pdu.u32_at(20) == NO_TAG {
            return Err("R2T without a target transfer tag".to_owned());
        }
        self.r2t_sn += 1;
        self.solicited += len;
        Ok(())
    }
}

/// The residual of an answer: what of `wanted` bytes (the command's) went over an expected length of `expected`.
///
/// # Errors
/// The rule that is broken.
pub(crate) fn residual(pdu: &Pdu, wanted: u32, expected: u32) -> Result<(), String> {
    let (over, under) = (pdu.flags() & 4 != 0, pdu.flags() & 2 != 0);
    let found = (over, under, pdu.u32_at(44));
    let right = match wanted.cmp(&expected) {
        std::cmp::Ordering::Greater => (true, false, wanted - expected),
        std::cmp::Ordering::Less => (false, true, expected - wanted),
        std::cmp::Ordering::Equal => (false, false, 0),
    };
    if found == right {
        Ok(())
    } else {
        Err(format!("residual {found:?}, expected {right:?} (over, under, count)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(opcode: u8, stat_sn: u32, exp: u32, max: u32) -> Pdu {
        Pdu::new(opcode, 0x80).put32(24, stat_sn).put32(28, exp).put32(32, max)
    }

    #[test]
    fn gaps_and_shrinking_windows_are_seen() {
        let mut numbers = Numbers::default();
        numbers.observe(&response(0x21, 5, 10, 20), 10).unwrap();
        assert!(numbers.clone().observe(&response(0x21, 7, 10, 20), 10).unwrap_err().contains("StatSN"));
        assert!(numbers.clone().observe(&response(0x21, 6, 9, 20), 10).unwrap_err().contains("went back"));
        assert!(numbers.clone().observe(&response(0x21, 6, 10, 19), 10).unwrap_err().contains("shrank"));
        assert!(numbers.clone().observe(&response(0x21, 6, 11, 20), 10).unwrap_err().contains("beyond"));
        numbers.observe(&response(0x21, 6, 10, 20), 10).unwrap();
    }

    #[test]
    fn data_out_of_place_is_seen() {
        let limits = DataLimits { segment: 8, burst: 16 };
        let data = |sn: u32, offset: u32, len: usize| {
            Pdu::new(0x25, 0).put32(36, sn).put32(40, offset).with_data(&vec![0; len])
        };
        let mut transfer = Transfer::default();
        transfer.data_in(&data(0, 0, 8), 24, limits).unwrap();
        assert!(transfer.clone().data_in(&data(1, 4, 8), 24, limits).is_err());
        assert!(transfer.clone().data_in(&data(2, 8, 8), 24, limits).is_err());
        assert!(transfer.clone().data_in(&data(1, 8, 9), 24, limits).is_err());
        transfer.data_in(&data(1, 8, 8), 24, limits).unwrap();
        assert!(
            transfer.clone().data_in(&data(2, 16, 8), 24, limits).unwrap_err().contains("MaxBurstLength")
        );
    }

    #[test]
    fn a_wrong_residual_is_seen() {
        let pdu = |flags: u8, count: u32| Pdu::new(0x21, 0x80 | flags).put32(44, count);
        residual(&pdu(2, 100), 412, 512).unwrap();
        residual(&pdu(4, 100), 612, 512).unwrap();
        assert!(residual(&pdu(0, 0), 412, 512).is_err());
        assert!(residual(&pdu(2, 99), 412, 512).is_err());
    }
}
