//! Groups of members that exchange real numbers, in any order in which pieces can come.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::super::ids::AverageId;
use super::super::message::Mate;
use super::{Butterfly, Half, PartRef, ReduceConfig, ReduceEffect, ReduceEvent};

const ID: AverageId = AverageId { step: 3, shard: 0, round: 9 };
const CONFIG: ReduceConfig = ReduceConfig { chunk: 3, patience_ms: 1000, asks_max: 64 };

fn group(count: usize) -> Vec<Mate> {
    let mate =
        |i: usize| Mate { name: format!("m{i}").as_str().into(), addr: String::new(), host: String::new() };
    (0..count).map(mate).collect()
}

fn parts(len: usize, count: usize) -> Vec<Range<usize>> {
    (0..count).map(|i| len * i / count..len * (i + 1) / count).collect()
}

/// One member with its values.
struct Member {
    machine: Butterfly,
    own: Vec<i64>,
    result: Vec<Option<i64>>,
    /// Pieces that have come for a pull and were not read, those that were not used, and whether one is being read.
    inbox: BTreeMap<PartRef, VecDeque<Vec<i64>>>,
    here: BTreeMap<PartRef, Vec<i64>>,
    total: Vec<i64>,
    /// Members whose values are in it, in order.
    added: Vec<usize>,
    done: bool,
    failed: Option<String>,
}

/// What is on its way: to a member.
enum Sent {
    Ask { to: usize, by: usize, half: Half, range: Range<usize> },
    Piece { to: usize, part: PartRef, values: Vec<i64> },
    Event { to: usize, event: ReduceEvent },
}

struct Net {
    members: Vec<Member>,
    sent: Vec<Sent>,
    seed: u64,
}

impl Net {
    fn new(count: usize, len: usize, seed: u64) -> Self {
        let (mut members, mut effects) = (Vec::new(), Vec::new());
        for (i, mate) in group(count).iter().enumerate() {
            let mut out = Vec::new();
            let machine = Butterfly::begin(CONFIG, ID, group(count), &mate.name, &mut out);
            effects.push(out);
            members.push(Member {
                machine,
                own: (0..len).map(|at| (1000 * i + at) as i64).collect(),
                result: vec![None; len],
                inbox: BTreeMap::new(),
                here: BTreeMap::new(),
                total: Vec::new(),
                added: Vec::new(),
                done: false,
                failed: None,
            });
        }
        let mut net = Self { members, sent: Vec::new(), seed };
        for (i, out) in effects.into_iter().enumerate() {
            net.perform(i, out);
        }
        net
    }

    fn handle(&mut self, to: usize, event: ReduceEvent) {
        let mut out = Vec::new();
        self.members[to].machine.handle(0, event, &mut out);
        self.perform(to, out);
    }

    fn perform(&mut self, at: usize, effects: Vec<ReduceEffect>) {
        let count = self.members.len();
        for effect in effects {
            let member = &mut self.members[at];
            match effect {
                ReduceEffect::Share => {
                    let event = ReduceEvent::ShareReady(parts(member.own.len(), count));
                    self.sent.push(Sent::Event { to: at, event });
                }
                ReduceEffect::Pull(part, range) => {
                    member.inbox.insert(part, VecDeque::new());
                    self.sent.push(Sent::Ask { to: part.member, by: at, half: part.half, range });
                }
                ReduceEffect::Read(part) => assert!(!member.here.contains_key(&part), "it is not used"),
                ReduceEffect::Add { member: whose, range } => {
                    let values = if whose == at {
                        member.own[range.clone()].to_vec()
                    } else {
                        member.here.remove(&PartRef { member: whose, half: Half::Sums }).unwrap()
                    };
                    if whose == 0 {
                        member.total = vec![0; range.len()];
                        member.added.clear();
                    }
                    member.added.push(whose);
                    member.total.iter_mut().zip(values).for_each(|(sum, more)| *sum += more);
                }
                ReduceEffect::Combine(range) => {
                    assert_eq!(member.added, (0..count).collect::<Vec<_>>(), "in the order of the members");
                    for (place, value) in member.result[range].iter_mut().zip(&member.total) {
                        assert!(place.replace(*value).is_none());
                    }
                    self.sent.push(Sent::Event { to: at, event: ReduceEvent::Combined });
                }
                ReduceEffect::Place { member: whose, range } => {
                    let values = member.here.remove(&PartRef { member: whose, half: Half::Result }).unwrap();
                    for (place, value) in member.result[range].iter_mut().zip(values) {
                        assert!(place.replace(value).is_none());
                    }
                }
                ReduceEffect::Give(ask, range) => {
                    let values = member.result[range].iter().map(|value| value.unwrap()).collect();
                    let part = PartRef { member: at, half: Half::Result };
                    self.sent.push(Sent::Piece { to: ask as usize, part, values });
                }
                ReduceEffect::End(_) => {}
                ReduceEffect::Refuse(ask, why) => {
                    let part = PartRef { member: at, half: Half::Result };
                    let event = ReduceEvent::PullEnded(part, Some(why));
                    self.sent.push(Sent::Event { to: ask as usize, event });
                }
                ReduceEffect::Done => member.done = true,
                ReduceEffect::Failed(who, why) => {
                    member.failed = Some(format!("{}: {why}", who.map_or(String::new(), |w| w.to_string())));
                }
            }
        }
    }

    /// Delivers one thing that is on its way, any of them but that pieces of a stream stay in order.
    fn step(&mut self) -> bool {
        // Pieces that are read.
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            let read = member
                .inbox
                .iter()
                .find(|(part, pieces)| !pieces.is_empty() && !member.here.contains_key(part));
            if let Some(part) = read.map(|(part, _)| *part) {
                let values = member.inbox.get_mut(&part).unwrap().pop_front().unwrap();
                member.here.insert(part, values);
                self.handle(at, ReduceEvent::PieceArrived(part));
                return true;
            }
        }
        if self.sent.is_empty() {
            return false;
        }
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut chosen = (self.seed >> 33) as usize % self.sent.len();
        if let Sent::Piece { to, part, .. } = &self.sent[chosen] {
            let same =
                |sent: &Sent| matches!(sent, Sent::Piece { to: t, part: p, .. } if t == to && p == part);
            chosen = self.sent.iter().position(same).unwrap();
        }
        match self.sent.remove(chosen) {
            Sent::Ask { to, by, half: Half::Result, range } => {
                self.handle(to, ReduceEvent::Asked(by as u64, range));
            }
            Sent::Ask { to, by, half: Half::Sums, range } => {
                let part = PartRef { member: to, half: Half::Sums };
                for values in self.members[to].own[range].chunks(CONFIG.chunk) {
                    self.sent.push(Sent::Piece { to: by, part, values: values.to_vec() });
                }
            }
            Sent::Piece { to, part, values } => {
                self.members[to].inbox.entry(part).or_default().push_back(values);
            }
            Sent::Event { to, event } => self.handle(to, event),
        }
        true
    }
}

#[test]
fn all_members_have_the_sum_of_all_in_whatever_order_pieces_come() {
    for seed in 0..200 {
        let (count, len) = (1 + seed as usize % 5, [0, 1, 3, 20][seed as usize / 5 % 4]);
        let mut net = Net::new(count, len, seed);
        while net.step() {}
        for member in &net.members {
            assert!(member.done, "seed {seed}: {:?}", member.failed);
            let sum = |at: usize| net.members.iter().map(|m| m.own[at]).sum::<i64>();
            let expected: Vec<_> = (0..len).map(|at| Some(sum(at))).collect();
            assert_eq!(member.result, expected, "seed {seed}");
            assert_eq!(member.machine.wake_ms(), None, "seed {seed}: it waits for nothing");
        }
    }
}

/// A member of two that has begun, and everything that it did.
fn begun() -> (Butterfly, Vec<ReduceEffect>) {
    let mut out = Vec::new();
    let mut machine = Butterfly::begin(CONFIG, ID, group(2), &"m0".into(), &mut out);
    machine.handle(0, ReduceEvent::ShareReady(parts(8, 2)), &mut out);
    (machine, out)
}

fn handle(machine: &mut Butterfly, now_ms: u64, event: ReduceEvent) -> Vec<ReduceEffect> {
    let mut out = Vec::new();
    machine.handle(now_ms, event, &mut out);
    out
}

#[test]
fn a_chunk_leaves_before_the_next_is_added() {
    let (mut machine, out) = begun();
    let (sums, result) = (PartRef { member: 1, half: Half::Sums }, PartRef { member: 1, half: Half::Result });
    let add = |member, range| ReduceEffect::Add { member, range };
    assert_eq!(
        out,
        [ReduceEffect::Share, ReduceEffect::Pull(sums, 0..4), ReduceEffect::Pull(result, 4..8), add(0, 0..3)]
    );
    assert!(handle(&mut machine, 0, ReduceEvent::Asked(5, 0..4)).is_empty());
    let out = handle(&mut machine, 0, ReduceEvent::PieceArrived(sums));
    assert_eq!(out, [add(1, 0..3), ReduceEffect::Read(sums), ReduceEffect::Combine(0..3)]);
    assert!(handle(&mut machine, 0, ReduceEvent::PieceArrived(sums)).is_empty(), "one chunk at a time");
    let out = handle(&mut machine, 0, ReduceEvent::Combined);
    assert_eq!(out, [ReduceEffect::Give(5, 0..3), add(0, 3..4), add(1, 3..4), ReduceEffect::Combine(3..4)]);
}

#[test]
fn who_gives_nothing_is_named_and_who_waits_here_is_told_later() {
    let (mut machine, _) = begun();
    handle(&mut machine, 400, ReduceEvent::Asked(5, 0..4));
    assert_eq!(machine.wake_ms(), Some(1000));
    let lost = handle(&mut machine, 1000, ReduceEvent::Deadline);
    assert_eq!(lost, [ReduceEffect::Failed(Some("m1".into()), "the mate does not answer".to_owned())]);
    // The conductor hears first.
    assert_eq!(machine.wake_ms(), Some(1400));
    let refused = handle(&mut machine, 1400, ReduceEvent::Deadline);
    assert!(matches!(&refused[..], [ReduceEffect::Refuse(5, _)]), "{refused:?}");
    for (event, who) in [
        (ReduceEvent::PullEnded(PartRef { member: 1, half: Half::Sums }, None), Some("m1".into())),
        (ReduceEvent::Unusable(None, "bits".to_owned()), None),
        (ReduceEvent::Cancelled("the sums change".to_owned()), None),
    ] {
        let (mut machine, _) = begun();
        let failed = handle(&mut machine, 0, event);
        assert!(matches!(&failed[..], [ReduceEffect::Failed(w, _)] if *w == who), "{failed:?}");
        assert!(handle(&mut machine, 9999, ReduceEvent::Deadline).is_empty(), "once");
    }
}

#[test]
fn another_division_and_another_group_are_refused() {
    let (mut machine, _) = begun();
    let refused = handle(&mut machine, 0, ReduceEvent::Asked(5, 0..3));
    assert!(matches!(&refused[..], [ReduceEffect::Refuse(5, _)]), "{refused:?}");
    let mut out = Vec::new();
    Butterfly::begin(CONFIG, ID, group(2), &"x".into(), &mut out);
    assert!(matches!(&out[..], [ReduceEffect::Failed(None, _)]), "{out:?}");
}
