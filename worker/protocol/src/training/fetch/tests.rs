use super::super::ids::Step;
use super::super::message::{Fetch, FetchFailure, Mate, StageStart, StateDigest};
use super::{FetchConfig, FetchEffect, FetchEvent, FetchId, FetchWork, Fetcher, StageSize};

/// A fetcher in a time of its own, and what it wants.
struct Rig {
    fetcher: Fetcher,
    now_ms: u64,
    out: Vec<FetchEffect>,
}

fn mate(name: &str) -> Mate {
    Mate { name: name.into(), addr: String::new(), host: String::new() }
}

impl Rig {
    fn new(updates_max: u64) -> Self {
        let size = StageSize { chunks: 10, updates_max };
        Self { fetcher: Fetcher::new(FetchConfig::new(vec![size; 2])), now_ms: 0, out: Vec::new() }
    }

    fn handle(&mut self, event: FetchEvent) {
        self.out.clear();
        self.fetcher.handle(self.now_ms, event, &mut self.out);
    }

    fn fetch(&mut self, step: Step, mates: &[&str], from: Option<Step>) {
        let mates = mates.iter().map(|name| mate(name)).collect();
        self.handle(FetchEvent::Fetch(Fetch { stage: 0, step, mates, whole: false }, from));
    }

    fn wait(&mut self) {
        self.now_ms = self.fetcher.wake_ms().expect("it waits for nothing");
        self.handle(FetchEvent::Deadline);
    }

    /// Parts that were asked for: of whom, and which.
    fn parts(&self) -> Vec<(FetchId, String, usize, usize)> {
        let part = |effect: &FetchEffect| match effect {
            FetchEffect::Do(id, FetchWork::PullState(mate, 0, range)) => {
                Some((*id, mate.name.to_string(), range.start, range.end))
            }
            _ => None,
        };
        self.out.iter().filter_map(part).collect()
    }

    /// Updates that were asked for, and of whom.
    fn updates(&self) -> Vec<(FetchId, String, Step)> {
        let update = |effect: &FetchEffect| match effect {
            FetchEffect::Do(id, FetchWork::PullUpdate(mate, 0, step)) => {
                Some((*id, mate.name.to_string(), *step))
            }
            _ => None,
        };
        self.out.iter().filter_map(update).collect()
    }

    /// The number that the engine, or whoever else, answers with.
    fn only(&self, what: fn(&FetchWork) -> bool) -> FetchId {
        let number = |effect: &FetchEffect| match effect {
            FetchEffect::Do(id, work) if what(work) => Some(*id),
            _ => None,
        };
        let mut found = self.out.iter().filter_map(number);
        let one = found.next().unwrap_or_else(|| panic!("{:?}", self.out));
        assert!(found.next().is_none(), "{:?}", self.out);
        one
    }

    fn at(&mut self, step: Step) {
        let of_engine = |work: &FetchWork| {
            matches!(work, FetchWork::Where(_) | FetchWork::Install(..) | FetchWork::Follow(_))
        };
        let id = self.only(of_engine);
        self.handle(FetchEvent::At(id, step, StateDigest::default()));
    }

    /// Parts come, all of one step.
    fn give(&mut self, parts: &[(FetchId, String, usize, usize)], step: Step) {
        for (id, ..) in parts {
            self.handle(FetchEvent::Part(*id, step, "root".to_owned()));
        }
    }

    fn fail(&mut self, id: FetchId) {
        self.handle(FetchEvent::Failed(id, FetchFailure::Passing, "it is not here".to_owned()));
    }

    fn check(&mut self) {
        let id = self.only(|work| matches!(work, FetchWork::Check(..)));
        self.handle(FetchEvent::Checked(id, Vec::new()));
    }

    /// The update that the collector waits for is here, and is kept.
    fn keep(&mut self, id: FetchId) {
        self.handle(FetchEvent::Came(id));
        let keep = self.only(|work| matches!(work, FetchWork::Keep(..)));
        self.handle(FetchEvent::Came(keep));
    }

    fn is_ready(&self) -> Option<(Step, Option<Step>)> {
        self.out.iter().find_map(|effect| match effect {
            FetchEffect::Ready { step, from, .. } => Some((*step, *from)),
            _ => None,
        })
    }
}

fn of(parts: &[(FetchId, String, usize, usize)]) -> Vec<(&str, usize, usize)> {
    parts.iter().map(|(_, mate, from, to)| (mate.as_str(), *from, *to)).collect()
}

#[test]
fn a_state_comes_in_parts_of_one_step_and_is_compared() {
    let mut rig = Rig::new(0);
    rig.fetch(5, &["a", "b"], None);
    let first = rig.parts();
    assert_eq!(of(&first), [("a", 0, 5), ("b", 5, 10)]);
    rig.handle(FetchEvent::Part(first[0].0, 5, "root".to_owned()));
    rig.handle(FetchEvent::Part(first[1].0, 6, "root".to_owned()));
    assert_eq!(rig.out, [FetchEffect::Drop(first[0].0), FetchEffect::Drop(first[1].0)], "of two steps");
    rig.wait();
    let second = rig.parts();
    assert_eq!(of(&second), [("b", 0, 5), ("a", 5, 10)], "others first");
    rig.handle(FetchEvent::Part(first[0].0, 6, "root".to_owned()));
    assert_eq!(rig.out, [], "an answer to what was dropped");
    rig.give(&second, 6);
    rig.check();
    rig.at(6);
    assert_eq!(rig.is_ready(), Some((6, None)));
}

#[test]
fn who_gives_what_is_not_right_is_not_asked_again() {
    let mut rig = Rig::new(0);
    rig.fetch(5, &["a", "b", "c"], None);
    let parts = rig.parts();
    for ((id, ..), says) in parts.iter().zip(["root", "other", "root"]) {
        rig.handle(FetchEvent::Part(*id, 5, says.to_owned()));
    }
    let what = "its state is not that of most others".to_owned();
    assert_eq!(rig.out[0], FetchEffect::Wrong("b".into(), what));
    rig.wait();
    let parts = rig.parts();
    assert_eq!(of(&parts), [("c", 0, 5), ("a", 5, 10)]);
    rig.give(&parts, 5);
    let check = rig.only(|work| matches!(work, FetchWork::Check(..)));
    rig.handle(FetchEvent::Checked(check, vec![(parts[0].0, "bits".to_owned())]));
    assert_eq!(rig.out[0], FetchEffect::Wrong("c".into(), "bits".to_owned()));
    rig.wait();
    let parts = rig.parts();
    assert_eq!(of(&parts), [("a", 0, 10)]);
}

#[test]
fn attempts_are_counted_and_leave_another_mate_out_when_they_fail() {
    let mut rig = Rig::new(0);
    rig.fetch(5, &["a", "b"], None);
    let mut asked = Vec::new();
    for _ in 0..20 {
        let parts = rig.parts();
        asked.push(parts.len());
        rig.fail(parts[0].0);
        if rig.fetcher.wake_ms().is_some() {
            rig.wait();
        }
    }
    assert_eq!(asked[..5], [2, 2, 2, 1, 1]);
    let why = "it is not here".to_owned();
    assert_eq!(rig.out.last(), Some(&FetchEffect::GiveUp(0, FetchFailure::Passing, why)));
    assert_eq!(rig.fetcher.wake_ms(), None);
}

/// Mates keep the last few updates only: what is made while a state is on its way would be lost, and all of it fetched again and again.
#[test]
fn updates_that_are_made_while_a_state_comes_are_followed_when_it_is_here() {
    let mut rig = Rig::new(9);
    rig.fetch(5, &["a"], None);
    let parts = rig.parts();
    // Seven updates are made, and mates have the last four.
    let mut update = rig.updates()[0].clone();
    for step in 5..12 {
        assert_eq!(update.2, step);
        rig.keep(update.0);
        update = rig.updates()[0].clone();
    }
    rig.give(&parts, 5);
    rig.check();
    rig.at(5);
    assert_eq!(rig.is_ready(), Some((5, None)));
    // The conductor is ahead.
    rig.fetch(12, &["a"], Some(5));
    for step in 5..12 {
        rig.at(step);
        let kept = rig.only(|work| matches!(work, FetchWork::TakeKept(..)));
        assert!(rig.out.contains(&FetchEffect::Do(kept, FetchWork::TakeKept(step))), "{:?}", rig.out);
        rig.handle(FetchEvent::Came(kept));
    }
    rig.at(12);
    assert_eq!(rig.is_ready(), Some((12, Some(5))));
    rig.handle(FetchEvent::TakesPart);
    assert_eq!(rig.out, [FetchEffect::Drop(update.0)]);
}

#[test]
fn no_more_updates_are_kept_than_there_is_room_for() {
    let mut rig = Rig::new(2);
    rig.fetch(5, &["a"], None);
    let parts = rig.parts();
    for _ in 0..2 {
        let update = rig.updates()[0].0;
        rig.keep(update);
    }
    assert!(matches!(&rig.out[..], [FetchEffect::Note(_)]), "{:?}", rig.out);
    assert_eq!(rig.fetcher.wake_ms(), None);
    rig.give(&parts, 6);
    rig.check();
    rig.at(6);
    // One is not needed any more.
    assert_eq!(rig.out[0], FetchEffect::Forget(5..6));
    assert_eq!(rig.updates()[0].2, 7);
    assert_eq!(rig.is_ready(), Some((6, None)));
}

#[test]
fn all_of_a_state_is_fetched_when_an_update_is_missing_and_not_for_ever() {
    let mut rig = Rig::new(0);
    rig.fetch(5, &["a"], Some(3));
    rig.at(3);
    let mut wholes = 0;
    for _ in 0..10_000 {
        if let Some(FetchEffect::GiveUp(0, FetchFailure::Passing, _)) = rig.out.last() {
            assert_eq!(wholes, 3);
            return;
        }
        if let [(update, ..)] = rig.updates()[..] {
            rig.fail(update);
        } else if let [(part, ..)] = rig.parts()[..] {
            wholes += 1;
            // It is behind what is wanted.
            rig.handle(FetchEvent::Part(part, 4, "root".to_owned()));
            rig.check();
            rig.at(4);
        } else {
            rig.wait();
        }
    }
    panic!("it never ends");
}

#[test]
fn a_checkpoint_is_read_and_what_was_wanted_before_is_dropped() {
    let mut rig = Rig::new(9);
    rig.fetch(5, &["a"], None);
    let (part, update) = (rig.parts()[0].0, rig.updates()[0].0);
    let load = StageStart { stage: 1, step: 4, checkpoint: true };
    rig.handle(FetchEvent::Load(load.clone()));
    let read = rig.only(|work| matches!(work, FetchWork::Read(..)));
    let drops = [FetchEffect::Drop(part), FetchEffect::Drop(update)];
    assert_eq!(rig.out, [drops.to_vec(), vec![FetchEffect::Do(read, FetchWork::Read(load))]].concat());
    rig.handle(FetchEvent::Came(read));
    assert!(
        matches!(&rig.out[..], [FetchEffect::Do(_, FetchWork::Install(1, of))] if *of == [read]),
        "{:?}",
        rig.out
    );
    rig.at(4);
    assert_eq!(rig.is_ready(), Some((4, None)));
    let load = StageStart { stage: 1, step: 4, checkpoint: true };
    rig.handle(FetchEvent::Load(load));
    let read = rig.only(|work| matches!(work, FetchWork::Read(..)));
    rig.handle(FetchEvent::Failed(read, FetchFailure::Damaged(4), "a bit".to_owned()));
    assert!(rig.out.contains(&FetchEffect::GiveUp(1, FetchFailure::Damaged(4), "a bit".to_owned())));
}
