//! How long somebody may keep others waiting, though its stream works.
//!
//! What usual work takes is measured, and many times that is waited for: a slow peer is not a lost one. As long as nothing was measured, and for what has no usual time, the
//! configured limit holds.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::machines::peer::Place;
use super::machines::usual::Task;
use super::turn::Turn;
use super::{Conductor, Phase};
use crate::training::message::ToPeer;

/// A peer may owe something for so many times as long as it may keep a microbatch from others.
const QUIET: u64 = 3;
/// Usual times that something may take.
const TIMES: u64 = 20;
/// And so long on top: processes stand still for moments.
const AND_MS: u64 = 5_000;

fn patience(usual: Option<u64>, limit_ms: u64) -> u64 {
    usual.map_or(limit_ms, |usual| (TIMES * usual + AND_MS).min(limit_ms))
}

impl Conductor {
    /// Peers that keep a microbatch from others for too long.
    pub(super) fn overdue(&self, now_ms: u64) -> BTreeSet<PeerName> {
        self.work
            .overdue(now_ms, |stage| patience(self.usual.ms(Task::Claim(stage)), self.config.claim_ms_max))
    }

    /// Peers that owe something and have brought nothing for long.
    pub(super) fn quiet(&mut self, now_ms: u64) -> Vec<PeerName> {
        let mut quiet = Vec::new();
        let names: Vec<PeerName> = self.peers.all().keys().cloned().collect();
        for name in names {
            let owed = self.owes(&name);
            let Some(peer) = self.peers.get(&name) else { continue };
            match owed {
                None => self.peers.hear_from(now_ms, &name),
                Some(limit_ms) if now_ms > peer.quiet_since_ms + limit_ms => quiet.push(name),
                Some(_) => {}
            }
        }
        quiet
    }

    /// How long others wait for this peer at most, if they do: for a microbatch, an average, an update, sums of a mate, a file.
    fn owes(&self, name: &PeerName) -> Option<u64> {
        let peer = self.peers.get(name).filter(|_| self.live())?;
        let limit_ms = QUIET * self.config.claim_ms_max;
        let stage = peer.place.held_stage()?;
        // What has no usual time.
        if self.peers.takes(name) || self.doubts.wait_for(name) || self.saving.waits_for(name) {
            return Some(limit_ms);
        }
        let claim_ms = self.usual.ms(Task::Claim(stage));
        let owed = [
            (self.work.is_busy(name, stage), claim_ms),
            (matches!(peer.place, Place::Clearing { .. }), claim_ms),
            (
                peer.step < self.work.step() && self.peers.member_stage(name).is_some(),
                self.usual.ms(Task::Update),
            ),
            (self.averages.wait_for(name), self.usual.ms(Task::Average)),
        ];
        let owed = owed.into_iter().filter(|(owes, _)| *owes);
        // Half as patient as with whoever keeps a microbatch from others: here nobody else can do it.
        owed.map(|(_, usual)| patience(usual.map(|ms| QUIET * ms), limit_ms)).max()
    }

    /// A peer is taken to be lost, though its stream works. Should it live, it begins anew.
    pub(super) fn give_up(&mut self, turn: &mut Turn<'_>, name: &PeerName, why: &str) {
        turn.note(format!("{name} is taken to be lost: {why}"));
        self.gone(turn, name);
        turn.tell(name, ToPeer::Expelled { why: why.to_owned() });
        turn.drop_stream(name);
    }

    /// All streams have ended, because this process stood still. What everybody holds and has added is as it was: it goes on as after a restart, and nobody is lost who comes
    /// back.
    pub(super) fn woke(&mut self, turn: &mut Turn<'_>) {
        let awaited = self.peers.serving().into_iter().collect();
        if self.phase == Phase::Gathering {
            let held = self.peers.all().iter().filter_map(|(n, p)| Some((n.clone(), p.held.as_ref()?)));
            self.gathering.woke(turn.now_ms, held.map(|(name, held)| (name, held.step, held.scale)));
        }
        self.peers.clear();
        self.work.trainers_gone();
        if self.live() {
            turn.note("the conductor itself stood still, so that all streams ended: the run goes on from what peers hold");
            self.gather_again(turn.now_ms, awaited);
        }
    }
}
