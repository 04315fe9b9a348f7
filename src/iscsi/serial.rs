//! Sequence numbers with 32-bit serial arithmetic (RFC 1982; RFC 7143, 4.2.2): each kind is its own type.
//!
//! Knows comparison and stepping. Does not know which PDU carries which number.

macro_rules! serial_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The number `n` steps later.
            #[must_use]
            pub fn plus(self, n: u32) -> Self {
                Self(self.0.wrapping_add(n))
            }

            /// Returns the present number and steps to the next.
            pub fn take(&mut self) -> Self {
                let now = *self;
                self.0 = self.0.wrapping_add(1);
                now
            }

            /// True when `self` comes before `other` (RFC 1982, 3.2).
            pub fn before(self, other: Self) -> bool {
                self != other && other.0.wrapping_sub(self.0) < 1 << 31
            }

            /// Steps from `earlier` to `self`, modulo 2^32.
            pub fn distance_from(self, earlier: Self) -> u32 {
                self.0.wrapping_sub(earlier.0)
            }
        }
    };
}

serial_number!(
    /// Numbers commands within a session (RFC 7143, 4.2.2.1).
    CmdSn
);
serial_number!(
    /// Numbers responses within a connection (4.2.2.2).
    StatSn
);
serial_number!(
    /// Numbers Data-In or Data-Out PDUs within a task or burst (4.2.2.4).
    DataSn
);
serial_number!(
    /// Numbers R2Ts within a task (11.8.2).
    R2tSn
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let high = CmdSn(u32::MAX);
        assert!(high.before(high.plus(1)));
        assert!(!high.plus(1).before(high));
        assert!(!high.before(high));
        assert_eq!(high.plus(3).distance_from(high), 3);
    }
}
