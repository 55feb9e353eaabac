//! What takes how long.

use crate::training::ids::StageId;

/// A microbatch that is on its way for so many usual times, and for so long at least, is driven by another trainer as well.
const FLIGHTS_LATE: u64 = 4;
const FLIGHT_MS_MIN: u64 = 2_000;

/// What takes how long, lately.
pub struct Usual {
    /// From a claim to its microbatch, by stage.
    claim_ms: Vec<Option<u64>>,
    /// An average.
    average_ms: Option<u64>,
    /// An update.
    update_ms: Option<u64>,
    /// A microbatch on its way through all stages.
    flight_ms: Option<u64>,
}

/// The newest counts an eighth; one that is longer, half.
fn measure(usual: &mut Option<u64>, ms: u64) {
    *usual = Some(match *usual {
        None => ms,
        Some(before) if ms > before => before.midpoint(ms),
        Some(before) => (7 * before + ms) / 8,
    });
}

impl Usual {
    pub fn new(stages: u32) -> Self {
        Self { claim_ms: vec![None; stages as usize], average_ms: None, update_ms: None, flight_ms: None }
    }

    /// A microbatch was added, so long after it was claimed.
    pub fn claimed(&mut self, stage: StageId, ms: u64) {
        if let Some(usual) = self.claim_ms.get_mut(stage as usize) {
            measure(usual, ms);
        }
    }

    /// An average was formed by everybody.
    pub fn averaged(&mut self, ms: u64) {
        measure(&mut self.average_ms, ms);
    }

    /// A peer has made an update.
    pub fn updated(&mut self, ms: u64) {
        measure(&mut self.update_ms, ms);
    }

    /// A trainer drove a microbatch through all stages.
    pub fn drove(&mut self, ms: u64) {
        measure(&mut self.flight_ms, ms);
    }

    /// From a claim of a peer of a stage to its microbatch.
    pub fn claim_ms(&self, stage: StageId) -> Option<u64> {
        self.claim_ms.get(stage as usize).copied().flatten()
    }

    /// An average.
    pub fn average_ms(&self) -> Option<u64> {
        self.average_ms
    }

    /// An update.
    pub fn update_ms(&self) -> Option<u64> {
        self.update_ms
    }

    /// How long a microbatch may be on its way before somebody else drives it as well: that costs no more than a few passes.
    pub fn flight_ms_max(&self, limit_ms: u64) -> u64 {
        self.flight_ms.map_or(limit_ms, |usual| (FLIGHTS_LATE * usual).max(FLIGHT_MS_MIN).min(limit_ms))
    }
}
