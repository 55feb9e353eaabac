//! The state of a stage in virtual time: gets what the driver wants of mates and checkpoints.

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::fetch::{FetchConfig, FetchEvent, FetchId, FetchWork, StageSize};
use dunlin_protocol::training::serve::Wanted;
use dunlin_protocol::training::{FetchFailure, StageId, StageStart, Step};
use dunlin_swarm::PeerName;

use super::events::{Event, Given};
use super::got::{CHUNKS, Got, put_together};
use super::peer_shell::{Work, digest};
use super::pulling::Purpose;
use super::scenario::Scenario;
use super::world::World;

/// Updates that may be kept where a state takes long.
const KEPT_MAX: u64 = 1000;
/// Elsewhere there is room for fewer than this.
const KEPT_FEW: u64 = 4;

/// Bounds of a fetch.
pub(super) fn config(scenario: &Scenario) -> FetchConfig {
    let updates_max = if scenario.script.is_some() { KEPT_MAX } else { scenario.seed % KEPT_FEW };
    FetchConfig::new(vec![StageSize { chunks: CHUNKS, updates_max }; scenario.shape.stages as usize])
}

impl World {
    /// Something has come of what was begun.
    pub(super) fn fetch_event(&mut self, name: &PeerName, event: FetchEvent) {
        self.drive(name, DriverEvent::Fetch(event));
    }

    /// The same in its time.
    fn fetch_later(&mut self, name: &PeerName, after_ms: u64, event: FetchEvent) {
        self.at(after_ms, Event::Fetch { peer: name.clone(), event });
    }

    /// Something is to be got.
    pub(super) fn fetch(&mut self, name: &PeerName, id: FetchId, work: FetchWork) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        match work {
            FetchWork::Read(load) => {
                let after = 50 + self.draw(250);
                self.at(after, Event::Loaded { peer: name.clone(), fetch: id, load });
            }
            FetchWork::Where(step) => self.give(name, Work::Where(id, step)),
            FetchWork::PullState(mate, stage, range) => {
                let wanted = Wanted::State(range.start as u64..range.end as u64);
                self.pull(name, &mate.name, stage, wanted, Purpose::Fetch(id));
            }
            FetchWork::Check(of) => {
                let fits = |id: &FetchId| matches!(peer.got.get(id), Some(Got::Part(part)) if part.fits());
                let wrong = of.into_iter().filter(|id| !fits(id)).map(|id| (id, "a wrong chunk".to_owned()));
                let wrong = wrong.collect();
                self.fetch_later(name, 1, FetchEvent::Checked(id, wrong));
            }
            FetchWork::Install(stage, of) => self.give(name, Work::Install(id, stage, of)),
            FetchWork::PullUpdate(mate, stage, step) => {
                self.pull(name, &mate.name, stage, Wanted::Update(step), Purpose::Fetch(id));
            }
            FetchWork::Keep(update, step) => match peer.got.remove(&update) {
                Some(Got::Update(update)) if update.step == step => {
                    peer.kept.insert(step, update);
                    self.fetch_later(name, 1, FetchEvent::Came(id));
                }
                _ => self.violation(format!("{name} keeps an update of step {step} that is not here")),
            },
            FetchWork::TakeKept(step) => match peer.kept.remove(&step) {
                Some(update) => {
                    peer.got.insert(id, Got::Update(update));
                    self.fetch_later(name, 1, FetchEvent::Came(id));
                }
                None => self.violation(format!("{name} has not kept the update of step {step}")),
            },
            FetchWork::Follow(update) => self.give(name, Work::Follow(id, update)),
        }
    }

    /// What has come of it is not needed, and neither is what may come.
    pub(super) fn drop_fetched(&mut self, name: &PeerName, id: FetchId) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.got.remove(&id);
        peer.pulls.retain(|_, pull| !matches!(pull.purpose, Purpose::Fetch(of) if of == id));
    }

    /// First values or a checkpoint are read.
    pub(super) fn loaded(&mut self, name: &PeerName, id: FetchId, load: &StageStart) {
        let &StageStart { stage, step, checkpoint } = load;
        if checkpoint && self.damaged.contains(&step) {
            let (failure, why) = (FetchFailure::Damaged(step), "a wrong bit".to_owned());
            return self.fetch_event(name, FetchEvent::Failed(id, failure, why));
        }
        let shape = self.scenario.shape;
        let state = match (checkpoint, step) {
            (false, 0) => Some(shape.first(shape.initial(stage))),
            (true, _) => self.sealed.get(&step).map(|all| all[stage as usize]),
            _ => None,
        };
        match (state, self.peers.get_mut(name)) {
            (Some(state), Some(peer)) => {
                peer.got.insert(id, Got::Read(step, state));
                self.fetch_event(name, FetchEvent::Came(id));
            }
            (None, _) => self.violation(format!("{name} is to load step {step}, which is not there")),
            (_, None) => {}
        }
    }

    /// A mate has given what was asked for.
    pub(super) fn fetched(&mut self, name: &PeerName, id: FetchId, given: Given) {
        let (whole_ms, draw) = (self.scenario.script.as_ref().map(|s| s.fetch_ms), self.draw(1000));
        let Some(peer) = self.peers.get_mut(name) else { return };
        match given {
            Given::State(part) => {
                let (step, says) = (part.step, digest(&part.says, true).root.unwrap_or_default());
                peer.got.insert(id, Got::Part(part));
                let after = whole_ms.unwrap_or(40 + draw / 5);
                self.fetch_later(name, after, FetchEvent::Part(id, step, says));
            }
            Given::Update(update) => {
                peer.got.insert(id, Got::Update(update));
                self.fetch_later(name, 20, FetchEvent::Came(id));
            }
            Given::Values(_) | Given::Sums(_) => {
                self.violation(format!("{name} is given something else than a state or an update"));
            }
        }
    }

    /// The engine has come to it: this is what is brought up to date.
    pub(super) fn where_is(&mut self, name: &PeerName, id: FetchId, from: Step) {
        let Some(peer) = self.peers.get(name) else { return };
        let (step, state) = (peer.step, digest(&peer.state, false));
        if step != from {
            self.violation(format!("{name} fetches from step {from} and is at {step}"));
        }
        self.fetch_event(name, FetchEvent::At(id, step, state));
    }

    /// The engine takes a state.
    pub(super) fn install(&mut self, name: &PeerName, id: FetchId, stage: StageId, of: &[FetchId]) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let got: Vec<Got> = of.iter().filter_map(|id| peer.got.remove(id)).collect();
        if got.len() < of.len() {
            // It was dropped meanwhile.
            return;
        }
        let Some((step, state)) = put_together(got) else {
            return self.violation(format!("{name} begins stage {stage} with parts that make no state"));
        };
        if !peer.sums.is_empty() || !peer.averages.is_empty() {
            return self.violation(format!("{name} begins stage {stage} with sums or averages of another"));
        }
        (peer.stage, peer.step, peer.state) = (stage, step, state);
        peer.history.clear();
        self.check(name, stage, step, state);
        self.fetch_event(name, FetchEvent::At(id, step, digest(&state, true)));
    }

    /// The engine follows an update that others have made.
    pub(super) fn follow(&mut self, name: &PeerName, id: FetchId, update: FetchId) {
        let shape = self.scenario.shape;
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(got) = peer.got.remove(&update) else { return };
        let (stage, at) = (peer.stage, peer.step);
        let Got::Update(update) = got else {
            return self.violation(format!("{name} follows what is no update"));
        };
        if update.step != at {
            return self
                .violation(format!("{name} follows the update of step {} and is at {at}", update.step));
        }
        let now = shape.update(stage, &peer.state.now, &update.averages, update.scale);
        (peer.state, peer.step) = (shape.next(&peer.state, now), at + 1);
        let state = peer.state;
        peer.remember(update);
        self.check(name, stage, at + 1, state);
        self.fetch_event(name, FetchEvent::At(id, at + 1, digest(&state, false)));
    }
}
