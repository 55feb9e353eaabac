//! The state of a stage in virtual time: from a checkpoint, or from mates while they go on.

use dunlin_protocol::training::serve::{ServeEvent, Wanted};
use dunlin_protocol::training::{Fetch, FetchFailure, Load, StageId, Step};
use dunlin_swarm::PeerName;

use super::events::{Event, Given};
use super::numbers::State;
use super::peer_shell::{Fetching, PeerShell, Work, digest};
use super::pulling::Purpose;
use super::world::World;

/// A fetch fails after this long.
const FETCH_MS_MAX: u64 = 10_000;
/// Mates are asked for an update so often, before all of the state is fetched.
const UPDATE_ATTEMPTS: u32 = 20;

impl World {
    /// A stage is loaded from its initial values or a checkpoint.
    pub(super) fn load(&mut self, name: &PeerName, load: &Load) {
        self.serve(name, ServeEvent::Left);
        let (fetch, until) = (self.count(), self.now + FETCH_MS_MAX);
        let &Load { stage, step, checkpoint } = load;
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.fetching = Some(Fetching::new(fetch, stage, step, until));
        let after = 50 + self.draw(250);
        self.at(after, Event::Loaded { peer: name.clone(), fetch, stage, step, checkpoint });
    }

    /// It is fetched from mates, or what is here is brought up to date.
    pub(super) fn begin_fetch(&mut self, name: &PeerName, wanted: Fetch, from: Option<Step>) {
        self.serve(name, ServeEvent::Left);
        let Fetch { stage, step, mates, .. } = wanted;
        let long = self.scenario.script.as_ref().map_or(0, |s| 2 * s.fetch_ms);
        let (fetch, until) = (self.count(), self.now + FETCH_MS_MAX + long);
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.fetching = Some(Fetching { mates, from, ..Fetching::new(fetch, stage, step, until) });
        match from {
            Some(from) => self.give(name, Work::Begin { fetch, from }),
            None => self.at(1, Event::Fetch { peer: name.clone(), fetch }),
        }
    }

    /// The engine has come to it: this is what is brought up to date.
    pub(super) fn fetch_from(&mut self, name: &PeerName, fetch: u64, from: Step) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let (step, state) = (peer.step, peer.state);
        let Some(fetching) = peer.fetching.as_mut().filter(|f| f.fetch == fetch) else { return };
        fetching.have = Some((step, state));
        if step != from {
            self.violation(format!("{name} fetches from step {from} and is at {step}"));
        }
        self.at(1, Event::Fetch { peer: name.clone(), fetch });
    }

    /// The engine takes what was fetched.
    pub(super) fn set(&mut self, name: &PeerName, fetch: u64, stage: StageId, (step, state): (Step, State)) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(fetched) = peer.fetching.take_if(|f| f.fetch == fetch) else { return };
        if !peer.sums.is_empty() {
            self.violation(format!("{name} begins stage {stage} with sums of another"));
            return;
        }
        (peer.stage, peer.step, peer.state) = (stage, step, state);
        peer.history.clear();
        let averages = std::mem::take(&mut peer.averages);
        for averaging in averages.into_values() {
            self.abandon(name, averaging);
        }
        self.check(name, stage, step, state);
        let digest = digest(&state, true);
        self.with_peer(name, |node, out| node.ready(stage, step, digest, fetched.from, out));
    }

    pub(super) fn loaded(
        &mut self,
        name: &PeerName,
        fetch: u64,
        stage: StageId,
        step: Step,
        checkpoint: bool,
    ) {
        let shape = self.scenario.shape;
        if checkpoint && self.damaged.contains(&step) {
            let current = |p: &PeerShell| p.fetching.as_ref().is_some_and(|f| f.fetch == fetch);
            if self.peers.get(name).is_some_and(current) {
                let (failure, why) = (FetchFailure::Damaged(step), "a wrong bit".to_owned());
                self.with_peer(name, |node, out| node.fetch_failed(stage, failure, why, out));
            }
            return;
        }
        let state = match (checkpoint, step) {
            (false, 0) => Some(shape.first(shape.initial(stage))),
            (true, _) => self.sealed.get(&step).map(|all| all[stage as usize]),
            _ => None,
        };
        match state {
            Some(state) => self.give(name, Work::Set { fetch, stage, step, state }),
            None => self.violation(format!("{name} is to load step {step}, which is not there")),
        }
    }

    /// A snapshot of one mate, then the averages of the steps that passed meanwhile.
    pub(super) fn fetch(&mut self, name: &PeerName, fetch: u64) {
        let draw = self.draw(1000) as usize;
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.healthy()) else { return };
        let Some(fetching) = peer.fetching.as_ref().filter(|f| f.fetch == fetch) else { return };
        let stage = fetching.stage;
        if let Some((step, state)) = fetching.have
            && step >= fetching.wanted
        {
            return self.give(name, Work::Set { fetch, stage, step, state });
        }
        if self.now > fetching.until || fetching.mates.is_empty() {
            peer.fetching = None;
            let why = "no mate has it".to_owned();
            return self.with_peer(name, |node, out| {
                node.fetch_failed(stage, FetchFailure::Passing, why, out);
            });
        }
        let mate = fetching.mates[draw % fetching.mates.len()].name.clone();
        let wanted = fetching.have.map_or(Wanted::State(0..1), |(step, _)| Wanted::Update(step));
        self.pull(name, &mate, stage, wanted, Purpose::Fetch(fetch));
    }

    /// A part of what is fetched is here, or a mate has not got it.
    pub(super) fn fetched(&mut self, name: &PeerName, fetch: u64, given: Option<Given>) {
        let (shape, draw) = (self.scenario.shape, self.draw(1000));
        let whole_ms = self.scenario.script.as_ref().map(|s| s.fetch_ms);
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(fetching) = peer.fetching.as_mut().filter(|f| f.fetch == fetch) else { return };
        let mut after = 20;
        match (given, fetching.have) {
            (Some(Given::State(step, state)), _) => {
                after = whole_ms.unwrap_or(40 + draw / 5);
                fetching.have = Some((step, state));
            }
            (Some(Given::Update(averages, scale)), Some((step, state))) => {
                let now = shape.update(fetching.stage, &state.now, &averages, scale);
                fetching.have = Some((step + 1, shape.next(&state, now)));
                fetching.missing = 0;
            }
            (_, None) => {}
            // Nobody has the next update any more: all of it is copied.
            (_, Some(_)) => {
                fetching.missing += 1;
                if fetching.missing >= UPDATE_ATTEMPTS {
                    (fetching.have, fetching.from, fetching.missing) = (None, None, 0);
                }
            }
        }
        self.at(after, Event::Fetch { peer: name.clone(), fetch });
    }
}
