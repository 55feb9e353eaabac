//! Where the pipeline is cut: spans for members, by speed and within memory; places that lost peers left; and whether cutting anew is
//! worth moving layers for.

use std::collections::BTreeSet;

use dunlin_swarm::{Layers, PeerName, ranges};

use crate::member::Member;
use crate::partition::{Capacity, partition};
use crate::speed::{even_out, usual};
use crate::wanted::LayoutGoal;

/// A new cut moves layers only if the slowest stage gets faster by more than this, in percent.
const GAIN_PERCENT_MIN: u32 = 10;
/// Every share of the model that has to be loaded for a new cut must be worth this much more, in percent of gain for the whole model.
const GAIN_PERCENT_FOR_MODEL: u32 = 25;
/// Peers whose speed is within this factor of the median count as equal.
pub const SPEED_NOISE: f64 = 1.5;

/// The speed of each member, cleaned.
#[must_use]
pub fn speeds(members: &[&Member]) -> Vec<f64> {
    even_out(&members.iter().map(|m| m.speed).collect::<Vec<_>>(), SPEED_NOISE)
}

/// Members that are faster or slower than is usual, with their speed in percent of the usual one, in tens.
#[must_use]
pub fn unusual(members: &[Member]) -> Vec<(&PeerName, u32)> {
    let speeds: Vec<f64> = members.iter().map(|m| m.speed).collect();
    let usual = usual(&speeds);
    let all = members.iter().zip(even_out(&speeds, SPEED_NOISE));
    all.filter(|(_, speed)| *speed != usual)
        .map(|(member, speed)| (&member.name, ((speed / usual * 10.0).round() as u32 * 10).max(1)))
        .collect()
}

/// Spans for `members` in their order, and whether every span fits into its member's memory.
///
/// First within the memory that leaves room for shadows, then within all memory, then as if there were enough.
#[must_use]
pub fn cut(wanted: &LayoutGoal, members: &[&Member]) -> (Vec<Layers>, bool) {
    let copies = wanted.shadows.min(members.len().saturating_sub(1)) as u64;
    let fitting = [copies + 1, 1].into_iter().find_map(|share| within(wanted, members, share));
    if let Some(spans) = fitting {
        return (spans, true);
    }
    let layers = wanted.layers();
    let all = speeds(members).into_iter().map(|rate| Capacity { rate, layers_max: layers });
    (partition(layers, &all.collect::<Vec<_>>()).unwrap_or_default(), false)
}

/// Spans that fit into a `share`-th of each member's memory.
fn within(wanted: &LayoutGoal, members: &[&Member], share: u64) -> Option<Vec<Layers>> {
    let (layers, none) = (wanted.layers(), BTreeSet::new());
    let all = speeds(members).into_iter().map(|rate| Capacity { rate, layers_max: layers });
    let mut capacities: Vec<Capacity> = all.collect();
    loop {
        let spans = partition(layers, &capacities).ok()?;
        let mut fits = true;
        for ((span, member), capacity) in spans.iter().zip(members).zip(&mut capacities) {
            let room = member.room_bytes / share;
            let takes = |len: &u32| wanted.need(Layers::new(span.start, span.start + len), &none) <= room;
            let fit = (0..=span.len()).take_while(takes).last().unwrap_or(0);
            if fit < span.len() {
                // Never more than this again, so the loop ends.
                (capacity.layers_max, fits) = (fit, false);
            }
        }
        if fits {
            return Some(spans);
        }
    }
}

/// By how many percent the slowest stage of `spans` would get faster if it were cut like `better`: 0 when that is not worth loading
/// `moved_percent` of the model for, or when the speed of a member is not known.
#[must_use]
pub fn gain_percent(members: &[&Member], spans: &[Layers], better: &[Layers], moved_percent: u32) -> u32 {
    if members.iter().any(|m| m.speed <= 0.0) {
        return 0;
    }
    let speeds = speeds(members);
    let slowest = |spans: &[Layers]| {
        spans.iter().zip(&speeds).map(|(span, speed)| f64::from(span.len()) / speed).fold(0.0, f64::max)
    };
    let (now, then) = (slowest(spans), slowest(better));
    let gain = if now > 0.0 && then < now { ((1.0 - then / now) * 100.0).floor() as u32 } else { 0 };
    let worth = GAIN_PERCENT_MIN + GAIN_PERCENT_FOR_MODEL * moved_percent.min(100) / 100;
    if gain > worth { gain } else { 0 }
}

/// The layers that none of `spans` covers.
#[must_use]
pub fn gaps(spans: &[Layers], layers: u32) -> Vec<Layers> {
    let covered: BTreeSet<u32> = spans.iter().flat_map(|span| span.iter()).collect();
    ranges(&(0..layers).filter(|l| !covered.contains(l)).collect())
}

/// Places for `missing` peers in the layers that none of `spans` covers: one in each gap, more in wide ones. `usual`: layers of an
/// average peer. `None` when there are more gaps than missing peers: fewer peers are wanted now.
#[must_use]
pub fn places(spans: &[Layers], layers: u32, missing: usize, usual: f64) -> Option<Vec<Layers>> {
    let gaps = gaps(spans, layers);
    if gaps.len() > missing {
        return None;
    }
    let mut pieces = vec![1u32; gaps.len()];
    for _ in gaps.len()..missing {
        // A piece much smaller than a usual span is no place: who took it would hardly help.
        let width = |i: usize| f64::from(gaps[i].len()) / f64::from(pieces[i]);
        let fits =
            |i: &usize| f64::from(gaps[*i].len()) / f64::from(pieces[*i] + 1) >= (usual * 0.75).max(1.0);
        let widest = (0..gaps.len()).filter(fits).max_by(|a, b| width(*a).total_cmp(&width(*b)));
        let Some(widest) = widest else { break };
        pieces[widest] += 1;
    }
    let split = |(gap, pieces): (&Layers, u32)| {
        let at = |i: u32| gap.start + gap.len() * i / pieces;
        (0..pieces).map(|i| Layers::new(at(i), at(i + 1))).collect::<Vec<_>>()
    };
    Some(gaps.iter().zip(pieces).flat_map(split).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(speeds: &[f64]) -> Vec<Member> {
        let member = |speed: &f64| Member { speed: *speed, room_bytes: u64::MAX, ..Member::default() };
        speeds.iter().map(member).collect()
    }

    #[test]
    fn a_gain_must_be_worth_what_is_loaded_for_it_and_be_known() {
        let l = Layers::new;
        let (even, uneven) = ([l(0, 10), l(10, 20), l(20, 30)], [l(0, 12), l(12, 24), l(24, 30)]);
        let gain = |speeds: &[f64], moved_percent| {
            let all = members(speeds);
            gain_percent(&all.iter().collect::<Vec<_>>(), &even, &uneven, moved_percent)
        };
        assert_eq!(gain(&[1.0, 1.0, 0.5], 10), 40);
        assert_eq!(gain(&[1.0, 1.0, 0.6], 10), 28);
        assert_eq!(gain(&[1.0, 1.0, 0.6], 90), 0, "too much to load");
        assert_eq!(gain(&[1.0, 1.0, 1.0], 0), 0);
        assert_eq!(gain(&[1.0, 0.0, 0.5], 0), 0, "nobody knows");
    }

    #[test]
    fn the_embedding_in_the_first_layer_leaves_less_room_for_others() {
        let mut all = members(&[1.0; 3]);
        for member in &mut all {
            member.room_bytes = 12;
        }
        let mut wanted = LayoutGoal { layer_bytes: vec![1; 30], ..LayoutGoal::default() };
        wanted.layer_bytes[0] = 5;
        let (spans, fits) = cut(&wanted, &all.iter().collect::<Vec<_>>());
        assert_eq!((spans.iter().map(|s| s.len()).collect::<Vec<_>>(), fits), (vec![8, 11, 11], true));
        wanted.layer_bytes[0] = 12;
        assert!(!cut(&wanted, &all.iter().collect::<Vec<_>>()).1);
    }

    #[test]
    fn each_gap_is_a_place_and_a_wide_one_is_as_many_as_are_missing() {
        let l = Layers::new;
        let places = |spans: &[Layers], missing| places(spans, 30, missing, 10.0);
        assert_eq!(places(&[l(0, 10), l(20, 30)], 1), Some(vec![l(10, 20)]));
        assert_eq!(places(&[l(0, 10)], 2), Some(vec![l(10, 20), l(20, 30)]));
        // One peer with more than its equal share was lost: one place.
        assert_eq!(places(&[l(0, 8), l(25, 30)], 1), Some(vec![l(8, 25)]));
        assert_eq!(places(&[l(0, 10), l(20, 30)], 0), None);
        // More peers are wanted than there are places.
        assert_eq!(places(&[l(0, 10), l(20, 30)], 3), Some(vec![l(10, 20)]));
    }
}
