//! What there is to go on from, and what becomes of a run whose checkpoints are damaged.

use std::collections::BTreeSet;

use super::tests::{GATHER_MS, config, hello};
use super::{Checkpoints, Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Phase};
use crate::training::message::{FetchFailure, Held, Hello, Mate, PeerReport, Role, StageId, Step, ToPeer};

const PEERS: [&str; 4] = ["a", "b", "c", "d"];

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
            ConductorEffect::ToPeer(name, ToPeer::Load { stage, step, checkpoint }) => {
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
    let holder = |name: &str, stage| {
        let me = Mate { name: name.into(), addr: name.to_owned(), host: String::new() };
        let held = Some(Held { stage, step: 5, ..Held::default() });
        ConductorEvent::Connected(Hello { me, role: Role::Peer { held } })
    };
    let mut run = Run::gathered([holder("a", 0), holder("b", 1)]);
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
    let holder = |name: &str, stage| {
        let me = Mate { name: name.into(), addr: name.to_owned(), host: String::new() };
        let held = Some(Held { stage, step: 5, ..Held::default() });
        ConductorEvent::Connected(Hello { me, role: Role::Peer { held } })
    };
    let mut run = Run::gathered([holder("a", 0), holder("b", 1), holder("c", 1)]);
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
        run.report(name, PeerReport::Ready { stage, step: 8 });
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
