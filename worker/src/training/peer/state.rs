//! Parts of a stage's state, from several mates at once, all of one step. Whatever comes is checked: every mate gives the leaves of the tree over all of its state
//! ([`dunlin_train::root`]) with its part.

use std::ops::Range;

use dunlin_protocol::training::{Mate, StageId, Step};
use dunlin_train::root::{self, CHUNK, Node};
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;

use super::super::values::{Clients, Fault, asking};

/// Words of 32 bits of a leaf.
const LEAF: usize = size_of::<Node>() / 4;

/// A state.
pub(super) struct Got {
    pub step: Step,
    pub parameters: Vec<f32>,
    /// What is kept beside the parameters.
    pub slots: Vec<Vec<f32>>,
}

/// What one mate gave.
pub(super) struct Part {
    pub step: Step,
    /// Of every vector, and how long that is.
    range: Range<usize>,
    len: usize,
    values: Vec<u32>,
    /// Of all of the state.
    pub leaves: Vec<Node>,
}

/// Pulls chunks of the state of a stage, which has `width` vectors of `len` values.
pub(super) async fn part(
    clients: &Clients,
    stage: StageId,
    mate: &Mate,
    chunks: Range<usize>,
    (len, width): (usize, usize),
) -> Result<Part, Fault> {
    let range = (chunks.start * CHUNK).min(len)..(chunks.end * CHUNK).min(len);
    let span = proto::Span { from: range.start as u64, to: range.end as u64 };
    let (count, leaves) = (range.len() * width, root::chunks(len).len() * width);
    let (step, mut values) =
        clients.pull::<4, u32>(mate, asking(stage, What::State(span)), count + LEAF * leaves).await?;
    let leaves = values.split_off(count);
    let node =
        |words: &[u32; LEAF]| words.map(u32::to_le_bytes).as_flattened().try_into().unwrap_or_default();
    Ok(Part { step, range, len, values, leaves: leaves.as_chunks::<LEAF>().0.iter().map(node).collect() })
}

impl Part {
    /// How it is not what its giver says that all of the state is.
    pub fn differs(&self) -> Option<String> {
        let chunks = root::chunks(self.len).len();
        let vectors = self.values.chunks(self.range.len().max(1)).enumerate();
        let given = vectors.flat_map(|(vector, values)| {
            let first = vector * chunks + self.range.start / CHUNK;
            (first..).zip(values.chunks(CHUNK))
        });
        for (index, values) in given {
            let values: Vec<f32> = values.iter().map(|bits| f32::from_bits(*bits)).collect();
            if self.leaves.get(index) != Some(&root::leaf(index, &values)) {
                return Some(format!("chunk {index} is not what its state has there"));
            }
        }
        None
    }
}

/// The state that parts are of.
pub(super) fn put_together(parts: Vec<Part>, len: usize, width: usize) -> Got {
    let step = parts.first().map_or(0, |part| part.step);
    let mut vectors = vec![vec![0.0; len]; width];
    for part in parts {
        for (vector, values) in vectors.iter_mut().zip(part.values.chunks(part.range.len().max(1))) {
            let places = &mut vector[part.range.clone()];
            places.iter_mut().zip(values).for_each(|(place, bits)| *place = f32::from_bits(*bits));
        }
    }
    let slots = vectors.split_off(1);
    Got { step, parameters: vectors.swap_remove(0), slots }
}

#[cfg(test)]
mod tests {
    use dunlin_kernels::Pool;
    use dunlin_train::root::{CHUNK, leaves};

    use super::{Part, put_together};

    const LEN: usize = 2 * CHUNK + 77;

    /// Two vectors, of which each of some mates gives a part.
    fn given(mates: usize) -> (Vec<Part>, Vec<Vec<f32>>) {
        let vector = |from: usize| (from..from + LEN).map(|i| i as f32).collect::<Vec<f32>>();
        let vectors = vec![vector(3), vector(9)];
        let all = leaves(&Pool::new(1), &[&vectors[0], &vectors[1]]);
        let at = |i: usize| (3 * i / mates * CHUNK).min(LEN);
        let parts = (0..mates).map(|i| {
            let range = at(i)..at(i + 1);
            let values = vectors.iter().flat_map(|v| v[range.clone()].iter().map(|v| v.to_bits())).collect();
            Part { step: 5, range, len: LEN, values, leaves: all.clone() }
        });
        (parts.collect(), vectors)
    }

    #[test]
    fn parts_make_the_state_that_they_are_of() {
        for mates in 1..5 {
            let (parts, vectors) = given(mates);
            assert!(parts.iter().all(|part| part.differs().is_none()));
            let got = put_together(parts, LEN, 2);
            assert_eq!((got.step, &got.parameters, &got.slots[..]), (5, &vectors[0], &vectors[1..]));
        }
    }

    #[test]
    fn a_wrong_chunk_is_noticed() {
        for at in 0..3 {
            let (mut parts, _) = given(3);
            let place = parts[at].values.len() - 1;
            parts[at].values[place] ^= 1;
            let wrong: Vec<bool> = parts.iter().map(|part| part.differs().is_some()).collect();
            assert_eq!(wrong, [at == 0, at == 1, at == 2]);
        }
    }
}
