//! The role that computes a stage: sockets, tensors and one engine thread around [`PeerNode`].
//!
//! * [`engine`] the thread that owns the stage
//! * [`average`] averages among the peers of a stage
//! * [`fetch`] a stage, from mates or a checkpoint
//! * [`state`] its state from several mates, checked
//! * [`collect`] the updates that are made meanwhile
//! * [`serve`] what mates pull, [`give`] who is a mate
//! * [`memory`] what is freed is kept
//! * [`member`] averages alone, to measure them

mod average;
mod collect;
mod engine;
mod fetch;
mod give;
pub mod member;
mod memory;
mod serve;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dunlin_kernels::{ARITHMETIC_VERSION, Pool};
use dunlin_planner::PeerName;
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{
    Call, CallKind, Job, Mate, PeerConfig, PeerEffect, PeerNode, PeerReport, Refused, RequestId, SaveFailure,
    ShardId, StageId, StateDigest, Step,
};
use dunlin_train::average::Average;
use dunlin_train::checkpoint::Destination;
use dunlin_train::scratch;
use dunlin_train::stage::{Computed, Purpose};
use dunlin_train::{Run, Stage};
use dunlin_wire::control::{ControlRequest, ControlService, Question};
use dunlin_wire::proto;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{ConductorLinkEvent, Sayer, StageInbound, TrainStageService, dial_conductor};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::values::{Clients, Fault};
use super::{advertised, first, links, read_config, saved};
use crate::certificates::credentials;
use crate::cli::TrainPeerArgs;
use crate::exit::NeedsUser;
use crate::health;
use average::{Averages, Formed, Which};
use collect::Collected;
use engine::{Bench, Ended, Engine};
use give::Giving;
use serve::{Alarm, Giver, root_of};

/// Longest time between notice and end.
const DRAIN: Duration = Duration::from_secs(25);
/// Whoever cannot trust its memory tells the conductor, and waits so long for its answer.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What happens to a peer.
enum Event {
    /// With the microseconds that it took.
    Computed(RequestId, u64, Result<Computed, String>),
    Applied(Step, Result<StateDigest, String>),
    Added(Take, Result<(), String>),
    /// Memory has changed by itself.
    Corrupt(String),
    /// It has not, and that was the last thing to do.
    Sound,
    /// A mate gave what is not right.
    Wrong(PeerName, String),
    /// The state of a stage is here.
    Fetched(u64, Result<Box<Stage>, fetch::Unfetched>),
    /// The engine has it, or has followed an update.
    Installed(u64, Result<(Step, StateDigest), String>),
    /// An update that was missed.
    Update(u64, Result<Vec<f32>, String>),
    Averaged(Which, Result<(Average, Vec<f64>), Fault>),
    Received(Take, Result<Vec<i64>, Fault>),
    Saved(Step, Result<String, String>),
}

/// Runs a peer until it is retired or SIGTERM.
///
/// # Errors
/// When the configuration or certificates cannot be used, an address cannot be bound, or an update fails.
pub async fn run(args: TrainPeerArgs) -> anyhow::Result<()> {
    memory::keep_freed();
    scratch::sweep();
    let config = read_config(&args.config)?;
    let credentials = credentials(&args.process)?;
    let links = links(&args.process, credentials.clone());
    let run = Arc::new(super::run_of(config)?);
    memory::suffices(&run, args.memory).needs_user()?;
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    let me = Mate {
        name: args.process.name.as_str().into(),
        addr: advertised(listener.local_addr()?, &args.conductor).await?,
        host: args.host,
    };
    info!(addr = me.addr, "peer {} listens", me.name);
    let (stage_in, inbound) = mpsc::channel(CALLS_QUEUED);
    let (call_bytes_max, calls_max) = (run.call_bytes_max(), run.calls_max());
    let (questions_in, questions) = mpsc::channel(64);
    let router = server()
        .add_service(TrainStageService::service(stage_in, call_bytes_max, calls_max))
        .add_service(ControlService::service(questions_in));
    tokio::spawn(router.serve_with_incoming(dunlin_wire::incoming(listener, credentials)));
    let ready = Arc::new(AtomicBool::new(false));
    health::serve(args.process.health, Arc::clone(&ready), String::new).await?;
    let (link_in, link) = mpsc::channel(256);
    dial_conductor(links.clone(), args.conductor, link_in);
    let (events_in, events) = mpsc::channel(1024);
    let config = PeerConfig {
        microbatches: u32::try_from(run.config.microbatches())?,
        delayed_updates: run.config.optimizer.delayed_updates,
        calls_max,
        arithmetic: ARITHMETIC_VERSION,
    };
    let (engine, ended) = Engine::start(args.threads)?;
    let (formed, alarm) = (Arc::<Formed>::default(), Alarm::new(events_in.clone()));
    let peer = Peer {
        node: PeerNode::new(me.clone(), config),
        me,
        destination: run.config.checkpoint.as_ref().map(|c| c.destination.clone()),
        run,
        clients: Clients::new(links, call_bytes_max),
        giving: Giving::new(),
        giver: Giver::new(engine.clone(), Arc::clone(&formed), alarm.clone()),
        engine,
        alarm,
        formed,
        averages: Averages::new(),
        averaging: BTreeMap::new(),
        spare: BTreeMap::new(),
        fetching: None,
        updates_bytes_max: args.disk / 2,
        tickets: 0,
        calls: BTreeMap::new(),
        conductor: None,
        events: events_in,
        ready,
        leaving: None,
        corrupt: None,
        retired: false,
    };
    peer.run(inbound, link, events, questions, ended).await
}

/// The server of a peer, without services yet.
fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(32 << 20)
}

/// Calls that have come and were not looked at.
const CALLS_QUEUED: usize = 16;

/// A trainer's call that waits.
struct Waiting {
    request: proto::ComputeRequest,
    reply: oneshot::Sender<proto::ComputeReply>,
    /// What was computed for it.
    computed: Option<Computed>,
}

/// State on its way.
struct Fetching {
    ticket: u64,
    stage: StageId,
    wanted: Step,
    mates: Vec<Mate>,
    collected: Option<Arc<Collected>>,
    task: Option<AbortHandle>,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Peer {
    me: Mate,
    node: PeerNode,
    run: Arc<Run>,
    clients: Clients,
    engine: Engine,
    formed: Arc<Formed>,
    giving: Giving,
    giver: Giver,
    alarm: Alarm,
    /// Averages of the present step.
    averages: Averages,
    averaging: BTreeMap<ShardId, AbortHandle>,
    /// Memory of averages that were applied, for the next ones.
    spare: BTreeMap<ShardId, Vec<f32>>,
    fetching: Option<Fetching>,
    /// Disk for updates that are made while a state is fetched.
    updates_bytes_max: u64,
    tickets: u64,
    calls: BTreeMap<RequestId, Waiting>,
    conductor: Option<Sayer>,
    events: mpsc::Sender<Event>,
    destination: Option<Destination>,
    ready: Arc<AtomicBool>,
    /// It must be gone by then.
    leaving: Option<Instant>,
    /// Its memory has changed by itself.
    corrupt: Option<String>,
    /// It has nothing more to do.
    retired: bool,
}

impl Peer {
    async fn run(
        mut self,
        mut inbound: mpsc::Receiver<StageInbound>,
        mut link: mpsc::Receiver<ConductorLinkEvent>,
        mut events: mpsc::Receiver<Event>,
        mut questions: mpsc::Receiver<ControlRequest>,
        mut ended: Ended,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut out = Vec::new();
        loop {
            let deadline = self.leaving.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let turn = async {
                tokio::select! {
                    biased;
                    _ = terminate.recv() => self.leave(DRAIN, &mut out),
                    _ = &mut ended => bail!("the thread that computes has ended: see above why"),
                    Some(event) = events.recv() => self.happened(event, &mut out)?,
                    Some(event) = link.recv() => self.heard(event, &mut out)?,
                    Some(request) = questions.recv() => self.asked(request, &mut out),
                    Some(event) = inbound.recv() => self.arrived(event, &mut out),
                }
                anyhow::Ok(())
            };
            match timeout_at(deadline, turn).await {
                Err(_) if self.leaving.is_some() => {
                    if let Some(what) = self.corrupt {
                        bail!("{what}; the conductor could not be told");
                    }
                    warn!("the time to hand over is up");
                    return Ok(());
                }
                Err(_) => {}
                Ok(done) => done?,
            }
            for effect in std::mem::take(&mut out) {
                self.perform(effect)?;
            }
            if self.retired {
                info!("retired");
                return Ok(());
            }
            self.ready.store(self.node.serving(), Ordering::Relaxed);
        }
    }

    fn leave(&mut self, by: Duration, out: &mut Vec<PeerEffect>) {
        if self.leaving.is_none() {
            info!("notice: handing over");
            self.leaving = Some(Instant::now() + by);
            self.node.leave(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), out);
        }
    }

    fn asked(&mut self, ControlRequest { question, answer, .. }: ControlRequest, out: &mut Vec<PeerEffect>) {
        if let Question::Drain { deadline_ms } = question {
            self.leave(Duration::from_millis(deadline_ms).min(DRAIN), out);
        }
        let state = match (self.leaving.is_some(), self.node.serving()) {
            (true, _) => proto::State::Draining,
            (_, true) => proto::State::Ready,
            _ => proto::State::Loading,
        };
        let status =
            proto::Status { name: self.me.name.to_string(), state: state.into(), ..Default::default() };
        let _ = answer.send(status);
    }

    fn heard(&mut self, event: ConductorLinkEvent, out: &mut Vec<PeerEffect>) -> anyhow::Result<()> {
        match event {
            ConductorLinkEvent::Up(sayer) => {
                let mut asked = Vec::new();
                let hello = self.node.connected(&mut asked);
                if sayer.try_send(serde_json::to_string(&hello)?).is_ok() {
                    self.conductor = Some(sayer);
                    out.append(&mut asked);
                }
            }
            ConductorLinkEvent::Said(json) => {
                let said = serde_json::from_str(&json).context("the conductor says something else")?;
                self.node.hear(said, out);
            }
            ConductorLinkEvent::Down(why) => {
                debug!(why, "no conductor");
                self.conductor = None;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, event: StageInbound, out: &mut Vec<PeerEffect>) {
        match event {
            StageInbound::Call(id, _, request, reply) => {
                let call = Call {
                    stage: request.stage,
                    step: request.step,
                    microbatch: request.microbatch,
                    attempt: request.attempt,
                    kind: match request.kind() {
                        proto::ComputeKind::ComputeForward => CallKind::Forward,
                        proto::ComputeKind::ComputeBackward => CallKind::Backward,
                        proto::ComputeKind::ComputeLoss => CallKind::Loss,
                    },
                };
                self.calls.insert(id, Waiting { request, reply, computed: None });
                self.node.call(id, call, out);
            }
            StageInbound::HungUp(id) => {
                self.calls.remove(&id);
                self.node.hang_up(id, out);
            }
            StageInbound::Pull(caller, request, pieces) => {
                let (stage, _) = self.node.position();
                // The mates of a shared embedding serve another stage.
                let shared = matches!(request.what, Some(What::Sums(_) | What::Average(_)));
                if self.corrupt.is_some() || !(shared || stage == Some(request.stage)) {
                    return serve::refuse(&pieces, "this peer does not serve that stage");
                }
                let giver = self.giver.clone();
                self.giving
                    .give(&caller, request, pieces, move |request, pieces| giver.serve(request, pieces));
            }
        }
    }

    fn happened(&mut self, event: Event, out: &mut Vec<PeerEffect>) -> anyhow::Result<()> {
        match event {
            Event::Computed(id, took_us, Ok(computed)) => {
                let loss = computed.loss;
                if let Some(waiting) = self.calls.get_mut(&id) {
                    waiting.computed = Some(computed);
                }
                self.node.computed(id, Ok(loss), took_us, out);
            }
            Event::Computed(id, took_us, Err(what)) => self.node.computed(id, Err(what), took_us, out),
            Event::Applied(step, Ok(digest)) => {
                let applied = std::mem::take(&mut self.averages).into_iter();
                self.spare = applied
                    .filter_map(|(shard, (_, average))| Some((shard, Arc::try_unwrap(average).ok()?.values)))
                    .collect();
                self.node.applied(step + 1, digest, out);
            }
            Event::Corrupt(what) => self.corrupted(what, out),
            Event::Sound => self.retired = true,
            Event::Wrong(mate, what) => out.push(PeerEffect::Tell(PeerReport::Wrong { mate, what })),
            Event::Applied(step, Err(why)) => bail!("the update of step {step} failed: {why}"),
            Event::Added(take, Ok(())) => self.node.added(take, out),
            Event::Added(take, Err(why)) => bail!("the sums of {} do not fit: {why}", take.from.name),
            Event::Fetched(ticket, stage) => self.fetched(ticket, stage, out)?,
            Event::Installed(ticket, at) => self.installed(ticket, at, out),
            Event::Update(ticket, update) => self.follow(ticket, update),
            Event::Averaged(which, Ok((average, squares))) => {
                self.averages.insert(which.shard, (which.round, Arc::new(average)));
                self.node.averaged(which.step, which.shard, which.round, squares, out);
            }
            Event::Averaged(which, Err(fault)) => {
                let (why, mate) = (fault.to_string(), fault.mate);
                self.node.average_failed(which.step, which.shard, which.round, why, mate, out);
            }
            Event::Received(take, Ok(sums)) => {
                // The node says whether they are still wanted; then they are added by the job that follows.
                let mut wanted = Vec::new();
                self.node.received(take, true, &mut wanted);
                for effect in wanted {
                    match effect {
                        PeerEffect::Run(Job::Add(take)) => self.add(take, sums.clone()),
                        other => out.push(other),
                    }
                }
            }
            Event::Received(take, Err(fault)) => {
                warn!(%fault, "sums could not be taken over");
                self.node.received(take, false, out);
            }
            Event::Saved(step, Ok(record)) => {
                out.push(PeerEffect::Tell(PeerReport::Saved { step, record }));
            }
            Event::Saved(step, Err(why)) => {
                let failure = SaveFailure::Destination;
                out.push(PeerEffect::Tell(PeerReport::SaveFailed { step, failure, why }));
            }
        }
        Ok(())
    }

    fn perform(&mut self, effect: PeerEffect) -> anyhow::Result<()> {
        match effect {
            PeerEffect::Tell(report) => {
                if let Some(conductor) = &self.conductor
                    && conductor.try_send(serde_json::to_string(&report)?).is_err()
                {
                    self.conductor = None;
                }
            }
            PeerEffect::Run(job) => self.job(job)?,
            PeerEffect::Reply(id) => {
                // A caller that has hung up waits no longer.
                if let Some(Waiting { reply, computed: Some(computed), .. }) = self.calls.remove(&id) {
                    let (data, loss) = (computed.data.into(), computed.loss);
                    let _ = reply.send(proto::ComputeReply { data, loss, ..Default::default() });
                }
            }
            PeerEffect::Refuse(id, why) => {
                if let Some(waiting) = self.calls.remove(&id) {
                    let (refusal, message) = match why {
                        Refused::NotServing => (proto::ComputeRefusal::ComputeNotServing, String::new()),
                        Refused::Stale => (proto::ComputeRefusal::ComputeStale, String::new()),
                        Refused::Busy => (proto::ComputeRefusal::ComputeBusy, String::new()),
                        Refused::Failed(what) => (proto::ComputeRefusal::ComputeFailed, what),
                    };
                    let reply =
                        proto::ComputeReply { refusal: refusal.into(), message, ..Default::default() };
                    let _ = waiting.reply.send(reply);
                }
            }
            PeerEffect::Load { stage, step, checkpoint } => self.load(stage, step, checkpoint),
            PeerEffect::Fetch { stage, step, from, mates } => self.fetch(stage, step, from, mates),
            PeerEffect::Average { step, shard, round, group } => {
                self.average(Which { step, shard, round }, group);
            }
            PeerEffect::Take(take) => self.take(take),
            PeerEffect::Save { step, check } => self.save(step, check),
            PeerEffect::GiveTo(mates) => self.giving.to(mates),
            PeerEffect::Retire => {
                // The last chance to say that what others got from here was not right.
                let (events, alarm) = (self.events.clone(), self.alarm.clone());
                self.engine.run(move |Bench { stage, pool }| {
                    match stage.as_mut().map(|stage| stage.check(pool)) {
                        Some(Err(error)) => alarm.raise_blocking(error.to_string()),
                        _ => drop(events.blocking_send(Event::Sound)),
                    }
                });
            }
            PeerEffect::End(why) => bail!("expelled: {why}"),
        }
        Ok(())
    }

    /// Nothing here is to be trusted: the conductor hears of it, and nobody gets any of it.
    fn corrupted(&mut self, what: String, out: &mut Vec<PeerEffect>) {
        if self.corrupt.is_none() {
            warn!("{what}");
            self.fetching = None;
            self.giving.to(Mates::default());
            for (_, task) in std::mem::take(&mut self.averaging) {
                task.abort();
            }
            self.leaving = Some(Instant::now() + LAST_WORDS);
            self.corrupt = Some(what.clone());
            self.node.corrupt(what, out);
        }
    }

    /// Work of the engine that ends with an event. Without a stage there is none to do.
    fn with_stage(&self, work: impl FnOnce(&mut Stage, &Pool) -> Event + Send + 'static) {
        let events = self.events.clone();
        self.engine.run(move |Bench { stage, pool }| {
            if let Some(stage) = stage {
                // The receiver is gone only when the process ends.
                let _ = events.blocking_send(work(stage, pool));
            }
        });
    }

    fn job(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Compute { request, call, accumulate, check } => {
                // A call that hangs up while it waits is no longer in the node's queue.
                let waiting =
                    self.calls.get_mut(&request).context("a call was chosen that nobody waits for")?;
                let input = std::mem::take(&mut waiting.request.input);
                let output = std::mem::take(&mut waiting.request.output);
                let validation = call.microbatch as usize >= self.run.config.microbatches();
                let purpose = Purpose { step: call.step, validation };
                self.with_stage(move |stage, pool| {
                    let started = Instant::now();
                    let computed = match call.kind {
                        CallKind::Forward => stage.forward(pool, purpose, &input),
                        CallKind::Loss => stage.loss(pool, purpose, &input, &output),
                        CallKind::Backward => stage.backward(pool, call.step, &input, &output, accumulate),
                    };
                    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                    // What cannot be computed may be the fault of what it was computed with.
                    let computed = match computed {
                        Ok(computed) if !check => Ok(computed),
                        computed => stage.check(pool).and(computed),
                    };
                    match computed {
                        Err(error) if error.is_of_memory() => Event::Corrupt(error.to_string()),
                        computed => Event::Computed(request, took_us, computed.map_err(|e| e.to_string())),
                    }
                });
            }
            Job::Check => {
                let alarm = self.alarm.clone();
                self.engine.run(move |Bench { stage, pool }| {
                    if let Some(Err(error)) = stage.as_mut().map(|stage| stage.check(pool)) {
                        alarm.raise_blocking(error.to_string());
                    }
                });
            }
            Job::Clear => self.engine.run(|bench| {
                if let Some(stage) = &mut bench.stage {
                    stage.clear();
                }
            }),
            Job::Apply { step, scale, prove } => {
                let averages = self.averages.iter().map(|(&shard, (_, a))| (shard, Arc::clone(a))).collect();
                self.with_stage(move |stage, pool| match stage.apply(pool, scale, &averages) {
                    Ok(fingerprint) => {
                        let root = prove.then(|| root_of(&stage.snapshot(), pool));
                        Event::Applied(step, Ok(StateDigest { fingerprint, root }))
                    }
                    Err(error) if error.is_of_memory() => Event::Corrupt(error.to_string()),
                    Err(error) => Event::Applied(step, Err(error.to_string())),
                });
            }
            // Done where the sums arrive.
            Job::Add(_) => {}
        }
        Ok(())
    }

    fn add(&self, take: Take, sums: Vec<i64>) {
        self.with_stage(move |stage, _| {
            let added = stage.add_sums(take.step, &sums).map_err(|e| e.to_string());
            Event::Added(take, added)
        });
    }

    fn average(&mut self, which: Which, group: Vec<Mate>) {
        if let Some(old) = self.averaging.remove(&which.shard) {
            old.abort();
        }
        let (Some(stage), _) = self.node.position() else { return };
        let (clients, engine, formed) = (self.clients.clone(), self.engine.clone(), Arc::clone(&self.formed));
        let (me, events, alarm) = (self.me.clone(), self.events.clone(), self.alarm.clone());
        let wire = self.run.config.wire.gradients;
        let spare = self.spare.remove(&which.shard).unwrap_or_default();
        let task = tokio::spawn(async move {
            let result =
                average::form(&clients, &engine, &formed, wire, which, stage, &group, &me, &alarm, spare)
                    .await;
            match result {
                Ok(mut average) => engine.run(move |bench| {
                    let Some(stage) = &bench.stage else { return };
                    let squares = stage.squares(&bench.pool, which.shard, &average.values);
                    average.seal();
                    let _ = events.blocking_send(Event::Averaged(which, Ok((average, squares))));
                }),
                Err(fault) => drop(events.send(Event::Averaged(which, Err(fault))).await),
            }
        });
        self.averaging.insert(which.shard, task.abort_handle());
    }

    fn take(&mut self, take: Take) {
        let (Some(stage), _) = self.node.position() else { return };
        let (clients, events) = (self.clients.clone(), self.events.clone());
        let len = self.run.layout(stage).len();
        tokio::spawn(async move {
            let sums = clients.pull(&take.from, stage, What::AllSums(take.step), len).await;
            let sums = sums.map(|(_, sums)| sums);
            let _ = events.send(Event::Received(take, sums)).await;
        });
    }

    /// Writes the present state, or says what would be written.
    fn save(&self, step: Step, check: bool) {
        let events = self.events.clone();
        let (run, Some(destination)) = (Arc::clone(&self.run), self.destination.clone()) else {
            tokio::spawn(async move {
                let why = "the run has no `checkpoint.destination`".to_owned();
                events.send(Event::Saved(step, Err(why))).await
            });
            return;
        };
        self.engine.run(move |bench| {
            let Some(stage) = &bench.stage else { return };
            // Training goes on while it is written.
            let snapshot = stage.snapshot();
            std::thread::spawn(move || {
                let place = (!check).then_some(&destination);
                let record = saved::write_stage(place, &run, &snapshot).map_err(|e| format!("{e:#}"));
                // What was written is what updates have made, or it is of no use.
                let event = match snapshot.changed() {
                    Some(chunk) => Event::Corrupt(format!(
                        "memory has changed: values {} to {} of the state are not what was written",
                        chunk.start, chunk.end
                    )),
                    None => Event::Saved(step, record),
                };
                let _ = events.blocking_send(event);
            });
        });
    }
}
