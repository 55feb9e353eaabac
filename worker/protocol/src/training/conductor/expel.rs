//! What becomes of peers that are wrong.
//!
//! Whoever is wrong is expelled: another process takes its place. What it computed since the last update may have gone into sums of others, so the steps that are open are begun
//! anew: nothing wrong gets into an update that way, and the run ends with the bits of one that nothing happened to.

use dunlin_swarm::PeerName;

use super::machines::peer::Place;
use super::turn::Turn;
use super::{Conductor, Expelled};
use crate::training::ids::Step;
use crate::training::message::{ToPeer, ToTrainer};

impl Conductor {
    /// Peers are wrong: they are named, and have to begin anew as somebody else. What they did in the open steps counts for nothing. True when that was anything.
    pub(super) fn expel(
        &mut self,
        turn: &mut Turn<'_>,
        names: impl IntoIterator<Item = PeerName>,
        why: &str,
    ) -> bool {
        let mut served = false;
        for name in names {
            served |= self.expel_one(turn, &name, why);
        }
        if served {
            self.begin_steps_anew(turn);
        }
        served
    }

    /// A peer says that it is where nobody can be.
    pub(super) fn is_nowhere(&mut self, turn: &mut Turn<'_>, name: &PeerName, step: Step) {
        let why = format!("it says that it is at step {step}, and the run is at step {}", self.work.step());
        self.expel(turn, [name.clone()], &why);
    }

    /// True when it may have computed for others.
    fn expel_one(&mut self, turn: &mut Turn<'_>, name: &PeerName, why: &str) -> bool {
        let Some(peer) = self.peers.get(name) else { return true };
        let host = peer.mate.host.clone();
        let on = if host.is_empty() { String::new() } else { format!(" on {host}") };
        turn.note(format!("{name}{on} is expelled: {why}"));
        let expelled = Expelled { peer: name.clone(), host, step: self.work.step(), why: why.to_owned() };
        self.trust.expel(expelled);
        // It is not lost: what it leaves behind is of no use to anybody.
        let held = peer.place.held_stage();
        self.peers.place(name, Place::Retired);
        self.gone(turn, name);
        turn.tell(name, ToPeer::Expelled { why: why.to_owned() });
        turn.drop_stream(name);
        let Some(stage) = held else { return false };
        if self.live() && !self.peers.hold(stage) {
            // It will not come back with what it has.
            self.stage_lost(turn, stage);
        } else {
            self.save_if_one_is_left(stage);
        }
        true
    }

    /// A peer that is wrong may have computed for others: all that the open steps have is of no use, and every key is open again.
    fn begin_steps_anew(&mut self, turn: &mut Turn<'_>) {
        if !self.live() {
            return;
        }
        turn.note(format!("step {} is begun anew", self.work.step()));
        self.doubts.clear();
        self.work.begin_anew();
        self.averages.begin_step();
        self.work.tell_trainers(turn, &ToTrainer::Anew);
        let (step, attempt) = (self.work.step(), self.work.attempt());
        for name in self.peers.all_clear(turn.now_ms) {
            turn.tell(&name, ToPeer::Clear { step, attempt });
        }
    }

    /// The same as [`Self::expel`], of peers that had something wrong: whatever they do now, they may have computed for others since the last update, and have handed that over.
    pub(super) fn disown(
        &mut self,
        turn: &mut Turn<'_>,
        names: impl IntoIterator<Item = PeerName>,
        why: &str,
    ) {
        if !self.expel(turn, names, why) {
            self.begin_steps_anew(turn);
        }
    }

    /// One peer cannot compute what another can.
    pub(super) fn contradicted(&mut self, turn: &mut Turn<'_>, peer: &PeerName, by: &PeerName, what: &str) {
        let Some(stage) =
            self.peers.member_stage(peer).filter(|s| self.peers.member_stage(by) == Some(*s) && peer != by)
        else {
            return;
        };
        let why = format!("it cannot compute what {by}, which also serves stage {stage}, can: {what}");
        self.expel(turn, [peer.clone()], &why);
    }
}
