//! A swarm whose model is changed: gateways of the one before and of the new one, among stages that the test plays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use dunlin_protocol::gateway::{Failure, NotReady, OtherModel, Rejected, Submission};
use dunlin_protocol::{
    FinishReason, Frame, GatewayConfig, GatewayCore, GatewayEffect, GatewayId, SamplingParams, SessionId,
    Windows,
};
use dunlin_swarm::{Layers, Load, ModelId, PeerState, Topology, TopologyPeer};

/// The whole model is on one peer.
fn topology(epoch: u64, digest: &str, peer: &str) -> Topology {
    let own = TopologyPeer {
        name: peer.into(),
        addr: format!("{peer}:1"),
        span: Layers::new(0, 2),
        state: PeerState::Ready,
        ..TopologyPeer::default()
    };
    let model = ModelId { name: "m".to_owned(), digest: digest.to_owned() };
    Topology { epoch, model, layers: 2, peers: vec![own] }
}

struct World {
    core: GatewayCore,
    now_ms: u64,
    out: Vec<GatewayEffect>,
}

impl World {
    /// A gateway of the model with this digest that takes one session at a time.
    fn new(digest: &str) -> Self {
        let core = GatewayCore::new(GatewayConfig {
            id: GatewayId { name: "g".into(), incarnation: 1 },
            model_digest: digest.to_owned(),
            started_ms: 0,
            running_max: 1,
            queue_max: 8,
            stall_ms: 2000,
            retry_after_s: 1,
        });
        Self { core, now_ms: 0, out: Vec::new() }
    }

    /// One that serves on the peer `before`.
    fn serving() -> Self {
        let mut world = Self::new("before");
        world.core.set_topology(topology(1, "before", "old"), 0, &mut world.out);
        world.up("old");
        world
    }

    fn up(&mut self, peer: &str) {
        self.core.peer_up(peer.into());
        let load = Load {
            free_pages: 100,
            spare_pages: 100,
            total_pages: 100,
            held: vec![Layers::new(0, 2)],
            ..Load::default()
        };
        let pong = Frame::Pong { seq: 0, load, held: Vec::new() };
        self.core.frame(&peer.into(), pong, self.now_ms, &mut self.out);
    }

    /// What happens when a topology comes.
    fn push(&mut self, topology: Topology) -> Vec<GatewayEffect> {
        self.out.clear();
        self.core.set_topology(topology, self.now_ms, &mut self.out);
        self.out.drain(..).collect()
    }

    fn submit(&mut self, session: u64) -> Result<(), Rejected> {
        let submission = Submission {
            session: SessionId(session),
            tokens: vec![7; 4],
            max_len: 9,
            sampling: SamplingParams::default(),
            eos: Vec::new(),
            windows: Windows::default(),
            adapter: None,
            deadline_ms: u64::MAX,
        };
        self.core.submit(submission, self.now_ms, &mut self.out)
    }

    fn token(&mut self, session: u64, position: u32, finish: Option<FinishReason>) {
        let (session, logprob, top) = (SessionId(session), 0.0, Vec::new());
        let frame = Frame::Token { session, attempt: 1, position, token: 7, logprob, top, finish };
        self.core.frame(&"old".into(), frame, self.now_ms, &mut self.out);
    }

    /// Sessions that end without their answer while so much time passes.
    fn failed_within(&mut self, ms: u64) -> Vec<(u64, Failure)> {
        for _ in 0..ms / 25 {
            self.now_ms += 25;
            self.core.tick(self.now_ms, &mut self.out);
        }
        let failed = |effect| match effect {
            GatewayEffect::Failed { session, error } => Some((session.0, error)),
            _ => None,
        };
        self.out.drain(..).filter_map(failed).collect()
    }
}

#[test]
fn answers_of_the_model_before_end_on_its_stages_and_new_requests_are_sent_elsewhere() {
    let mut world = World::serving();
    world.submit(1).unwrap();
    world.token(1, 4, None);
    let changed = OtherModel::Changed { epoch: 2 };
    let effects = world.push(topology(2, "after", "new"));
    assert_eq!(effects, [GatewayEffect::TopologyRefused(changed.clone())], "no stage is called or left");
    assert_eq!(world.core.topology(), Some(&topology(1, "before", "old")));
    assert_eq!(world.core.ready(), Err(NotReady::OtherModel(changed.clone())));
    assert_eq!(world.core.other_model(), Some(&changed));
    let Err(Rejected::NoCapacity { message, .. }) = world.submit(2) else { panic!("taken") };
    assert!(message.contains("another model since epoch 2"), "{message}");
    world.token(1, 5, Some(FinishReason::Eos));
    let end = GatewayEffect::Finished { session: SessionId(1), reason: FinishReason::Eos };
    assert!(world.out.contains(&end), "{:?}", world.out);
    // The manifest is changed back.
    world.push(topology(3, "before", "old"));
    assert_eq!((world.core.ready(), world.submit(3)), (Ok(()), Ok(())));
}

#[test]
fn a_new_gateway_waits_for_a_plan_of_its_own_model() {
    let mut world = World::new("after");
    let awaited = OtherModel::Awaited { epoch: 1 };
    let effects = world.push(topology(1, "before", "old"));
    assert_eq!(effects, [GatewayEffect::TopologyRefused(awaited.clone())]);
    assert_eq!(world.core.topology(), None);
    assert_eq!(world.core.ready(), Err(awaited.into()));
    let effects = world.push(topology(2, "after", "new"));
    assert_eq!(effects, [GatewayEffect::Connect { peer: "new".into(), addr: "new:1".into() }]);
    world.up("new");
    assert_eq!((world.core.ready(), world.submit(1)), (Ok(()), Ok(())));
}

#[test]
fn nobody_waits_for_stages_of_a_model_that_the_swarm_no_longer_has() {
    let mut world = World::serving();
    (1..=3).for_each(|session| world.submit(session).unwrap());
    world.token(1, 4, None);
    world.push(topology(2, "after", "new"));
    assert_eq!(world.failed_within(1000), [], "its stages are still there");
    world.core.peer_lost(&"old".into(), world.now_ms, &mut world.out);
    assert_eq!(world.failed_within(4000), [], "it may be a link that breaks");
    let other = Failure::OtherModel(OtherModel::Changed { epoch: 2 });
    let ended = world.failed_within(4000);
    assert_eq!(ended, [1, 2, 3].map(|session| (session, other.clone())));
    assert_eq!(world.core.counts(), (0, 0));
}
