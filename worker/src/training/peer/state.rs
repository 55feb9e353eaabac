//! The state of a stage, a part of it from each of several mates at once, all of one step. Whatever comes is checked: every mate gives the leaves of the tree over all of its
//! state ([`dunlin_train::root`]) with its part, and a chunk that is not what most machines say is not taken.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use dunlin_protocol::training::{Mate, StageId, Step};
use dunlin_swarm::PeerName;
use dunlin_train::Run;
use dunlin_train::root::{self, CHUNK, Node};
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use tracing::warn;

use super::super::values::{Clients, Fault};

/// Mates that give state at once.
const MATES_MAX: usize = 4;
/// Attempts at a state that is of one step.
const ATTEMPTS: u32 = 20;
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// Words of 32 bits of a leaf.
const LEAF: usize = size_of::<Node>() / 4;

/// A state, and who gave what is not right.
pub(super) struct Got {
    pub step: Step,
    pub parameters: Vec<f32>,
    /// What is kept beside the parameters.
    pub slots: Vec<Vec<f32>>,
}

/// What one mate gave.
struct Part {
    step: Step,
    /// Of every vector.
    range: Range<usize>,
    values: Vec<u32>,
    leaves: Vec<Node>,
}

/// Gets the state of a stage; `wrong` gets the names of mates that gave what is not right, and what that was.
///
/// # Errors
/// Why the last attempt failed.
pub(super) async fn get(
    clients: &Clients,
    run: &Run,
    stage: StageId,
    mates: &[Mate],
    wrong: &mut BTreeMap<PeerName, String>,
) -> Result<Got, String> {
    let (len, width) = (run.layout(stage).len(), 1 + run.state_slots());
    let mut why = "there is nobody to get it from".to_owned();
    for attempt in 0..ATTEMPTS {
        let mates: Vec<&Mate> = mates.iter().filter(|m| !wrong.contains_key(&m.name)).collect();
        // Each attempt leaves another one out, should one of them be lost.
        let count = mates.len().min(MATES_MAX);
        let chosen: Vec<&Mate> = (0..count.saturating_sub(usize::from(attempt > 2 && count > 1)))
            .map(|i| mates[(i + attempt as usize) % mates.len()])
            .collect();
        if chosen.is_empty() {
            break;
        }
        let chunks = root::chunks(len).len();
        let at = |i: usize| (chunks * i / chosen.len() * CHUNK).min(len);
        let parts = chosen
            .iter()
            .enumerate()
            .map(|(i, mate)| part(clients, stage, mate, at(i)..at(i + 1), len, width));
        match futures::future::try_join_all(parts).await {
            Err(fault) => why = fault.to_string(),
            Ok(parts) if parts.iter().any(|part| part.step != parts[0].step) => {
                why = "the mates are not at one step".to_owned();
            }
            Ok(parts) => match check(&chosen, &parts, len) {
                Ok(()) => return Ok(put_together(parts, len, width)),
                Err(found) => {
                    for (mate, what) in found {
                        warn!(%mate, what, "what a mate gives of its state is not right");
                        why = format!("{mate}: {what}");
                        wrong.insert(mate, what);
                    }
                }
            },
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(why)
}

async fn part(
    clients: &Clients,
    stage: StageId,
    mate: &Mate,
    range: Range<usize>,
    len: usize,
    width: usize,
) -> Result<Part, Fault> {
    let span = proto::Span { from: range.start as u64, to: range.end as u64 };
    let (count, leaves) = (range.len() * width, root::chunks(len).len() * width);
    let (step, mut values) =
        clients.pull::<4, u32>(mate, stage, What::State(span), count + LEAF * leaves).await?;
    let leaves = values.split_off(count);
    let node =
        |words: &[u32; LEAF]| words.map(u32::to_le_bytes).as_flattened().try_into().unwrap_or_default();
    Ok(Part { step, range, values, leaves: leaves.as_chunks::<LEAF>().0.iter().map(node).collect() })
}

/// Compares what mates say that all of the state is, and what each gave with that. Who is wrong, and how.
fn check(mates: &[&Mate], parts: &[Part], len: usize) -> Result<(), BTreeMap<PeerName, String>> {
    let mut wrong = BTreeMap::new();
    // By what they say, the machines that say it.
    let mut said: BTreeMap<&[Node], BTreeSet<&str>> = BTreeMap::new();
    for (mate, part) in mates.iter().zip(parts) {
        let machine = if mate.host.is_empty() { mate.name.as_str() } else { mate.host.as_str() };
        said.entry(&part.leaves).or_default().insert(machine);
    }
    let most = said
        .iter()
        .max_by_key(|(_, machines)| machines.len())
        .map(|(leaves, machines)| (*leaves, machines.len()));
    let Some((leaves, count)) = most else { return Ok(()) };
    if said.values().filter(|machines| machines.len() == count).count() > 1 {
        // Who of them is right the conductor knows: it compares what becomes of this.
        let what = "it has another state than a mate".to_owned();
        return Err(mates.iter().take(1).map(|mate| (mate.name.clone(), what.clone())).collect());
    }
    let chunks = root::chunks(len).len();
    for (mate, part) in mates.iter().zip(parts) {
        if part.leaves != leaves {
            wrong.insert(mate.name.clone(), "its state is not that of most others".to_owned());
            continue;
        }
        let vectors = part.values.chunks(part.range.len().max(1)).enumerate();
        let given = vectors.flat_map(|(vector, values)| {
            let first = vector * chunks + part.range.start / CHUNK;
            (first..).zip(values.chunks(CHUNK))
        });
        for (index, values) in given {
            let values: Vec<f32> = values.iter().map(|bits| f32::from_bits(*bits)).collect();
            if leaves.get(index) != Some(&root::leaf(index, &values)) {
                wrong.insert(mate.name.clone(), format!("chunk {index} is not what its state has there"));
                break;
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn put_together(parts: Vec<Part>, len: usize, width: usize) -> Got {
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
    use dunlin_protocol::training::Mate;
    use dunlin_train::root::{CHUNK, leaves};

    use super::{Part, check, put_together};

    const LEN: usize = 2 * CHUNK + 77;

    /// Two vectors, of which each of some mates gives a part, and the mates.
    fn given(hosts: &[&str]) -> (Vec<Mate>, Vec<Part>, Vec<Vec<f32>>) {
        let vector = |from: usize| (from..from + LEN).map(|i| i as f32).collect::<Vec<f32>>();
        let vectors = vec![vector(3), vector(9)];
        let all = leaves(&Pool::new(1), &[&vectors[0], &vectors[1]]);
        let at = |i: usize| (3 * i / hosts.len() * CHUNK).min(LEN);
        let parts = (0..hosts.len()).map(|i| {
            let range = at(i)..at(i + 1);
            let values = vectors.iter().flat_map(|v| v[range.clone()].iter().map(|v| v.to_bits())).collect();
            Part { step: 5, range, values, leaves: all.clone() }
        });
        let mate = |(i, host): (usize, &&str)| Mate {
            name: format!("m{i}").as_str().into(),
            addr: String::new(),
            host: (*host).to_owned(),
        };
        (hosts.iter().enumerate().map(mate).collect(), parts.collect(), vectors)
    }

    fn wrong(mates: &[Mate], parts: &[Part]) -> Vec<String> {
        let mates: Vec<&Mate> = mates.iter().collect();
        check(&mates, parts, LEN).err().into_iter().flatten().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn parts_make_the_state_that_they_are_of() {
        for hosts in [&[""][..], &["", ""], &["", "", ""], &["", "", "", ""]] {
            let (mates, parts, vectors) = given(hosts);
            assert!(wrong(&mates, &parts).is_empty());
            let got = put_together(parts, LEN, 2);
            assert_eq!((got.step, &got.parameters, &got.slots[..]), (5, &vectors[0], &vectors[1..]));
        }
    }

    #[test]
    fn a_wrong_chunk_is_noticed_and_its_giver_named() {
        for at in 0..3 {
            let (mates, mut parts, _) = given(&["", "", ""]);
            let place = parts[at].values.len() - 1;
            parts[at].values[place] ^= 1;
            assert_eq!(wrong(&mates, &parts), [format!("m{at}")]);
        }
    }

    #[test]
    fn a_state_that_most_machines_do_not_have_is_not_taken() {
        for at in 0..3 {
            let (mates, mut parts, _) = given(&["", "", ""]);
            parts[at].leaves[1][7] ^= 1;
            assert_eq!(wrong(&mates, &parts), [format!("m{at}")]);
        }
        // Two that say different things: one is left out, and the conductor compares what comes of the other.
        let (mates, mut parts, _) = given(&["", ""]);
        parts[1].leaves[1][7] ^= 1;
        assert_eq!(wrong(&mates, &parts), ["m0"]);
        // Peers of one machine have one voice.
        let (mates, mut parts, _) = given(&["n", "n", "o", "p"]);
        parts[0].leaves[1][7] ^= 1;
        parts[1].leaves[1][7] ^= 1;
        assert_eq!(wrong(&mates, &parts), ["m0", "m1"]);
    }
}
