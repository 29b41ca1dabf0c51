//! Use of many capacities side by side in a few machine words, compared and
//! added all at once.
//!
//! A lane has 16 bits: [`FULL`] is all of its capacity, and the top bit is spare.
//! Use is rounded down, so what is too much in units is too much.

/// A capacity in units of use. A sum of something that fits and twice one unit more than this is
/// the largest value that a lane can compare.
pub(super) const FULL: u64 = 0x3fff;
const LANE_BITS: usize = 16;
/// Lanes of a word.
pub(super) const LANES: usize = 64 / LANE_BITS;
/// The top bit of every lane.
const TOPS: u64 = 0x8000_8000_8000_8000;
const ALL_FULL: u64 = FULL | FULL << 16 | FULL << 32 | FULL << 48;
/// Generous bound on the rounding of a product of floats.
const ROUNDING: f64 = 1e-9;

/// Units of every lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed<const W: usize>([u64; W]);

impl<const W: usize> Packed<W> {
    pub(super) const NOTHING: Self = Self([0; W]);
    pub(super) const ALL: Self = Self([ALL_FULL; W]);

    pub(super) fn set(&mut self, lane: usize, units: u64) {
        self.0[lane / LANES] |= units << (lane % LANES * LANE_BITS);
    }

    #[inline]
    pub(super) fn get(&self, lane: usize) -> u64 {
        (self.0[lane / LANES] >> (lane % LANES * LANE_BITS)) & 0x7fff
    }

    #[inline]
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|w| self.0[w] + other.0[w]))
    }

    /// Whether no lane exceeds the other's.
    #[inline]
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let words = self.0.iter().zip(&other.0);
        words.fold(TOPS, |all, (a, b)| all & ((b | TOPS) - a)) == TOPS
    }

    #[inline]
    pub(super) fn fits(&self) -> bool {
        self.is_within(&Self::ALL)
    }

    /// The smaller of both in each lane.
    #[inline]
    pub(super) fn least(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|w| {
            let own = lanes_within(self.0[w], other.0[w]);
            (self.0[w] & own) | (other.0[w] & !own)
        }))
    }

    /// Zero in the lanes that stay within capacity whatever of `rest` is added.
    #[inline]
    pub(super) fn without_ample(&self, rest: &Self) -> Self {
        Self(std::array::from_fn(|w| {
            self.0[w] & !lanes_within(self.0[w] + rest.0[w], ALL_FULL)
        }))
    }
}

/// All bits but the top one of the lanes in which `a` does not exceed `b`.
#[inline]
const fn lanes_within(a: u64, b: u64) -> u64 {
    let tops = ((b | TOPS) - a) & TOPS;
    tops - (tops >> (LANE_BITS - 1))
}

/// Units not above `used`; above the capacity the amount does not matter.
pub(super) fn rounded_down(used: f64, capacity: f64) -> u64 {
    ((used / capacity * FULL as f64 * (1.0 - ROUNDING)) as u64).min(FULL + 1)
}

/// Units not below `used`, but at most [`FULL`].
pub(super) fn rounded_up(used: f64, capacity: f64) -> u64 {
    ((used / capacity * FULL as f64 * (1.0 + ROUNDING) + 1.0) as u64).min(FULL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Dice;

    const LENGTH: usize = 2 * LANES;

    fn packed(units: &[u64]) -> Packed<2> {
        let mut packed = Packed::NOTHING;
        for (lane, units) in units.iter().enumerate() {
            packed.set(lane, *units);
        }
        packed
    }

    fn drawn(dice: &mut Dice, most: u64) -> Vec<u64> {
        let near = |dice: &mut Dice| match dice.below(4) {
            0 => 0,
            1 => most,
            _ => dice.below(most as usize + 1) as u64,
        };
        (0..LENGTH).map(|_| near(dice)).collect()
    }

    #[test]
    fn lanes_are_worked_out_each_by_itself() {
        let mut dice = Dice::new(7);
        let mut seen = [0; 2];
        for _ in 0..20_000 {
            let (a, b) = (drawn(&mut dice, FULL), drawn(&mut dice, FULL));
            let (x, y) = (packed(&a), packed(&b));
            let each = |of: fn(u64, u64) -> u64| -> Vec<u64> {
                a.iter().zip(&b).map(|(a, b)| of(*a, *b)).collect()
            };
            assert_eq!(x.plus(&y), packed(&each(|a, b| a + b)));
            assert_eq!(x.least(&y), packed(&each(u64::min)));
            let kept = each(|a, b| if a + b <= FULL { 0 } else { a });
            assert_eq!(x.without_ample(&y), packed(&kept));
            let within = a.iter().zip(&b).all(|(a, b)| a <= b);
            assert_eq!(x.is_within(&y), within);
            assert!(x.least(&y).is_within(&x));
            let fits = a.iter().zip(&b).all(|(a, b)| a + b <= FULL);
            assert_eq!(x.plus(&y).fits(), fits);
            seen[usize::from(fits)] += 1;
            let three = packed(&drawn(&mut dice, FULL + 1))
                .plus(&x)
                .plus(&packed(&[FULL + 1]));
            assert!(!three.fits());
            assert_eq!(x.get(5), a[5]);
        }
        assert!(seen[0] > 0);
    }

    #[test]
    fn rounding_never_claims_too_much_use() {
        let mut dice = Dice::new(3);
        for _ in 0..20_000 {
            let parts = 1 + dice.below(30);
            let needs: Vec<f64> = (0..parts)
                .map(|_| 1e-3 * dice.below(1_000_000) as f64)
                .collect();
            let capacity: f64 = needs.iter().sum();
            if capacity > 0.0 {
                let units = needs
                    .iter()
                    .map(|n| rounded_down(*n, capacity))
                    .sum::<u64>();
                assert!(units <= FULL, "{units}");
                assert!(rounded_up(capacity, capacity) == FULL);
            }
        }
        assert_eq!(rounded_down(2.5, 1.0), FULL + 1);
    }
}
