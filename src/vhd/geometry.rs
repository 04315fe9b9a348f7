//! The CHS geometry of a footer: decoration, but checked by other tools.
//!
//! Knows the appendix of the VHD specification. Does not know the size of a disk: that is `current size`, always.

/// Cylinders, heads and sectors per track, as a footer stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The specification's geometry of a disk: at most `sectors`, usually less, never more.
    pub fn of(sectors: u64) -> Self {
        let total = sectors.min(65_535 * 16 * 255);
        let (heads, per_track) = if total >= 65_535 * 16 * 63 { (16, 255) } else { Self::small(total) };
        let cylinders = total / per_track / heads;
        // The clamp above keeps every value in range: 65,535 cylinders, 16 heads, 255 sectors.
        Self { cylinders: cylinders as u16, heads: heads as u8, sectors_per_track: per_track as u8 }
    }

    /// Below 65535 x 16 x 63 sectors: try 17, 31 and 63 sectors per track until 1024 cylinders suffice.
    fn small(total: u64) -> (u64, u64) {
        let by_track = total / 17;
        let heads = by_track.div_ceil(1024).max(4);
        if by_track < heads * 1024 && heads <= 16 {
            return (heads, 17);
        }
        let by_track = total / 31;
        if by_track < 16 * 1024 { (16, 31) } else { (16, 63) }
    }

    /// The sectors this geometry can address.
    pub fn sectors(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forty_gib_uses_255_sectors_per_track() {
        let geometry = Geometry::of(40 << 21);
        assert_eq!(geometry, Geometry { cylinders: 20_560, heads: 16, sectors_per_track: 255 });
    }

    #[test]
    fn geometry_stands_still_above_127_gib() {
        assert_eq!(Geometry::of(u64::MAX).sectors(), 65_535 * 16 * 255);
    }

    proptest! {
        #[test]
        fn geometry_is_never_above_the_size(sectors in 1u64..0xFF00_0000) {
            prop_assert!(Geometry::of(sectors).sectors() <= sectors);
        }

        #[test]
        fn geometry_loses_less_than_a_cylinder(sectors in 4096u64..65_535 * 16 * 255) {
            prop_assert!(sectors - Geometry::of(sectors).sectors() < 16 * 255);
        }
    }
}
