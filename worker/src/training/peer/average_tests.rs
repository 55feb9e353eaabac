//! Averages among peers of this process, over real streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dunlin_kernels::Pool;
use dunlin_kernels::gradient_sum::{to_f32, to_fixed};
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::{AverageId, Mate};
use dunlin_swarm::PeerName;
use dunlin_train::average::Average;
use dunlin_train::config::{GradientWire, InitialModel, TrainingConfig, model_config};
use dunlin_train::{Run, Stage};
use dunlin_wire::train::TrainStageService;
use dunlin_wire::{Caller, LinksConfig, Role, proto};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::values::{Clients, Fault};
use super::alarm::Alarm;
use super::average::{self, Exchange};
use super::engine::TrainingEngine;
use super::giving::{Giving, Order};
use super::server;

/// Whatever is waited for comes within this time.
const LIMIT: Duration = Duration::from_secs(20);
/// Of one call.
const CALL_BYTES: usize = 1 << 20;
/// Everybody calls itself that.
const CALLER: &str = "tester";

/// A peer with sums of its own.
struct Peer {
    exchange: Exchange,
    mate: Mate,
    orders: mpsc::Sender<Order>,
    sums: Vec<i64>,
    /// Its server.
    serves: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.serves.abort();
    }
}

impl Peer {
    async fn start(index: usize, gradients: &str) -> Self {
        let json = serde_json::json!({
            "model": {"config": {"hiddenSize": 64, "layers": 2, "heads": 2, "ffn": 512, "contextLength": 16}},
            "data": {"text": {"path": "unread"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 99,
            "optimizer": {"kind": "Sgd", "learningRate": 1e-3}, "wire": {"gradients": gradients},
        });
        let config = TrainingConfig::from_json(&json.to_string()).unwrap();
        let wire = config.wire.gradients;
        let InitialModel::Config(shape) = &config.model else { unreachable!("the model is above") };
        let model = model_config(shape, 256).unwrap();
        let run = Arc::new(Run::new(config, model).unwrap());
        let mut stage = Stage::initial(&run, 0, &Pool::new(1)).unwrap();
        let value = |i: usize| ((i * (index + 3)) % 97) as f32 * 1e-4;
        let sums: Vec<i64> = (0..stage.layout().len()).map(|i| to_fixed(value(i))).collect();
        stage.add_sums(0, &sums).unwrap();
        let (engine, _) = TrainingEngine::start(1).unwrap();
        engine.run(move |bench| bench.stage = Some(stage));
        let (stage_in, inbound) = mpsc::channel(16);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let router = server().add_service(TrainStageService::service(stage_in, CALL_BYTES, 4));
        let incoming = dunlin_wire::incoming_in_plain_text(listener, Caller::unproven(Role::Peer, CALLER));
        let serves = router.serve_with_incoming(incoming.unwrap());
        let serves = tokio::spawn(async move { drop(serves.await) });
        let (orders, ordered) = mpsc::channel(4);
        let mates = Mates { stage: BTreeSet::from([PeerName::from(CALLER)]), shared: None };
        tokio::spawn(Giving::new(engine.clone(), 0, mates).run(inbound, ordered));
        let hello = proto::Hello { name: CALLER.to_owned(), ..proto::Hello::default() };
        let clients = Clients::new(LinksConfig::new(hello, None), CALL_BYTES);
        let exchange = Exchange { clients, engine, alarm: Alarm::silent(), wire, stage: 0 };
        let name = PeerName::from(format!("m{index}").as_str());
        Self { exchange, mate: Mate { name, addr, host: String::new() }, orders, sums, serves }
    }

    /// Forms an average with `group`.
    async fn average(&self, group: &[Mate]) -> Result<Average, Fault> {
        let id = AverageId { step: 0, shard: 0, round: 1 };
        let exchange = self.exchange.clone();
        let (averaging, done) = average::begin(exchange, id, group.to_vec(), &self.mate.name, Vec::new());
        self.orders.send(Order::Open(averaging)).await.ok().unwrap();
        timeout(LIMIT, done).await.expect("the average does not end").unwrap()
    }
}

async fn peers(count: usize, gradients: &str) -> (Vec<Peer>, Vec<Mate>) {
    let mut peers = Vec::new();
    for index in 0..count {
        peers.push(Peer::start(index, gradients).await);
    }
    let group = peers.iter().map(|peer| peer.mate.clone()).collect();
    (peers, group)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_hold_the_same_bits_also_if_one_is_told_late() {
    for (gradients, count) in [("Exact", 1), ("Exact", 3), ("Q8", 3), ("F16", 2)] {
        let (peers, group) = peers(count, gradients).await;
        let all = peers.iter().enumerate().map(|(index, peer)| {
            let group = &group;
            async move {
                // The others wait for it.
                if index == 1 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                peer.average(group).await.map_err(|fault| fault.to_string())
            }
        });
        let averages = futures::future::try_join_all(all).await.unwrap();
        let bits = |average: &Average| average.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(averages.iter().all(|average| bits(average) == bits(&averages[0])), "{gradients}");
        for (i, value) in averages[0].values.iter().enumerate() {
            let exact = to_f32(peers.iter().map(|peer| peer.sums[i]).sum());
            let near = if peers[0].exchange.wire == GradientWire::Exact { 0.0 } else { 1e-3 };
            assert!((value - exact).abs() <= near, "{gradients}, value {i}: {value} instead of {exact}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_gone_is_named() {
    let (mut peers, group) = peers(3, "Exact").await;
    drop(peers.remove(1));
    for average in [peers[0].average(&group), peers[1].average(&group)] {
        let fault = average.await.expect_err("somebody is missing");
        assert_eq!(fault.mate, Some("m1".into()), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_average_whose_sums_change_is_given_up_and_nobody_blamed() {
    let (peers, group) = peers(2, "Exact").await;
    let orders = peers[0].orders.clone();
    // The other one does not begin.
    let (average, ()) = tokio::join!(peers[0].average(&group), async move {
        tokio::task::yield_now().await;
        orders.send(Order::Close).await.ok().unwrap();
    });
    let fault = average.expect_err("the sums have changed");
    assert_eq!(fault.mate, None, "{fault}");
}
