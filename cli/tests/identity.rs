//! Strangers among real processes: a name of somebody else, orders that are not theirs to give. Nobody obeys, and the answers and weights
//! are those of runs that nobody disturbed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::cluster::repository;
use dunlin_e2e::local::{Local, LocalTraining};
use dunlin_e2e::training::weights;
use dunlin_model::OWN_NUMERICS;
use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_protocol::training::{Hello, Mate, PeerReport, TrainingRole as HelloRole};
use dunlin_swarm::{Layers, ModelId, PeerState, Topology, TopologyPeer};
use dunlin_wire::access::Rpc;
use dunlin_wire::proto::control_client::ControlClient;
use dunlin_wire::proto::frame::Body;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::proto::stage_client::StageClient;
use dunlin_wire::proto::train_client::TrainClient;
use dunlin_wire::proto::train_stage_client::TrainStageClient;
use dunlin_wire::training::{Message, ToConductor};
use dunlin_wire::{Authority, Credentials, LinksConfig, Role, TlsFiles, Validity, links, proto, topology};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tool::dunlin;

/// Nothing that strangers do takes long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Somebody with the key of a swarm's authority, and so with certificates for whatever name and role.
struct Forger {
    authority: Authority,
    folder: TempDir,
    runtime: Runtime,
}

impl Forger {
    fn new() -> Self {
        let authority = Authority::generate("test").unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), authority.certificate()).unwrap();
        std::fs::write(folder.path().join("ca.key"), authority.key()).unwrap();
        Self { authority, folder, runtime: Runtime::new().unwrap() }
    }

    /// Has a local swarm take this authority.
    fn options(&self) -> [&str; 2] {
        ["--authority", self.folder.path().to_str().unwrap()]
    }

    fn certificate(&self, role: Role, name: &str) -> TlsFiles {
        self.authority.issue(role, &[name.to_owned()], Validity::Authority).unwrap()
    }

    /// A connection to the process `to` at `addr`, as somebody called `name`.
    async fn channel(&self, role: Role, name: &str, to: &str, addr: &str) -> Channel {
        let config = LinksConfig::new(
            proto::Hello::default(),
            Some(Credentials::fixed(self.certificate(role, name)).unwrap()),
        );
        links::connect(&config, to, addr).await.unwrap()
    }

    /// Orders to `to` from everybody but an operator.
    async fn order(&self, to: &str, addr: &str) {
        let topology = Topology { epoch: 1_000_000, layers: 1, ..Topology::default() };
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Operator) {
            let mut client = ControlClient::new(self.channel(role, "stranger", to, addr).await);
            let denied = [
                client.drain(proto::DrainRequest { deadline_ms: 0 }).await.err(),
                client.assign(topology::assignment(&topology)).await.err(),
                client.push_topology(topology::push(&topology)).await.err(),
                client.get_status(proto::StatusRequest {}).await.err(),
            ];
            for (status, rpc) in
                denied.into_iter().zip([Rpc::Drain, Rpc::Assign, Rpc::PushTopology, Rpc::GetStatus])
            {
                assert_denied(status, &format!("{role} stranger may not call {rpc}"));
            }
        }
    }
}

fn assert_denied(status: Option<Status>, why: &str) {
    let status = status.unwrap_or_else(|| panic!("not denied: {why}"));
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains(why), "{why}: {status:?}");
}

/// What a stream ends with, whatever comes before.
async fn end<T>(mut stream: Streaming<T>) -> Option<Status> {
    timeout(PATIENCE, async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    })
    .await
    .unwrap()
}

const STEPS: u64 = 80;

/// A run that learns the documentation of this repository; nobody is lost in it.
struct Run(TempDir);

impl Run {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self, stages: u32, steps: u64) -> PathBuf {
        let text = ["concepts.md", "api.md", "protocol.md"]
            .map(|name| std::fs::read_to_string(repository().join("docs").join(name)).unwrap())
            .concat();
        let data = self.0.path().join("text.txt");
        std::fs::write(&data, text).unwrap();
        let config = json!({
            "model": {"config": {"hiddenSize": 32, "layers": 4, "heads": 4, "kvHeads": 2, "ffn": 64,
                                 "contextLength": 64, "tied": true}},
            "data": {"text": {"path": data}, "tokenizer": "Bytes"},
            "sequenceLength": 32, "globalBatch": 16, "microbatch": 2, "steps": steps, "seed": 7,
            "optimizer": {"kind": "AdamW", "learningRate": 0.003, "clip": 1.0},
            "stages": stages,
            "checkpoint": {"everySteps": STEPS, "keep": 1, "destination": self.0.path().join("checkpoints")},
        });
        let file = self.0.path().join("run.json");
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    fn weights(&self) -> Vec<(String, Vec<u8>)> {
        weights(&self.0.path().join(format!("checkpoints/step-{STEPS:08}"))).unwrap()
    }
}

/// One stream to the conductor: a hello, and one false report. What it ends with.
async fn say_hello(channel: Channel, name: &str, trainer: bool) -> Option<Status> {
    let role = if trainer { HelloRole::Trainer { data: "d".into() } } else { HelloRole::Peer { held: None } };
    let me = Mate { name: name.into(), addr: "127.0.0.1:1".into(), host: String::new() };
    let hello = Hello { me, arithmetic: Some(OWN_NUMERICS), role };
    let corrupt = PeerReport::Corrupt { what: "a lie".to_owned() };
    let (say, said) = mpsc::channel(4);
    for lie in [ToConductor::from(hello), corrupt.into()] {
        say.send(lie.to_wire()).await.unwrap();
    }
    match TrainClient::new(channel).join(ReceiverStream::new(said)).await {
        Ok(stream) => end(stream.into_inner()).await,
        Err(status) => Some(status),
    }
}

/// The processes of a run.
struct Processes {
    /// Where the conductor listens.
    conductor: String,
    /// Name of the trainer.
    trainer: String,
    /// Name and address of each peer.
    peers: Vec<(String, String)>,
}

/// A run of two stages with two peers each, under the authority of `forger`.
fn start(forger: &Forger, run: &Run, steps: u64) -> (LocalTraining, Processes) {
    let config = run.config(2, steps);
    let training = LocalTraining::start_with_options(dunlin(), &config, &forger.options(), 4).unwrap();
    let all = training.swarm["processes"].as_array().unwrap().clone();
    let of = |role: &'static str| all.iter().filter(move |p| p["role"] == role);
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    let processes = Processes {
        conductor: text(of("conductor").next().unwrap(), "addr"),
        trainer: text(of("trainer").next().unwrap(), "name"),
        peers: of("peer").map(|p| (text(p, "name"), text(p, "addr"))).collect(),
    };
    assert_eq!(processes.peers.len(), 4);
    (training, processes)
}

async fn disturb_training(forger: &Forger, processes: &Processes) {
    let Processes { conductor, trainer, peers } = processes;
    let to_conductor = |role, name: &'static str| forger.channel(role, name, "127.0.0.1", conductor);
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Operator) {
        let mut client = TrainClient::new(to_conductor(role, "stranger").await);
        let suspended = client.suspend(proto::SuspendRequest {}).await.err();
        assert_denied(suspended, &format!("{role} stranger may not call Train.Suspend: only operator may"));
        assert_denied(
            client.observe(proto::ObserveRequest {}).await.err(),
            "may not call Train.Observe: only operator may",
        );
    }
    for role in [Role::Operator, Role::Gateway, Role::Stage, Role::Conductor] {
        let denied = say_hello(to_conductor(role, "stranger").await, "stranger", false).await;
        assert_denied(denied, "may not call Train.Join: only trainer or peer may");
    }
    let unsaid = "which its certificate does not say";
    for (peer, addr) in peers {
        // The name of a living peer: with the certificate of another, with that of a trainer, with another one for the same name.
        assert_denied(say_hello(to_conductor(Role::Peer, "stranger").await, peer, false).await, unsaid);
        let as_trainer = forger.channel(Role::Trainer, peer, "127.0.0.1", conductor).await;
        assert_denied(say_hello(as_trainer, peer, false).await, unsaid);
        let thief = forger.channel(Role::Peer, peer, "127.0.0.1", conductor).await;
        assert_denied(say_hello(thief, peer, false).await, "is here already, with another certificate");

        forger.order(peer, addr).await;
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Trainer) {
            let mut client = TrainStageClient::new(forger.channel(role, "stranger", peer, addr).await);
            let call = proto::ComputeRequest { kind: 1, ..proto::ComputeRequest::default() };
            assert_denied(client.compute(call).await.err(), "may not call TrainStage.Compute");
        }
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Peer) {
            let mut client = TrainStageClient::new(forger.channel(role, "stranger", peer, addr).await);
            let pull = proto::PullRequest { stage: 0, what: Some(What::AllSums(1)), ..Default::default() };
            assert_denied(client.pull(pull).await.err(), "may not call TrainStage.Pull");
        }
    }
    let as_peer = forger.channel(Role::Peer, trainer, "127.0.0.1", conductor).await;
    assert_denied(say_hello(as_peer, trainer, true).await, unsaid);
    let thief = forger.channel(Role::Trainer, trainer, "127.0.0.1", conductor).await;
    assert_denied(say_hello(thief, trainer, true).await, "is here already, with another certificate");
}

#[test]
fn strangers_change_nothing_in_a_training_run() {
    let straight = Run::new();
    LocalTraining::start(dunlin(), &straight.config(1, STEPS), 1).unwrap().finish().unwrap();

    let (forger, run) = (Forger::new(), Run::new());
    let (mut training, processes) = start(&forger, &run, STEPS);
    // They all are at work.
    while training.line().unwrap().unwrap()["step"] != 1 {}
    forger.runtime.block_on(async {
        disturb_training(&forger, &processes).await;
        let channel = forger.channel(Role::Operator, "operator", "127.0.0.1", &processes.conductor).await;
        let seen = TrainClient::new(channel).observe(proto::ObserveRequest {}).await.unwrap().into_inner();
        assert!(seen.step < STEPS, "the run was over before the strangers were: {seen:?}");
    });
    let (_, last) = training.finish().unwrap();
    assert_eq!((last["redone"].as_u64(), last["lost"].as_u64()), (Some(0), Some(0)), "{last}");
    assert!(run.weights() == straight.weights(), "strangers changed the weights");
}

/// A peer that the conductor has never heard of has the right role, and is nobody's mate.
#[test]
fn a_peer_that_is_nobodys_mate_gets_no_values() {
    let (forger, run) = (Forger::new(), Run::new());
    let (mut training, Processes { peers, .. }) = start(&forger, &run, 100_000);
    let pull = |(peer, addr): &(String, String), stage| {
        let (peer, addr, forger) = (peer.clone(), addr.clone(), &forger);
        async move {
            let mut client =
                TrainStageClient::new(forger.channel(Role::Peer, "stranger", &peer, &addr).await);
            let pull = proto::PullRequest {
                stage,
                what: Some(What::State(proto::Span { from: 0, to: 8 })),
                ..Default::default()
            };
            end(client.pull(pull).await.unwrap().into_inner()).await.unwrap()
        }
    };
    // A peer serves one stage, and none while it gets another state: it is asked until it has denied its own.
    let denials = peers.iter().map(|peer| async {
        let until = Instant::now() + PATIENCE;
        loop {
            let refused = futures::future::join_all([0, 1].map(|stage| pull(peer, stage))).await;
            let codes: Vec<Code> = refused.iter().map(Status::code).collect();
            let known = [Code::PermissionDenied, Code::FailedPrecondition];
            assert!(codes.iter().all(|code| known.contains(code)), "{refused:?}");
            if codes.contains(&Code::PermissionDenied) || Instant::now() > until {
                return codes;
            }
        }
    });
    let codes = forger.runtime.block_on(futures::future::join_all(denials));
    let denied = |codes: &Vec<Code>| codes.contains(&Code::PermissionDenied);
    assert!(codes.iter().all(denied), "each denies its own stage, and does not serve the other: {codes:?}");
    let step = training.line().unwrap().unwrap()["step"].as_u64();
    assert!(step.is_some(), "the run goes on");
}

fn hello(name: &str, gateway: bool) -> proto::Frame {
    let hello = proto::Hello {
        name: name.to_owned(),
        incarnation: 1,
        gateway,
        arithmetic: OWN_NUMERICS.version(),
        ..proto::Hello::default()
    };
    proto::Frame { body: Some(Body::Hello(hello)) }
}

/// One stream to a stage. What it ends with.
async fn exchange(channel: Channel, frames: Vec<proto::Frame>) -> Option<Status> {
    let (say, said) = mpsc::channel(8);
    for frame in frames {
        say.send(frame).await.unwrap();
    }
    match StageClient::new(channel).exchange(ReceiverStream::new(said)).await {
        Ok(stream) => end(stream.into_inner()).await,
        Err(status) => Some(status),
    }
}

async fn disturb_serving(forger: &Forger, peers: &[(String, String)], gateway: &str) {
    forger.order("gateway", gateway).await;
    let frame = |body| proto::Frame { body: Some(body) };
    for (i, (peer, addr)) in peers.iter().enumerate() {
        let as_somebody = |role, name: &'static str| forger.channel(role, name, peer, addr);
        forger.order(peer, addr).await;
        for role in [Role::Operator, Role::Conductor, Role::Trainer, Role::Peer] {
            let denied = exchange(as_somebody(role, "stranger").await, vec![hello("stranger", false)]).await;
            assert_denied(denied, "may not call Stage.Exchange: only gateway or stage may");
        }
        let unsaid = "which its certificate does not say";
        let stage_as_gateway = vec![hello("gateway", true)];
        assert_denied(exchange(as_somebody(Role::Stage, "gateway").await, stage_as_gateway).await, unsaid);
        let other_gateway = vec![hello("gateway", true)];
        assert_denied(exchange(as_somebody(Role::Gateway, "other").await, other_gateway).await, unsaid);
        // The hop before, with another key than its own.
        let before = peers[(i + peers.len() - 1) % peers.len()].0.clone();
        let thief = forger.channel(Role::Stage, &before, peer, addr).await;
        if i > 0 {
            let denied = exchange(thief, vec![hello(&before, false)]).await;
            assert_denied(denied, "is here already, with another certificate");
        }
        let close = frame(Body::Close(proto::Close { session: 1, attempt: 1 }));
        let closes = vec![hello("stranger", false), close];
        let denied = exchange(as_somebody(Role::Stage, "stranger").await, closes).await;
        assert_denied(denied, "only its gateway closes a session");
        let open = frame(Body::Open(proto::Open {
            gateway: "gateway".to_owned(),
            route: vec![proto::Hop {
                peer: peer.clone(),
                layers: Some(Default::default()),
                ..Default::default()
            }],
            tokens: vec![1],
            sampling: Some(proto::Sampling { repetition_penalty: 1.0, ..Default::default() }),
            ..Default::default()
        }));
        let opens = vec![hello("other", true), open];
        let denied = exchange(as_somebody(Role::Gateway, "other").await, opens).await;
        assert_denied(denied, "a gateway opens its own sessions");
    }
}

#[test]
fn strangers_change_nothing_in_an_answer() {
    let cache = std::env::var_os("DUNLIN_CACHE").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/dunlin"));
    let model = cache.join("models/smollm2-135m-instruct-q4_1.gguf");
    let forger = Forger::new();
    let local = Local::start_with_options(dunlin(), &model, &forger.options(), 3, 1).unwrap();
    let question = Question::greedy(&local.model().unwrap(), "Tell a story about a lighthouse.", 100);
    let undisturbed = chat::ask(&local.url, &question).unwrap();
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    let peers: Vec<_> = local.peers.iter().map(|p| (text(p, "name"), text(p, "addr"))).collect();
    let mut stream = Stream::start(&local.url, &question);
    stream.read_tokens(10).unwrap();
    forger.runtime.block_on(disturb_serving(&forger, &peers, &local.gateway_addr));
    assert_eq!(stream.finish().unwrap().ids, undisturbed.ids);
    let (_, swarm) = chat::get(&format!("{}/swarm", local.url)).unwrap();
    let swarm: Value = serde_json::from_str(&swarm).unwrap();
    let now: Vec<_> = swarm["peers"].as_array().unwrap().iter().map(|p| text(p, "name")).collect();
    assert_eq!(now, peers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "nobody was replaced");
}

/// Orders of an operator. Who has been told no model is of that of the first topology that says one.
#[test]
fn plans_of_another_model_are_obeyed_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let spec =
        RandomModelSpec { layers: 4, hidden: 64, heads: 2, kv_heads: 1, ffn: 128, vocab: 600, seed: 1 };
    random_model::write(folder.path(), &spec).unwrap();
    let forger = Forger::new();
    let local = Local::start_with_options(dunlin(), folder.path(), &forger.options(), 2, 1).unwrap();
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    let plan = |epoch, digest: &str| {
        let peer = |p: &Value| {
            let bound = |i: usize| p["layers"][i].as_u64().unwrap() as u32;
            TopologyPeer {
                name: text(p, "name").into(),
                addr: text(p, "addr"),
                span: Layers::new(bound(0), bound(1)),
                state: PeerState::Ready,
                ..TopologyPeer::default()
            }
        };
        let model = ModelId { name: "m".to_owned(), digest: digest.to_owned() };
        Topology { epoch, model, layers: 4, peers: local.peers.iter().map(peer).collect() }
    };
    let told = |plan: &Topology| {
        let stages = local.peers.iter().map(|p| (text(p, "name"), text(p, "addr")));
        let gateway = ("gateway".to_owned(), local.gateway_addr.clone());
        let statuses = stages.chain([gateway]).map(|(name, addr)| {
            forger.runtime.block_on(async {
                let mut client =
                    ControlClient::new(forger.channel(Role::Operator, "operator", &name, &addr).await);
                let status = match name.as_str() {
                    "gateway" => client.push_topology(topology::push(plan)).await,
                    _ => client.assign(topology::assignment(plan)).await,
                };
                let status = status.unwrap().into_inner();
                (status.epoch, status.model_digest)
            })
        });
        statuses.collect::<Vec<_>>()
    };
    let own = (1000, "own".to_owned());
    assert_eq!(told(&plan(1000, "own")), vec![own.clone(); 3]);
    let question = Question::greedy(&local.model().unwrap(), "a", 5);
    chat::ask(&local.url, &question).unwrap();
    assert_eq!(told(&plan(2000, "other")), vec![own; 3]);
    let (status, why) = chat::get(&format!("{}/health", local.url)).unwrap();
    assert!(status == 503 && why.contains("another model since epoch 2000"), "{status}: {why}");
    assert!(chat::ask(&local.url, &question).is_err());
    // The manifest is changed back.
    assert_eq!(told(&plan(3000, "own")), vec![(3000, "own".to_owned()); 3]);
    chat::ask(&local.url, &question).unwrap();
}
