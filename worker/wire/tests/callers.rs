//! Who may say what, over real connections: every call with every role, names, and certificates that are no use.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use dunlin_protocol::Sender;
use dunlin_protocol::training::{Hello, Mate, PeerReport, ToPeer, TrainerReport, TrainingRole as HelloRole};
use dunlin_swarm::limits::MESSAGE_BYTES_MAX;
use dunlin_swarm::{NumericsClass, Topology};
use dunlin_wire::access::Rpc;
use dunlin_wire::control::{ControlRequest, ControlService};
use dunlin_wire::proto::control_client::ControlClient;
use dunlin_wire::proto::frame::Body;
use dunlin_wire::proto::stage_client::StageClient;
use dunlin_wire::proto::train_client::TrainClient;
use dunlin_wire::proto::train_stage_client::TrainStageClient;
use dunlin_wire::proto::training as wire;
use dunlin_wire::train::{ConductorInbound, ConductorService, StageInbound, TrainStageService};
use dunlin_wire::training::{Message, ToConductor, ToMember};
use dunlin_wire::{
    Authority, Credentials, Inbound, InboundEvent, InboundIdentity, LinksConfig, Pulse, Role, TlsFiles,
    Validity, incoming, links, proto, topology,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status, Streaming};

/// Digest of the server's model.
const MODEL: &str = "5e1f";

/// A server with every service, whoever would offer them, and what reached it.
struct World {
    authority: Authority,
    addr: String,
    inbound: Inbound,
    frames: mpsc::Receiver<InboundEvent>,
    conductor: mpsc::Receiver<ConductorInbound>,
    others: mpsc::Receiver<Rpc>,
}

impl World {
    async fn new() -> Self {
        let authority = Authority::generate("test").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let tls = authority.issue(Role::Stage, &["server".to_owned()], Validity::Authority).unwrap();
        let credentials = Credentials::fixed(tls).unwrap();
        let (frames_in, frames) = mpsc::channel(64);
        let (conductor_in, conductor) = mpsc::channel(64);
        let (others_in, others) = mpsc::channel(64);
        let (questions_in, questions) = mpsc::channel(64);
        let (stage_in, stage) = mpsc::channel(64);
        let own = InboundIdentity {
            name: "server".into(),
            arithmetic: NumericsClass::FIRST,
            model_digest: MODEL.into(),
        };
        let inbound = Inbound::new(own, frames_in, Pulse::default());
        let router = Server::builder()
            .add_service(inbound.service())
            .add_service(ControlService::service(questions_in))
            .add_service(ConductorService::service(conductor_in))
            .add_service(TrainStageService::service(stage_in, 1 << 20, 64));
        tokio::spawn(router.serve_with_incoming(incoming(listener, credentials)));
        tokio::spawn(answer_questions(questions, others_in.clone()));
        tokio::spawn(answer_calls(stage, others_in));
        Self { authority, addr, inbound, frames, conductor, others }
    }

    fn certificate(&self, role: Role, name: &str) -> TlsFiles {
        self.authority.issue(role, &[name.to_owned()], Validity::Authority).unwrap()
    }

    async fn try_channel(&self, tls: Option<TlsFiles>) -> Result<Channel, tonic::transport::Error> {
        let config =
            LinksConfig::new(proto::Hello::default(), tls.map(|tls| Credentials::fixed(tls).unwrap()));
        links::connect(&config, "server", &self.addr).await
    }

    async fn channel(&self, tls: &TlsFiles) -> Channel {
        self.try_channel(Some(tls.clone())).await.unwrap()
    }

    /// What has reached the server since it was asked last.
    fn reached(&mut self) -> Vec<Rpc> {
        let mut reached = Vec::new();
        while self.frames.try_recv().is_ok() {
            reached.push(Rpc::Exchange);
        }
        while let Ok(event) = self.conductor.try_recv() {
            match event {
                ConductorInbound::Opened(..) => reached.push(Rpc::Join),
                ConductorInbound::Observe(..) => reached.push(Rpc::Observe),
                ConductorInbound::Suspend(..) => reached.push(Rpc::Suspend),
                ConductorInbound::Peer(..) | ConductorInbound::Trainer(..) | ConductorInbound::Closed(_) => {}
            }
        }
        while let Ok(rpc) = self.others.try_recv() {
            reached.push(rpc);
        }
        reached
    }

    async fn next_frame(&mut self) -> InboundEvent {
        timeout(PATIENCE, self.frames.recv()).await.unwrap().unwrap()
    }

    /// The next that a conductor would act upon. What streams that were dropped have left over may come at any time.
    async fn next_at_conductor(&mut self) -> ConductorInbound {
        loop {
            match timeout(PATIENCE, self.conductor.recv()).await.unwrap().unwrap() {
                ConductorInbound::Peer(..) | ConductorInbound::Trainer(..) | ConductorInbound::Closed(_) => {}
                event => return event,
            }
        }
    }
}

/// Nothing here takes long; a test that waits for ever says nothing.
const PATIENCE: Duration = Duration::from_secs(20);

async fn answer_questions(mut questions: mpsc::Receiver<ControlRequest>, reached: mpsc::Sender<Rpc>) {
    use dunlin_wire::control::Question;
    while let Some(request) = questions.recv().await {
        let rpc = match request.question {
            Question::Status => Rpc::GetStatus,
            Question::Assign(_) => Rpc::Assign,
            Question::PushTopology(_) => Rpc::PushTopology,
            Question::Drain { .. } => Rpc::Drain,
        };
        reached.send(rpc).await.unwrap();
        request.answer.send(proto::Status::default()).unwrap();
    }
}

async fn answer_calls(mut calls: mpsc::Receiver<StageInbound>, reached: mpsc::Sender<Rpc>) {
    while let Some(call) = calls.recv().await {
        match call {
            StageInbound::Call(_, _, _, reply) => {
                reached.send(Rpc::Compute).await.unwrap();
                reply.send(proto::ComputeReply::default()).unwrap();
            }
            StageInbound::Pull(..) => reached.send(Rpc::Pull).await.unwrap(),
            StageInbound::HungUp(_) => {}
        }
    }
}

fn hello(name: &str, incarnation: u64, gateway: bool) -> proto::Frame {
    proto::Frame {
        body: Some(Body::Hello(proto::Hello {
            name: name.to_owned(),
            incarnation,
            gateway,
            arithmetic: 1,
            lease_ms: 0,
            model_digest: MODEL.to_owned(),
        })),
    }
}

fn ping() -> proto::Frame {
    proto::Frame { body: Some(Body::Ping(proto::Ping { seq: 1, epoch: 1 })) }
}

/// A stream to a stage that begins with `frames`, and the way to say more.
async fn exchange(
    channel: Channel,
    frames: &[proto::Frame],
) -> Result<(mpsc::Sender<proto::Frame>, Streaming<proto::Frame>), Status> {
    let (say, said) = mpsc::channel(8);
    for frame in frames {
        say.send(frame.clone()).await.unwrap();
    }
    let response = StageClient::new(channel).exchange(ReceiverStream::new(said)).await?;
    Ok((say, response.into_inner()))
}

fn greeting(name: &str, trainer: bool) -> wire::ToConductor {
    let me = Mate { name: name.into(), addr: "a:1".into(), host: String::new() };
    let role = if trainer { HelloRole::Trainer { data: "d".into() } } else { HelloRole::Peer { held: None } };
    ToConductor::from(Hello { me, arithmetic: Some(NumericsClass::FIRST), role }).to_wire()
}

/// A stream to a conductor that begins with `hello`.
async fn join(
    channel: Channel,
    hello: wire::ToConductor,
) -> Result<(mpsc::Sender<wire::ToConductor>, Streaming<wire::ToMember>), Status> {
    let (say, said) = mpsc::channel(8);
    // Signs of life may come before the hello.
    say.send(ToConductor::alive()).await.unwrap();
    say.send(hello).await.unwrap();
    let client = &mut TrainClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let response = client.join(ReceiverStream::new(said)).await?;
    Ok((say, response.into_inner()))
}

/// Why a stream ends, behind the answers to what was said before; `None` when it ends without a reason.
async fn refusal<T>(stream: &mut Streaming<T>) -> Option<Status> {
    loop {
        match timeout(PATIENCE, stream.message()).await.unwrap() {
            Ok(Some(_answer)) => {}
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

/// One call with a certificate for `role`, as a process with that role would make it. None when it is let in.
async fn call(world: &mut World, rpc: Rpc, role: Role) -> Option<Status> {
    let channel = world.channel(&world.certificate(role, "a")).await;
    let conductor = |channel| TrainClient::new(channel);
    match rpc {
        Rpc::Exchange => match exchange(channel, &[hello("a", 1, role == Role::Gateway), ping()]).await {
            Ok(_stream) => {
                let event = world.next_frame().await;
                assert!(matches!(event.from, Sender::Gateway(_)) == (role == Role::Gateway));
                None
            }
            Err(status) => Some(status),
        },
        Rpc::GetStatus => ControlClient::new(channel).get_status(proto::StatusRequest {}).await.err(),
        Rpc::Assign => {
            ControlClient::new(channel).assign(topology::assignment(&Topology::default())).await.err()
        }
        Rpc::PushTopology => {
            ControlClient::new(channel).push_topology(topology::push(&Topology::default())).await.err()
        }
        Rpc::Drain => ControlClient::new(channel).drain(proto::DrainRequest { deadline_ms: 1 }).await.err(),
        Rpc::Join => match join(channel, greeting("a", role == Role::Trainer)).await {
            Ok(_stream) => {
                let opened = world.next_at_conductor().await;
                assert!(matches!(opened, ConductorInbound::Opened(_, caller, ..) if caller.role == role));
                None
            }
            Err(status) => Some(status),
        },
        Rpc::Observe | Rpc::Suspend => {
            let mut client = conductor(channel);
            let asked = tokio::spawn(async move {
                match rpc {
                    Rpc::Observe => client.observe(proto::ObserveRequest {}).await.err(),
                    _ => client.suspend(proto::SuspendRequest {}).await.err(),
                }
            });
            if !rpc.callers().contains(&role) {
                return asked.await.unwrap();
            }
            match world.next_at_conductor().await {
                ConductorInbound::Observe(caller, answer) | ConductorInbound::Suspend(caller, answer) => {
                    assert_eq!(caller.role, role);
                    answer.send(proto::Observation::default()).unwrap();
                }
                other => panic!("{other:?}"),
            }
            asked.await.unwrap()
        }
        Rpc::Compute => TrainStageClient::new(channel).compute(proto::ComputeRequest::default()).await.err(),
        Rpc::Pull => TrainStageClient::new(channel).pull(proto::PullRequest::default()).await.err(),
    }
}

#[tokio::test]
async fn every_call_is_for_the_roles_of_the_table_and_changes_nothing_for_others() {
    let mut world = World::new().await;
    for rpc in Rpc::ALL {
        for role in Role::ALL {
            let refused = call(&mut world, rpc, role).await;
            if rpc.callers().contains(&role) {
                assert!(refused.is_none(), "{rpc} by {role}: {refused:?}");
                world.reached();
            } else {
                let status = refused.unwrap_or_else(|| panic!("{rpc} by {role} is let in"));
                assert_eq!(status.code(), Code::PermissionDenied, "{rpc} by {role}: {status:?}");
                assert!(status.message().starts_with(&format!("{role} a may not call {rpc}: only ")));
                assert_eq!(world.reached(), [], "{rpc} by {role}");
            }
        }
    }
}

#[test]
fn the_table_has_every_call_there_is() {
    let (mut service, mut all) = ("", Vec::new());
    let files = concat!(include_str!("../proto/dunlin.proto"), include_str!("../proto/training.proto"));
    for line in files.lines() {
        let words: Vec<&str> = line.split([' ', '(']).filter(|word| !word.is_empty()).collect();
        match words[..] {
            ["service", name, ..] => service = name,
            ["rpc", name, ..] => all.push(format!("{service}.{name}")),
            _ => {}
        }
    }
    all.sort();
    let mut table = Rpc::ALL.map(|rpc| rpc.to_string());
    table.sort();
    assert_eq!(all, table);
}

#[test]
fn the_page_for_people_has_the_same_table() {
    let page = include_str!("../../../docs/security.md");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).map(cells).collect();
    let find =
        |first: &str| rows.iter().find(|row| row[1] == first).unwrap_or_else(|| panic!("no row {first}"));
    assert_eq!(find("call")[2..8], Role::ALL.map(|role| role.to_string()));
    for rpc in Rpc::ALL {
        for (role, cell) in Role::ALL.iter().zip(&find(rpc.as_str())[2..8]) {
            assert_eq!(cell == "yes", rpc.callers().contains(role), "{rpc} by {role}");
        }
    }
}

#[tokio::test]
async fn a_hello_says_what_the_certificate_says() {
    let mut world = World::new().await;
    for (role, certificate, said, gateway) in [
        (Role::Stage, "peer-1", "peer-2", false),
        (Role::Stage, "peer-1", "peer-1-a", false),
        (Role::Stage, "gateway", "gateway", true),
        (Role::Gateway, "gateway", "gateway", false),
        (Role::Gateway, "gateway", "gateways", true),
        (Role::Gateway, "gateway", "", true),
    ] {
        let channel = world.channel(&world.certificate(role, certificate)).await;
        let refused = exchange(channel, &[hello(said, 1, gateway), ping()]).await.err();
        let refused = refused.unwrap_or_else(|| panic!("{role} {certificate} is let in as {said}"));
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("its certificate does not say"), "{refused:?}");
    }
    for (role, certificate, said, trainer) in [
        (Role::Peer, "peer-1", "peer-2", false),
        (Role::Peer, "peer-1", "peer-1", true),
        (Role::Trainer, "trainer-1", "trainer-1", false),
        (Role::Trainer, "trainer-1", "trainer-1-a", true),
    ] {
        let channel = world.channel(&world.certificate(role, certificate)).await;
        let (_say, mut stream) = join(channel, greeting(said, trainer)).await.unwrap();
        let refused =
            refusal(&mut stream).await.unwrap_or_else(|| panic!("{certificate} is let in as {said}"));
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("its certificate does not say"), "{refused:?}");
    }
    assert_eq!(world.reached(), []);
    // The gateways of a Deployment share a certificate.
    let channel = world.channel(&world.certificate(Role::Gateway, "gateway")).await;
    let _stream = exchange(channel, &[hello("gateway-5d8f7c9b4-x7x7x", 3, true), ping()]).await.unwrap();
    let from = world.next_frame().await.from;
    assert!(
        matches!(from, Sender::Gateway(id) if id.name == "gateway-5d8f7c9b4-x7x7x" && id.incarnation == 3)
    );
}

#[tokio::test]
async fn a_gateway_says_how_long_it_may_be_silent_and_is_refused_what_makes_no_sense() {
    let mut world = World::new().await;
    let certificate = world.certificate(Role::Gateway, "gateway");
    for (said, taken) in [(0, None), (2_000, Some(2_000)), (300_000, Some(300_000))] {
        let mut begin = hello("gateway", 1, true);
        let Some(Body::Hello(hello)) = &mut begin.body else { panic!() };
        hello.lease_ms = said;
        let _stream = exchange(world.channel(&certificate).await, &[begin, ping()]).await.unwrap();
        assert_eq!(world.next_frame().await.lease_ms, taken);
    }
    for said in [1, 1_999, 300_001, u64::MAX] {
        let mut begin = hello("gateway", 1, true);
        let Some(Body::Hello(hello)) = &mut begin.body else { panic!() };
        hello.lease_ms = said;
        let refused = exchange(world.channel(&certificate).await, &[begin, ping()]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&format!("lease_ms {said}")), "{refused:?}");
    }
    assert_eq!(world.reached(), []);
}

#[tokio::test]
async fn whoever_is_of_another_model_is_refused_by_name_and_who_says_none_is_let_in() {
    let mut world = World::new().await;
    for (role, name) in [(Role::Gateway, "gateway"), (Role::Stage, "peer-1")] {
        let certificate = world.certificate(role, name);
        let say = |digest: &str| {
            let mut begin = hello(name, 1, role == Role::Gateway);
            let Some(Body::Hello(hello)) = &mut begin.body else { panic!() };
            hello.model_digest = digest.to_owned();
            [begin, ping()]
        };
        let refused = exchange(world.channel(&certificate).await, &say("0the7")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let why = format!("{name} is of the model 0the7, server of {MODEL}");
        assert!(refused.message().contains(&why), "{refused:?}");
        assert_eq!(world.reached(), []);
        for digest in [MODEL, ""] {
            let _stream = exchange(world.channel(&certificate).await, &say(digest)).await.unwrap();
            world.next_frame().await;
        }
    }
}

#[tokio::test]
async fn nobody_takes_the_name_of_somebody_who_lives_but_the_one_who_has_it() {
    let mut world = World::new().await;
    let (own, other) = (world.certificate(Role::Stage, "peer-1"), world.certificate(Role::Stage, "peer-1"));
    let begin = [hello("peer-1", 0, false), ping()];
    let (_say, mut first) = exchange(world.channel(&own).await, &begin).await.unwrap();
    let me = world.next_frame().await.from;
    let thief = exchange(world.channel(&other).await, &begin).await.err().unwrap();
    assert_eq!(thief.code(), Code::PermissionDenied);
    assert!(thief.message().contains("is here already"), "{thief:?}");
    let pong = dunlin_protocol::Frame::Pong { seq: 7, load: Default::default(), held: Vec::new() };
    assert!(world.inbound.reply(&me, &pong));
    assert!(first.message().await.unwrap().is_some(), "the living one still gets its answers");
    // It dials again, before its first stream is known to be broken.
    let (say, mut second) = exchange(world.channel(&own).await, &begin).await.unwrap();
    world.next_frame().await;
    assert!(world.inbound.reply(&me, &pong));
    assert!(second.message().await.unwrap().is_some(), "answers go to its newest stream");
    drop((_say, first));
    assert!(world.inbound.reply(&me, &pong), "the end of the older stream is not the end of the newer one");
    // Once it is gone its name is free.
    drop((say, second));
    let mut takes = exchange(world.channel(&other).await, &begin).await;
    while let Err(status) = takes {
        assert_eq!(status.code(), Code::PermissionDenied);
        tokio::task::yield_now().await;
        takes = exchange(world.channel(&other).await, &begin).await;
    }
}

#[tokio::test]
async fn a_stream_to_the_conductor_is_nobody_elses_either() {
    let mut world = World::new().await;
    let (own, other) = (world.certificate(Role::Peer, "peer-1"), world.certificate(Role::Peer, "peer-1"));
    let (_say, mut first) = join(world.channel(&own).await, greeting("peer-1", false)).await.unwrap();
    let ConductorInbound::Opened(_, _, _, sayer) = world.next_at_conductor().await else { panic!() };
    let (_thief, mut stream) = join(world.channel(&other).await, greeting("peer-1", false)).await.unwrap();
    let refused = refusal(&mut stream).await.unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("is here already"), "{refused:?}");
    sayer.send(ToPeer::Retire.into()).await.unwrap();
    loop {
        let message = timeout(PATIENCE, first.message()).await.unwrap().unwrap().unwrap();
        if let Some(said) = ToMember::from_wire(message).unwrap() {
            assert_eq!(said, ToPeer::Retire.into(), "answers go to the stream that was there first");
            break;
        }
    }
    let _again = join(world.channel(&own).await, greeting("peer-1", false)).await.unwrap();
    let ConductorInbound::Opened(_, caller, hello, _) = world.next_at_conductor().await else { panic!() };
    assert_eq!((&*caller.name, hello.me.name.as_str()), ("peer-1", "peer-1"));
}

/// Whatever comes first or later: the stream ends, whoever said it hears why, and the conductor hears nothing of it.
#[tokio::test]
async fn what_makes_no_sense_ends_a_stream_to_the_conductor() {
    let mut world = World::new().await;
    let finished = TrainerReport::Finished { step: 1, microbatch: 2, attempt: 3, loss: None };
    let json = wire::ToConductor { json: r#"{"Leaving":{"within_ms":1}}"#.to_owned(), body: None };
    let later = wire::ToConductor::default();
    for (senseless, why) in [
        (ToConductor::from(finished).to_wire(), "a peer sends the report of a trainer"),
        (greeting("peer-1", false), "a peer sends a second hello"),
        (json, "speaks JSON, as earlier builds did"),
        (later, "to_conductor.body is missing, or not known here"),
    ] {
        let channel = world.channel(&world.certificate(Role::Peer, "peer-1")).await;
        let leaving = PeerReport::Leaving { within_ms: 7 };
        let (say, mut stream) = join(channel, greeting("peer-1", false)).await.unwrap();
        say.send(ToConductor::from(leaving.clone()).to_wire()).await.unwrap();
        say.send(senseless.clone()).await.unwrap();
        let refused = refusal(&mut stream).await.unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(why), "{refused:?}");
        for expected in ["Opened", "Peer", "Closed"] {
            let event = timeout(PATIENCE, world.conductor.recv()).await.unwrap().unwrap();
            match event {
                ConductorInbound::Opened(..) => assert_eq!(expected, "Opened"),
                ConductorInbound::Peer(_, report) => {
                    assert_eq!((expected, report), ("Peer", leaving.clone()))
                }
                ConductorInbound::Closed(_) => assert_eq!(expected, "Closed"),
                other => panic!("{other:?} instead of {expected}"),
            }
        }
        // Nor does one begin with anything but a hello.
        let certificate = world.certificate(Role::Peer, "peer-2");
        let first = if why.contains("hello") { ToConductor::from(leaving).to_wire() } else { senseless };
        let (_say, mut stream) = join(world.channel(&certificate).await, first).await.unwrap();
        assert_eq!(refusal(&mut stream).await.unwrap().code(), Code::InvalidArgument);
    }
    assert_eq!(world.reached(), []);
}

#[tokio::test]
async fn a_caller_that_breaks_a_rule_is_told_and_heard_no_more() {
    let mut world = World::new().await;
    let channel = world.channel(&world.certificate(Role::Stage, "peer-1")).await;
    let (say, mut stream) = exchange(channel, &[hello("peer-1", 0, false), ping()]).await.unwrap();
    let from = world.next_frame().await.from;
    world.inbound.close(&from, "rows come from the hop before");
    let refused = refusal(&mut stream).await.unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "rows come from the hop before");
    timeout(PATIENCE, say.closed()).await.unwrap();
    assert_eq!(world.reached(), []);
}

#[tokio::test]
async fn strangers_do_not_get_in() {
    let mut world = World::new().await;
    let elsewhere = Authority::generate("elsewhere").unwrap();
    let mut foreign = elsewhere.issue(Role::Operator, &["operator".to_owned()], Validity::Authority).unwrap();
    foreign.authority = world.authority.certificate().to_owned();
    for tls in [Some(foreign), None] {
        // A server may notice only with the first words.
        let outcome = match world.try_channel(tls).await {
            Err(_) => continue,
            Ok(channel) => ControlClient::new(channel).get_status(proto::StatusRequest {}).await,
        };
        assert_ne!(outcome.err().map(|status| status.code()), None);
    }
    assert_eq!(world.reached(), []);
}

/// As the operator issued them before certificates had roles.
#[tokio::test]
async fn a_certificate_without_a_role_is_good_for_nothing() {
    let mut world = World::new().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer_key = rcgen::KeyPair::from_pem(world.authority.key()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(world.authority.certificate(), issuer_key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["peer-1".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "peer-1");
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let authority = world.authority.certificate().to_owned();
    let tls = TlsFiles { authority, certificate, key: key.serialize_pem() };
    let mut client = ControlClient::new(world.channel(&tls).await);
    let refused = client.get_status(proto::StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("peer-1 does not have exactly one known role"), "{refused:?}");
    assert_eq!(world.reached(), []);
}

/// Both ends read theirs from a folder, as a mounted Secret is one.
#[tokio::test]
async fn renewed_certificates_are_used_for_connections_that_are_made_from_then_on() {
    let authority = Authority::generate("test").unwrap();
    let names = |name: &str| [name.to_owned()];
    let write = |folder: &std::path::Path, files: &TlsFiles| {
        for (name, text) in
            [("ca.crt", &files.authority), ("tls.crt", &files.certificate), ("tls.key", &files.key)]
        {
            std::fs::write(folder.join(name), text).unwrap();
        }
    };
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let over = Validity::For(Duration::ZERO);
    let server = authority.issue(Role::Stage, &names("server"), over).unwrap();
    let client = authority.issue(Role::Operator, &names("operator"), over).unwrap();
    write(ours.path(), &server);
    write(theirs.path(), &client);
    let credentials = Credentials::in_folder(ours.path()).unwrap();
    let calls = Credentials::in_folder(theirs.path()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (questions_in, questions) = mpsc::channel(64);
    let (answered, _answers) = mpsc::channel(64);
    let router = Server::builder().add_service(ControlService::service(questions_in));
    tokio::spawn(router.serve_with_incoming(incoming(listener, credentials.clone())));
    tokio::spawn(answer_questions(questions, answered));
    let config = LinksConfig::new(proto::Hello::default(), Some(calls.clone()));
    let asks = async || -> bool {
        let Ok(channel) = links::connect(&config, "server", &addr).await else { return false };
        ControlClient::new(channel).get_status(proto::StatusRequest {}).await.is_ok()
    };
    // Ends are whole seconds, which count to their own end.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(!asks().await, "both are over");
    let good = Validity::For(Duration::from_secs(3600));
    write(ours.path(), &authority.renew(&server.key, Role::Stage, &names("server"), good).unwrap());
    credentials.refresh().unwrap();
    assert!(!asks().await, "that of the client is over");
    let renewed = authority.renew(&client.key, Role::Operator, &names("operator"), good).unwrap();
    // Half of it is there.
    std::fs::write(theirs.path().join("tls.crt"), "").unwrap();
    assert!(calls.refresh().is_err());
    write(theirs.path(), &renewed);
    calls.refresh().unwrap();
    assert!(asks().await);
}
