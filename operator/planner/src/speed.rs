//! How fast peers are beside one another, from measurements that say more about the moment than about the peer.
//!
//! What a peer computes in a second depends on what it is asked to compute: a prompt makes many rows at once, a token one. So peers are
//! compared with one another at the same moment, when they serve the same sessions ([`beside`]), many moments are taken together
//! ([`PeerPace`]), and what is left of the noise is taken for none ([`even_out`]).

use std::collections::VecDeque;

/// Moments that are remembered, and that it takes before anything is said. One a second: a peer that is slow for less than half of that is
/// not a slow peer.
const MOMENTS: usize = 300;
/// What was said of a peer changes only by more than this factor.
const CHANGE: f64 = 1.25;

/// The speed of one peer as a multiple of the others', over many moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerPace {
    /// Newest last.
    moments: VecDeque<f64>,
    speed: Option<f64>,
}

impl PeerPace {
    /// Enters what [`beside`] gave for one moment; the oldest is forgotten.
    pub fn push(&mut self, ratio: f64) {
        if !is_measured(ratio) {
            return;
        }
        if self.moments.len() == MOMENTS {
            self.moments.pop_front();
        }
        self.moments.push_back(ratio);
        if self.moments.len() < MOMENTS {
            return;
        }
        let median = median(self.moments.iter().copied()).unwrap_or(1.0);
        if self.speed.is_none_or(|said| !alike(said, median, CHANGE)) {
            self.speed = Some(median);
        }
    }

    /// 1 is as fast as the others; `None` while too little is known.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        self.speed
    }
}

/// `rate` as a multiple of the median of `all`, which it is one of: rates of peers at one moment. `None` when there is nobody to compare
/// with.
#[must_use]
pub fn beside(rate: f64, all: &[f64]) -> Option<f64> {
    let measured = all.iter().copied().filter(|rate| is_measured(*rate));
    let (count, median) = (measured.clone().count(), median(measured)?);
    (count > 1 && is_measured(rate)).then(|| rate / median)
}

/// Rates of peers, cleaned: one that is not measured (0 or not finite) is the median, and so is one that differs from it by no more than the
/// factor `noise`.
#[must_use]
pub fn even_out(rates: &[f64], noise: f64) -> Vec<f64> {
    let usual = usual(rates);
    let cleaned = |rate: &f64| if is_measured(*rate) && !alike(*rate, usual, noise) { *rate } else { usual };
    rates.iter().map(cleaned).collect()
}

/// The median of the rates that are measured; 1 when none is.
#[must_use]
pub fn usual(rates: &[f64]) -> f64 {
    median(rates.iter().copied().filter(|rate| is_measured(*rate))).unwrap_or(1.0)
}

fn is_measured(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

/// Whether two rates differ by no more than the factor `by`.
fn alike(a: f64, b: f64, by: f64) -> bool {
    a <= b * by && b <= a * by
}

/// The larger one of the two in the middle when there are two.
fn median(rates: impl Iterator<Item = f64>) -> Option<f64> {
    let mut rates: Vec<f64> = rates.collect();
    let middle = rates.len() / 2;
    (!rates.is_empty()).then(|| *rates.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_and_missing_measurements_make_no_difference_and_real_ones_do() {
        let rates = |of: &[f64]| even_out(of, 1.5);
        assert_eq!(rates(&[100.0, 130.0, 0.0, f64::NAN]), [130.0; 4]);
        assert_eq!(rates(&[400.0, 200.0, 100.0]), [400.0, 200.0, 100.0]);
        assert_eq!(rates(&[0.0, 0.0]), [1.0; 2]);
        assert_eq!(even_out(&[9.0, 10.0, 0.0, 12.0, 3.3], 1.25), [10.0, 10.0, 10.0, 10.0, 3.3]);
    }

    #[test]
    fn peers_are_compared_with_one_another() {
        assert_eq!(beside(50.0, &[100.0, 50.0, 120.0, 0.0]), Some(0.5));
        assert_eq!(beside(50.0, &[50.0, 0.0]), None, "there is nobody else");
        assert_eq!(beside(0.0, &[50.0, 50.0]), None);
    }

    #[test]
    fn a_busy_while_says_nothing_and_a_lasting_one_does() {
        let mut pace = PeerPace::default();
        let mut push = |ratio: f64, times: usize| {
            (0..times).for_each(|_| pace.push(ratio));
            pace.speed()
        };
        assert_eq!(push(0.2, MOMENTS / 2 - 1), None);
        assert_eq!(push(1.0, MOMENTS / 2), None);
        assert_eq!(push(1.0, MOMENTS), Some(1.0));
        assert_eq!(push(0.2, MOMENTS / 2 - 1), Some(1.0));
        assert_eq!(push(1.0, MOMENTS), Some(1.0));
        assert_eq!(push(0.2, MOMENTS / 2 + 1), Some(0.2));
        assert_eq!(push(0.22, MOMENTS), Some(0.2), "that is no change");
        assert_eq!(push(f64::NAN, MOMENTS), Some(0.2));
    }
}
