//! What there is to go on from, and what becomes of a run whose checkpoints are damaged or cannot be written.

use std::collections::BTreeSet;

use super::tests::{GATHER_MS, config, connects, hello};
use super::{Checkpoints, Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Phase};
use crate::training::ids::{StageId, Step};
use crate::training::message::{
    FetchFailure, Held, PeerReport, SaveFailure, StageStart, StateDigest, ToPeer,
};

const PEERS: [&str; 4] = ["a", "b", "c", "d"];

/// A peer that has a stage already.
fn holder(name: &str, host: &str, stage: StageId, step: Step) -> ConductorEvent {
    connects(name, host, Some(Held { stage, step, ..Held::default() }))
}

/// A run of two stages and ten steps that saves.
struct Run {
    conductor: Conductor,
    now_ms: u64,
    out: Vec<ConductorEffect>,
}

impl Run {
    /// Peers are there, and had time to say what they have.
    fn gathered(peers: impl IntoIterator<Item = ConductorEvent>) -> Self {
        let config = ConductorConfig { saves: true, ..config(2) };
        let mut run = Self { conductor: Conductor::new(config), now_ms: 0, out: Vec::new() };
        for peer in peers {
            run.hear(peer);
        }
        run.pass(GATHER_MS);
        run
    }

    /// Four of them, without anything, and what there is to go on from.
    fn begun(found: Checkpoints) -> Self {
        let mut run = Self::gathered(PEERS.map(|name| hello(name, "")));
        run.hear(ConductorEvent::Checkpoints(found));
        run
    }

    fn hear(&mut self, event: ConductorEvent) {
        self.conductor.handle(self.now_ms, event, &mut self.out);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.hear(ConductorEvent::Tick);
    }

    /// What every peer that was told to load was told last, and to which stage it belongs. Forgets what was told.
    fn loads(&mut self) -> BTreeSet<(String, StageId, Step, bool)> {
        let load = |effect: ConductorEffect| match effect {
            ConductorEffect::ToPeer(name, ToPeer::Load(StageStart { stage, step, checkpoint })) => {
                Some((name.to_string(), stage, step, checkpoint))
            }
            _ => None,
        };
        std::mem::take(&mut self.out).into_iter().filter_map(load).collect()
    }

    fn report(&mut self, name: &str, report: PeerReport) {
        self.hear(ConductorEvent::Peer(name.into(), report));
    }

    fn inspections(&self) -> usize {
        self.out.iter().filter(|e| **e == ConductorEffect::Inspect).count()
    }

    fn notes(&self) -> String {
        let note = |effect: &ConductorEffect| match effect {
            ConductorEffect::Note(text) => Some(text.clone()),
            _ => None,
        };
        self.out.iter().filter_map(note).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn nobody_begins_before_it_is_known_what_there_is() {
    let mut run = Run::gathered(PEERS.map(|name| hello(name, "")));
    run.pass(60_000);
    assert!(run.loads().is_empty());
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(7)));
    let loads = run.loads();
    assert!(
        loads.len() == 4 && loads.iter().all(|(_, _, step, checkpoint)| (*step, *checkpoint) == (7, true))
    );
    assert_eq!(Run::begun(Checkpoints::None).loads().iter().filter(|l| (l.2, l.3) == (0, false)).count(), 4);
}

#[test]
fn what_peers_hold_needs_no_checkpoint() {
    let mut run = Run::gathered([holder("a", "", 0, 5), holder("b", "", 1, 5)]);
    assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 5));
    // Nor does it matter that none is sound, as long as nobody has to go back.
    run.hear(ConductorEvent::Checkpoints(Checkpoints::AllDamaged("all of them".to_owned())));
    assert_eq!((run.conductor.phase(), run.conductor.step()), (&Phase::Running, 5));
    run.hear(ConductorEvent::Gone("a".into()));
    run.pass(GATHER_MS);
    assert_eq!(*run.conductor.phase(), Phase::Failed("all of them".to_owned()));
}

#[test]
fn a_stage_that_is_lost_while_the_destination_is_away_waits_for_it() {
    let mut run = Run::gathered([holder("a", "", 0, 5), holder("b", "", 1, 5), holder("c", "", 1, 5)]);
    run.hear(ConductorEvent::Gone("a".into()));
    run.pass(GATHER_MS);
    run.pass(60_000);
    assert!(run.loads().is_empty());
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(3)));
    let loads = run.loads();
    let stages: BTreeSet<StageId> = loads.iter().map(|l| l.1).collect();
    assert!(stages.len() == 2 && loads.iter().all(|l| (l.2, l.3) == (3, true)), "{loads:?}");
    assert_eq!(run.conductor.step(), 3);
}

#[test]
fn damage_that_is_seen_from_here_too_takes_everybody_to_the_checkpoint_before() {
    let mut run = Run::begun(Checkpoints::Newest(8));
    let (name, stage, ..) = run.loads().first().cloned().unwrap();
    let damaged = |step| PeerReport::FetchFailed {
        stage,
        failure: FetchFailure::Damaged(step),
        why: "a bit".to_owned(),
    };
    run.report(&name, damaged(8));
    run.report(&name, damaged(8));
    assert_eq!(run.inspections(), 1, "it is read once");
    // Meanwhile nobody begins with it, not even those that could read their part.
    for (name, stage) in [("a", 0), ("b", 1), ("c", 0), ("d", 1)] {
        run.report(name, PeerReport::Ready { stage, step: 8, state: StateDigest::default() });
    }
    run.pass(5_000);
    assert!(run.loads().is_empty() && *run.conductor.phase() == Phase::Gathering);
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(4)));
    let loads = run.loads();
    assert!(loads.len() == 4 && loads.iter().all(|l| (l.2, l.3) == (4, true)), "{loads:?}");
    // What somebody says of the older attempt is of no interest.
    run.report(&name, damaged(8));
    assert_eq!(run.inspections(), 0);
}

#[test]
fn damage_that_one_peer_alone_sees_is_its_own() {
    let mut run = Run::begun(Checkpoints::Newest(8));
    let (name, stage, ..) = run.loads().first().cloned().unwrap();
    let damaged =
        PeerReport::FetchFailed { stage, failure: FetchFailure::Damaged(8), why: "a bit".to_owned() };
    run.report(&name, damaged.clone());
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(8)));
    assert!(run.notes().contains(&format!("{name} says that the newest checkpoint is damaged")));
    // It tries again, and is not believed at once a second time: a checkpoint may be large.
    run.pass(1_000);
    assert_eq!(run.loads().iter().map(|l| (l.0.clone(), l.2)).collect::<Vec<_>>(), [(name.clone(), 8)]);
    run.report(&name, damaged.clone());
    assert_eq!(run.inspections(), 0);
    run.pass(60_000);
    run.report(&name, damaged);
    assert_eq!(run.inspections(), 1);
}

#[test]
fn without_a_sound_checkpoint_a_run_does_not_begin_at_0_over_damaged_ones() {
    let all = || Checkpoints::AllDamaged("step-8 is damaged; move it away".to_owned());
    let failed = Phase::Failed("step-8 is damaged; move it away".to_owned());
    let mut run = Run::begun(all());
    assert!(run.loads().is_empty() && *run.conductor.phase() == failed);
    // The same when it turns out later.
    let mut run = Run::begun(Checkpoints::Newest(8));
    let (name, stage, ..) = run.loads().first().cloned().unwrap();
    let why = "a bit".to_owned();
    run.report(&name, PeerReport::FetchFailed { stage, failure: FetchFailure::Damaged(8), why });
    run.hear(ConductorEvent::Checkpoints(all()));
    run.pass(1_000);
    assert!(run.loads().is_empty() && *run.conductor.phase() == failed);
}

/// All steps are done: two peers of each stage have the last state, on two machines, and it wants to be saved.
fn finishing() -> Run {
    let mut run = Run::gathered([
        holder("a", "n1", 0, 10),
        holder("b", "n2", 0, 10),
        holder("c", "n1", 1, 10),
        holder("d", "n2", 1, 10),
    ]);
    assert_eq!(*run.conductor.phase(), Phase::Finishing);
    assert!(run.writers().is_empty(), "it is not known whose destination it is");
    run.hear(ConductorEvent::Checkpoints(Checkpoints::None));
    run
}

impl Run {
    /// Who was told to write the last state, and who to say what it is. Forgets what was told.
    fn savers(&mut self) -> (Vec<String>, Vec<String>) {
        let save = |effect: ConductorEffect| match effect {
            ConductorEffect::ToPeer(name, ToPeer::Save { step: 10, check }) => {
                Some((name.to_string(), check))
            }
            _ => None,
        };
        let all = std::mem::take(&mut self.out).into_iter().filter_map(save);
        let (checkers, writers): (Vec<_>, Vec<_>) = all.partition(|(_, check)| *check);
        let names = |all: Vec<(String, bool)>| all.into_iter().map(|(name, _)| name).collect();
        (names(writers), names(checkers))
    }

    /// Who was told to write the last state. Whoever is to say what that is says what the writer will. Forgets what was told.
    fn writers(&mut self) -> Vec<String> {
        let (writers, checkers) = self.savers();
        for checker in checkers {
            let stage = |name: &str| ["a", "b"].contains(&name);
            let writer = writers.iter().find(|w| stage(w) == stage(&checker)).unwrap();
            self.report(&checker, PeerReport::Saved { step: 10, record: writer.clone() });
        }
        writers
    }

    fn wrote(&mut self, name: &str) {
        self.report(name, PeerReport::Saved { step: 10, record: name.to_owned() });
    }

    fn could_not_write(&mut self, name: &str, failure: SaveFailure) {
        self.report(name, PeerReport::SaveFailed { step: 10, failure, why: "no space".to_owned() });
    }

    fn asks_for(&self, effect: &ConductorEffect) -> bool {
        self.out.contains(effect)
    }

    /// Passes time until the destination is to be made ready. Returns how long.
    fn pause(&mut self) -> u64 {
        let before = self.now_ms;
        while !self.asks_for(&ConductorEffect::Prepare) {
            assert!(self.now_ms < before + 100_000, "it never tries again");
            self.pass(100);
        }
        self.now_ms - before
    }

    /// Everything goes well from here on.
    fn ends_well(&mut self, writers: &[String]) {
        for name in writers {
            self.wrote(name);
        }
        let records = writers.to_vec();
        assert!(self.asks_for(&ConductorEffect::Seal { step: 10, records }), "{:?}", self.out);
        self.hear(ConductorEvent::Sealed { step: 10, error: None });
        assert!(self.asks_for(&ConductorEffect::Confirm { step: 10 }));
        assert_eq!(*self.conductor.phase(), Phase::Finishing);
        self.hear(ConductorEvent::Confirmed { step: 10, error: None });
        assert_eq!(*self.conductor.phase(), Phase::Finished);
        assert_eq!(self.conductor.checkpoint_trouble(), None);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_tried_again_with_growing_pauses_and_ends_no_run() {
    let mut run = finishing();
    let mut writers = run.writers();
    assert_eq!(writers, ["a", "c"]);
    let mut pauses = Vec::new();
    for attempt in 0..8 {
        run.could_not_write(&writers[0], SaveFailure::Destination);
        assert!(!run.asks_for(&ConductorEffect::Discard { step: 10 }), "the other one still writes");
        run.wrote(&writers[1]);
        assert!(run.asks_for(&ConductorEffect::Discard { step: 10 }));
        let trouble = run.conductor.checkpoint_trouble().unwrap();
        assert!(
            trouble.starts_with("checkpoints cannot be written: no space; all steps are done"),
            "{trouble}"
        );
        assert_eq!(run.notes().contains(&trouble), attempt == 0, "it is said once");
        pauses.push(run.pause());
        assert!(run.writers().is_empty());
        run.hear(ConductorEvent::Prepared(None));
        writers = run.writers();
        assert_eq!(writers.len(), 2);
    }
    assert_eq!(pauses, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    run.ends_well(&writers);
    assert!(run.notes().contains("the checkpoint of step 10 is written, after "), "{}", run.notes());
}

#[test]
fn a_destination_that_is_away_is_asked_before_peers_are() {
    let mut run = finishing();
    let writers = run.writers();
    writers.iter().for_each(|name| run.could_not_write(name, SaveFailure::Destination));
    for pause in [1000, 2000] {
        assert_eq!(run.pause(), pause);
        assert!(run.writers().is_empty());
        run.hear(ConductorEvent::Prepared(Some("HTTP 503".to_owned())));
    }
    assert!(run.conductor.checkpoint_trouble().unwrap().contains("HTTP 503"));
    run.pause();
    run.writers();
    run.hear(ConductorEvent::Prepared(None));
    let writers = run.writers();
    // A manifest that could not be written is no other kind of trouble.
    writers.iter().for_each(|name| run.wrote(name));
    run.hear(ConductorEvent::Sealed { step: 10, error: Some("HTTP 500".to_owned()) });
    assert!(run.conductor.checkpoint_trouble().unwrap().contains("HTTP 500"));
    assert_eq!(run.pause(), 8000);
    run.writers();
    run.hear(ConductorEvent::Prepared(None));
    let writers = run.writers();
    run.ends_well(&writers);
}

#[test]
fn a_machine_that_cannot_write_is_passed_over_and_named() {
    let mut run = finishing();
    assert_eq!(run.writers(), ["a", "c"]);
    run.could_not_write("a", SaveFailure::Destination);
    run.could_not_write("c", SaveFailure::Destination);
    run.pause();
    run.writers();
    run.hear(ConductorEvent::Prepared(None));
    let writers = run.writers();
    assert_eq!(writers, ["b", "d"], "those on the other machine");
    run.ends_well(&writers);
    let notes = run.notes();
    assert!(
        notes.contains("c on n1 could not write a checkpoint and b on n2 could: see to c on n1 (no space)"),
        "{notes}"
    );
}

#[test]
fn a_writer_that_is_gone_or_too_late_is_no_trouble() {
    let mut run = finishing();
    run.writers();
    run.wrote("c");
    run.hear(ConductorEvent::Gone("a".into()));
    assert_eq!(run.conductor.checkpoint_trouble(), None);
    assert!(run.asks_for(&ConductorEffect::Discard { step: 10 }));
    assert_eq!(run.pause(), 500);
    run.writers();
    run.hear(ConductorEvent::Prepared(None));
    assert_eq!(run.writers(), ["b", "c"]);
    run.could_not_write("b", SaveFailure::OtherStep);
    // What somebody says of an older attempt is of no interest.
    run.wrote("d");
    run.wrote("c");
    assert_eq!((run.conductor.checkpoint_trouble(), run.pause()), (None, 500));
    run.writers();
    run.hear(ConductorEvent::Prepared(None));
    let writers = run.writers();
    run.ends_well(&writers);
}

#[test]
fn a_last_checkpoint_that_is_gone_when_it_is_read_again_is_written_again() {
    let mut run = finishing();
    for name in run.writers() {
        run.wrote(&name);
    }
    run.hear(ConductorEvent::Sealed { step: 10, error: None });
    run.out.clear();
    run.hear(ConductorEvent::Confirmed { step: 10, error: Some("it is no checkpoint".to_owned()) });
    assert!(run.asks_for(&ConductorEffect::Inspect));
    assert_eq!(*run.conductor.phase(), Phase::Finishing);
    run.hear(ConductorEvent::Checkpoints(Checkpoints::Newest(8)));
    run.pass(1000);
    let writers = run.writers();
    run.ends_well(&writers);
}

#[test]
fn a_destination_that_is_anothers_ends_the_run_unless_that_is_over() {
    let mut run = finishing();
    let writers = run.writers();
    run.ends_well(&writers);
    run.hear(ConductorEvent::Refused("taken over".to_owned()));
    assert_eq!(*run.conductor.phase(), Phase::Finished);
    let mut run = finishing();
    run.hear(ConductorEvent::Refused("taken over".to_owned()));
    assert_eq!(*run.conductor.phase(), Phase::Failed("taken over".to_owned()));
}

#[test]
fn what_two_peers_have_differently_becomes_no_checkpoint_and_all_go_back_when_nobody_can_tell() {
    let mut run = finishing();
    for attempt in 0..3 {
        let (writers, checkers) = run.savers();
        assert_eq!(
            (writers.as_slice(), checkers.as_slice()),
            (["a", "c"].map(String::from).as_slice(), ["b", "d"].map(String::from).as_slice())
        );
        for name in ["a", "c", "d"] {
            let record = if name == "a" { "a" } else { "c" }.to_owned();
            run.report(name, PeerReport::Saved { step: 10, record });
        }
        let sealed = |run: &Run| run.out.iter().any(|e| matches!(e, ConductorEffect::Seal { .. }));
        assert!(!sealed(&run), "b has not answered yet");
        run.report("b", PeerReport::Saved { step: 10, record: "another".to_owned() });
        assert!(!sealed(&run) && run.asks_for(&ConductorEffect::Discard { step: 10 }));
        assert!(run.notes().contains("a and b have different values of stage 0"), "{}", run.notes());
        if attempt < 2 {
            run.pause();
            run.out.clear();
            run.hear(ConductorEvent::Prepared(None));
        }
    }
    assert_eq!(*run.conductor.phase(), Phase::Gathering, "{}", run.notes());
}

#[test]
fn of_three_peers_the_one_that_writes_something_else_is_expelled() {
    let mut run = Run::gathered([
        holder("a", "n1", 0, 10),
        holder("b", "n2", 0, 10),
        holder("c", "n3", 0, 10),
        holder("d", "n1", 1, 10),
    ]);
    run.hear(ConductorEvent::Checkpoints(Checkpoints::None));
    for attempt in 0..2 {
        let (writers, checkers) = run.savers();
        assert_eq!(
            (writers.len(), checkers.len()),
            (2, 1 + attempt),
            "all others are asked once two have differed"
        );
        for name in writers.iter().chain(&checkers) {
            let record = if name == "a" { "wrong" } else { "right" }.to_owned();
            run.report(name, PeerReport::Saved { step: 10, record });
        }
        if attempt == 0 {
            run.pause();
            run.out.clear();
            run.hear(ConductorEvent::Prepared(None));
        }
    }
    let expelled: Vec<_> = run.conductor.expelled().map(|e| e.peer.as_str()).collect();
    assert_eq!(expelled, ["a"], "{}", run.notes());
    assert_eq!(*run.conductor.phase(), Phase::Finishing);
}

#[test]
fn what_was_to_be_compared_and_was_not_becomes_no_checkpoint() {
    let mut run = finishing();
    let (writers, _) = run.savers();
    writers.iter().for_each(|name| run.wrote(name));
    run.report("d", PeerReport::Saved { step: 10, record: "c".to_owned() });
    run.hear(ConductorEvent::Gone("b".into()));
    let sealed = |run: &Run| run.out.iter().any(|e| matches!(e, ConductorEffect::Seal { .. }));
    assert!(!sealed(&run) && run.asks_for(&ConductorEffect::Discard { step: 10 }), "{:?}", run.out);
    run.pause();
    run.out.clear();
    run.hear(ConductorEvent::Prepared(None));
    // There is nobody to compare stage 0 with any longer.
    let (writers, checkers) = run.savers();
    assert_eq!((writers.len(), checkers), (2, vec!["d".to_owned()]));
    run.report("d", PeerReport::Saved { step: 10, record: "c".to_owned() });
    run.ends_well(&writers);
}
