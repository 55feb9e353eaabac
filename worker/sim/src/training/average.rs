//! Averages in virtual time: the real machine of each member decides, and is obeyed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::reduce::{Butterfly, Half, PartRef, ReduceConfig, ReduceEffect, ReduceEvent};
use dunlin_protocol::training::serve::Wanted;
use dunlin_protocol::training::{AskId, AverageId, Mate};
use dunlin_swarm::PeerName;

use super::averaging::{Averaging, CHUNK, Come, VALUES, Value, factor};
use super::events::{Event, Given};
use super::order;
use super::peer_shell::Work;
use super::pulling::Purpose;
use super::world::World;

impl World {
    pub(super) fn average(&mut self, name: &PeerName, id: AverageId, group: Vec<Mate>) {
        let slow = self.scenario.script.as_ref().map_or(0, |s| s.average_ms);
        let config = ReduceConfig::new(CHUNK);
        let config = ReduceConfig { patience_ms: config.patience_ms + slow, ..config };
        let mut out = Vec::new();
        let machine = Butterfly::begin(config, id, group, name, &mut out);
        let Some(peer) = self.peers.get_mut(name) else { return };
        if let Some(old) = peer.averages.insert(id.shard, Averaging::new(machine)) {
            self.abandon(name, old);
        }
        self.reduce_effects(name, id, out);
    }

    /// Nobody needs it any more, and nobody hears how it ended but those that wait for a part of it.
    pub(super) fn abandon(&mut self, name: &PeerName, mut averaging: Averaging) {
        let (id, mut out) = (averaging.id(), Vec::new());
        if let Some(peer) = self.peers.get_mut(name) {
            peer.pulls.retain(|_, pull| !matches!(pull.purpose, Purpose::Average(of, _) if of == id));
        }
        averaging.machine.handle(self.now(), ReduceEvent::Cancelled("it is given up".to_owned()), &mut out);
        for effect in out {
            if let ReduceEffect::Refuse(ask, why) = effect {
                self.given(name, ask, Some(why));
            }
        }
    }

    /// Nobody needs any of them.
    pub(super) fn drop_averages(&mut self, name: &PeerName) {
        let averages = self.peers.get_mut(name).map(|peer| std::mem::take(&mut peer.averages));
        for averaging in averages.unwrap_or_default().into_values() {
            self.abandon(name, averaging);
        }
    }

    /// The sums are about to change.
    pub(super) fn cancel_averages(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get(name) else { return };
        for id in peer.averages.values().map(Averaging::id).collect::<Vec<_>>() {
            self.reduce(name, id, ReduceEvent::Cancelled("the sums change".to_owned()));
        }
    }

    /// The machine of an average decides, and is obeyed.
    pub(super) fn reduce(&mut self, name: &PeerName, id: AverageId, event: ReduceEvent) {
        let now = self.now();
        let mut out = Vec::new();
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let Some(averaging) = peer.averages.get_mut(&id.shard).filter(|a| a.id() == id) else { return };
        averaging.machine.handle(now, event, &mut out);
        self.reduce_effects(name, id, out);
        self.wake_later(name);
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each effect")]
    fn reduce_effects(&mut self, name: &PeerName, id: AverageId, mut effects: Vec<ReduceEffect>) {
        self.scenario.order.apply(&mut effects, order::of_average, &mut self.out.pairs);
        for effect in effects {
            let Some(peer) = self.peers.get_mut(name) else { return };
            let Some(averaging) = peer.averages.get_mut(&id.shard).filter(|a| a.id() == id) else { return };
            match effect {
                ReduceEffect::Share => self.give(name, Work::Share(id)),
                ReduceEffect::Pull(part, range) => {
                    averaging.reading.insert(part);
                    let mate = averaging.machine.group()[part.member].name.clone();
                    let stage = peer.stage;
                    let wanted = match part.half {
                        Half::Sums => Wanted::Sums(id, range),
                        Half::Result => Wanted::Result(id, range),
                    };
                    self.pull(name, &mate, stage, wanted, Purpose::Average(id, part));
                }
                ReduceEffect::Read(part) => {
                    averaging.reading.insert(part);
                    self.read(name, id, part);
                }
                ReduceEffect::Add { member, range } => {
                    if let Some(wrong) = averaging.add(member, &range) {
                        self.violation(format!("{name}, {id:?}: {wrong}"));
                    }
                }
                ReduceEffect::Combine(range) => {
                    let values = std::mem::take(&mut averaging.total);
                    if averaging.added.len() != averaging.machine.group().len() || values.len() != range.len()
                    {
                        let added = averaging.added.clone();
                        self.violation(format!(
                            "{name}, {id:?}: the result of {range:?} is that of {added:?}"
                        ));
                        return;
                    }
                    averaging.place(range, values);
                    self.at(1, Event::Reduce { peer: name.clone(), id, event: ReduceEvent::Combined });
                }
                ReduceEffect::Place { member, range } => {
                    let part = PartRef { member, half: Half::Result };
                    let values = averaging.here.remove(&part).unwrap_or_default();
                    if values.len() != range.len() || !averaging.place(range.clone(), values) {
                        self.violation(format!("{name}, {id:?}: nothing, or no place, for {range:?}"));
                    }
                }
                ReduceEffect::Give(ask, range) => {
                    let values: Option<Vec<Value>> =
                        averaging.values[range.clone()].iter().cloned().collect();
                    match values {
                        Some(values) => self.send(name, ask, Given::Values(values)),
                        None => self.violation(format!("{name}, {id:?}: gives {range:?} that is not formed")),
                    }
                }
                ReduceEffect::End(ask) => self.given(name, ask, None),
                ReduceEffect::Refuse(ask, why) => self.given(name, ask, Some(why)),
                ReduceEffect::Done => {
                    // Whoever performs it hands the values on at once.
                    if averaging.values.iter().any(Option::is_none) {
                        return self
                            .violation(format!("{name}, {id:?}: it is complete, and values are missing"));
                    }
                    self.give(name, Work::Squares(id));
                }
                ReduceEffect::Failed(who, why) => {
                    peer.pulls.retain(|_, pull| !matches!(pull.purpose, Purpose::Average(of, _) if of == id));
                    self.say(|| format!("{name}, {id:?} fails, by {who:?}: {why}"));
                    self.drive(name, DriverEvent::AverageFailed { id, why, mate: who });
                }
            }
        }
    }

    /// What is waited for is handed on if it is here.
    fn read(&mut self, name: &PeerName, id: AverageId, part: PartRef) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(averaging) = peer.averages.get_mut(&id.shard).filter(|a| a.id() == id) else { return };
        if !averaging.reading.contains(&part) {
            return;
        }
        let Some(come) = averaging.come.get_mut(&part).and_then(VecDeque::pop_front) else { return };
        averaging.reading.remove(&part);
        let event = match come {
            Come::End(why) => ReduceEvent::PullEnded(part, why),
            Come::Piece(values) => {
                if averaging.here.insert(part, values).is_some() {
                    self.violation(format!("{name}, {id:?}: a piece of {part:?} was not used"));
                }
                ReduceEvent::PieceArrived(part)
            }
        };
        // Not at once: the machine has not decided to the end.
        self.at(0, Event::Reduce { peer: name.clone(), id, event });
    }

    pub(super) fn comes(&mut self, name: &PeerName, id: AverageId, part: PartRef, come: Come) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(averaging) = peer.averages.get_mut(&id.shard).filter(|a| a.id() == id) else { return };
        averaging.come.entry(part).or_default().push_back(come);
        self.read(name, id, part);
    }

    /// The engine has come to it: what this member contributes is fixed.
    pub(super) fn share(&mut self, name: &PeerName, id: AverageId) {
        let Some(values) = self.values_of(name, id) else {
            return self.reduce(name, id, ReduceEvent::Unusable(None, "it is at another step".to_owned()));
        };
        let Some(averaging) = self.peers.get_mut(name).and_then(|p| p.averages.get_mut(&id.shard)) else {
            return;
        };
        if averaging.id() == id {
            averaging.share = values;
            let count = averaging.machine.group().len();
            let parts = (0..count).map(|i| VALUES * i / count..VALUES * (i + 1) / count).collect();
            self.reduce(name, id, ReduceEvent::ShareReady(parts));
        }
    }

    /// The engine has come to it: a mate gets its part of the sums.
    pub(super) fn give_sums(&mut self, name: &PeerName, ask: AskId, id: AverageId, range: Range<usize>) {
        let Some(values) = self.values_of(name, id) else {
            return self.given(name, ask, Some("it is at another step".to_owned()));
        };
        for chunk in values[range].chunks(CHUNK) {
            self.send(name, ask, Given::Values(chunk.to_vec()));
        }
        self.given(name, ask, None);
    }

    /// What is in the sums now.
    fn values_of(&self, name: &PeerName, id: AverageId) -> Option<Vec<Value>> {
        let peer = self.peers.get(name).filter(|p| p.step == id.step)?;
        let sums = peer.sums.get(&id.step).cloned().unwrap_or_default();
        let (sum, keys) = (sums.of(id.shard, self.scenario.shape.stages), Arc::new(sums.keys));
        let value = |at| Value { sum: sum.wrapping_mul(factor(at)), keys: Arc::clone(&keys) };
        Some((0..VALUES).map(value).collect())
    }

    /// Has a shard's average the values of one sum?
    pub(super) fn sum_of(&mut self, name: &PeerName, id: AverageId) -> Option<i64> {
        let sum = self.peers.get(name)?.averages.get(&id.shard).filter(|a| a.id() == id)?.sum();
        if sum.is_none() {
            self.violation(format!("{name}, {id:?}: the parts of the average do not fit"));
        }
        sum
    }
}
