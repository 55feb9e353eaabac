//! Averages among the peers of a shard, by butterfly: part `j` of everybody's sums goes to member `j`, which adds them and gives the
//! result to all. What it gives is what it keeps, so all end with the same bits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::training::{Mate, ShardId, StageId, Step};
use dunlin_train::stage::round;
use dunlin_wire::train::{dial_stage, pull};
use dunlin_wire::{LinksConfig, proto};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::engine::Engine;

/// A mate that gives nothing for so long is lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

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
    links: &LinksConfig,
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
    let mut clients = Vec::new();
    for (_, mate) in &others {
        clients.push(dial_stage(links, mate.name.as_str(), &mate.addr).await?);
    }
    // Scatter: my part of everybody's sums.
    let pulls = others.iter().zip(&clients).map(|((_, mate), client)| {
        let (mut client, request) = (client.clone(), of(&mine));
        let (name, count) = (mate.name.clone(), mine.len());
        async move {
            let mut theirs: Vec<i64> = Vec::with_capacity(count);
            let request = proto::PullRequest { stage, what: Some(proto::pull_request::What::Sums(request)) };
            let take = |piece: proto::Piece| {
                theirs.extend(piece.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)));
                if theirs.len() > count { Err("more sums than asked for".to_owned()) } else { Ok(()) }
            };
            pull(&mut client, request, PATIENCE, take).await.map_err(|why| format!("{name}: {why}"))?;
            if theirs.len() != count {
                return Err(format!("{name} gave {} of {count} sums", theirs.len()));
            }
            Ok(theirs)
        }
    });
    for theirs in all(pulls).await? {
        sums.iter_mut().zip(theirs).for_each(|(sum, more)| *sum += more);
    }
    let values = round(&sums);
    formed.put(which, mine.start, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    // Gather: everybody's part of the average.
    let pulls = others.iter().zip(&clients).map(|((i, mate), client)| {
        let range = part(len, *i, group.len());
        let (mut client, request, name) = (client.clone(), of(&range), mate.name.clone());
        async move {
            let mut part: Vec<f32> = Vec::with_capacity(range.len());
            let request =
                proto::PullRequest { stage, what: Some(proto::pull_request::What::Average(request)) };
            let take = |piece: proto::Piece| {
                part.extend(piece.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
                if part.len() > range.len() { Err("more values than asked for".to_owned()) } else { Ok(()) }
            };
            pull(&mut client, request, PATIENCE, take).await.map_err(|why| format!("{name}: {why}"))?;
            if part.len() != range.len() {
                return Err(format!("{name} gave {} of {} values", part.len(), range.len()));
            }
            Ok((range.start, part))
        }
    });
    let mut average = vec![0.0; len];
    average[mine].copy_from_slice(&values);
    for (at, part) in all(pulls).await? {
        average[at..at + part.len()].copy_from_slice(&part);
    }
    Ok(average)
}

/// All at once; the first error ends it.
async fn all<T>(
    futures: impl Iterator<Item = impl Future<Output = Result<T, String>>>,
) -> Result<Vec<T>, String> {
    futures::future::try_join_all(futures).await
}

/// The average of a group of one.
pub type Averages = BTreeMap<ShardId, (u64, Arc<Vec<f32>>)>;
