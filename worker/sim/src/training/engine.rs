//! The engine of a peer in virtual time: one job after the other.

use dunlin_protocol::training::{CallKind, Job};
use dunlin_swarm::PeerName;

use super::events::Event;
use super::flaw::Flaw;
use super::peer_shell::Work;
use super::world::World;

impl World {
    pub(super) fn give(&mut self, name: &PeerName, work: Work) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.engine.push_back(work);
        if peer.engine.len() == 1 {
            self.start(name);
        }
    }

    /// Begins with the first job.
    fn start(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get(name) else { return };
        let ms = match peer.engine.front() {
            None => return,
            Some(Work::Job(Job::Compute { call, .. })) => duration(call.kind, peer.slowness),
            Some(Work::Job(Job::Apply { .. } | Job::Add(_)) | Work::Set { .. }) => 3 + peer.slowness / 4,
            Some(_) => 1,
        };
        self.at(ms, Event::Engine { peer: name.clone() });
    }

    pub(super) fn engine_done(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.healthy()) else { return };
        let Some(work) = peer.engine.pop_front() else { return };
        if !peer.engine.is_empty() {
            self.start(name);
        }
        match work {
            Work::Job(Job::Compute { request, call, accumulate, check }) => {
                if !check || !self.notices(name) {
                    self.compute(name, request, call, accumulate);
                }
            }
            Work::Job(Job::Check) => {
                self.notices(name);
            }
            Work::Job(Job::Clear) => {
                self.say(|| format!("{name} has cleared"));
                if let Some(peer) = self.peers.get_mut(name) {
                    peer.sums.clear();
                }
            }
            Work::Job(Job::Add(take)) => {
                if let Some(peer) = self.peers.get_mut(name)
                    && let Some(sums) = peer.adding.pop_front()
                {
                    peer.add(take.step, &sums);
                }
                self.with_peer(name, |node, out| node.added(take, out));
            }
            Work::Job(Job::Apply { step, scale, prove }) => {
                if !self.notices(name) {
                    self.apply(name, step, scale, prove);
                }
            }
            Work::Share(id) => {
                if !self.notices(name) {
                    self.share(name, id);
                }
            }
            Work::GiveSums { ask, id, range } => {
                if !self.notices(name) {
                    self.give_sums(name, ask, id, range);
                }
            }
            Work::Squares(id) => self.squares(name, id),
            Work::GiveStage { ask, wanted } => {
                if !self.notices(name) {
                    self.give_stage(name, ask, wanted);
                }
            }
            Work::Save { step, check } => {
                if !self.notices(name) {
                    self.save(name, step, check);
                }
            }
            Work::Begin { fetch, from } => self.fetch_from(name, fetch, from),
            Work::Set { fetch, stage, step, state } => self.set(name, fetch, stage, (step, state)),
        }
    }

    /// Does a peer whose memory has changed notice that, before it does harm?
    pub(super) fn notices(&mut self, name: &PeerName) -> bool {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.flaw == Some(Flaw::Flipped)) else {
            return false;
        };
        peer.engine.clear();
        peer.fetching = None;
        let what = "a parameter is not what was written".to_owned();
        self.say(|| format!("{name} notices that its memory has changed"));
        self.with_peer(name, |node, out| node.corrupt(what, out));
        true
    }
}

/// How long the engine needs.
pub(super) fn duration(kind: CallKind, slowness: u64) -> u64 {
    if kind == CallKind::Backward { slowness * 5 / 2 } else { slowness }
}
