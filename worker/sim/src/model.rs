//! A model whose rows are hashes, and an engine that runs it.

use std::collections::BTreeMap;

use dunlin_planner::{Layers, Position};
use dunlin_protocol::stage::{Computed, Input, Job, Output};
use dunlin_protocol::{Refusal, RowData, SessionId};

/// Values of a row: 16 bits each, so that they are exact as f32.
pub const HIDDEN: usize = 4;
/// Positions of a page.
const PAGE: usize = 16;

/// splitmix64's finaliser.
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn to_row(hash: u64) -> [f32; HIDDEN] {
    std::array::from_fn(|i| (hash >> (16 * i) & 0xffff) as f32)
}

fn from_row(row: &[f32]) -> u64 {
    row.iter().enumerate().fold(0, |hash, (i, v)| hash | (*v as u64) << (16 * i))
}

/// The KV cache of one layer: a running hash over the inputs of all positions.
type Cache = Vec<u64>;

/// `weights` stands for the model's and the adapter's.
fn layer(cache: &mut Cache, layer: u32, weights: u64, input: u64) -> u64 {
    let seen = mix(cache.last().copied().unwrap_or(7), mix(weights, input));
    cache.push(seen);
    mix(mix(seen, u64::from(layer)), input)
}

fn weights(adapter: Option<&str>) -> u64 {
    adapter.into_iter().flat_map(str::bytes).fold(0, |hash, byte| mix(hash, u64::from(byte)))
}

/// The token after a row.
fn token(row: u64, seed: u64) -> u32 {
    (mix(row, seed) % 1000) as u32
}

/// What a session must say: the tokens after `prompt` up to length `max_len`.
#[must_use]
pub fn expected(prompt: &[u32], layers: u32, max_len: usize, seed: u64, adapter: Option<&str>) -> Vec<u32> {
    let weights = weights(adapter);
    let mut caches = vec![Cache::new(); layers as usize];
    let mut tokens = prompt.to_vec();
    let mut at = 0;
    while tokens.len() < max_len {
        let mut row = 0;
        while at < tokens.len() {
            row = mix(11, u64::from(tokens[at]));
            for (i, cache) in caches.iter_mut().enumerate() {
                row = layer(cache, i as u32, weights, row);
            }
            at += 1;
        }
        tokens.push(token(row, seed));
    }
    tokens.split_off(prompt.len())
}

#[derive(Default)]
struct Segment {
    caches: Vec<Cache>,
    poisoned: bool,
}

/// The engine of one peer.
pub struct Engine {
    segments: BTreeMap<(SessionId, Layers), Segment>,
    pages: usize,
}

impl Engine {
    /// With room for `pages` pages of one layer.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self { segments: BTreeMap::new(), pages }
    }

    /// Pages in use.
    #[must_use]
    pub fn used(&self) -> usize {
        let of = |s: &Segment| s.caches.iter().map(|c| c.len().div_ceil(PAGE)).sum::<usize>();
        self.segments.values().map(of).sum()
    }

    /// Pages not in use.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.pages.saturating_sub(self.used())
    }

    /// Forgets positions from `to` on.
    pub fn truncate(&mut self, session: SessionId, layers: Layers, to: Position) {
        if let Some(segment) = self.segments.get_mut(&(session, layers)) {
            segment.poisoned = false;
            segment.caches.iter_mut().for_each(|c| c.truncate(to as usize));
        }
    }

    /// Forgets a segment.
    pub fn free(&mut self, session: SessionId, layers: Layers) {
        self.segments.remove(&(session, layers));
    }

    /// Runs a job; nothing comes of jobs behind one that failed.
    pub fn run(&mut self, job: &Job) -> Option<Computed> {
        let free = self.free_pages();
        let segment = self.segments.entry((job.session, job.layers)).or_default();
        segment.caches.resize(job.layers.len() as usize, Cache::new());
        let have = segment.caches[0].len();
        let done = |output| Computed {
            session: job.session,
            attempt: job.attempt,
            layers: job.layers,
            start: job.start,
            count: job.count,
            output,
        };
        if segment.poisoned {
            return None;
        }
        if have != job.start as usize {
            segment.poisoned = true;
            return Some(done(Output::Failed(Refusal::NeedReplay { have: have as Position })));
        }
        let more = (have + job.count as usize).div_ceil(PAGE) - have.div_ceil(PAGE);
        if more * job.layers.len() as usize > free {
            segment.poisoned = true;
            return Some(done(Output::Failed(Refusal::NoPages)));
        }
        let inputs: Vec<u64> = match &job.input {
            Input::Tokens(tokens) => tokens.iter().map(|t| mix(11, u64::from(*t))).collect(),
            Input::Rows(rows) => rows.as_slice().chunks(HIDDEN).map(from_row).collect(),
        };
        let weights = weights(job.adapter.as_deref());
        let mut rows = Vec::new();
        let mut last = 0;
        for mut row in inputs {
            for (cache, l) in segment.caches.iter_mut().zip(job.layers.iter()) {
                row = layer(cache, l, weights, row);
            }
            rows.extend(to_row(row));
            last = row;
        }
        Some(done(match &job.sample {
            Some(request) => {
                Output::Token { token: token(last, request.params.seed), logprob: 0.0, top: Vec::new() }
            }
            None if job.last => Output::Nothing,
            None => Output::Rows(RowData::new(rows)),
        }))
    }
}
