//! The role that drives microbatches: no weights, the data, and the tensors of what is on its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use dunlin_model::OWN_NUMERICS;
use dunlin_protocol::training::{
    Call, CallId, CallKind, CallOutcome, Hello, Mate, Microbatch, Step, ToTrainer, TrainerCore,
    TrainerEffect, TrainingRole,
};
use dunlin_swarm::PeerName;
use dunlin_train::{Batch, Dataset, TrainingConfig};
use dunlin_wire::proto;
use dunlin_wire::train::{ConductorLinkEvent, dial_conductor};
use dunlin_wire::training::{ToConductor, ToMember};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::values::{Clients, to_bytes};
use super::{Sources, links, read_config};
use crate::certificates::credentials;
use crate::cli::TrainerArgs;
use crate::exit::NeedsUser;
use crate::health;

/// A forward pass that takes longer goes to another peer.
const FORWARD_MS_MAX: u64 = 30_000;
/// How often late calls are looked for.
const TICK: Duration = Duration::from_millis(20);

/// Runs a trainer until it is retired or SIGTERM.
///
/// # Errors
/// When the configuration, data or certificates cannot be used.
pub async fn run(args: TrainerArgs) -> anyhow::Result<()> {
    let config = read_config(&args.config)?;
    let links = links(&args.process, credentials(&args.process)?);
    let ready = Arc::new(AtomicBool::new(false));
    health::serve(args.process.health, Arc::clone(&ready), String::new).await?;
    let data = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || read_data(&config)).await?.context("cannot use the data")?
    };
    info!(tokens = data.training_tokens(), sequences = data.sequences(), "the data is read");
    let call_bytes_max = {
        // The model says how wide rows are; of its weights nothing is read.
        let config = config.clone();
        tokio::task::spawn_blocking(move || super::run_of(config)).await??.call_bytes_max()
    };
    let (link_in, link_events) = mpsc::channel(256);
    dial_conductor(links.clone(), args.conductor, link_in);
    let (done_in, done) = mpsc::channel(1024);
    let seed = args
        .process
        .name
        .bytes()
        .fold(config.seed, |seed, b| seed.wrapping_mul(31).wrapping_add(u64::from(b)));
    let trainer = Trainer {
        name: args.process.name.as_str().into(),
        core: TrainerCore::new(seed, FORWARD_MS_MAX),
        microbatches: u32::try_from(config.microbatches())?,
        stages: config.stages,
        data,
        clients: Clients::new(links, call_bytes_max),
        tensors: BTreeMap::new(),
        calls: BTreeMap::new(),
        conductor: None,
        done: done_in,
        started: Instant::now(),
        ready,
    };
    trainer.run(link_events, done).await
}

fn read_data(config: &TrainingConfig) -> anyhow::Result<Dataset> {
    let data = Dataset::open(config, Sources::open(config)?.tokenizer);
    let stays = data.as_ref().is_err_and(|e| !e.may_pass());
    let data = data.needs_user_if(stays)?;
    if let Some(validation) = config.validation.as_ref().filter(|v| v.batches > data.validation_batches()) {
        let problem = anyhow!(
            "validation.batches is {}, but {} microbatches of data are held back: ask for fewer or make data.validationFraction larger",
            validation.batches,
            data.validation_batches()
        );
        return Err(problem).needs_user();
    }
    Ok(data)
}

/// What a microbatch needs on its way.
struct Tensors {
    tokens: Bytes,
    targets: Bytes,
    /// Inputs of every stage it has reached.
    inputs: Vec<Bytes>,
    /// Gradient of the outputs of the stage that is next on the way back.
    gradient: Bytes,
}

struct Done {
    id: CallId,
    flight: (Step, Microbatch),
    call: Call,
    peer: PeerName,
    result: Result<proto::ComputeReply, String>,
}

struct Trainer {
    name: PeerName,
    core: TrainerCore,
    microbatches: u32,
    stages: u32,
    data: Dataset,
    clients: Clients,
    tensors: BTreeMap<(Step, Microbatch), Tensors>,
    calls: BTreeMap<CallId, AbortHandle>,
    conductor: Option<mpsc::Sender<ToConductor>>,
    done: mpsc::Sender<Done>,
    started: Instant,
    ready: Arc<AtomicBool>,
}

impl Trainer {
    async fn run(
        mut self,
        mut link: mpsc::Receiver<ConductorLinkEvent>,
        mut done: mpsc::Receiver<Done>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut out = Vec::new();
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                Some(event) = link.recv() => self.heard(event, &mut out)?,
                Some(done) = done.recv() => self.ended(done, &mut out)?,
                _ = ticks.tick() => { let now = self.now(); self.core.tick(now, &mut out); }
            }
            for effect in out {
                if !self.perform(effect)? {
                    info!("retired");
                    return Ok(());
                }
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn heard(&mut self, event: ConductorLinkEvent, out: &mut Vec<TrainerEffect>) -> anyhow::Result<()> {
        match event {
            ConductorLinkEvent::Up(sayer) => {
                let me = Mate { name: self.name.clone(), addr: String::new(), host: String::new() };
                let role = TrainingRole::Trainer { data: self.data.sha256().to_owned() };
                let hello = Hello { me, arithmetic: Some(OWN_NUMERICS), role };
                self.core.connected(out);
                if sayer.try_send(hello.into()).is_ok() {
                    self.conductor = Some(sayer);
                    self.ready.store(true, Ordering::Relaxed);
                }
            }
            ConductorLinkEvent::Said(ToMember::Peer(_)) => {
                return Err(anyhow!("the conductor takes this trainer for a peer"));
            }
            ConductorLinkEvent::Said(ToMember::Trainer(said)) => {
                if let ToTrainer::Refused { why } = said {
                    return Err(anyhow!(why)).needs_user();
                }
                if let ToTrainer::Roster { stages, .. } = &said {
                    let known = |name: &PeerName| stages.iter().flatten().any(|m| m.name == *name);
                    self.clients.retain(known);
                }
                let now = self.now();
                self.core.hear(said, now, out);
            }
            ConductorLinkEvent::Down(why) => {
                debug!(why, "no conductor");
                self.conductor = None;
            }
        }
        Ok(())
    }

    fn ended(&mut self, done: Done, out: &mut Vec<TrainerEffect>) -> anyhow::Result<()> {
        if self.calls.remove(&done.id).is_none() {
            return Ok(());
        }
        let outcome = match done.result {
            Err(why) => {
                debug!(peer = %done.peer, why, "a call broke");
                self.clients.forget(&done.peer);
                CallOutcome::Broken
            }
            Ok(reply) => match reply.refusal() {
                proto::ComputeRefusal::ComputeDone => {
                    self.keep(done.flight, &done.call, reply.data);
                    CallOutcome::Answered { loss: reply.loss }
                }
                proto::ComputeRefusal::ComputeStale => CallOutcome::Stale,
                proto::ComputeRefusal::ComputeFailed => {
                    warn!(peer = %done.peer, "{}", reply.message);
                    CallOutcome::Failed(reply.message)
                }
                _ => CallOutcome::Refused,
            },
        };
        let now = self.now();
        self.core.ended(done.id, outcome, now, out);
        Ok(())
    }

    /// Puts an answer where the next call finds it.
    fn keep(&mut self, flight: (Step, Microbatch), call: &Call, data: Bytes) {
        let Some(tensors) = self.tensors.get_mut(&flight) else { return };
        match call.kind {
            CallKind::Forward => {
                tensors.inputs.truncate(call.stage as usize + 1);
                tensors.inputs.push(data);
            }
            CallKind::Backward => tensors.gradient = data,
            CallKind::Loss => {}
        }
    }

    fn perform(&mut self, effect: TrainerEffect) -> anyhow::Result<bool> {
        match effect {
            TrainerEffect::Call { id, peer, call } => self.call(id, peer, call)?,
            TrainerEffect::Abandon { id } => {
                if let Some(call) = self.calls.remove(&id) {
                    call.abort();
                }
            }
            TrainerEffect::Forget { step, microbatch } => drop(self.tensors.remove(&(step, microbatch))),
            TrainerEffect::Tell(report) => {
                if let Some(conductor) = &self.conductor
                    && conductor.try_send(report.into()).is_err()
                {
                    // A stream that takes nothing is broken; the hello on the next one makes up for it.
                    self.conductor = None;
                }
            }
            TrainerEffect::Retire => return Ok(false),
        }
        Ok(true)
    }

    fn batch(&self, step: Step, microbatch: Microbatch) -> anyhow::Result<Batch> {
        Ok(match microbatch.checked_sub(self.microbatches) {
            None => self.data.batch(step, microbatch as usize)?,
            Some(index) => self.data.validation(index as usize)?,
        })
    }

    fn call(&mut self, id: CallId, peer: Mate, call: Call) -> anyhow::Result<()> {
        let flight = (call.step, call.microbatch);
        if !self.tensors.contains_key(&flight) {
            let batch = self.batch(call.step, call.microbatch)?;
            let tokens = to_bytes(&batch.tokens);
            let tensors = Tensors {
                inputs: vec![tokens.clone()],
                tokens,
                targets: to_bytes(&batch.targets),
                gradient: Bytes::new(),
            };
            self.tensors.insert(flight, tensors);
        }
        let Some(tensors) = self.tensors.get(&flight) else { return Ok(()) };
        let last = call.stage + 1 == self.stages;
        let output = match call.kind {
            CallKind::Forward => Bytes::new(),
            CallKind::Loss => tensors.targets.clone(),
            CallKind::Backward if last => tensors.targets.clone(),
            CallKind::Backward => tensors.gradient.clone(),
        };
        let input = tensors.inputs.get(call.stage as usize).unwrap_or(&tensors.tokens).clone();
        let request = proto::ComputeRequest {
            stage: call.stage,
            step: call.step,
            microbatch: call.microbatch,
            attempt: call.attempt,
            kind: match call.kind {
                CallKind::Forward => proto::ComputeKind::ComputeForward,
                CallKind::Backward => proto::ComputeKind::ComputeBackward,
                CallKind::Loss => proto::ComputeKind::ComputeLoss,
            }
            .into(),
            input,
            output,
        };
        let (clients, done) = (self.clients.clone(), self.done.clone());
        let task = tokio::spawn(async move {
            let result = compute(&clients, &peer, request).await;
            let ended = Done { id, flight, call, peer: peer.name, result };
            // The receiver is gone only when the process ends.
            let _ = done.send(ended).await;
        });
        self.calls.insert(id, task.abort_handle());
        Ok(())
    }
}

async fn compute(
    clients: &Clients,
    peer: &Mate,
    request: proto::ComputeRequest,
) -> Result<proto::ComputeReply, String> {
    let reply = clients.of(peer).await?.compute(request).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}
