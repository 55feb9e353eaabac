//! Layers over unequal peers: each gets a contiguous span, the slowest stage is as fast as it can be.

use thiserror::Error;

use dunlin_swarm::Layers;

/// What a peer can take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Rows per second through one layer; what counts is the ratio between peers.
    pub rate: f64,
    /// Most layers it has memory for.
    pub layers_max: u32,
}

/// The peers cannot hold the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the peers have memory for {room} of {layers} layers; add peers or memory")]
pub struct TooLittleMemory {
    /// Layers they have room for.
    pub room: u32,
    /// Layers of the model.
    pub layers: u32,
}

/// Spans of `layers` layers for `peers` in their order; peers that would only slow the pipeline down get an empty span.
///
/// Minimises the longest time a row spends on one peer (`len / rate`). The least bottleneck is one of the values `len / rate`: they are
/// searched in order, and for each it is enough to fill peers greedily.
///
/// # Errors
/// When memory does not suffice.
pub fn partition(layers: u32, peers: &[Capacity]) -> Result<Vec<Layers>, TooLittleMemory> {
    let room = peers.iter().map(|p| p.layers_max.min(layers)).fold(0u32, u32::saturating_add);
    if room < layers || peers.is_empty() {
        return Err(TooLittleMemory { room, layers });
    }
    let rate = |p: &Capacity| if p.rate.is_finite() && p.rate > 0.0 { p.rate } else { f64::MIN_POSITIVE };
    let mut bounds: Vec<f64> = peers
        .iter()
        .flat_map(|p| (1..=p.layers_max.min(layers)).map(move |len| f64::from(len) / rate(p)))
        .collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    let fits = |bound: f64| -> Vec<u32> {
        peers
            .iter()
            .map(|p| {
                // The quotient may round up past a whole number of layers that does not fit the bound.
                let len = ((bound * rate(p)).min(f64::from(layers)).floor() as u32 + 1)
                    .min(p.layers_max)
                    .min(layers);
                if f64::from(len) / rate(p) <= bound { len } else { len.saturating_sub(1) }
            })
            .collect()
    };
    let enough = |bound: &f64| fits(*bound).iter().map(|&l| u64::from(l)).sum::<u64>() >= u64::from(layers);
    let first = bounds.partition_point(|bound| !enough(bound)).min(bounds.len() - 1);
    let mut lens = fits(bounds[first]);
    // More room than layers: taken off the longest first, so that equal peers get equal spans.
    let mut over = lens.iter().sum::<u32>() - layers;
    while over > 0 {
        let time = |i: &usize| f64::from(lens[*i]) / rate(&peers[*i]);
        let slowest = (0..lens.len())
            .filter(|i| lens[*i] > 0)
            .max_by(|a, b| time(a).total_cmp(&time(b)).then(a.cmp(b)));
        let Some(slowest) = slowest else { break };
        lens[slowest] -= 1;
        over -= 1;
    }
    let mut start = 0;
    Ok(lens
        .into_iter()
        .map(|len| {
            start += len;
            Layers::new(start - len, start)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Capacity, TooLittleMemory, partition};

    fn peers(of: &[(f64, u32)]) -> Vec<Capacity> {
        of.iter().map(|&(rate, layers_max)| Capacity { rate, layers_max }).collect()
    }

    fn lens(layers: u32, of: &[(f64, u32)]) -> Vec<u32> {
        partition(layers, &peers(of)).unwrap().iter().map(|l| l.len()).collect()
    }

    #[test]
    fn equal_peers_share_evenly_and_unequal_ones_by_speed() {
        assert_eq!(lens(30, &[(1.0, 30); 3]), [10, 10, 10]);
        assert_eq!(lens(31, &[(1.0, 31); 3]), [11, 10, 10]);
        assert_eq!(lens(30, &[(2.0, 30), (1.0, 30)]), [20, 10]);
        assert_eq!(lens(30, &[(2.0, 12), (1.0, 30)]), [12, 18]);
        assert_eq!(lens(3, &[(100.0, 3), (1.0, 3)]), [3, 0]);
    }

    #[test]
    fn too_little_memory_says_how_little() {
        let error = partition(30, &peers(&[(1.0, 4), (1.0, 5)])).unwrap_err();
        assert_eq!(error, TooLittleMemory { room: 9, layers: 30 });
    }

    /// The least bottleneck over all ways to cut.
    fn brute_force(layers: u32, peers: &[Capacity]) -> f64 {
        let Some((first, rest)) = peers.split_first() else {
            return if layers == 0 { 0.0 } else { f64::INFINITY };
        };
        (0..=layers.min(first.layers_max))
            .map(|len| (f64::from(len) / first.rate).max(brute_force(layers - len, rest)))
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn the_bottleneck_is_the_least_there_is(
            layers in 1..12u32,
            of in prop::collection::vec((1..8u32, 0..10u32), 1..5),
        ) {
            let peers: Vec<Capacity> =
                of.iter().map(|&(rate, layers_max)| Capacity { rate: f64::from(rate), layers_max }).collect();
            let best = brute_force(layers, &peers);
            match partition(layers, &peers) {
                Err(_) => prop_assert_eq!(best, f64::INFINITY),
                Ok(spans) => {
                    prop_assert_eq!(spans[0].start, 0);
                    prop_assert!(spans.windows(2).all(|w| w[0].end == w[1].start));
                    prop_assert_eq!(spans.last().unwrap().end, layers);
                    prop_assert!(spans.iter().zip(&peers).all(|(s, p)| s.len() <= p.layers_max));
                    let worst = spans.iter().zip(&peers).map(|(s, p)| f64::from(s.len()) / p.rate).fold(0.0, f64::max);
                    prop_assert!((worst - best).abs() < 1e-9, "{} instead of {}", worst, best);
                }
            }
        }
    }
}
