//! What peers say that their states are, and who was expelled because it was wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dunlin_swarm::PeerName;

use super::verdict::{Statement, Verdict, judge};
use crate::training::conductor::shell::Expelled;
use crate::training::ids::{StageId, Step};
use crate::training::message::StateDigest;

/// Expelled peers that are remembered.
const EXPELLED_MAX: usize = 64;
/// Nobody can tell who is wrong: so often all go back without getting any further.
pub const TIES_MAX: u32 = 3;

/// What peers of a stage say of their state at one step.
type Said = BTreeMap<PeerName, Statement<StateDigest>>;

/// What is known against peers.
#[derive(Default)]
pub struct PeerTrust {
    states: BTreeMap<(StageId, Step), Said>,
    /// The newest last.
    expelled: VecDeque<Expelled>,
    expelled_ever: u64,
    /// The furthest step at which nobody could tell who is right, and how often that was.
    ties: (Step, u32),
}

/// Whether a peer may take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Nothing is known against it.
    Trusted,
    /// It was wrong: nobody comes back under its name.
    Expelled {
        /// What was found, for people.
        why: &'a str,
    },
}

impl PeerTrust {
    /// What was said is of no use any longer. Who was expelled stays so.
    pub fn forget_states(&mut self) {
        self.states.clear();
    }

    /// A peer says what its state at a stage and step is, which it has made itself, or has copied from others. The run is at step `now`.
    pub fn hear(&mut self, now: Step, at: (StageId, Step), name: &PeerName, says: Statement<StateDigest>) {
        let oldest = now.saturating_sub(1);
        // One that is far ahead says nothing about anybody else.
        if !(oldest..=now + 1).contains(&at.1) {
            return;
        }
        self.states.retain(|(_, step), _| *step >= oldest);
        let said = self.states.entry(at).or_default();
        // What was copied stays a copy, however often that is said.
        let copied = says.copied || said.get(name).is_some_and(|before| before.copied);
        said.insert(name.clone(), Statement { copied, ..says });
    }

    /// What these peers say of their state counts no longer.
    pub fn disregard(&mut self, at: (StageId, Step), names: &BTreeSet<PeerName>) {
        self.states.entry(at).or_default().retain(|name, _| !names.contains(name));
    }

    /// Had a peer the state before the last update, so that it came to this one by itself?
    pub fn had_state(&self, name: &PeerName, stage: StageId, step: Step) -> bool {
        let before = step.checked_sub(1).and_then(|before| self.states.get(&(stage, before)));
        before.is_some_and(|said| said.contains_key(name))
    }

    /// Does a state differ from those of the peers that `serve`?
    pub fn differs(
        &self,
        at: (StageId, Step),
        state: &StateDigest,
        serve: impl Fn(&PeerName) -> bool,
    ) -> bool {
        let said = self.states.get(&at).into_iter().flatten();
        let mut theirs = said.filter(|(name, _)| serve(name)).map(|(_, s)| &s.says).peekable();
        theirs.peek().is_some() && !theirs.any(|other| other.agrees(state))
    }

    /// Those that have said what their state is.
    pub fn heard(&self, at: (StageId, Step)) -> impl Iterator<Item = &PeerName> {
        self.states.get(&at).into_iter().flat_map(BTreeMap::keys)
    }

    /// Who is wrong, by what was said so far.
    pub fn verdict(&self, at: (StageId, Step)) -> Verdict {
        self.states.get(&at).map_or(Verdict::Agreed, |said| judge(said, StateDigest::agrees))
    }

    /// Nobody can tell who is wrong at this step. May all go back and try again?
    pub fn tie(&mut self, at: Step) -> bool {
        let (step, times) = self.ties;
        self.ties = if at > step { (at, 1) } else { (step, times + 1) };
        self.ties.1 <= TIES_MAX
    }

    /// A peer is expelled.
    pub fn expel(&mut self, expelled: Expelled) {
        self.expelled_ever += 1;
        self.expelled.push_back(expelled);
        if self.expelled.len() > EXPELLED_MAX {
            self.expelled.pop_front();
        }
    }

    /// May a peer of this name take part?
    pub fn standing(&self, name: &PeerName) -> Standing<'_> {
        let expelled = self.expelled.iter().find(|e| e.peer == *name);
        expelled.map_or(Standing::Trusted, |e| Standing::Expelled { why: &e.why })
    }

    /// Those that were expelled, the newest last; as many as are remembered.
    pub fn expelled(&self) -> impl ExactSizeIterator<Item = &Expelled> + DoubleEndedIterator {
        self.expelled.iter()
    }

    /// How many that were in all.
    pub fn expelled_ever(&self) -> u64 {
        self.expelled_ever
    }
}
