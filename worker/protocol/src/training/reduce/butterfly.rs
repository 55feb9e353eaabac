//! One member's side of an average by butterfly.
//!
//! All goes chunk by chunk: while one is added, others are on their way, and the result of a chunk leaves before the next is added. Values are
//! added in the order of the members, so that the result does not depend on whose came first. What a member gives is what it keeps, so all
//! end with the same bits.

use std::collections::BTreeMap;
use std::ops::Range;

use dunlin_swarm::PeerName;

use super::super::ids::{AskId, AverageId};
use super::super::message::Mate;
use super::event::{Half, PartRef, ReduceConfig, ReduceEffect, ReduceEvent};

/// One member's side of one average.
#[derive(Debug)]
pub struct Butterfly {
    config: ReduceConfig,
    id: AverageId,
    group: Vec<Mate>,
    me: usize,
    /// Who adds what; nothing until the share is ready.
    parts: Vec<Range<usize>>,
    pulls: BTreeMap<PartRef, Pull>,
    /// Chunks of the own part that are formed.
    formed: usize,
    /// The member whose values are added next to the chunk behind those.
    turn: usize,
    /// All are added, and the result is being made.
    combining: bool,
    asks: BTreeMap<AskId, Ask>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Forming,
    Complete,
    Failed,
}

/// Values on their way here.
#[derive(Debug)]
struct Pull {
    range: Range<usize>,
    /// Chunks that are used.
    used: usize,
    /// The next is here.
    here: bool,
    /// It is being read since then.
    since_ms: Option<u64>,
}

/// Somebody who gets the part that is added here.
#[derive(Debug)]
struct Ask {
    range: Range<usize>,
    /// Chunks that it was given.
    given: usize,
    since_ms: u64,
}

impl Butterfly {
    /// Begins the average `id` of `group`, in which this peer is `me`.
    pub fn begin(
        config: ReduceConfig,
        id: AverageId,
        group: Vec<Mate>,
        me: &PeerName,
        out: &mut Vec<ReduceEffect>,
    ) -> Self {
        let place = group.iter().position(|mate| mate.name == *me);
        let mut butterfly = Self {
            config,
            id,
            group,
            me: place.unwrap_or_default(),
            parts: Vec::new(),
            pulls: BTreeMap::new(),
            formed: 0,
            turn: 0,
            combining: false,
            asks: BTreeMap::new(),
            state: State::Forming,
        };
        match place {
            Some(_) => out.push(ReduceEffect::Share),
            None => butterfly.fail(None, "this peer is not in the group".to_owned(), out),
        }
        butterfly
    }

    /// Which average it is.
    #[must_use]
    pub fn id(&self) -> AverageId {
        self.id
    }

    /// Everybody who contributes, in order.
    #[must_use]
    pub fn group(&self) -> &[Mate] {
        &self.group
    }

    /// Which of them this is.
    #[must_use]
    pub fn me(&self) -> usize {
        self.me
    }

    /// Has it come to nothing?
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// When [`ReduceEvent::Deadline`] is due, if nothing happens before.
    #[must_use]
    pub fn wake_ms(&self) -> Option<u64> {
        let reads = self.pulls.values().filter_map(|pull| pull.since_ms);
        let asks = self.asks.values().map(|ask| ask.since_ms);
        reads.chain(asks).min().map(|since| since + self.config.patience_ms)
    }

    /// Something happened.
    pub fn handle(&mut self, now_ms: u64, event: ReduceEvent, out: &mut Vec<ReduceEffect>) {
        match event {
            ReduceEvent::ShareReady(parts) => self.share_ready(now_ms, parts, out),
            ReduceEvent::PieceArrived(part) => self.arrived(now_ms, part, out),
            ReduceEvent::PullEnded(part, why) => {
                let missing = self.pulls.get(&part).is_some_and(|pull| pull.since_ms.is_some());
                if missing {
                    let why = why.unwrap_or_else(|| "fewer values came than were asked for".to_owned());
                    self.fail(Some(part.member), why, out);
                }
            }
            ReduceEvent::Combined => {
                if std::mem::take(&mut self.combining) {
                    self.formed += 1;
                    self.turn = 0;
                    self.give_all(now_ms, out);
                    self.add(now_ms, out);
                }
            }
            ReduceEvent::Unusable(member, why) => self.fail(member, why, out),
            ReduceEvent::Asked(ask, range) => {
                if self.asks.len() >= self.config.asks_max {
                    out.push(ReduceEffect::Refuse(ask, "too many mates ask at once".to_owned()));
                    return;
                }
                self.asks.insert(ask, Ask { range, given: 0, since_ms: now_ms });
                self.give(now_ms, ask, out);
            }
            ReduceEvent::Deadline => self.deadline(now_ms, out),
            ReduceEvent::Cancelled(why) => {
                for (ask, _) in std::mem::take(&mut self.asks) {
                    out.push(ReduceEffect::Refuse(ask, why.clone()));
                }
                if self.state == State::Forming {
                    self.fail(None, why, out);
                }
            }
        }
    }

    fn share_ready(&mut self, now_ms: u64, parts: Vec<Range<usize>>, out: &mut Vec<ReduceEffect>) {
        if self.state != State::Forming || !self.parts.is_empty() {
            return;
        }
        if parts.len() != self.group.len() {
            return self.fail(None, format!("{} parts for {} members", parts.len(), self.group.len()), out);
        }
        self.parts = parts;
        for member in (0..self.group.len()).filter(|member| *member != self.me) {
            for (half, adds) in [(Half::Sums, self.me), (Half::Result, member)] {
                let (part, range) = (PartRef { member, half }, self.parts[adds].clone());
                if !range.is_empty() {
                    out.push(ReduceEffect::Pull(part, range.clone()));
                    let pull = Pull { range, used: 0, here: false, since_ms: Some(now_ms) };
                    self.pulls.insert(part, pull);
                }
            }
        }
        // Who has asked for something else gets nothing.
        self.give_all(now_ms, out);
        self.add(now_ms, out);
    }

    fn arrived(&mut self, now_ms: u64, part: PartRef, out: &mut Vec<ReduceEffect>) {
        let Some(pull) = self.pulls.get_mut(&part).filter(|pull| pull.since_ms.is_some()) else { return };
        pull.here = true;
        pull.since_ms = None;
        match part.half {
            Half::Sums => self.add(now_ms, out),
            Half::Result => {
                let range = chunk(&pull.range, pull.used, self.config.chunk);
                out.push(ReduceEffect::Place { member: part.member, range });
                self.used(now_ms, part, out);
                self.complete(out);
            }
        }
    }

    /// A piece is used: the next is read.
    fn used(&mut self, now_ms: u64, part: PartRef, out: &mut Vec<ReduceEffect>) {
        let Some(pull) = self.pulls.get_mut(&part) else { return };
        pull.used += 1;
        pull.here = false;
        if pull.used == chunks(&pull.range, self.config.chunk) {
            self.pulls.remove(&part);
        } else {
            pull.since_ms = Some(now_ms);
            out.push(ReduceEffect::Read(part));
        }
    }

    /// Adds to the chunk at hand what is there, in the order of the members.
    fn add(&mut self, now_ms: u64, out: &mut Vec<ReduceEffect>) {
        let Some(own) = self.parts.get(self.me).cloned() else { return };
        if self.state != State::Forming || self.combining {
            return;
        }
        if self.formed == chunks(&own, self.config.chunk) {
            return self.complete(out);
        }
        let range = chunk(&own, self.formed, self.config.chunk);
        while self.turn < self.group.len() {
            let member = self.turn;
            let part = PartRef { member, half: Half::Sums };
            if member != self.me && !self.pulls.get(&part).is_some_and(|pull| pull.here) {
                return;
            }
            out.push(ReduceEffect::Add { member, range: range.clone() });
            self.turn += 1;
            if member != self.me {
                self.used(now_ms, part, out);
            }
        }
        self.combining = true;
        out.push(ReduceEffect::Combine(range));
    }

    fn complete(&mut self, out: &mut Vec<ReduceEffect>) {
        let own = self.parts.get(self.me).map(|own| chunks(own, self.config.chunk));
        if self.state == State::Forming && own == Some(self.formed) && self.pulls.is_empty() {
            self.state = State::Complete;
            out.push(ReduceEffect::Done);
        }
    }

    fn give_all(&mut self, now_ms: u64, out: &mut Vec<ReduceEffect>) {
        for ask in self.asks.keys().copied().collect::<Vec<_>>() {
            self.give(now_ms, ask, out);
        }
    }

    /// Gives what is formed.
    fn give(&mut self, now_ms: u64, id: AskId, out: &mut Vec<ReduceEffect>) {
        let Some(own) = self.parts.get(self.me) else { return };
        let Some(ask) = self.asks.get_mut(&id) else { return };
        if ask.range != *own {
            out.push(ReduceEffect::Refuse(id, "the shard is divided in another way here".to_owned()));
            self.asks.remove(&id);
            return;
        }
        while ask.given < self.formed {
            out.push(ReduceEffect::Give(id, chunk(own, ask.given, self.config.chunk)));
            ask.given += 1;
            ask.since_ms = now_ms;
        }
        if ask.given == chunks(own, self.config.chunk) {
            out.push(ReduceEffect::End(id));
            self.asks.remove(&id);
        }
    }

    fn deadline(&mut self, now_ms: u64, out: &mut Vec<ReduceEffect>) {
        let due = |since_ms: u64| now_ms >= since_ms + self.config.patience_ms;
        let late: Vec<AskId> =
            self.asks.iter().filter(|(_, ask)| due(ask.since_ms)).map(|(id, _)| *id).collect();
        let lost = self.pulls.iter().find(|(_, pull)| pull.since_ms.is_some_and(due)).map(|(part, _)| *part);
        for id in late {
            self.asks.remove(&id);
            out.push(ReduceEffect::Refuse(id, "this peer has not formed that part".to_owned()));
        }
        if let Some(part) = lost {
            self.fail(Some(part.member), "the mate does not answer".to_owned(), out);
        }
    }

    /// Those that ask are not told at once: the conductor hears who is at fault before they accuse this member.
    fn fail(&mut self, member: Option<usize>, why: String, out: &mut Vec<ReduceEffect>) {
        if self.state == State::Forming {
            self.state = State::Failed;
            self.pulls.clear();
            let who = member.and_then(|member| self.group.get(member)).map(|mate| mate.name.clone());
            out.push(ReduceEffect::Failed(who, why));
        }
    }
}

/// Chunks of a part.
fn chunks(part: &Range<usize>, chunk: usize) -> usize {
    part.len().div_ceil(chunk)
}

/// One of them.
fn chunk(part: &Range<usize>, index: usize, chunk: usize) -> Range<usize> {
    let from = part.start + index * chunk;
    from..part.end.min(from + chunk)
}
