//! What a peer gives to others, and to whom.
//!
//! Values go to mates only ([`Mates`]). A mate may come before the conductor's word that it is one, and before the conductor's word to form the
//! average that it wants a part of: so whoever is not known yet waits for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use dunlin_swarm::PeerName;

use super::ids::{AskId, AverageId, Microbatch, ShardId, StageId, Step};
use super::mates::{Asked, Mates};

/// Pulls of mates that wait or are served at once; more are refused, and asked again.
pub const PULLS_MAX: usize = 64;
/// The same of those that are no mates yet.
const STRANGERS_MAX: usize = 64;

/// How long pulls wait.
#[derive(Clone, Copy, Debug)]
pub struct ServeConfig {
    /// For the conductor's word that who asks is a mate: less than what mates have patience for.
    pub stranger_ms: u64,
    /// For the average that is asked for to begin here.
    pub average_ms: u64,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self { stranger_ms: 3_000, average_ms: 5_000 }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Values of the state of the stage, and the leaves of its tree.
    State(Range<u64>),
    /// The average of a step that is past, with its scale.
    Update(Step),
    /// All sums of a step, if they are of these microbatches; or of whichever there are, if none are named.
    AllSums(Step, BTreeSet<Microbatch>),
    /// Sums of a part of a shard, for its average.
    Sums(AverageId, Range<usize>),
    /// The part of an average that is added here.
    Result(AverageId, Range<usize>),
}

impl Wanted {
    fn average(&self) -> Option<AverageId> {
        match self {
            Self::Sums(id, _) | Self::Result(id, _) => Some(*id),
            Self::State(_) | Self::Update(_) | Self::AllSums(..) => None,
        }
    }

    fn asked(&self) -> Asked {
        self.average().map_or(Asked::Stage, |id| Asked::Shard(id.shard))
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum ServeEvent {
    /// Somebody asks for something of a stage.
    Asked {
        /// The pull.
        ask: AskId,
        /// Who asks.
        by: PeerName,
        /// The stage whose values it wants.
        stage: StageId,
        /// Which of them.
        wanted: Wanted,
        /// The stage that is served here, if any is.
        here: Option<StageId>,
    },
    /// The peers that values are given to from now on.
    Mates(Mates),
    /// An average begins: its share was ordered from the engine, behind whatever changes the sums.
    Opened(AverageId),
    /// The sums are about to change: nothing is given of them for averages that have begun.
    Closed,
    /// What is served here is served no more: another state is about to come. Whoever waits would get values of that.
    Left,
    /// What was given is given, or the caller is gone.
    Ended(AskId),
    /// The time of [`Serving::wake_ms`] has come.
    Deadline,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum ServeEffect {
    /// Give it; sums and state as of now. Then [`ServeEvent::Ended`].
    Give(AskId, Wanted),
    /// Give nothing.
    Refuse(AskId, NotGiven),
}

/// Why nothing is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotGiven {
    /// Too many ask.
    Busy,
    /// This peer does not serve that stage.
    NotServing,
    /// The conductor has not named this peer as a mate.
    NoMate(PeerName),
    /// A newer average of that shard has begun here.
    Ahead,
    /// That average has not begun here.
    NotBegun,
    /// The sums here are of other microbatches: they were emptied meanwhile.
    OtherSums,
}

impl fmt::Display for NotGiven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("too many mates ask at once"),
            Self::NotServing => f.write_str("this peer does not serve that stage"),
            Self::NoMate(who) => {
                write!(f, "the conductor has not placed {who} where it may have that")
            }
            Self::Ahead => f.write_str("a newer average has begun at this peer"),
            Self::NotBegun => f.write_str("that average has not begun at this peer"),
            Self::OtherSums => f.write_str("the sums of this peer are of other microbatches by now"),
        }
    }
}

/// A pull that waits.
#[derive(Debug)]
struct Waiting {
    by: PeerName,
    wanted: Wanted,
    since_ms: u64,
    /// It was known as a mate's when it came.
    known: bool,
}

/// What a peer gives.
#[derive(Debug)]
pub struct Serving {
    config: ServeConfig,
    mates: Mates,
    /// The newest average of each shard, and whether sums are still given for it.
    averages: BTreeMap<ShardId, (AverageId, bool)>,
    waiting: BTreeMap<AskId, Waiting>,
    /// Pulls that are being served.
    given: BTreeSet<AskId>,
}

impl Serving {
    /// Gives nothing to anybody, until the conductor has named mates.
    #[must_use]
    pub fn new(config: ServeConfig) -> Self {
        Self {
            config,
            mates: Mates::default(),
            averages: BTreeMap::new(),
            waiting: BTreeMap::new(),
            given: BTreeSet::new(),
        }
    }

    /// When [`ServeEvent::Deadline`] is due, if nothing happens before.
    #[must_use]
    pub fn wake_ms(&self) -> Option<u64> {
        self.waiting.values().map(|ask| ask.since_ms + self.patience_ms(ask)).min()
    }

    fn patience_ms(&self, ask: &Waiting) -> u64 {
        if self.mates.may_have(&ask.by, ask.wanted.asked()) {
            self.config.average_ms
        } else {
            self.config.stranger_ms
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now_ms: u64, event: ServeEvent, out: &mut Vec<ServeEffect>) {
        match event {
            ServeEvent::Asked { ask, by, stage, wanted, here } => {
                let known = self.mates.may_have(&by, wanted.asked());
                let waiting = self.waiting.values().filter(|other| other.known == known).count();
                // The mates of a shared embedding serve another stage.
                if here.is_none_or(|here| wanted.average().is_none() && here != stage) {
                    out.push(ServeEffect::Refuse(ask, NotGiven::NotServing));
                } else if known && waiting + self.given.len() >= PULLS_MAX
                    || !known && waiting >= STRANGERS_MAX
                {
                    out.push(ServeEffect::Refuse(ask, NotGiven::Busy));
                } else {
                    self.waiting.insert(ask, Waiting { by, wanted, since_ms: now_ms, known });
                    self.settle(now_ms, ask, out);
                }
            }
            ServeEvent::Mates(mates) => {
                self.mates = mates;
                self.settle_all(now_ms, out);
            }
            ServeEvent::Opened(id) => {
                self.averages.insert(id.shard, (id, true));
                self.settle_all(now_ms, out);
            }
            ServeEvent::Closed => self.close(),
            ServeEvent::Left => {
                self.close();
                let waiting = std::mem::take(&mut self.waiting).into_keys();
                out.extend(waiting.map(|ask| ServeEffect::Refuse(ask, NotGiven::NotServing)));
            }
            ServeEvent::Ended(ask) => {
                self.given.remove(&ask);
            }
            ServeEvent::Deadline => self.settle_all(now_ms, out),
        }
    }

    fn close(&mut self) {
        self.averages.values_mut().for_each(|(_, open)| *open = false);
    }

    fn settle_all(&mut self, now_ms: u64, out: &mut Vec<ServeEffect>) {
        for ask in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.settle(now_ms, ask, out);
        }
    }

    /// Gives it, refuses it, or lets it wait.
    fn settle(&mut self, now_ms: u64, ask: AskId, out: &mut Vec<ServeEffect>) {
        let Some(waiting) = self.waiting.get(&ask) else { return };
        let late = now_ms >= waiting.since_ms + self.patience_ms(waiting);
        let settled = if !self.mates.may_have(&waiting.by, waiting.wanted.asked()) {
            late.then(|| Err(NotGiven::NoMate(waiting.by.clone())))
        } else if let Some(id) = waiting.wanted.average() {
            match self.averages.get(&id.shard) {
                Some((newest, true)) if *newest == id => Some(Ok(())),
                // Steps go back with a checkpoint, rounds never do.
                Some((newest, _)) if newest.round > id.round => Some(Err(NotGiven::Ahead)),
                _ => late.then_some(Err(NotGiven::NotBegun)),
            }
        } else {
            Some(Ok(()))
        };
        let Some(settled) = settled else { return };
        let Some(Waiting { wanted, .. }) = self.waiting.remove(&ask) else { return };
        out.push(match settled {
            Ok(()) => {
                self.given.insert(ask);
                ServeEffect::Give(ask, wanted)
            }
            Err(why) => ServeEffect::Refuse(ask, why),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn serving(mates: &[&str]) -> Serving {
        let mut serving = Serving::new(ServeConfig::default());
        let stage = mates.iter().map(|name| PeerName::from(*name)).collect();
        serving.handle(0, ServeEvent::Mates(Mates { stage, shared: None }), &mut Vec::new());
        serving
    }

    fn average(round: u64) -> AverageId {
        AverageId { step: 7, shard: 1, round }
    }

    fn ask(serving: &mut Serving, now_ms: u64, ask: AskId, by: &str, wanted: Wanted) -> Vec<ServeEffect> {
        let mut out = Vec::new();
        let asked = ServeEvent::Asked { ask, by: by.into(), stage: 1, wanted, here: Some(1) };
        serving.handle(now_ms, asked, &mut out);
        out
    }

    fn after(serving: &mut Serving, now_ms: u64, event: ServeEvent) -> Vec<ServeEffect> {
        let mut out = Vec::new();
        serving.handle(now_ms, event, &mut out);
        out
    }

    #[test]
    fn a_stranger_waits_until_it_is_a_mate_and_not_for_ever() {
        let mut serving = serving(&["a"]);
        assert!(ask(&mut serving, 10, 1, "b", Wanted::Update(3)).is_empty());
        assert!(ask(&mut serving, 10, 2, "c", Wanted::Update(3)).is_empty());
        let mates = Mates { stage: BTreeSet::from(["b".into()]), shared: None };
        let given = after(&mut serving, 20, ServeEvent::Mates(mates));
        assert_eq!(given, [ServeEffect::Give(1, Wanted::Update(3))]);
        assert_eq!(serving.wake_ms(), Some(3010));
        let refused = after(&mut serving, 3010, ServeEvent::Deadline);
        assert_eq!(refused, [ServeEffect::Refuse(2, NotGiven::NoMate("c".into()))]);
        assert_eq!(serving.wake_ms(), None);
    }

    #[test]
    fn parts_are_given_of_the_average_that_has_begun_until_the_sums_change() {
        let mut serving = serving(&["a"]);
        let wanted = |round| Wanted::Sums(average(round), 0..4);
        assert!(ask(&mut serving, 0, 1, "a", wanted(5)).is_empty(), "it has not begun here");
        let given = after(&mut serving, 10, ServeEvent::Opened(average(5)));
        assert_eq!(given, [ServeEffect::Give(1, wanted(5))]);
        let refused = ask(&mut serving, 20, 2, "a", wanted(4));
        assert_eq!(refused, [ServeEffect::Refuse(2, NotGiven::Ahead)]);
        let back = Wanted::Sums(AverageId { step: 3, ..average(6) }, 0..4);
        assert!(ask(&mut serving, 25, 9, "a", back).is_empty(), "all went back, and it is not told yet");
        after(&mut serving, 30, ServeEvent::Closed);
        assert!(ask(&mut serving, 40, 3, "a", wanted(5)).is_empty());
        let refused = after(&mut serving, 5040, ServeEvent::Deadline);
        assert_eq!(refused, [3, 9].map(|ask| ServeEffect::Refuse(ask, NotGiven::NotBegun)));
    }

    /// It would become a mate at the stage that this peer goes to, and take the values of that for those that it asked for.
    #[test]
    fn whoever_waits_gets_nothing_of_the_state_that_comes_next() {
        let mut serving = serving(&["a"]);
        assert!(ask(&mut serving, 0, 1, "b", Wanted::Update(3)).is_empty());
        assert!(ask(&mut serving, 0, 2, "a", Wanted::Sums(average(5), 0..4)).is_empty());
        let refused = after(&mut serving, 10, ServeEvent::Left);
        assert_eq!(refused, [1, 2].map(|ask| ServeEffect::Refuse(ask, NotGiven::NotServing)));
        let mates = Mates { stage: BTreeSet::from(["b".into()]), shared: None };
        assert!(after(&mut serving, 20, ServeEvent::Mates(mates)).is_empty());
    }

    #[test]
    fn a_stage_is_given_where_it_is_served_and_to_so_many_at_once() {
        let mut serving = serving(&["a"]);
        for (stage, here) in [(1, None), (1, Some(2))] {
            let asked =
                ServeEvent::Asked { ask: 900, by: "a".into(), stage, wanted: Wanted::Update(1), here };
            let refused = after(&mut serving, 0, asked);
            assert_eq!(refused, [ServeEffect::Refuse(900, NotGiven::NotServing)]);
        }
        for id in 0..PULLS_MAX as u64 {
            assert_eq!(ask(&mut serving, 0, id, "a", Wanted::Update(1)).len(), 1);
        }
        let refused = ask(&mut serving, 0, 99, "a", Wanted::Update(1));
        assert_eq!(refused, [ServeEffect::Refuse(99, NotGiven::Busy)]);
        after(&mut serving, 0, ServeEvent::Ended(3));
        let given = ask(&mut serving, 0, 99, "a", Wanted::Update(1));
        assert_eq!(given, [ServeEffect::Give(99, Wanted::Update(1))]);
    }
}
