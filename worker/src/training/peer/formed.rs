//! Parts of averages that are formed here, for mates to pull.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use dunlin_protocol::training::{ShardId, Step};
use dunlin_wire::proto;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::values::PATIENCE;
use super::pieces::index;

/// What tells one average from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which {
    /// Of which step.
    pub step: Step,
    /// The tensors that are averaged.
    pub shard: ShardId,
    /// Number of this average: an answer to an earlier one counts nothing.
    pub round: u64,
}

impl Which {
    pub(super) fn of(part: &proto::PartOf) -> Self {
        Self { step: part.step, shard: part.shard, round: part.round }
    }

    pub(super) fn part(self, range: &Range<usize>) -> proto::PartOf {
        proto::PartOf {
            step: self.step,
            shard: self.shard,
            round: self.round,
            from: range.start as u64,
            to: range.end as u64,
        }
    }
}

/// Parts that this peer has formed or is forming, for mates to pull.
#[derive(Default)]
pub struct Formed {
    parts: Mutex<BTreeMap<Which, Part>>,
    changed: Notify,
}

/// A part of an average.
struct Part {
    range: Range<usize>,
    /// Those that are formed, encoded.
    chunks: Vec<Bytes>,
}

impl Formed {
    /// A part is being formed; what is older than the step before is dropped.
    pub(super) fn begin(&self, which: Which, range: Range<usize>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|other, _| {
            other.step + 1 >= which.step && (other.shard != which.shard || other.round >= which.round)
        });
        parts.insert(which, Part { range, chunks: Vec::new() });
    }

    /// Its next chunk, encoded.
    pub(super) fn push(&self, which: Which, chunk: Bytes) {
        if let Some(part) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&which) {
            part.chunks.push(chunk);
        }
        self.changed.notify_waiters();
    }

    fn get(&self, which: Which, range: &Range<usize>, chunk: usize) -> Option<Bytes> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get(&which).filter(|part| part.range == *range)?.chunks.get(chunk).cloned()
    }

    /// A chunk of a part, as soon as it is formed.
    pub(super) async fn wait(&self, which: Which, range: &Range<usize>, chunk: usize) -> Option<Bytes> {
        let found = timeout(PATIENCE, async {
            loop {
                let changed = self.changed.notified();
                if let Some(chunk) = self.get(which, range, chunk) {
                    return chunk;
                }
                changed.await;
            }
        });
        found.await.ok()
    }
}

pub(super) fn range_of(part: &proto::PartOf) -> Range<usize> {
    index(part.from)..index(part.to)
}
