//! Strangers with certificates of a run that say what is not so: it goes on, whoever is wrong is named, and the bits are those of a run that nobody disturbed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod run;
mod tool;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dunlin_e2e::local::LocalTraining;
use dunlin_e2e::wait;
use dunlin_model::OWN_NUMERICS;
use dunlin_protocol::training::{
    Contribution, Fetch, Held, HeldSums, Hello, Mate, PeerReport, StateDigest, ToPeer, ToTrainer,
    TrainerReport, TrainingRole as HelloRole,
};
use dunlin_wire::Role;
use dunlin_wire::train::{ConductorLinkEvent, dial_conductor};
use dunlin_wire::training::{ToConductor, ToMember};
use run::{Run, named, step};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Somebody with a stream to the conductor, which begins anew when it ends.
struct Liar {
    runtime: Runtime,
    events: mpsc::Receiver<ConductorLinkEvent>,
    hello: Hello,
    sayer: Option<mpsc::Sender<ToConductor>>,
}

impl Liar {
    fn new(run: &Run, training: &LocalTraining, name: &str, role: Role, says: HelloRole) -> Self {
        let processes = training.swarm["processes"].as_array().unwrap();
        let conductor = processes.iter().find(|p| p["role"] == "conductor").unwrap();
        let runtime = Runtime::new().unwrap();
        let (events_in, events) = mpsc::channel(64);
        let entered = runtime.enter();
        dial_conductor(run.links(role, name), conductor["addr"].as_str().unwrap().to_owned(), events_in);
        let me = Mate { name: name.into(), addr: "127.0.0.1:1".to_owned(), host: "elsewhere".to_owned() };
        let hello = Hello { me, arithmetic: Some(OWN_NUMERICS), role: says };
        drop(entered);
        Self { runtime, events, hello, sayer: None }
    }

    /// What the conductor says next, if anything within a while.
    fn hear(&mut self) -> Option<ToMember> {
        let until = Instant::now() + Duration::from_secs(10);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let next = self.runtime.block_on(async { tokio::time::timeout(left, self.events.recv()).await });
            match next.ok()?? {
                ConductorLinkEvent::Up(sayer) => {
                    sayer.try_send(self.hello.clone().into()).unwrap();
                    self.sayer = Some(sayer);
                }
                ConductorLinkEvent::Said(said) => return Some(said),
                ConductorLinkEvent::Down(_) => self.sayer = None,
            }
        }
        None
    }

    fn say(&self, report: impl Into<ToConductor>) {
        // A stream that has ended begins anew.
        let _ = self.sayer.as_ref().unwrap().try_send(report.into());
    }
}

fn made_up(step: u64) -> HelloRole {
    let done = (0..1000).map(|microbatch| Contribution { microbatch, loss: Some(1e9) }).collect();
    HelloRole::Peer {
        held: Some(Held {
            stage: 0,
            step,
            sums: vec![HeldSums { done, adding: vec![7; 1000] }; 9],
            averaged: BTreeMap::from([(0, vec![1.0]), (77, vec![])]),
            scale: Some(0.5),
            state: StateDigest { fingerprint: 666, root: Some("0".repeat(64)) },
            ..Held::default()
        }),
    }
}

#[test]
fn a_peer_that_comes_from_the_future_with_a_state_that_nobody_has_is_named() {
    let run = Run::new("prophet");
    let mut training = run.start_with(1, 2, Run::without_end);
    let reader = training.read_on();
    wait::until_true("there are steps", Duration::from_secs(20), || {
        Ok((step(&training) > Some(3), String::new()))
    })
    .unwrap();
    let mut liar = Liar::new(&run, &training, "prophet", Role::Peer, made_up(900_000));
    let mut told = Vec::new();
    loop {
        match liar.hear() {
            Some(ToMember::Peer(ToPeer::Fetch(Fetch { stage, step, .. }))) => {
                told.push(step);
                let state = StateDigest { fingerprint: 666, root: Some("0".repeat(64)) };
                liar.say(PeerReport::Ready { stage, step, state });
            }
            Some(ToMember::Peer(ToPeer::Expelled { .. })) => break,
            Some(_) => {}
            None => panic!("it is not expelled: {:?}", training.status()),
        }
    }
    let why = named(&training, "prophet");
    assert!(why.starts_with("its state of stage 0 ") && why.contains(" is not that of "), "{why}");
    assert!(!told.is_empty() && told.iter().all(|step| *step < 900_000), "{told:?}");
    // If those who serve the stage have said what they have, it is compared with them and gets all of it once more. If they have not, all are judged together.
    assert!(told.len() > 1 || why.ends_with("that of most others"), "{why}: {told:?}");
    run.ends_as_if_nothing_had_happened(training, reader);
}

/// Whatever it is given, it says that nobody can compute that. Two others drive what it does not.
#[test]
fn a_trainer_that_says_that_nothing_can_be_computed_ends_no_run() {
    let run = Run::new("naysayer");
    let mut training = run.start_with(1, 2, Run::without_end);
    let reader = training.read_on();
    wait::until_true("there are checkpoints", Duration::from_secs(20), || {
        Ok((step(&training) > Some(7), String::new()))
    })
    .unwrap();
    let newest = run.checkpoints().join(format!("step-{:08}", run.newest_checkpoint()));
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(newest.join("training.json")).unwrap()).unwrap();
    let data = manifest["dataSha256"].as_str().unwrap().to_owned();
    let mut liar = Liar::new(&run, &training, "naysayer", Role::Trainer, HelloRole::Trainer { data });
    let (mut peers, mut lies) = (Vec::new(), 0);
    while lies < 100 {
        match liar.hear() {
            Some(ToMember::Trainer(ToTrainer::Roster { stages, .. })) => {
                peers = stages.into_iter().flatten().map(|mate| mate.name).collect();
            }
            Some(ToMember::Trainer(ToTrainer::Work { step, microbatch, attempt, .. })) => {
                lies += 1;
                let (peers, what) = (peers.clone(), "a value is not finite".to_owned());
                liar.say(TrainerReport::Failed { step, microbatch, attempt, peers, what });
            }
            Some(_) => {}
            None => panic!("it gets no work: {:?}", training.status()),
        }
    }
    drop(liar);
    run.ends_as_if_nothing_had_happened(training, reader);
}
