//! Averages among the peers of a shard, by butterfly: part `j` of everybody's sums goes to member `j`, which adds them and gives the
//! result to all. What it gives is what it keeps, so all end with the same bits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dunlin_protocol::training::{Mate, ShardId, StageId, Step};
use dunlin_train::stage::round;
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use futures::future::try_join_all;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::super::values::{Clients, PATIENCE, to_bytes};
use super::engine::Engine;

/// Which average.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which {
    /// Of which step.
    pub step: Step,
    /// Which tensors.
    pub shard: ShardId,
    /// Which attempt.
    pub round: u64,
}

/// Parts that this peer has formed, for mates to pull.
#[derive(Default)]
pub struct Formed {
    parts: Mutex<BTreeMap<Which, (usize, Bytes)>>,
    changed: Notify,
}

impl Formed {
    /// Offers a part; what is older than the step before is dropped.
    fn put(&self, which: Which, from: usize, part: Bytes) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|other, _| {
            other.step + 1 >= which.step && (other.shard != which.shard || other.round >= which.round)
        });
        parts.insert(which, (from, part));
        drop(parts);
        self.changed.notify_waiters();
    }

    fn get(&self, which: Which) -> Option<(usize, Bytes)> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).get(&which).cloned()
    }

    /// Values `range` of a part, as soon as it is formed.
    pub async fn wait(&self, which: Which, range: Range<usize>) -> Option<Bytes> {
        let found = timeout(PATIENCE, async {
            loop {
                let changed = self.changed.notified();
                if let Some(part) = self.get(which) {
                    return part;
                }
                changed.await;
            }
        });
        let (from, part) = found.await.ok()?;
        let bytes = range.start.checked_sub(from)? * 4..range.end.checked_sub(from)? * 4;
        (bytes.end <= part.len()).then(|| part.slice(bytes))
    }
}

/// The part of member `index` of `count`.
fn part(len: usize, index: usize, count: usize) -> Range<usize> {
    len * index / count..len * (index + 1) / count
}

/// Forms the average of a shard of `len` values with `group`, in which this peer is `me`.
///
/// # Errors
/// Which mate failed, and how.
pub async fn form(
    clients: &Clients,
    engine: &Engine,
    formed: &Formed,
    which: Which,
    stage: StageId,
    group: &[Mate],
    me: &Mate,
) -> Result<Vec<f32>, String> {
    let index = group.iter().position(|m| m.name == me.name).ok_or("this peer is not in the group")?;
    let (len_in, len) = oneshot::channel();
    engine.run(move |bench| {
        // The receiver is gone when the attempt was given up.
        let _ = len_in.send(bench.stage.as_ref().map_or(0, |s| s.shard_len(which.shard)));
    });
    let len = len.await.map_err(|_| "the engine ended")?;
    let mine = part(len, index, group.len());
    let (sums_in, sums) = oneshot::channel();
    let range = mine.clone();
    engine.run(move |bench| {
        let _ = sums_in.send(bench.stage.as_ref().map_or_else(Vec::new, |s| s.sums_of(which.shard, range)));
    });
    let mut sums = sums.await.map_err(|_| "the engine ended")?;
    let others: Vec<(usize, &Mate)> = group.iter().enumerate().filter(|(i, _)| *i != index).collect();
    let of = |range: &Range<usize>| proto::PartOf {
        step: which.step,
        shard: which.shard,
        round: which.round,
        from: range.start as u64,
        to: range.end as u64,
    };
    // Scatter: my part of everybody's sums.
    let pulls = others.iter().map(|(_, mate)| {
        let what = What::Sums(of(&mine));
        clients.pull::<8, i64>(mate, stage, what, Some(mine.len()))
    });
    for (_, theirs) in try_join_all(pulls).await? {
        sums.iter_mut().zip(theirs).for_each(|(sum, more)| *sum += more);
    }
    let values = round(&sums);
    formed.put(which, mine.start, to_bytes(&values));
    // Gather: everybody's part of the average.
    let pulls = others.iter().map(|(i, mate)| async {
        let range = part(len, *i, group.len());
        let what = What::Average(of(&range));
        let (_, part) = clients.pull::<4, f32>(mate, stage, what, Some(range.len())).await?;
        Ok::<_, String>((range.start, part))
    });
    let mut average = vec![0.0; len];
    average[mine.clone()].copy_from_slice(&values);
    for (at, part) in try_join_all(pulls).await? {
        average[at..at + part.len()].copy_from_slice(&part);
    }
    Ok(average)
}

/// What was formed in the present step: of every shard the newest attempt.
pub type Averages = BTreeMap<ShardId, (u64, Arc<Vec<f32>>)>;
