//! What is known while the conductor asks peers what they hold.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use crate::training::ids::Step;

/// Peers that hold a stage nobody else has are waited for this many times as long.
const PATIENCE: u64 = 10;
/// Peers that are gone and whose word is kept.
const GONE_MAX: usize = 1024;

/// Since when peers report, and whether what they hold is of use.
#[derive(Default)]
pub struct Gathering {
    since_ms: Option<u64>,
    /// Nobody is asked to load before that; 0 as long as nobody was.
    not_before_ms: u64,
    /// What peers hold is of no use: everybody loads the checkpoint.
    restores: bool,
    /// Those who were there before, when that is known: nobody else is waited for.
    awaited: BTreeSet<PeerName>,
    /// A manifest that is being written is waited for until then.
    seal_until_ms: u64,
    /// At which step peers were that are gone, and the scale of the update before it.
    gone: BTreeMap<PeerName, (Step, f32)>,
}

impl Gathering {
    /// Those who were there will say what they hold.
    pub fn of(now_ms: u64, awaited: BTreeSet<PeerName>) -> Self {
        Self { since_ms: Some(now_ms), awaited, ..Self::default() }
    }

    /// What peers hold is of no use. A manifest that is being written is waited for until then.
    pub fn restoring(now_ms: u64, seal_until_ms: u64) -> Self {
        Self { since_ms: Some(now_ms), restores: true, seal_until_ms, ..Self::default() }
    }

    /// Does everybody load a checkpoint, or the first values?
    pub fn restores(&self) -> bool {
        self.restores
    }

    /// From now on everybody does.
    pub fn restore(&mut self) {
        self.restores = true;
    }

    /// Somebody is there.
    pub fn seen(&mut self, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
    }

    /// Whoever was there will say again what it holds, and is waited for as if it had not come yet. `held`: at which step who was, and the scale of the update before.
    pub fn woke(&mut self, now_ms: u64, held: impl Iterator<Item = (PeerName, Step, Option<f32>)>) {
        self.since_ms = self.since_ms.map(|_| now_ms);
        self.awaited.clear();
        for (name, step, scale) in held {
            if let Some(scale) = scale {
                self.gone(&name, step, scale);
            }
            self.awaited.insert(name);
        }
    }

    /// Somebody could not load: nobody is asked again before that.
    pub fn again(&mut self, at_ms: u64) {
        self.not_before_ms = at_ms;
    }

    /// A peer is gone that had made an update of this scale, to this step. Whoever copied its state knows nothing of the scale.
    pub fn gone(&mut self, name: &PeerName, step: Step, scale: f32) {
        if self.gone.len() < GONE_MAX {
            self.gone.insert(name.clone(), (step, scale));
        }
    }

    /// A peer is there again, and speaks for itself.
    pub fn back(&mut self, name: &PeerName) {
        self.gone.remove(name);
    }

    /// What peers that are gone have said of the update to a step.
    pub fn scales_of_gone(&self, step: Step) -> impl Iterator<Item = f32> {
        self.gone.values().filter(move |(at, _)| *at == step).map(|(_, scale)| *scale)
    }

    /// Is anybody there, and is it time to ask?
    pub fn may_begin(&self, now_ms: u64) -> bool {
        self.since_ms.is_some() && now_ms >= self.not_before_ms
    }

    /// Has anybody been asked to load and could not?
    pub fn has_failed(&self) -> bool {
        self.not_before_ms > 0
    }

    /// Was it waited for so long, or has everybody come back who was awaited?
    pub fn has_waited(&self, now_ms: u64, ms: u64, is_there: impl Fn(&PeerName) -> bool) -> bool {
        let all = !self.awaited.is_empty() && self.awaited.iter().all(is_there);
        all || self.since_ms.is_some_and(|since_ms| now_ms >= since_ms + ms)
    }

    /// Was it waited for many times as long, for peers that nobody can stand in for?
    pub fn has_waited_long(&self, now_ms: u64, ms: u64) -> bool {
        now_ms >= self.since_ms.unwrap_or(now_ms) + PATIENCE * ms
    }

    /// Is a manifest that is being written waited for?
    pub fn waits_for_seal(&self, now_ms: u64) -> bool {
        now_ms < self.seal_until_ms
    }
}
