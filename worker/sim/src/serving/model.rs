//! A model whose rows are hashes.

use dunlin_swarm::Layers;

/// Values of a row: 16 bits each, so that they are exact as f32.
pub const HIDDEN: usize = 4;

/// splitmix64's finaliser.
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A row as it travels.
pub(super) fn to_row(hash: u64) -> [f32; HIDDEN] {
    std::array::from_fn(|i| (hash >> (16 * i) & 0xffff) as f32)
}

/// And back.
pub(super) fn from_row(row: &[f32]) -> u64 {
    row.iter().enumerate().fold(0, |hash, (i, v)| hash | (*v as u64) << (16 * i))
}

/// The row of a token in front of the first layer.
pub(super) fn embed(token: u32) -> u64 {
    mix(11, u64::from(token))
}

/// The KV cache of one layer: a running hash over the inputs of all positions.
pub(super) type Cache = Vec<u64>;

/// `weights` stands for the model's and the adapter's, and for the arithmetic.
fn layer(cache: &mut Cache, layer: u32, weights: u64, input: u64) -> u64 {
    let seen = mix(cache.last().copied().unwrap_or(7), mix(weights, input));
    cache.push(seen);
    mix(mix(seen, u64::from(layer)), input)
}

/// What rows are computed with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// None: the model itself.
    pub adapter: Option<&'a str>,
    /// Version, from 1.
    pub arithmetic: u32,
}

/// One row through `layers`, whose caches are `caches`.
pub(super) fn through(caches: &mut [Cache], layers: Layers, with: With<'_>, mut row: u64) -> u64 {
    let bytes = with.adapter.into_iter().flat_map(str::bytes);
    let first = u64::from(with.arithmetic - 1);
    let weights = bytes.fold(first, |hash, byte| mix(hash, u64::from(byte)));
    for (cache, index) in caches.iter_mut().zip(layers.iter()) {
        row = layer(cache, index, weights, row);
    }
    row
}

/// The token after a row.
pub(super) fn token(row: u64, seed: u64) -> u32 {
    (mix(row, seed) % 1000) as u32
}

/// What a session must say: the tokens after `prompt` up to length `max_len`.
#[must_use]
pub fn expected(prompt: &[u32], layers: u32, max_len: usize, seed: u64, with: With<'_>) -> Vec<u32> {
    let layers = Layers::new(0, layers);
    let mut caches = vec![Cache::new(); layers.len() as usize];
    let mut tokens = prompt.to_vec();
    let mut at = 0;
    while tokens.len() < max_len {
        let mut row = 0;
        while at < tokens.len() {
            row = through(&mut caches, layers, with, embed(tokens[at]));
            at += 1;
        }
        tokens.push(token(row, seed));
    }
    tokens.split_off(prompt.len())
}
