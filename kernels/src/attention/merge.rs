//! Segments of positions, each with a softmax of its own, merged in order: so that several threads can have parts of one long sequence.

use crate::math::exp_lane;

/// The softmax of some positions: the largest score, and the sum of the weights that come with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Softmax {
    pub(crate) max: f32,
    pub(crate) sum: f32,
}

/// What sums over positions are multiplied by when two softmaxes become one: those of the positions before, and those of the segment that comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    pub(crate) before: f32,
    pub(crate) next: f32,
}

impl Softmax {
    /// Of no position.
    pub(crate) const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Goes on with the next segment.
    #[inline(always)]
    pub(crate) fn merge(&mut self, next: Self) -> Share {
        let max = if next.max > self.max { next.max } else { self.max };
        let share = |of: f32| if of == max { 1.0 } else { exp_lane(of - max) };
        let share = Share { before: share(self.max), next: share(next.max) };
        *self = Self { max, sum: self.sum.mul_add(share.before, next.sum * share.next) };
        share
    }
}

/// The weighted sums of values that belong to [`Softmax::merge`].
#[inline(always)]
pub(crate) fn add_shares(before: &mut [f32], next: &[f32], share: Share) {
    for (before, next) in before.iter_mut().zip(next) {
        *before = before.mul_add(share.before, next * share.next);
    }
}
