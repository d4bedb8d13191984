//! The keys, their values, and how the next key is chosen.

use std::sync::Arc;

use fastrand::Rng;

/// All keys begin with it, so that a run can be told from everything else in the database.
pub const PREFIX: &str = "parhelion-bench:";
/// The exponent of the Zipf distribution that YCSB made usual.
const ZIPF_EXPONENT: f64 = 0.99;
/// Most keys: the table of the Zipf distribution takes 8 bytes for each.
pub const KEYS_MAX: u64 = 10_000_000;

/// The name of a string key.
pub fn name(key: u64) -> String {
    format!("{PREFIX}{key:012}")
}

/// The value of a string key: begins with the key's name, so that a reply to another request is found.
pub fn value(key: u64, size: usize) -> Vec<u8> {
    let mut value = name(key).into_bytes();
    value.resize(size, b'x');
    value
}

/// Whether `value` is one of `key`, whatever its size.
pub fn is_value(key: u64, value: &[u8]) -> bool {
    let name = name(key);
    let compared = name.len().min(value.len());
    value[..compared] == name.as_bytes()[..compared]
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Distribution {
    /// All alike.
    #[default]
    Uniform,
    /// Few keys often, many seldom (exponent 0.99).
    Zipf,
}

/// Draws keys.
#[derive(Clone, Debug)]
pub struct Picker {
    keys: u64,
    /// Zipf: the share of the draws that go to a key or one before it.
    shares: Option<Arc<[f64]>>,
}

impl Picker {
    /// Of `keys` keys, at least one and at most [`KEYS_MAX`].
    pub fn new(distribution: Distribution, keys: u64) -> Self {
        let keys = keys.clamp(1, KEYS_MAX);
        let shares = (distribution == Distribution::Zipf).then(|| {
            let mut sum = 0.0;
            let mut shares: Vec<f64> = (1..=keys)
                .map(|rank| {
                    sum += (rank as f64).powf(-ZIPF_EXPONENT);
                    sum
                })
                .collect();
            shares.iter_mut().for_each(|share| *share /= sum);
            shares.into()
        });
        Self { keys, shares }
    }

    /// The next key.
    pub fn draw(&self, rng: &mut Rng) -> u64 {
        match &self.shares {
            None => rng.u64(..self.keys),
            Some(shares) => {
                let drawn = rng.f64();
                let place = shares.partition_point(|&share| share <= drawn);
                (place as u64).min(self.keys - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution) -> Vec<u32> {
        let (picker, mut rng) = (Picker::new(distribution, 1000), Rng::with_seed(7));
        let mut counts = vec![0; 1000];
        for _ in 0..100_000 {
            counts[picker.draw(&mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn uniform_draws_hit_every_key_about_equally() {
        let counts = counts(Distribution::Uniform);
        assert!(
            counts.iter().all(|&n| (40..=170).contains(&n)),
            "{counts:?}"
        );
    }

    #[test]
    fn zipf_draws_follow_the_rank() {
        let counts = counts(Distribution::Zipf);
        // The first of 1000 keys gets 1 of the harmonic sum of about 7.7.
        assert!((12_000..=14_500).contains(&counts[0]), "{}", counts[0]);
        let tenth = f64::from(counts[9]) / f64::from(counts[0]);
        assert!((0.08..=0.13).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_value_is_told_from_that_of_another_key() {
        assert!(is_value(5, &value(5, 64)));
        assert!(!is_value(6, &value(5, 64)));
        assert_eq!(value(5, 1 << 20).len(), 1 << 20);
        // Too short to hold the number: only the prefix is compared.
        assert!(is_value(5, &value(5, 4)));
    }
}
