//! Averages without a run around them, for `dunlin bench average`: the same engine, server and exchange as in a peer.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use dunlin_kernels::Pool;
use dunlin_kernels::gradient_sum::{to_f32, to_fixed};
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::{AverageId, Mate};
use dunlin_train::config::{GradientWire, InitialModel, TrainingConfig, model_config};
use dunlin_train::{Run, Stage};
use dunlin_wire::train::TrainStageService;
use dunlin_wire::{Caller, LinksConfig, proto};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::values::Clients;
use super::alarm::Alarm;
use super::average::{self, Exchange};
use super::engine::TrainingEngine;
use super::giving::{Giving, Order};
use super::{memory, server};

/// Whoever calls is called that.
const CALLER: &str = "member";
/// Every so many values are compared with the exact average.
const SAMPLE: usize = 1009;

/// Who forms averages with whom, of what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where all members listen, `host:port` on loopback.
    pub group: Vec<String>,
    /// Which of them this is.
    pub index: usize,
    /// Encoding, as `wire.gradients` of a run has it.
    pub gradients: String,
    /// Width of the feed-forward part of the one block whose gradients they are; it makes the number of values.
    pub ffn: usize,
}

/// What came of a round.
#[derive(Clone, Copy, Debug)]
pub struct RoundOutcome {
    /// From the start of the round until this member held the average.
    pub seconds: f64,
    /// Of the bits of the average, the same for all members.
    pub digest: u64,
    /// RMS of the error relative to that of the exact average, over a sample.
    pub error: f64,
}

/// One of several processes that form averages.
pub struct AveragingMember {
    exchange: Exchange,
    /// Where averages go, so that others get their part of them.
    orders: mpsc::Sender<Order>,
    group: Vec<Mate>,
    index: usize,
    round: u64,
    count: usize,
    /// The average before, whose memory the next one takes.
    values: Vec<f32>,
}

impl AveragingMember {
    /// Makes values of its own, and gives them to the others from then on.
    ///
    /// # Errors
    /// When the options make no sense, or nothing can listen at the address.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        memory::keep_freed();
        let Options { group, index, gradients, .. } = options;
        let address = group.get(*index).context("--index is not one of --group")?;
        let wire: GradientWire =
            serde_json::from_value(json!(gradients)).context("--gradients is no `wire.gradients`")?;
        let run = Arc::new(block(options)?);
        let mut stage = Stage::initial(&run, 0, &Pool::new(1))?;
        let sums: Vec<i64> = (0..stage.layout().len()).map(|i| to_fixed(gradient(*index, i))).collect();
        stage.add_sums(0, &sums)?;
        drop(sums);
        let count = stage.layout().len();
        let (engine, _) = TrainingEngine::start(1)?;
        engine.run(move |bench| bench.stage = Some(stage));

        let (stage_in, inbound) = mpsc::channel(256);
        let hello = proto::Hello { name: index.to_string(), ..proto::Hello::default() };
        let links = LinksConfig::new(hello, None);
        let listener = TcpListener::bind(address).await?;
        let service = TrainStageService::service(stage_in, run.call_bytes_max(), 1);
        let router = server().add_service(service);
        // Without encryption, as what it is measured beside.
        let everybody = Caller::unproven(dunlin_wire::Role::Peer, CALLER);
        let incoming = dunlin_wire::incoming_in_plain_text(listener, everybody)?;
        tokio::spawn(router.serve_with_incoming(incoming));
        let mates = Mates { stage: BTreeSet::from([CALLER.into()]), shared: None };
        let (orders, ordered) = mpsc::channel(1);
        tokio::spawn(Giving::new(engine.clone(), 0, mates).run(inbound, ordered));

        let mate = |(i, addr): (usize, &String)| Mate {
            name: i.to_string().as_str().into(),
            addr: addr.clone(),
            host: String::new(),
        };
        let group = group.iter().enumerate().map(mate).collect();
        let clients = Clients::new(links, run.call_bytes_max());
        let exchange = Exchange { clients, engine, alarm: Alarm::silent(), wire, stage: 0 };
        Ok(Self { exchange, orders, group, index: *index, round: 0, count, values: Vec::new() })
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Forms the next average with the others, who do so, too.
    ///
    /// # Errors
    /// When a member is gone or says something wrong.
    pub async fn average(&mut self) -> anyhow::Result<RoundOutcome> {
        self.round += 1;
        let id = AverageId { step: 0, shard: 0, round: self.round };
        let begin = Instant::now();
        let (exchange, values) = (self.exchange.clone(), std::mem::take(&mut self.values));
        let me = &self.group[self.index].name;
        let (averaging, done) = average::begin(exchange, id, self.group.clone(), me, values);
        let sent = self.orders.send(Order::Open(averaging)).await;
        sent.map_err(|_| anyhow!("nothing is given to the others any more"))?;
        let average = done.await.context("the average was given up")?.map_err(|fault| anyhow!("{fault}"))?;
        let seconds = begin.elapsed().as_secs_f64();
        let fold = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3);
        let digest = average.values.iter().fold(0, fold);
        let error = error(&average.values, self.group.len());
        self.values = average.values;
        Ok(RoundOutcome { seconds, digest, error })
    }
}

/// One block and an embedding of bytes: 25 million values by default.
fn block(args: &Options) -> anyhow::Result<Run> {
    let config = json!({
        "model": {"config": {"hiddenSize": 1024, "layers": 1, "heads": 8, "kvHeads": 8, "ffn": args.ffn, "contextLength": 16, "tied": true}},
        "data": {"text": {"path": "unread"}},
        "sequenceLength": 16, "globalBatch": 1, "microbatch": 1, "steps": 1,
        "optimizer": {"kind": "Sgd", "learningRate": 1e-3},
        "wire": {"gradients": args.gradients},
    });
    let config = TrainingConfig::from_json(&config.to_string())?;
    let InitialModel::Config(shape) = &config.model else { unreachable!("the model is above") };
    let model = model_config(shape, 256)?;
    Ok(Run::new(config, model)?)
}

/// Value `i` of a member: roughly normal, of the size that gradients have.
fn gradient(member: usize, i: usize) -> f32 {
    let mut z =
        (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (member as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = |shift: u32| ((z >> shift) & 0xffff) as f32 / 65_536.0 - 0.5;
    (uniform(0) + uniform(16) + uniform(32) + uniform(48)) * 1e-4
}

/// RMS of the error relative to that of the exact average, over a sample.
fn error(average: &[f32], members: usize) -> f64 {
    let (mut lost, mut all) = (0.0, 0.0);
    for (i, value) in average.iter().enumerate().step_by(SAMPLE) {
        let exact = f64::from(to_f32((0..members).map(|m| to_fixed(gradient(m, i))).sum()));
        lost += (f64::from(*value) - exact).powi(2);
        all += exact.powi(2);
    }
    (lost / all).sqrt()
}
