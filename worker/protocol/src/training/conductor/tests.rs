use std::collections::{BTreeMap, BTreeSet};

use dunlin_planner::rebalance::Policy;

use super::{Conductor, ConductorConfig, ConductorEffect, ConductorEvent};
use crate::training::message::{Hello, Mate, PeerReport, Role, StageId, ToPeer};

const GATHER_MS: u64 = 2000;

fn conductor(stages: StageId) -> Conductor {
    let config = ConductorConfig {
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
        policy: Policy::default(),
        fetch_ms: 100,
        incarnation: 1,
    };
    Conductor::new(config, None)
}

fn hello(name: &str, host: &str) -> ConductorEvent {
    let me = Mate { name: name.into(), addr: name.to_owned(), host: host.to_owned() };
    ConductorEvent::Connected(Hello { me, role: Role::Peer { held: None } })
}

/// The stage that each peer was sent to last.
fn stages(effects: &[ConductorEffect]) -> BTreeMap<String, StageId> {
    let sent = |effect: &ConductorEffect| match effect {
        ConductorEffect::ToPeer(name, ToPeer::Load { stage, .. } | ToPeer::Fetch { stage, .. }) => {
            Some((name.to_string(), *stage))
        }
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
        let ready = PeerReport::Ready { stage, step: 0 };
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
        let from = conductor.member_stage(&name).unwrap();
        conductor.leave_for(GATHER_MS, &name, 1 - from, "it is faster there".to_owned(), &mut Vec::new());
        assert_eq!(conductor.member_stage(&name).is_none(), goes, "{machines:?}");
    }
}

#[test]
fn a_newcomer_goes_to_the_stage_that_its_machine_does_not_have() {
    for machine in ["n1", "n2"] {
        let (mut conductor, mut out) = gathered(2, &[("a", "n1"), ("b", "n2")]);
        let at = stages(&out);
        for (name, &stage) in &at {
            let ready = PeerReport::Ready { stage, step: 0 };
            conductor.handle(GATHER_MS, ConductorEvent::Peer(name.as_str().into(), ready), &mut out);
        }
        assert_eq!(conductor.members().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        out.clear();
        conductor.handle(GATHER_MS, hello("c", machine), &mut out);
        let same = if machine == "n1" { at["a"] } else { at["b"] };
        assert_ne!(stages(&out)["c"], same, "both of stage {same} on {machine}");
    }
}
