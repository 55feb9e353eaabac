//! Links over real sockets: who is taken for lost, and who is not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::frame::WINDOW_ROWS;
use dunlin_protocol::{Frame, GatewayId, Hop, Open, RowData, SessionId};
use dunlin_swarm::limits::{CONTEXT_TOKENS_MAX, ROUTE_HOPS_MAX, SESSIONS_MAX};
use dunlin_swarm::{Layers, Load, NumericsClass, PeerName};
use dunlin_wire::queue::queue;
use dunlin_wire::{
    Authority, Credentials, Inbound, InboundEvent, InboundIdentity, LinkEvent, Links, LinksConfig, Pulse,
    Role, Validity, Vitals, WireRuntime, proto,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);

struct Stage {
    authority: Authority,
    addr: SocketAddr,
    inbound: Inbound,
    events: mpsc::Receiver<InboundEvent>,
    _wire: WireRuntime,
}

/// A stage whose loop is this test; it is stuck when it has published nothing for `stuck`.
async fn stage(stuck: Duration) -> Stage {
    let authority = Authority::generate("test").unwrap();
    let tls = authority.issue(Role::Stage, &["b".to_owned()], Validity::Authority).unwrap();
    let credentials = Credentials::fixed(tls).unwrap();
    let wire = WireRuntime::start().unwrap();
    let (events_in, events) = mpsc::channel(16);
    let own = InboundIdentity {
        name: "b".to_owned(),
        arithmetic: NumericsClass::FIRST,
        model_digest: String::new(),
    };
    let inbound = Inbound::new(own, events_in, Pulse::new(stuck));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let router = tonic::transport::Server::builder().add_service(inbound.service());
    wire.serve(listener, credentials, move |incoming| router.serve_with_incoming(incoming)).unwrap();
    let load = Load { layer_rows: 7, ..Load::default() };
    inbound.publish(Vitals { load, held: BTreeMap::new() });
    Stage { authority, addr, inbound, events, _wire: wire }
}

impl Stage {
    /// Somebody's links, and a link to this stage.
    fn dialled(
        &self,
        hello: proto::Hello,
        events: mpsc::Sender<LinkEvent>,
        pulse: Pulse,
        wire: &WireRuntime,
    ) -> Links {
        let role = if hello.gateway { Role::Gateway } else { Role::Stage };
        let tls = self.authority.issue(role, std::slice::from_ref(&hello.name), Validity::Authority).unwrap();
        let credentials = Credentials::fixed(tls).unwrap();
        let mut links = Links::new(LinksConfig::new(hello, Some(credentials)), events, pulse, wire.handle());
        links.dial(&"b".into(), &self.addr.to_string());
        links
    }

    fn dialled_by_a(&self, arithmetic: u32, wire: &WireRuntime) -> (Links, mpsc::Receiver<LinkEvent>, Pulse) {
        let hello = proto::Hello { name: "a".to_owned(), arithmetic, ..proto::Hello::default() };
        let (events_in, events) = mpsc::channel(16);
        let pulse = Pulse::default();
        pulse.beat();
        (self.dialled(hello, events_in, pulse.clone(), wire), events, pulse)
    }
}

async fn event(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    timeout(LIMIT, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_stage_whose_loop_is_busy_is_there_and_one_whose_loop_is_stuck_is_not() {
    let stage = stage(Duration::from_secs(2)).await;
    let wire = WireRuntime::start().unwrap();
    let (_links, mut events, pulse) = stage.dialled_by_a(1, &wire);
    assert!(matches!(event(&mut events).await, LinkEvent::Up(_)));
    let began = Instant::now();
    // Nobody takes what arrives there: it is pinged all the same, and answers with what it said of itself last.
    let mut pongs = 0;
    let why = loop {
        pulse.beat();
        match event(&mut events).await {
            LinkEvent::Pong(_, _, Frame::Pong { load, .. }) => {
                assert_eq!(load.layer_rows, 7);
                pongs += 1;
            }
            LinkEvent::Lost(_, why) => break why,
            other => panic!("{other:?}"),
        }
    };
    assert!(began.elapsed() > Duration::from_secs(2) && pongs >= 5, "{pongs} pongs in {:?}", began.elapsed());
    assert!(why.contains("silent"), "{why}");
    drop(stage.events);
}

#[tokio::test]
async fn a_loop_that_is_stuck_itself_sends_no_pings() {
    let mut stage = stage(LIMIT).await;
    let wire = WireRuntime::start().unwrap();
    let (events_in, _events) = mpsc::channel(1024);
    let hello = proto::Hello { name: "g".to_owned(), gateway: true, ..proto::Hello::default() };
    let pulse = Pulse::new(Duration::from_millis(500));
    pulse.beat();
    let _links = stage.dialled(hello, events_in, pulse, &wire);
    let mut pings = 0;
    // They end a while after the last beat: the lease of its sessions ends with them.
    while let Ok(event) = timeout(Duration::from_secs(1), stage.events.recv()).await {
        pings += u32::from(matches!(event.unwrap().frame, Frame::Ping { .. }));
        assert!(pings < 10);
    }
    assert!(pings > 0);
    stage.inbound.publish(Vitals::default());
}

#[tokio::test]
async fn many_rows_wait_for_each_other_and_none_is_lost() {
    let mut stage = stage(LIMIT).await;
    let wire = WireRuntime::start().unwrap();
    let (links, mut events, pulse) = stage.dialled_by_a(1, &wire);
    let b = PeerName::from("b");
    assert!(matches!(event(&mut events).await, LinkEvent::Up(_)));
    // 128 MiB, far more than sockets and streams hold. They are all given at once: while nothing is taken here, pings wait behind rows.
    let data = RowData::new(vec![0.5; WINDOW_ROWS as usize * 1024]);
    let rows = |index| Frame::Rows {
        session: SessionId(1),
        attempt: 1,
        index,
        start: 0,
        count: WINDOW_ROWS,
        data: data.clone(),
    };
    assert!((0..128).all(|index| links.send(&b, rows(index))));
    let mut next = 0;
    while next < 128 {
        pulse.beat();
        let event = timeout(LIMIT, stage.events.recv()).await.unwrap().unwrap();
        if let Frame::Rows { index, .. } = event.frame {
            assert_eq!(index, next);
            next += 1;
        }
        while let Ok(event) = events.try_recv() {
            assert!(matches!(event, LinkEvent::Pong(..)), "{event:?}");
        }
    }
}

/// After a loss, sessions begin again all at once, and with a peer that lets nothing through for a while all of their openings wait.
#[test]
fn openings_of_the_longest_sequences_wait_beside_each_other_and_none_is_refused() {
    let tokens = Arc::new(vec![7; CONTEXT_TOKENS_MAX as usize]);
    let hop = Hop { peer: "b".into(), addr: "b:1".to_owned(), layers: Layers::new(0, 1), from: 0 };
    let open = Open {
        session: SessionId(1),
        attempt: 1,
        gateway: GatewayId { name: "g".to_owned(), incarnation: 1 },
        index: 0,
        route: vec![hop; ROUTE_HOPS_MAX],
        tokens,
        prompt_len: 1,
        max_len: CONTEXT_TOKENS_MAX,
        sampling: Arc::default(),
        eos: Arc::default(),
        adapter: None,
        arithmetic: None,
        born_ms: 0,
    };
    let bytes_max = LinksConfig::new(proto::Hello::default(), None).queue_bytes_max;
    let (waiting, _reader) = queue(bytes_max);
    let bytes = Frame::Open(open).bytes();
    assert!((0..SESSIONS_MAX).all(|_| waiting.send((), bytes)), "one is refused");
}

#[tokio::test]
async fn a_link_that_is_begun_anew_says_when_it_works_again() {
    let mut stage = stage(LIMIT).await;
    let wire = WireRuntime::start().unwrap();
    let (mut links, mut events, pulse) = stage.dialled_by_a(1, &wire);
    let b = PeerName::from("b");
    assert!(matches!(event(&mut events).await, LinkEvent::Up(_)));
    links.redial(&b);
    links.redial(&"nobody".into());
    assert!(links.has(&b) && links.len() == 1);
    loop {
        pulse.beat();
        stage.inbound.publish(Vitals::default());
        match event(&mut events).await {
            LinkEvent::Up(peer) => break assert_eq!(peer, b),
            LinkEvent::Pong(..) => {}
            other => panic!("{other:?}"),
        }
    }
    // What is sent from now on arrives.
    let close = Frame::Close { session: SessionId(1), attempt: 1 };
    assert!(links.send(&b, close.clone()));
    while timeout(LIMIT, stage.events.recv()).await.unwrap().unwrap().frame != close {}
}

#[tokio::test]
async fn a_peer_of_another_arithmetic_is_refused_by_name() {
    let stage = stage(LIMIT).await;
    let wire = WireRuntime::start().unwrap();
    let (_links, mut events, _) = stage.dialled_by_a(2, &wire);
    let LinkEvent::Lost(_, why) = event(&mut events).await else { panic!("it was let in") };
    assert!(why.contains("a computes with version 2") && why.contains("b with version 1"), "{why}");
}
