//! The process of a stage, between the network that it serves in and the operator that it answers: what it is told to hold, and reads.

use std::collections::BTreeSet;

use dunlin_operator::peers::WorkerState;
use dunlin_operator::peers::report::WorkerReport;
use dunlin_sim::model::ReadModel;
use dunlin_swarm::timing::{DRAIN, DRAIN_ON_NOTICE};
use dunlin_swarm::{Epoch, Layers, ModelSizes, NumericsClass, Topology, is_other_model, layer_set, ranges};

/// A stage that runs.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The model's header is read then.
    header_ms: u64,
    /// What reading a layer takes.
    layer_ms: u64,
    /// Room for layers, in bytes.
    room_bytes: u64,
    /// Which bits it computes.
    pub arithmetic: NumericsClass,
    /// If it was told none, it takes itself for one of the first topology's.
    pub model: ReadModel,
    /// The newest topology that it obeys.
    pub epoch: Epoch,
    /// Layers that it executes, then those that it holds for others.
    wanted: Vec<u32>,
    /// Layers that it has.
    held: BTreeSet<u32>,
    /// The layer that is being read, and until when.
    reading: Option<(u32, u64)>,
    /// It is about to go, then at the latest.
    pub drains_until_ms: Option<u64>,
    /// Its node is there, and nobody reaches it until then.
    pub unreachable_until_ms: u64,
}

impl Stage {
    pub fn new(
        now: u64,
        header_ms: u64,
        layer_ms: u64,
        room_bytes: u64,
        arithmetic: NumericsClass,
        model: ReadModel,
    ) -> Self {
        Self {
            model,
            header_ms: now + header_ms,
            layer_ms,
            room_bytes,
            arithmetic,
            epoch: 0,
            wanted: Vec::new(),
            held: BTreeSet::new(),
            reading: None,
            drains_until_ms: None,
            unreachable_until_ms: 0,
        }
    }

    /// Takes a topology, unless it knows a newer one or this one is of another model; whether it did.
    pub fn assign(&mut self, name: &str, topology: &Topology) -> bool {
        let theirs = &topology.model.digest;
        if self.epoch > topology.epoch || is_other_model(&self.model.digest, theirs) {
            return false;
        }
        self.epoch = topology.epoch;
        // Who is not in it any more goes on with what it has.
        if let Some(own) = topology.peer(&name.into()) {
            let span: Vec<u32> = own.span.iter().collect();
            let shadows = layer_set(&own.shadows).into_iter().filter(|layer| !span.contains(layer));
            if self.model.digest.is_empty() {
                self.model.digest.clone_from(theirs);
            }
            self.wanted = span.iter().copied().chain(shadows).collect();
        }
        true
    }

    /// It hands over and ends: SIGTERM (`by_kubernetes`), or a word of the operator.
    pub fn drain(&mut self, by_kubernetes: bool, now: u64) {
        let patience = if by_kubernetes { DRAIN } else { DRAIN_ON_NOTICE };
        self.drains_until_ms.get_or_insert(now + patience.as_millis() as u64);
    }

    /// Time passes: layers are read, and given up once all that are wanted are there and nobody uses them. What it has, if that is another.
    pub fn pass(&mut self, in_use: &[Layers], now: u64) -> Option<Vec<Layers>> {
        if now < self.header_ms {
            return None;
        }
        let before = self.held.clone();
        if let Some((layer, until_ms)) = self.reading
            && until_ms <= now
        {
            self.held.insert(layer);
            self.reading = None;
        }
        if self.reading.is_none() {
            let next = self.wanted.iter().find(|layer| !self.held.contains(layer));
            self.reading = next.map(|layer| (*layer, now + self.layer_ms));
        }
        if self.is_complete() {
            let in_use = layer_set(in_use);
            self.held.retain(|layer| self.wanted.contains(layer) || in_use.contains(layer));
        }
        (self.held != before).then(|| ranges(&self.held))
    }

    fn is_complete(&self) -> bool {
        !self.wanted.is_empty() && self.wanted.iter().all(|layer| self.held.contains(layer))
    }

    /// Layers that it has.
    pub fn held(&self) -> &BTreeSet<u32> {
        &self.held
    }

    /// What it answers the operator.
    pub fn report(&self, layers: u32, now: u64) -> WorkerReport {
        let open = now >= self.header_ms;
        let state = if self.drains_until_ms.is_some() {
            WorkerState::Draining
        } else if self.is_complete() {
            WorkerState::Ready
        } else if open {
            WorkerState::Loading
        } else {
            WorkerState::Starting
        };
        let sizes = ModelSizes { layer_bytes: vec![1 << 20; layers as usize], ..ModelSizes::default() };
        WorkerReport {
            state,
            epoch: self.epoch,
            held: ranges(&self.held),
            model: open.then_some(sizes),
            arithmetic: Some(self.arithmetic),
            model_digest: self.model.digest.clone(),
            room_bytes: open.then_some(self.room_bytes),
            ..WorkerReport::default()
        }
    }
}
