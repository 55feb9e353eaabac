//! Averages without a run around them: the same engine, server and exchange as in a peer, for `make bench-average`.
//!
//! Prints a line of JSON when it is ready, and one for every line on stdin, for which it has formed an average.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use dunlin_kernels::Pool;
use dunlin_kernels::gradient_sum::{to_f32, to_fixed};
use dunlin_protocol::training::Mate;
use dunlin_train::config::{GradientWire, ModelSource, TrainingConfig};
use dunlin_train::{Run, Stage};
use dunlin_wire::train::{StageInbound, TrainStageService};
use dunlin_wire::{Caller, LinksConfig, proto};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::values::Clients;
use super::alarm::Alarm;
use super::average::form;
use super::engine::Engine;
use super::formed::{Formed, Which};
use super::serve::Giver;
use super::{memory, server};
use crate::cli::AverageMemberArgs;
use crate::print;

/// Every so many values are compared with the exact average.
const SAMPLE: usize = 1009;

/// Runs until stdin ends.
///
/// # Errors
/// When the arguments make no sense, or an average cannot be formed.
pub async fn run(args: AverageMemberArgs) -> anyhow::Result<()> {
    memory::keep_freed();
    ensure!(args.index < args.group.len(), "--index is not one of --group");
    let wire: GradientWire =
        serde_json::from_value(json!(args.gradients)).context("--gradients is no `wire.gradients`")?;
    let run = Arc::new(block(&args)?);
    let mut stage = Stage::initial(&run, 0, &Pool::new(1))?;
    let sums: Vec<i64> = (0..stage.layout().len()).map(|i| to_fixed(gradient(args.index, i))).collect();
    stage.add_sums(0, &sums)?;
    drop(sums);
    let count = stage.layout().len();
    let (engine, _) = Engine::start(1)?;
    engine.run(move |bench| bench.stage = Some(stage));

    let (stage_in, mut inbound) = mpsc::channel(256);
    let hello = proto::Hello { name: args.index.to_string(), ..proto::Hello::default() };
    let links = LinksConfig::new(hello, None);
    let listener = TcpListener::bind(&args.group[args.index]).await?;
    let service = TrainStageService::service(stage_in, run.call_bytes_max(), 1);
    let router = server().add_service(service);
    // Without encryption, as what it is measured beside.
    let everybody = Caller::unproven(dunlin_wire::Role::Peer, "member");
    let incoming = dunlin_wire::incoming_in_plain_text(listener, everybody)?;
    tokio::spawn(router.serve_with_incoming(incoming));
    let formed = Arc::<Formed>::default();
    let giver = Giver::new(engine.clone(), Arc::clone(&formed), Alarm::silent());
    tokio::spawn(async move {
        while let Some(event) = inbound.recv().await {
            if let StageInbound::Pull(_, request, pieces) = event {
                giver.serve(request, pieces);
            }
        }
    });

    let group: Vec<Mate> = (0..)
        .zip(&args.group)
        .map(|(i, addr): (usize, _)| Mate {
            name: i.to_string().as_str().into(),
            addr: addr.clone(),
            host: String::new(),
        })
        .collect();
    let (me, clients) = (&group[args.index], Clients::new(links, run.call_bytes_max()));
    if print::line(json!({"values": count}))?.is_break() {
        return Ok(());
    }
    let (line_in, mut lines) = mpsc::channel(1);
    // It ends with stdin, or with the process.
    std::thread::spawn(move || {
        let mut each = std::io::stdin().lines();
        while each.next().is_some_and(|line| line.is_ok()) && line_in.blocking_send(()).is_ok() {}
    });
    let (mut round, mut values) = (0, Vec::new());
    while lines.recv().await.is_some() {
        round += 1;
        let which = Which { step: 0, shard: 0, round };
        let begin = Instant::now();
        let alarm = Alarm::silent();
        let average = form(&clients, &engine, &formed, wire, which, 0, &group, me, &alarm, values).await;
        let average = average.map_err(|fault| anyhow!("{fault}"))?;
        let seconds = begin.elapsed().as_secs_f64();
        let digest = average
            .values
            .iter()
            .fold(0u64, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3));
        let error = error(&average.values, group.len());
        let line = json!({"seconds": seconds, "digest": format!("{digest:016x}"), "error": error});
        if print::line(line)?.is_break() {
            return Ok(());
        }
        values = average.values;
    }
    Ok(())
}

/// One block and an embedding of bytes: 25 million values by default.
fn block(args: &AverageMemberArgs) -> anyhow::Result<Run> {
    let config = json!({
        "model": {"config": {"hiddenSize": 1024, "layers": 1, "heads": 8, "kvHeads": 8, "ffn": args.ffn, "contextLength": 16, "tied": true}},
        "data": {"text": {"path": "unread"}},
        "sequenceLength": 16, "globalBatch": 1, "microbatch": 1, "steps": 1,
        "optimizer": {"kind": "Sgd", "learningRate": 1e-3},
        "wire": {"gradients": args.gradients},
    });
    let config = TrainingConfig::from_json(&config.to_string())?;
    let ModelSource::Config(shape) = &config.model else { unreachable!("the model is above") };
    let model = shape.model_config(256)?;
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
