//! The engine of a peer in virtual time: one job after the other.

use dunlin_protocol::training::driver::DriverEvent;
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
            Some(Work::Job(Job::Add(_)) | Work::Apply(..) | Work::Install(..) | Work::Follow(..)) => {
                3 + peer.slowness / 4
            }
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
        let compares = matches!(
            work,
            Work::Job(Job::Compute { check: true, .. } | Job::Check)
                | Work::Apply(..)
                | Work::Share(_)
                | Work::GiveSums { .. }
                | Work::GiveStage { .. }
                | Work::Save { .. }
        );
        if compares && self.notices(name) {
            return;
        }
        match work {
            Work::Job(Job::Compute { request, call, accumulate, .. }) => {
                self.compute(name, request, call, accumulate);
            }
            Work::Job(Job::Check) => {}
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
                self.drive(name, DriverEvent::Added(take));
            }
            Work::Job(Job::Apply { step, .. }) => {
                self.violation(format!("{name} updates step {step} with averages of some other time"));
            }
            Work::Apply(update, prove) => self.apply(name, update, prove),
            Work::Share(id) => self.share(name, id),
            Work::GiveSums { ask, id, range } => self.give_sums(name, ask, id, range),
            Work::Squares(id) => self.squares(name, id),
            Work::GiveStage { ask, wanted } => self.give_stage(name, ask, wanted),
            Work::Save { step, check } => self.save(name, step, check),
            Work::Where(id, step) => self.where_is(name, id, step),
            Work::Install(id, stage, of) => self.install(name, id, stage, &of),
            Work::Follow(id, update) => self.follow(name, id, update),
        }
    }

    /// Does a peer whose memory has changed notice that, before it does harm?
    pub(super) fn notices(&mut self, name: &PeerName) -> bool {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.flaw == Some(Flaw::Flipped)) else {
            return false;
        };
        peer.engine.clear();
        let what = "a parameter is not what was written".to_owned();
        self.say(|| format!("{name} notices that its memory has changed"));
        self.drive(name, DriverEvent::Corrupt(what));
        true
    }
}

/// How long the engine needs.
pub(super) fn duration(kind: CallKind, slowness: u64) -> u64 {
    if kind == CallKind::Backward { slowness * 5 / 2 } else { slowness }
}
