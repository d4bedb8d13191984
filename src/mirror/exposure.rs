//! Which mirrors of a source see a unit.
//!
//! The core draws one number per unit and every mirror compares it with its own exposure. So the
//! mirror with the lower exposure sees a subset of what the other sees, and two mirrors with the
//! same exposure see the same units: their results can be laid side by side.

use smallvec::SmallVec;

use super::unit::MirrorSet;
use crate::limits::MIRRORS_MAX;

/// The share of units that a mirror sees: 0.0 none, 1.0 all.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Exposure(f64);

/// Not a number from 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("exposure must be a number from 0.0 to 1.0, not {0}")]
pub struct BadExposure(
    /// What was given.
    pub f64,
);

impl Exposure {
    /// No unit.
    pub const NONE: Exposure = Exposure(0.0);
    /// Every unit.
    pub const ALL: Exposure = Exposure(1.0);

    /// Checks the range; NaN is outside it.
    pub fn new(share: f64) -> Result<Exposure, BadExposure> {
        if (0.0..=1.0).contains(&share) {
            Ok(Exposure(share))
        } else {
            Err(BadExposure(share))
        }
    }

    /// The share, 0.0 to 1.0.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether a draw from `[0, 1)` lands inside.
    pub fn admits(self, draw: f64) -> bool {
        draw < self.0
    }
}

impl TryFrom<f64> for Exposure {
    type Error = BadExposure;

    fn try_from(share: f64) -> Result<Self, BadExposure> {
        Exposure::new(share)
    }
}

/// The exposures of all mirrors of one source.
#[derive(Clone, Debug, Default)]
pub struct ExposureSet {
    /// Mirrors with exposure 1.
    always: MirrorSet,
    /// Mirrors in between: only these need a draw.
    sampled: SmallVec<[(u8, Exposure); 4]>,
}

impl ExposureSet {
    /// The exposures in the order of the mirrors; entry `i` is mirror `i`.
    ///
    /// # Panics
    /// With more than [`MIRRORS_MAX`] mirrors, which the configuration refuses.
    pub fn new(exposures: &[Exposure]) -> ExposureSet {
        assert!(exposures.len() <= MIRRORS_MAX, "the config bounds mirrors");
        let mut set = ExposureSet::default();
        for (mirror, exposure) in exposures.iter().enumerate() {
            if *exposure == Exposure::ALL {
                set.always.insert(mirror);
            } else if *exposure != Exposure::NONE {
                set.sampled.push((mirror as u8, *exposure));
            }
        }
        set
    }

    /// Whether [`ExposureSet::decide`] looks at its draw at all.
    pub fn needs_draw(&self) -> bool {
        !self.sampled.is_empty()
    }

    /// The mirrors that see the unit with this draw from `[0, 1)`.
    pub fn decide(&self, draw: f64) -> MirrorSet {
        let mut exposed = self.always;
        for (mirror, exposure) in &self.sampled {
            if exposure.admits(draw) {
                exposed.insert(usize::from(*mirror));
            }
        }
        exposed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_from_zero_to_one_are_exposures() {
        for share in [0.0, -0.0, 0.1, 1.0] {
            assert_eq!(Exposure::new(share).unwrap().get(), share);
        }
        for share in [-0.001, 1.001, 50.0, f64::NAN, f64::INFINITY] {
            assert!(Exposure::new(share).is_err());
        }
    }

    #[test]
    fn zero_and_one_need_no_draw_and_are_exact() {
        let set = ExposureSet::new(&[Exposure::ALL, Exposure::NONE, Exposure::ALL]);
        assert!(!set.needs_draw());
        for draw in [0.0, 0.5, 0.999_999_999] {
            assert_eq!(set.decide(draw).iter().collect::<Vec<_>>(), [0, 2]);
        }
    }

    #[test]
    fn shares_come_out_and_lower_exposures_see_a_subset() {
        let shares = [0.1, 0.5, 0.5, 1.0];
        let exposures = shares.map(|share| Exposure::new(share).unwrap());
        let set = ExposureSet::new(&exposures);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut seen = [0u32; 4];
        for _ in 0..100_000 {
            let exposed = set.decide(rng.f64());
            assert!(!exposed.contains(0) || exposed.contains(1));
            assert_eq!(exposed.contains(1), exposed.contains(2));
            for mirror in exposed.iter() {
                seen[mirror] += 1;
            }
        }
        for (count, share) in seen.iter().zip(shares) {
            assert!((f64::from(*count) / 100_000.0 - share).abs() < 0.01);
        }
    }
}
