use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::rebalance::{MoveKind, RebalancePolicy};

use dunlin_swarm::{NumericsClass, PeerName};

use super::turn::Turn;
use super::{Conductor, ConductorConfig, ConductorEffect, ConductorEvent};
use crate::training::Checkpoints;
use crate::training::ids::StageId;
use crate::training::mates::Mates;
use crate::training::message::{
    Contribution, Fetch, Held, HeldSums, Hello, Mate, PeerReport, StageStart, StateDigest, ToPeer,
    TrainingRole,
};

pub(super) const GATHER_MS: u64 = 2000;

pub(super) fn config(stages: StageId) -> ConductorConfig {
    ConductorConfig {
        stages,
        microbatches: 4,
        rows: 8,
        costs: Vec::new(),
        steps: 10,
        delayed_updates: false,
        tied: false,
        clip: None,
        saves: false,
        checkpoint_every: 0,
        validate_every: 0,
        validation_batches: 0,
        gather_ms: GATHER_MS,
        claim_ms_max: 1000,
        hand_over_ms: 1000,
        policy: RebalancePolicy::default(),
        fetch_ms: 100,
        incarnation: 1,
        arithmetic: NumericsClass::FIRST,
    }
}

fn conductor(stages: StageId) -> Conductor {
    Conductor::new(config(stages))
}

/// A peer on `host` connects, with what it has of a stage at a step.
pub(super) fn connects(name: &str, host: &str, held: Option<Held>) -> ConductorEvent {
    let me = Mate { name: name.into(), addr: name.to_owned(), host: host.to_owned() };
    let (arithmetic, role) = (Some(NumericsClass::FIRST), TrainingRole::Peer { held });
    ConductorEvent::Connected(Hello { me, arithmetic, role })
}

pub(super) fn hello(name: &str, host: &str) -> ConductorEvent {
    connects(name, host, None)
}

/// The stage that each peer was sent to last.
fn stages(effects: &[ConductorEffect]) -> BTreeMap<String, StageId> {
    let sent = |effect: &ConductorEffect| match effect {
        ConductorEffect::ToPeer(
            name,
            ToPeer::Load(StageStart { stage, .. }) | ToPeer::Fetch(Fetch { stage, .. }),
        ) => Some((name.to_string(), *stage)),
        _ => None,
    };
    effects.iter().filter_map(sent).collect()
}

/// Peers, a (name, machine) each, that come together, and what they are told.
fn gathered(stages: StageId, peers: &[(&str, &str)]) -> (Conductor, Vec<ConductorEffect>) {
    let (mut conductor, mut out) = (conductor(stages), Vec::new());
    for (name, host) in peers {
        conductor.handle(0, hello(name, host), &mut out);
    }
    conductor.handle(GATHER_MS, ConductorEvent::Tick, &mut out);
    (conductor, out)
}

#[test]
fn a_machine_never_has_both_peers_of_a_stage() {
    // Names in an order that mixes the machines, three, three and two of them.
    let peers = [
        ("a", "n3"),
        ("b", "n1"),
        ("c", "n3"),
        ("d", "n2"),
        ("e", "n1"),
        ("f", "n3"),
        ("g", "n1"),
        ("h", "n2"),
    ];
    let at = stages(&gathered(4, &peers).1);
    let machines = |stage: StageId| -> BTreeSet<&str> {
        peers.iter().filter(|(name, _)| at[*name] == stage).map(|(_, host)| *host).collect()
    };
    for stage in 0..4 {
        assert_eq!(machines(stage).len(), 2, "stage {stage}: {at:?}");
    }
}

#[test]
fn peers_of_unknown_machines_are_spread_evenly() {
    let peers = [("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "")];
    let at = stages(&gathered(2, &peers).1);
    assert_eq!(at.values().filter(|s| **s == 0).count(), 3, "{at:?}");
}

/// The same, when all of them serve.
fn serving(stages_count: StageId, peers: &[(&str, &str)]) -> Conductor {
    let (mut conductor, mut out) = gathered(stages_count, peers);
    for (name, stage) in stages(&out) {
        let ready = PeerReport::Ready { stage, step: 0, state: StateDigest::default() };
        conductor.handle(GATHER_MS, ConductorEvent::Peer(name.as_str().into(), ready), &mut out);
    }
    conductor
}

#[test]
fn speed_is_no_reason_to_leave_a_stage_to_one_machine() {
    for (machines, goes) in [
        (["n1", "n2", "n1", "n2"].as_slice(), false),
        (["n1", "n2", "n3", "n1", "n2", "n3"].as_slice(), true),
        // Machines that are not known, and a stage that is on one already.
        (["", "", "", ""].as_slice(), true),
        (["n1", "n1", "n1", "n1"].as_slice(), true),
    ] {
        let names = ["a", "b", "c", "d", "e", "f"];
        let peers: Vec<_> = names.into_iter().zip(machines.iter().copied()).collect();
        let mut conductor = serving(2, &peers);
        assert!(conductor.members().iter().all(|members| members.len() == peers.len() / 2));
        let name = "a".into();
        let from = conductor.peers.member_stage(&name).unwrap();
        let reason = "it is faster there".to_owned();
        let (mut out, to) = (Vec::new(), 1 - from);
        conductor.leave_for(&mut Turn::new(GATHER_MS, &mut out), &name, to, MoveKind::Cold, reason);
        assert_eq!(conductor.peers.member_stage(&name).is_none(), goes, "{machines:?}");
    }
}

/// A peer of each of two stages is lost, so that one stage is on one machine.
#[test]
fn a_stage_on_one_machine_gets_a_peer_of_another_at_the_edge_of_a_step() {
    let peers = [("a", "n1"), ("b", "n2"), ("c", "n1"), ("d", "n2"), ("e", "n3"), ("f", "n3")];
    let mut conductor = serving(2, &peers);
    let host = |name: &PeerName| peers.iter().find(|(n, _)| *n == name.as_str()).unwrap().1;
    let machines = |members: &[PeerName]| members.iter().map(host).collect::<BTreeSet<&str>>().len();
    assert!(conductor.members().iter().all(|members| machines(members) == 3));
    // Of one stage the peers on n2 and n3 are lost, and a newcomer on n1 comes; the other loses nobody.
    let mut out = Vec::new();
    let gone: Vec<PeerName> = conductor.members()[0].iter().filter(|n| host(n) != "n1").cloned().collect();
    for name in gone {
        conductor.handle(GATHER_MS, ConductorEvent::Gone(name), &mut out);
    }
    conductor.handle(GATHER_MS, hello("g", "n1"), &mut out);
    assert_eq!(stages(&out)["g"], 0);
    let ready = ConductorEvent::Peer(
        "g".into(),
        PeerReport::Ready { stage: 0, step: 0, state: StateDigest::default() },
    );
    conductor.handle(GATHER_MS, ready, &mut out);
    let host = |name: &PeerName| if name.as_str() == "g" { "n1" } else { host(name) };
    let before = conductor.members();
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3]);

    out.clear();
    conductor.rebalance(&mut Turn::new(GATHER_MS, &mut out));
    let sent = stages(&out);
    assert_eq!(sent.len(), 2, "{sent:?}");
    let stage_after = |name: &PeerName, stage: StageId| sent.get(name.as_str()).copied().unwrap_or(stage);
    for stage in 0..2 {
        let all = (0..).zip(&before).flat_map(|(s, members)| members.iter().map(move |name| (s, name)));
        let after: BTreeSet<&str> =
            all.filter(|(s, name)| stage_after(name, *s) == stage).map(|(_, name)| host(name)).collect();
        assert!(after.len() >= 2, "stage {stage}: {sent:?}");
    }
    assert!(conductor.members().iter().all(|members| !members.is_empty()));
    // That is enough.
    out.clear();
    conductor.rebalance(&mut Turn::new(GATHER_MS, &mut out));
    assert_eq!(stages(&out).len(), 0);
}

#[test]
fn a_newcomer_goes_to_the_stage_that_its_machine_does_not_have() {
    for machine in ["n1", "n2"] {
        let (mut conductor, mut out) = gathered(2, &[("a", "n1"), ("b", "n2")]);
        let at = stages(&out);
        for (name, &stage) in &at {
            let ready = PeerReport::Ready { stage, step: 0, state: StateDigest::default() };
            conductor.handle(GATHER_MS, ConductorEvent::Peer(name.as_str().into(), ready), &mut out);
        }
        assert_eq!(conductor.members().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        out.clear();
        conductor.handle(GATHER_MS, hello("c", machine), &mut out);
        let same = if machine == "n1" { at["a"] } else { at["b"] };
        assert_ne!(stages(&out)["c"], same, "both of stage {same} on {machine}");
    }
}

/// Whom each peer gives values to, as it was told last.
fn mates(effects: &[ConductorEffect]) -> BTreeMap<String, Mates> {
    let told = |effect: &ConductorEffect| match effect {
        ConductorEffect::ToPeer(name, ToPeer::Mates(mates)) => Some((name.to_string(), mates.clone())),
        _ => None,
    };
    effects.iter().filter_map(told).collect()
}

#[test]
fn peers_hear_whom_to_give_values_to_before_these_can_ask() {
    let mut conductor = Conductor::new(ConductorConfig { tied: true, ..config(3) });
    let mut out = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        conductor.handle(0, hello(name, ""), &mut out);
    }
    conductor.handle(GATHER_MS, ConductorEvent::Tick, &mut out);
    let (at, told) = (stages(&out), mates(&out));
    for (name, stage) in &at {
        let others = |stage: StageId| -> BTreeSet<PeerName> {
            let there = at.iter().filter(|(other, s)| **s == stage && *other != name);
            there.map(|(other, _)| other.as_str().into()).collect()
        };
        // The first and the last stage share the embedding, which is shard 3.
        let shared = (*stage != 1).then(|| (3, others(2 - stage)));
        assert_eq!(told[name], Mates { stage: others(*stage), shared }, "{name} at stage {stage}");
        assert_eq!(told[name].stage.len(), 1);
    }
    // One more is told of by those that it fetches from, and by nobody whom it does not concern.
    out.clear();
    for (name, stage) in &at {
        let ready = PeerReport::Ready { stage: *stage, step: 0, state: StateDigest::default() };
        conductor.handle(GATHER_MS, ConductorEvent::Peer(name.as_str().into(), ready), &mut out);
    }
    out.clear();
    conductor.handle(GATHER_MS + 1, hello("g", ""), &mut out);
    let (joined, told) = (stages(&out)["g"], mates(&out));
    for (name, stage) in &at {
        let concerned = *stage == joined || (joined != 1 && *stage == 2 - joined);
        assert_eq!(told.contains_key(name), concerned, "{name} at stage {stage}, g at {joined}");
    }
}

/// Of a stage, one peer made an update that another did not hear of before the conductor ended, and a third has copied it.
#[test]
fn an_update_is_told_again_though_whoever_made_it_is_gone_by_then() {
    for is_back in [false, true] {
        let (mut conductor, mut out) = (conductor(2), Vec::new());
        let sums = vec![HeldSums::default()];
        let made = Held { stage: 0, step: 5, sums, scale: Some(0.5), ..Held::default() };
        let copied = Held { scale: None, copied: true, ..made.clone() };
        let averaged = [(1, vec![1.0])].into();
        let behind = Held { stage: 1, step: 4, scale: Some(1.0), averaged, ..made.clone() };
        for (name, held) in [("a", made), ("b", behind), ("c", copied.clone())] {
            conductor.handle(0, connects(name, "", Some(held)), &mut out);
        }
        conductor.handle(10, ConductorEvent::Gone("a".into()), &mut out);
        if is_back {
            // It has lost what it had, and copied it as well.
            conductor.handle(20, connects("a", "", Some(copied)), &mut out);
        }
        conductor.handle(GATHER_MS, ConductorEvent::Tick, &mut out);
        let told = ConductorEffect::ToPeer("b".into(), ToPeer::Apply { step: 4, scale: 0.5, prove: false });
        assert!(out.contains(&told), "{out:?}");
        assert_eq!(conductor.step(), 5);
    }
}

#[test]
fn a_peer_that_has_to_wait_for_the_next_averages_hears_what_comes_of_its_claims() {
    let (mut conductor, mut out) = (serving(1, &[("a", ""), ("b", "")]), Vec::new());
    let peer = |name: &str, report| ConductorEvent::Peer(name.into(), report);
    for microbatch in 0..4 {
        let claim = PeerReport::Claim { step: 0, microbatch, attempt: conductor.work.attempt() };
        let contribution = Contribution { microbatch, loss: Some(1.0) };
        conductor.handle(GATHER_MS, peer("a", claim), &mut out);
        let done = PeerReport::Done { step: 0, contribution, took_us: 1 };
        conductor.handle(GATHER_MS, peer("a", done), &mut out);
    }
    // The averages have begun when it comes.
    conductor.handle(GATHER_MS, hello("c", ""), &mut out);
    let ready = PeerReport::Ready { stage: 0, step: 0, state: StateDigest::default() };
    conductor.handle(GATHER_MS, peer("c", ready), &mut out);
    assert!(conductor.peers.is_parked(&"c".into()));
    let claim = PeerReport::Claim { step: 0, microbatch: 2, attempt: conductor.work.attempt() };
    out.clear();
    conductor.handle(GATHER_MS, peer("c", claim), &mut out);
    let answer = ToPeer::Grant { step: 0, microbatch: 2, granted: false };
    assert_eq!(out, [ConductorEffect::ToPeer("c".into(), answer)]);
}

#[test]
fn what_a_peer_adds_after_it_came_back_is_not_lost_with_the_mate_that_took_what_it_had_before() {
    for takes in [true, false] {
        let (mut conductor, mut out) = (serving(1, &[("a", ""), ("b", "")]), Vec::new());
        let a = PeerName::from("a");
        let add = |conductor: &mut Conductor, microbatch| {
            let claim = PeerReport::Claim { step: 0, microbatch, attempt: conductor.work.attempt() };
            let contribution = Contribution { microbatch, loss: Some(1.0) };
            for report in [claim, PeerReport::Done { step: 0, contribution, took_us: 1 }] {
                conductor.handle(GATHER_MS, ConductorEvent::Peer("a".into(), report), &mut Vec::new());
            }
        };
        add(&mut conductor, 0);
        let leaves = PeerReport::Leaving { within_ms: 10 };
        conductor.handle(GATHER_MS, ConductorEvent::Peer("a".into(), leaves), &mut out);
        assert!(out.iter().any(|effect| matches!(effect, ConductorEffect::ToPeer(_, ToPeer::Take { .. }))));
        conductor.handle(GATHER_MS, ConductorEvent::Gone("a".into()), &mut out);
        // It comes back before anybody knows whether b has them, and begins with nothing.
        let held = Held { sums: vec![HeldSums::default()], ..Held::default() };
        conductor.handle(GATHER_MS, connects("a", "", Some(held)), &mut out);
        let ready = PeerReport::Ready { stage: 0, step: 0, state: StateDigest::default() };
        conductor.handle(GATHER_MS, ConductorEvent::Peer("a".into(), ready), &mut out);
        add(&mut conductor, 1);
        let added = |conductor: &Conductor, name: &PeerName| -> Vec<u32> {
            let all = conductor.work.contributions(name, 0).map(|(_, all)| all).unwrap_or_default();
            all.iter().map(|contribution| contribution.microbatch).collect()
        };
        let b = PeerName::from("b");
        let came = if takes {
            ConductorEvent::Peer("b".into(), PeerReport::Taken { step: 0, from: a.clone() })
        } else {
            ConductorEvent::Gone("b".into())
        };
        conductor.handle(GATHER_MS, came, &mut out);
        assert_eq!(added(&conductor, &a), [1]);
        assert_eq!(added(&conductor, &b), if takes { vec![0] } else { vec![] });
    }
}

#[test]
fn a_conductor_that_stood_still_while_it_asked_who_holds_what_asks_again() {
    let (mut conductor, mut out) = (conductor(1), Vec::new());
    conductor.handle(0, ConductorEvent::Checkpoints(Checkpoints::Newest(2)), &mut out);
    let held = Held { step: 5, sums: vec![HeldSums::default()], scale: Some(1.0), ..Held::default() };
    conductor.handle(0, connects("a", "", Some(held.clone())), &mut out);
    // It sleeps for longer than it would have waited. A newcomer connects first when it goes on.
    let woke_ms = 2 * GATHER_MS;
    conductor.handle(woke_ms, ConductorEvent::Woke, &mut out);
    conductor.handle(woke_ms + 10, hello("b", ""), &mut out);
    conductor.handle(woke_ms + 20, connects("a", "", Some(held)), &mut out);
    assert_eq!(conductor.step(), 5);
    assert_eq!(stages(&out).len(), 1, "b fetches from a");
}
