//! What peers say of their states, and what becomes of those that are wrong.
//!
//! Peers of a stage at one step have the same state, bit for bit, so who has another computes or remembers wrongly. It is expelled: another process takes its place. What it
//! computed since the last update may have gone into sums of others, so the steps that are open are begun anew: nothing wrong gets into an update that way, and the
//! run ends with the bits of one that nothing happened to. When nobody can tell who is wrong, all go back to a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::machines::verdict::{Statement, Verdict, judge};
use super::peer_state::Place;
use super::turn::Turn;
use super::{Conductor, Expelled};
use crate::training::ids::{Microbatch, StageId, Step};
use crate::training::message::{Held, Hello, Role, StateDigest, ToPeer, ToTrainer};

/// Expelled peers that are remembered.
const EXPELLED_MAX: usize = 64;
/// A state that differs, and nobody can tell whose is right: so often all go back without getting any further, then the run ends.
const TIES_MAX: u32 = 3;
/// A microbatch that cannot be computed, as several trainers say or one again and again: so often it is driven.
const FAILURES_MAX: usize = 4;
/// A root is proved every so many steps in any case.
const PROVED_EVERY: Step = 16;

impl Conductor {
    /// Is a hello one that can be of this run? What peers hold is what they say: what cannot be is not believed.
    pub(super) fn believable(&self, hello: &Hello) -> Option<Held> {
        let Role::Peer { held: Some(held) } = &hello.role else { return None };
        let config = &self.config;
        let known = |m: &u32| *m < config.microbatches;
        let sums = held.sums.iter().all(|sums| {
            let mut done: Vec<u32> =
                sums.done.iter().map(|c| c.microbatch).chain(sums.adding.iter().copied()).collect();
            let all = done.len();
            done.sort_unstable();
            done.dedup();
            done.len() == all && done.iter().all(known)
        });
        let shards = held.stage < config.stages && {
            let own = self.averages.of_stage(held.stage);
            held.averaged.keys().all(|shard| own.contains(shard))
        };
        let open = if config.delayed_updates { 2 } else { 1 };
        (sums && shards && held.sums.len() <= open && held.step <= config.steps).then(|| held.clone())
    }

    /// A peer says what its state is, which it has made itself, or has copied from others.
    pub(super) fn hear_state(
        &mut self,
        name: &PeerName,
        (stage, step): (StageId, Step),
        state: StateDigest,
        copied: bool,
    ) {
        // One that is far ahead says nothing about anybody else.
        if !(self.step.saturating_sub(1)..=self.step + 1).contains(&step) {
            return;
        }
        let oldest = self.step.saturating_sub(1);
        self.states.retain(|(_, s), _| *s >= oldest);
        let host = self.peers.get(name).map(|p| p.mate.host.clone()).unwrap_or_default();
        let said = self.states.entry((stage, step)).or_default();
        // What was copied stays a copy, however often that is said.
        let copied = copied || said.get(name).is_some_and(|before| before.copied);
        said.insert(name.clone(), Statement { host, says: state, copied });
    }

    /// Had a peer the state before the last update, so that it came to this one by itself?
    pub(super) fn had_state(&self, name: &PeerName, stage: StageId, step: Step) -> bool {
        let before = step.checked_sub(1).and_then(|before| self.states.get(&(stage, before)));
        before.is_some_and(|said| said.contains_key(name))
    }

    /// Does a state differ from that of those who serve the stage?
    pub(super) fn differs(&self, stage: StageId, step: Step, state: &StateDigest) -> bool {
        let Some(known) = self.states.get(&(stage, step)) else { return false };
        let serves = |name: &&PeerName| self.member_stage(name) == Some(stage);
        let mut theirs = known.iter().filter(|(name, _)| serves(name)).map(|(_, s)| &s.says).peekable();
        theirs.peek().is_some() && !theirs.any(|other| other.agrees(state))
    }

    /// Have all that serve a stage made the last update, and have the same state?
    pub(super) fn is_agreed(&self, stage: StageId) -> bool {
        let current = |name: &PeerName| self.peers.get(name).is_some_and(|p| p.step == self.step);
        let verdict =
            self.states.get(&(stage, self.step)).map_or(Verdict::Agreed, |s| judge(s, StateDigest::agrees));
        self.members_of(stage).all(current) && verdict == Verdict::Agreed
    }

    /// Have all said what they have, who serve a stage or are about to?
    fn have_all_said(&self, stage: StageId, said: &BTreeMap<PeerName, Statement<StateDigest>>) -> bool {
        let serves = [Place::Member { stage }, Place::Clearing { stage }];
        let mut all = self.peers.iter().filter(|(_, p)| serves.contains(&p.place));
        all.all(|(name, p)| p.step == self.step && said.contains_key(name))
    }

    /// Compares what the peers of every stage say, once all of them have made the last update. True when somebody is wrong.
    pub(super) fn judge_states(&mut self, turn: &mut Turn<'_>) -> bool {
        for stage in 0..self.config.stages {
            let step = self.step;
            let Some(said) = self.states.get(&(stage, step)).filter(|said| self.have_all_said(stage, said))
            else {
                continue;
            };
            match judge(said, StateDigest::agrees) {
                Verdict::Agreed => continue,
                Verdict::Odd(names) => {
                    self.states.entry((stage, step)).or_default().retain(|name, _| !names.contains(name));
                    let why =
                        format!("its state of stage {stage} after step {step} is not that of most others");
                    self.disown(turn, names, &why);
                }
                Verdict::Tied => {
                    let names: Vec<&str> = said.keys().map(PeerName::as_str).collect();
                    let who = names.join(" and ");
                    self.tied(
                        turn,
                        &format!("{who} have different states of stage {stage} after step {step}"),
                    );
                }
            }
            return true;
        }
        false
    }

    /// Something is wrong, and nobody can tell who: everybody goes back to the newest checkpoint.
    pub(super) fn tied(&mut self, turn: &mut Turn<'_>, what: &str) {
        let (step, times) = self.ties;
        self.ties = if self.step > step { (self.step, 1) } else { (step, times + 1) };
        if self.ties.1 > TIES_MAX {
            return self.fail(turn, format!(
                    "{what}, and nobody can tell who is wrong. All went back {TIES_MAX} times, and it came to that again: these machines do not compute the same. Replace one of \
                     them, or give the stage a third peer on another machine, and go on from the last checkpoint"
                ));
        }
        turn.note(format!("{what}, and nobody can tell who is wrong: all go back"));
        self.restore(turn);
    }

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

    /// True when it may have computed for others.
    fn expel_one(&mut self, turn: &mut Turn<'_>, name: &PeerName, why: &str) -> bool {
        let Some(peer) = self.peers.get(name) else { return true };
        let host = peer.mate.host.clone();
        let on = if host.is_empty() { String::new() } else { format!(" on {host}") };
        turn.note(format!("{name}{on} is expelled: {why}"));
        self.totals.expelled += 1;
        self.expelled.push_back(Expelled { peer: name.clone(), host, step: self.step, why: why.to_owned() });
        if self.expelled.len() > EXPELLED_MAX {
            self.expelled.pop_front();
        }
        // It is not lost: what it leaves behind is of no use to anybody.
        let place = self.peers.get_mut(name).map(|p| std::mem::replace(&mut p.place, Place::Retired));
        self.gone(turn, name);
        turn.tell(name, ToPeer::Expelled { why: why.to_owned() });
        turn.drop_stream(name);
        let Some(Place::Member { stage } | Place::HandingOver { stage, .. } | Place::Clearing { stage }) =
            place
        else {
            return false;
        };
        if self.live() && !self.is_held(stage) {
            // It will not come back with what it has.
            self.stage_lost(turn, stage);
        } else if self.members_of(stage).count() == 1 {
            self.save_for_one_left();
        }
        true
    }

    /// Has anybody been expelled under this name?
    pub(super) fn expelled_for(&self, name: &PeerName) -> Option<String> {
        self.expelled.iter().find(|e| e.peer == *name).map(|e| e.why.clone())
    }

    /// A peer that is wrong may have computed for others: all that the open steps have is of no use, and every key is open again.
    fn begin_steps_anew(&mut self, turn: &mut Turn<'_>) {
        if !self.live() {
            return;
        }
        let done: u32 =
            self.open.iter().flat_map(|open| &open.ledgers).map(|ledger| ledger.count_done()).sum();
        let redone = self.open.front().map_or(0, |open| open.redone) + done;
        self.totals.redone += u64::from(done);
        turn.note(format!("step {} is begun anew", self.step));
        self.in_doubt.clear();
        self.open_anew();
        if let Some(open) = self.open.front_mut() {
            open.redone = redone;
        }
        for name in self.trainers.keys() {
            turn.tell_trainer(name, ToTrainer::Anew);
        }
        let (step, attempt) = (self.step, self.attempt);
        for (name, peer) in &mut self.peers {
            if let Place::Member { stage } | Place::HandingOver { stage, .. } | Place::Clearing { stage } =
                peer.place
            {
                peer.place = Place::Clearing { stage };
                peer.moving = None;
                peer.quiet_since_ms = turn.now_ms;
                turn.tell(name, ToPeer::Clear { step, attempt });
            }
        }
        self.roster_changed = true;
    }

    /// Has anybody the state of a stage who serves it, or is about to?
    pub(super) fn is_held(&self, stage: StageId) -> bool {
        let holds = |place: &Place| matches!(place, Place::Member { stage: s } | Place::HandingOver { stage: s, .. } | Place::Clearing { stage: s } if *s == stage);
        self.peers.values().any(|p| holds(&p.place))
    }

    /// A peer's memory has changed: what it has computed in the open steps is not to be trusted.
    pub(super) fn corrupt(&mut self, turn: &mut Turn<'_>, name: &PeerName, what: &str) {
        self.disown(turn, [name.clone()], what);
    }

    /// The same as [`Self::expel`], of peers that had something wrong: whatever they do now, they may have computed for others since the last update, and have handed that over.
    fn disown(&mut self, turn: &mut Turn<'_>, names: impl IntoIterator<Item = PeerName>, why: &str) {
        if !self.expel(turn, names, why) {
            self.begin_steps_anew(turn);
        }
    }

    /// One peer cannot compute what another can.
    pub(super) fn contradicted(&mut self, turn: &mut Turn<'_>, peer: &PeerName, by: &PeerName, what: &str) {
        let Some(stage) = self.member_stage(peer).filter(|s| self.member_stage(by) == Some(*s) && peer != by)
        else {
            return;
        };
        let why = format!("it cannot compute what {by}, which also serves stage {stage}, can: {what}");
        self.expel(turn, [peer.clone()], &why);
    }

    /// Nobody can compute a microbatch, says a trainer. Another trainer drives it, if there is one: the first may be wrong about what it drives. So it does if all that were
    /// asked are of one machine and there are others.
    pub(super) fn failed(
        &mut self,
        turn: &mut Turn<'_>,
        trainer: &PeerName,
        (step, microbatch): (Step, Microbatch),
        peers: &[PeerName],
        what: &str,
    ) {
        let machine = |name: &PeerName| {
            let host = self.peers.get(name).map(|p| p.mate.host.clone()).unwrap_or_default();
            if host.is_empty() { name.to_string() } else { host }
        };
        let asked: BTreeSet<String> = peers.iter().map(machine).collect();
        let stage = peers.iter().find_map(|n| self.member_stage(n));
        let others = stage.is_none_or(|stage| self.members_of(stage).any(|n| !asked.contains(&machine(n))));
        let (Some(index), Some(work)) = (self.index(step), self.trainers.get_mut(trainer)) else { return };
        if work.remove(&(step, microbatch)).is_none() {
            return;
        }
        let said = self.open[index].failed.entry(microbatch).or_default();
        said.push(trainer.clone());
        let unheard = self.trainers.keys().any(|other| !said.contains(other));
        let doubtful = (unheard || asked.len() < 2 && others) && said.len() < FAILURES_MAX;
        let who: Vec<&str> = peers.iter().map(PeerName::as_str).collect();
        let found = format!("step {step}, microbatch {microbatch}: {what}. So say {}", who.join(" and "));
        if doubtful {
            turn.note(format!("{found}, asked by {trainer}; it is driven once more"));
            self.bring_back(step, microbatch);
            return;
        }
        self.fail(turn, format!(
                "{found}, again and again, and of values that other peers had made where there are others; lower the learning rate or the clip, or mend the data, and go on from \
                 the last checkpoint"
            ));
    }

    /// Is the root of the state after this step to be said? It costs a second a gigabyte, so not always: before a checkpoint, when somebody is about to get the
    /// state, and now and then.
    pub(super) fn proves(&self, after: Step) -> bool {
        let every = self.config.checkpoint_every;
        let saves = self.config.saves
            && (after >= self.config.steps || self.suspend || (every > 0 && after.is_multiple_of(every)));
        let comes =
            self.peers.values().any(|p| matches!(p.place, Place::Fetching { .. } | Place::Parked { .. }));
        saves || comes || after.is_multiple_of(PROVED_EVERY)
    }
}
