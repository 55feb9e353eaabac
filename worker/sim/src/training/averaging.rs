//! What a member has of an average in virtual time, with hashes for tensors.
//!
//! A shard has [`VALUES`] values, which follow from its sum. So a part that is lost, doubled, stale or out of place is noticed, as in real vectors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use dunlin_protocol::training::AverageId;
use dunlin_protocol::training::reduce::{Butterfly, Half, PartRef};

use super::numbers::Keys;

/// Values of a shard.
pub(super) const VALUES: usize = 5;
/// Of those that travel together.
pub(super) const CHUNK: usize = 2;

/// One value of a shard, and for the judge what is in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Value {
    pub(super) sum: i64,
    pub(super) keys: Arc<Keys>,
}

/// What a stream has for whoever reads it.
pub(super) enum Come {
    Piece(Vec<Value>),
    /// That was all; or why there is no more.
    End(Option<String>),
}

/// The average of a shard as it is formed at one member.
pub(super) struct Averaging {
    pub(super) machine: Butterfly,
    pub(super) share: Vec<Value>,
    /// The result, as far as it is here.
    pub(super) values: Vec<Option<Value>>,
    /// The chunk that is being added, and the members whose values are in it.
    pub(super) total: Vec<Value>,
    pub(super) added: Vec<usize>,
    /// What has come and was not read, the streams that are to be read, and pieces that are not used.
    pub(super) come: BTreeMap<PartRef, VecDeque<Come>>,
    pub(super) reading: BTreeSet<PartRef>,
    pub(super) here: BTreeMap<PartRef, Vec<Value>>,
    /// The squares are known.
    pub(super) complete: bool,
}

impl Averaging {
    pub(super) fn new(machine: Butterfly) -> Self {
        Self {
            machine,
            share: Vec::new(),
            values: vec![None; VALUES],
            total: Vec::new(),
            added: Vec::new(),
            come: BTreeMap::new(),
            reading: BTreeSet::new(),
            here: BTreeMap::new(),
            complete: false,
        }
    }

    pub(super) fn id(&self) -> AverageId {
        self.machine.id()
    }

    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.machine.wake_ms()
    }

    /// The sum, if all values are those of one.
    pub(super) fn sum(&self) -> Option<i64> {
        let first = self.values.first()?.as_ref()?.sum;
        let same = |(at, value): (usize, &Option<Value>)| {
            value.as_ref().is_some_and(|value| value.sum == first.wrapping_mul(factor(at)))
        };
        self.values.iter().enumerate().all(same).then_some(first)
    }

    /// The first value that does not contain these keys, and what it contains.
    pub(super) fn lacks(&self, all: &Keys) -> Option<(usize, Arc<Keys>)> {
        let keys = self.values.iter().map(|value| value.as_ref().map(|v| Arc::clone(&v.keys)));
        let mut keys = keys.enumerate().map(|(at, keys)| (at, keys.unwrap_or_default()));
        keys.find(|(_, keys)| **keys != *all)
    }

    /// Adds the values of a member to a chunk; what is wrong with that.
    pub(super) fn add(&mut self, member: usize, range: &Range<usize>) -> Option<String> {
        let part = PartRef { member, half: Half::Sums };
        let values = if member == self.machine.me() {
            self.share.get(range.clone()).map(<[Value]>::to_vec)
        } else {
            self.here.remove(&part)
        };
        let Some(values) = values.filter(|values| values.len() == range.len()) else {
            return Some(format!("no values of member {member} for {range:?}"));
        };
        if member == 0 {
            (self.total, self.added) = (vec![Value::default(); range.len()], Vec::new());
        }
        if self.added.len() != member {
            return Some(format!("member {member} is added behind {:?}", self.added));
        }
        self.added.push(member);
        add(&mut self.total, &values);
        None
    }

    /// Puts a result where it belongs; false when there was one.
    pub(super) fn place(&mut self, range: Range<usize>, values: Vec<Value>) -> bool {
        let mut free = true;
        for (place, value) in self.values[range].iter_mut().zip(values) {
            free &= place.replace(value).is_none();
        }
        free
    }
}

/// What makes a value of the sum.
pub(super) fn factor(at: usize) -> i64 {
    2 * at as i64 + 1
}

fn add(total: &mut [Value], more: &[Value]) {
    for (value, more) in total.iter_mut().zip(more) {
        value.sum = value.sum.wrapping_add(more.sum);
        let keys = Arc::make_mut(&mut value.keys);
        for (key, count) in more.keys.iter() {
            *keys.entry(*key).or_insert(0) += count;
        }
    }
}
