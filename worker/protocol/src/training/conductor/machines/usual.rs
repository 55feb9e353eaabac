//! What takes how long.

use std::collections::BTreeMap;

use crate::training::ids::StageId;

/// A microbatch that is on its way for so many usual times, and for so long at least, is driven by another trainer as well.
const FLIGHTS_LATE: u64 = 4;
const FLIGHT_MS_MIN: u64 = 2_000;

/// What takes time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// From a claim of a peer of a stage to its microbatch.
    Claim(StageId),
    /// An average, until everybody holds it.
    Average,
    /// An update.
    Update,
    /// A microbatch on its way through all stages.
    Flight,
}

/// What takes how long, lately.
#[derive(Default)]
pub struct Usual {
    ms: BTreeMap<Task, u64>,
}

impl Usual {
    /// Something took so long. The newest counts an eighth; one that is longer, half.
    pub fn took(&mut self, task: Task, ms: u64) {
        let usual = self.ms.entry(task).or_insert(ms);
        *usual = if ms > *usual { usual.midpoint(ms) } else { (7 * *usual + ms) / 8 };
    }

    /// How long something takes, if it was ever measured.
    pub fn ms(&self, task: Task) -> Option<u64> {
        self.ms.get(&task).copied()
    }

    /// How long a microbatch may be on its way before somebody else drives it as well: that costs no more than a few passes.
    pub fn flight_ms_max(&self, limit_ms: u64) -> u64 {
        let usual = self.ms(Task::Flight);
        usual.map_or(limit_ms, |usual| (FLIGHTS_LATE * usual).max(FLIGHT_MS_MIN).min(limit_ms))
    }
}
