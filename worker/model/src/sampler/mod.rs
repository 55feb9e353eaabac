//! The next token from logits.
//!
//! The choice depends on the logits, the parameters, the tokens before and the position: sampled again, a position gives the same token.
//! Sums run in a fixed order and exp is our own, so it does so on every machine.

mod ranking;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use dunlin_kernels::math::ln;
use dunlin_kernels::softmax::{largest, weights};
use dunlin_protocol::SamplingParams;

use ranking::Ranking;

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Index of the token in the vocabulary.
    pub token: u32,
    /// Its log-probability after penalties, before temperature and cuts; 0 when not asked for.
    pub logprob: f32,
    /// The likeliest tokens with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the token at index `position` of a sequence whose tokens before are `tokens`, the first `prompt_len` of them being the prompt.
/// `logits` (one per token of the vocabulary, finite) are changed.
///
/// Ties go to the lowest token.
///
/// # Panics
/// When `logits` is empty.
#[must_use]
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    tokens: &[u32],
    prompt_len: usize,
    position: u32,
) -> Sampled {
    assert!(!logits.is_empty(), "logits of no tokens");
    penalise(logits, params, tokens, prompt_len);
    let max = largest(logits);
    let logprobs = params.logprobs.map(|count| LogProbs::of(logits, max, usize::from(count)));
    let token =
        if params.temperature <= 0.0 { greedy(logits, max) } else { draw(logits, max, params, position) };
    let (logprob, top) = logprobs.map_or((0.0, Vec::new()), |l| (l.of_token(logits, token), l.top));
    Sampled { token, logprob, top }
}

fn penalise(logits: &mut [f32], params: &SamplingParams, tokens: &[u32], prompt_len: usize) {
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if params.repetition_penalty != 1.0 {
        let mut seen: Vec<u32> = tokens.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / params.repetition_penalty
                } else {
                    *logit * params.repetition_penalty
                };
            }
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for &token in tokens.get(prompt_len..).unwrap_or_default() {
            *counts.entry(token).or_default() += 1;
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= params.presence_penalty + count as f32 * params.frequency_penalty;
            }
        }
    }
}

/// The first token of the largest logit.
fn greedy(logits: &[f32], max: f32) -> u32 {
    logits.iter().position(|logit| *logit == max).unwrap_or(0) as u32
}

struct LogProbs {
    /// log of the sum of exp over the vocabulary.
    normaliser: f32,
    top: Vec<(u32, f32)>,
}

impl LogProbs {
    fn of(logits: &[f32], max: f32, count: usize) -> Self {
        let sum: f32 = weights(logits, max, 1.0).iter().sum();
        let normaliser = max + ln(sum);
        let top = likeliest(logits, count);
        let top = top.into_iter().map(|token| (token, logits[token as usize] - normaliser)).collect();
        Self { normaliser, top }
    }

    fn of_token(&self, logits: &[f32], token: u32) -> f32 {
        logits[token as usize] - self.normaliser
    }
}

/// The `count` likeliest tokens, best first, ties to the lowest.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let key = |(logit, token): (&f32, u32)| u64::from(ranking::descending(*logit)) << 32 | u64::from(token);
    let mut order: Vec<u64> = logits.iter().zip(0..).map(key).collect();
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable(count - 1);
    }
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|key| key as u32).collect()
}

/// Cuts in the order top-k, top-p, min-p, then inverse transform sampling over what is left, likeliest first.
fn draw(logits: &[f32], max: f32, params: &SamplingParams, position: u32) -> u32 {
    let mut ranking = match params.top_k as usize {
        0 => Ranking::new(logits, max, params.temperature),
        count => Ranking::of_likeliest(logits, max, params.temperature, count),
    };
    let mut total = ranking.sum();
    if params.top_p < 1.0 {
        let limit = total * params.top_p.max(0.0);
        total = ranking.first(|sum| sum >= limit).map_or(total, |found| found.sum);
    }
    if params.min_p > 0.0 {
        ranking.keep_heavier(params.min_p);
        // Of two beginnings of one order the shorter one counts, and sums never fall.
        total = total.min(ranking.sum());
    }
    let point = uniform(params.seed, position) * total;
    let drawn = ranking.first(|sum| point < sum).and_then(|found| {
        let equal = logits.iter().zip(0u32..).filter(|(logit, _)| logit.to_bits() == found.logit.to_bits());
        equal.map(|(_, token)| token).nth(found.before)
    });
    // With a temperature that is not a number nothing weighs anything.
    drawn.unwrap_or_else(|| greedy(logits, max))
}

/// A number in [0, 1) that depends on seed and position alone (splitmix64, Steele et al. 2014).
fn uniform(seed: u64, position: u32) -> f32 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let key = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let z = mix(key.wrapping_add(u64::from(position).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (z >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dunlin_kernels::math::exp;
    use dunlin_protocol::SamplingParams;
    use proptest::prelude::*;

    use super::{sample, uniform};

    /// [`super::draw`] as it reads: everything sorted, everything added up.
    fn drawn(logits: &[f32], params: &SamplingParams, position: u32) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        order.truncate(if params.top_k == 0 { logits.len() } else { params.top_k as usize });
        let max = logits[order[0] as usize];
        let mut weights: Vec<f32> =
            order.iter().map(|&i| exp((logits[i as usize] - max) / params.temperature)).collect();
        if params.top_p < 1.0 {
            let limit = weights.iter().sum::<f32>() * params.top_p.max(0.0);
            let mut sum = 0.0;
            let kept = weights.iter().position(|w| {
                sum += w;
                sum >= limit
            });
            weights.truncate(kept.map_or(weights.len(), |last| last + 1));
        }
        if params.min_p > 0.0 {
            let limit = weights[0] * params.min_p;
            let kept = weights.iter().take_while(|w| **w >= limit).count();
            weights.truncate(kept.max(1));
        }
        let total: f32 = weights.iter().sum();
        let point = uniform(params.seed, position) * total;
        let mut sum = 0.0;
        for (&token, weight) in order.iter().zip(&weights) {
            sum += weight;
            if point < sum {
                return token;
            }
        }
        order[weights.len() - 1]
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let cuts = (
            prop_oneof![Just(0u32), 1..5u32, 1..5000u32],
            prop_oneof![Just(1f32), 0f32..1.0, 0.99f32..1.0],
            prop_oneof![Just(0f32), 0f32..1.0, 0f32..1e-3, 0f32..1e-7],
        );
        let penalties = (0.5f32..2.0, -2f32..2.0, -2f32..2.0);
        (0.01f32..2.0, cuts, penalties, any::<u64>()).prop_map(|(temperature, cuts, penalties, seed)| {
            let (top_k, top_p, min_p) = cuts;
            let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
            SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                seed,
                ..SamplingParams::default()
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_token_is_that_of_everything_sorted(
            logits in super::testing::logits(2000),
            params in params(),
            tokens in prop::collection::vec(0..2000u32, 0..40),
            plain in any::<bool>(),
            position in 0..10_000u32,
        ) {
            let tokens = if plain { Vec::new() } else { tokens };
            let mut penalised = logits.clone();
            super::penalise(&mut penalised, &params, &tokens, tokens.len() / 2);
            let want = drawn(&penalised, &params, position);
            let got = sample(&mut logits.clone(), &params, &tokens, tokens.len() / 2, position).token;
            prop_assert_eq!(got, want);
        }
    }

    /// Logits of a vocabulary as large as there are, spread like those of models, flat and peaked.
    #[test]
    fn the_token_is_that_of_everything_sorted_in_a_large_vocabulary() {
        for (seed, spread) in [(1, 0.3f32), (2, 1.0), (3, 3.0), (4, 5.0)] {
            let normal = |i: u32| (0..12).map(|k| uniform(seed, i * 12 + k)).sum::<f32>() - 6.0;
            let logits: Vec<f32> = (0..50_000).map(|i| normal(i) * spread).collect();
            for position in 0..6 {
                let params = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
                let got = sample(&mut logits.clone(), &params, &[], 0, position).token;
                assert_eq!(got, drawn(&logits, &params, position), "spread {spread}, position {position}");
            }
        }
    }

    fn logits() -> Vec<f32> {
        vec![0.0, 2.0, 1.0, 2.0, -1.0]
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let got = sample(&mut logits(), &SamplingParams::default(), &[], 0, 0);
        assert_eq!((got.token, got.logprob, got.top.len()), (1, 0.0, 0));
    }

    #[test]
    fn a_position_gives_the_same_token_again_and_frequencies_follow_the_weights() {
        let params = SamplingParams { temperature: 1.0, seed: 42, ..SamplingParams::default() };
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for position in 0..20_000 {
            let token = sample(&mut logits(), &params, &[], 0, position).token;
            assert_eq!(token, sample(&mut logits(), &params, &[], 0, position).token);
            *counts.entry(token).or_default() += 1;
        }
        let total: f64 = logits().iter().map(|l| f64::from(*l).exp()).sum();
        for (i, logit) in logits().iter().enumerate() {
            let want = f64::from(*logit).exp() / total * 20_000.0;
            let got = f64::from(counts[&(i as u32)]);
            assert!((got - want).abs() < 5.0 * want.sqrt(), "token {i}: {got} times, not {want}");
        }
    }

    #[test]
    fn cuts_keep_the_likeliest() {
        let tokens = |params: SamplingParams| -> Vec<u32> {
            let mut seen: Vec<u32> =
                (0..500).map(|p| sample(&mut logits(), &params, &[], 0, p).token).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        assert_eq!(tokens(SamplingParams { top_k: 1, ..base.clone() }), [1]);
        assert_eq!(tokens(SamplingParams { top_p: 0.7, ..base.clone() }), [1, 3]);
        assert_eq!(tokens(SamplingParams { min_p: 0.3, ..base.clone() }), [1, 2, 3]);
        assert_eq!(tokens(SamplingParams { top_p: 0.0, ..base }), [1]);
    }

    #[test]
    fn penalties_and_bias_change_the_choice() {
        let base = SamplingParams::default();
        let greedy = |params: SamplingParams, tokens: &[u32], prompt: usize| {
            sample(&mut logits(), &params, tokens, prompt, 0).token
        };
        assert_eq!(greedy(SamplingParams { presence_penalty: 1.0, ..base.clone() }, &[1], 0), 3);
        assert_eq!(
            greedy(SamplingParams { presence_penalty: 1.0, ..base.clone() }, &[1], 1),
            1,
            "the prompt is spared"
        );
        assert_eq!(greedy(SamplingParams { frequency_penalty: 0.6, ..base.clone() }, &[1, 1, 3, 3], 0), 2);
        assert_eq!(greedy(SamplingParams { repetition_penalty: 3.0, ..base.clone() }, &[1, 3], 2), 2);
        assert_eq!(greedy(SamplingParams { logit_bias: vec![(4, 10.0), (99, 1.0)], ..base }, &[], 0), 4);
    }

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let params = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
        let got = sample(&mut logits(), &params, &[], 0, 0);
        let total: f64 = logits().iter().map(|l| f64::from(*l).exp()).sum();
        assert!((f64::from(got.logprob) - (2.0 - total.ln())).abs() < 1e-5);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
    }

    #[test]
    fn uniform_numbers_are_below_one() {
        assert!((0..100_000).all(|p| (0.0..1.0).contains(&uniform(7, p))));
    }
}
