//! The role that owns the ledger: streams, checkpoints and a page around [`Conductor`].
//!
//! * [`streams`] who speaks on which stream, and when one ends
//! * [`keeper`] the destination of checkpoints, off the loop
//! * [`page`] what people and scrapers see
//! * [`record`] the course of the run, as shown

mod keeper;
mod page;
mod record;
mod streams;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use dunlin_model::OWN_NUMERICS;
use dunlin_planner::rebalance::RebalancePolicy;
use dunlin_protocol::training::{
    Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Hello, ToTrainer, TrainingRole,
};
use dunlin_swarm::PeerName;
use dunlin_swarm::timing::DRAIN;
use dunlin_train::Run;
use dunlin_train::checkpoint::ConductorLife;
use dunlin_wire::proto;
use dunlin_wire::train::{ConductorInbound, ConductorService, StreamId};
use dunlin_wire::training::ToMember;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Sources, read_config};
use crate::certificates::credentials;
use crate::cli::ConductorArgs;
use crate::exit::NeedsUser;
use crate::health;
use keeper::{Keeper, KeeperOrder, Kept, Opened};
use record::{Record, lock};
use streams::{Streams, Who};

/// How long peers may take to report after a start.
const GATHER_MS: u64 = 2000;
/// A peer that keeps a microbatch from others for so long is taken to be lost.
const CLAIM_MS_MAX: u64 = 120_000;
/// A stage's state is expected to be fetched in this time, until the first was.
const FETCH_MS: u64 = 10_000;
/// What is under way with the destination of checkpoints is waited for so long at the end.
const END: Duration = Duration::from_secs(2);
/// How often time passes.
const TICK: Duration = Duration::from_millis(50);
/// This process did nothing for so long: whoever has a stream to it has hung up, or is about to.
const SLEPT: Duration = Duration::from_millis(1250);

/// Runs a conductor until SIGTERM.
///
/// # Errors
/// When the configuration, certificates or checkpoints cannot be used, or an address cannot be bound.
#[expect(clippy::too_many_lines, reason = "wires a process from its options")]
pub async fn run(args: ConductorArgs) -> anyhow::Result<()> {
    dunlin_train::scratch::sweep();
    let config = read_config(&args.config)?;
    let sources = Sources::open(&config)?;
    let texts = sources.texts(&config)?;
    let run = Arc::new(sources.run(config)?);
    let destination = run.config.checkpoint.as_ref().map(|c| c.destination.clone());
    let record = Record::new(&run);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let config = ConductorConfig {
        stages: run.config.stages,
        microbatches: u32::try_from(run.config.microbatches())?,
        rows: u32::try_from(run.rows_per_microbatch())?,
        costs: run.costs(),
        steps: run.config.steps,
        delayed_updates: run.config.optimizer.delayed_updates,
        tied: run.model.tied,
        clip: run.config.optimizer.clip,
        saves: destination.is_some(),
        checkpoint_every: run.config.checkpoint.as_ref().map_or(0, |c| c.every_steps),
        validate_every: run.config.validation.as_ref().map_or(0, |v| v.every_steps),
        validation_batches: run.config.validation.as_ref().map_or(0, |v| v.batches as u32),
        gather_ms: GATHER_MS,
        claim_ms_max: CLAIM_MS_MAX,
        hand_over_ms: DRAIN.as_millis() as u64,
        policy: RebalancePolicy::default(),
        fetch_ms: FETCH_MS,
        // Milliseconds since 1970 grow from one life to the next, and leave room for the rounds of each.
        incarnation: u64::try_from(now.as_millis()).unwrap_or(u64::MAX) & ((1 << 43) - 1),
        arithmetic: OWN_NUMERICS,
    };
    let record = Arc::new(Mutex::new(record));
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    info!(addr = %listener.local_addr()?, "conductor listens");
    let (inbound_in, inbound) = mpsc::channel(4096);
    let router = tonic::transport::Server::builder().add_service(ConductorService::service(inbound_in));
    tokio::spawn(router.serve_with_incoming(dunlin_wire::incoming(listener, credentials(&args.process)?)));
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let metrics = Arc::clone(&record);
    health::serve(args.process.health, ready, move || page::metrics(&lock(&metrics))).await?;
    page::serve(args.http, Arc::clone(&record)).await?;
    let (kept_in, kept) = mpsc::channel(16);
    let keeper = match destination {
        None => None,
        Some(destination) => {
            let owner = ConductorLife::new(&args.process.name)?;
            Some(Keeper::start(destination, Arc::clone(&run), texts, owner, kept_in)?)
        }
    };
    let shell = Shell {
        core: Conductor::new(config),
        data: None,
        run,
        keeper,
        claimed: false,
        streams: Streams::default(),
        record,
        started: Instant::now(),
        turned: Instant::now(),
    };
    shell.run(inbound, kept).await
}

fn other_data(name: &PeerName, data: &str, known: &str) -> String {
    format!(
        "{name} has other data than the run was begun with: the SHA-256 of its tokens is {data}, not {known}; bring back the data, or begin another \
         run with another checkpoint.destination"
    )
}

struct Shell {
    core: Conductor,
    /// Digest of the tokens of the run, once a trainer or a checkpoint has told it.
    data: Option<String>,
    run: Arc<Run>,
    /// Where checkpoints go, if anywhere.
    keeper: Option<Keeper>,
    /// The keeper was told that the run makes steps.
    claimed: bool,
    streams: Streams,
    record: Arc<Mutex<Record>>,
    started: Instant,
    /// The end of the last turn of the loop.
    turned: Instant,
}

impl Shell {
    async fn run(
        mut self,
        mut inbound: mpsc::Receiver<ConductorInbound>,
        mut kept: mpsc::Receiver<Kept>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => {
                    self.end(&mut kept).await;
                    return Ok(());
                }
                Some(event) = inbound.recv() => {
                    self.wakes();
                    self.arrived(event);
                }
                Some(kept) = kept.recv() => self.kept(kept)?,
                _ = ticks.tick() => {
                    self.wakes();
                    self.handle(ConductorEvent::Tick);
                    lock(&self.record).look(&self.core);
                }
            }
            self.turned = Instant::now();
        }
    }

    /// Others are not to be taken for lost because this process stood still.
    fn wakes(&mut self) {
        let slept = self.turned.elapsed();
        if slept > SLEPT {
            warn!(ms = slept.as_millis(), "this process stood still");
            self.streams.clear();
            self.handle(ConductorEvent::Woke);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn arrived(&mut self, event: ConductorInbound) {
        match event {
            ConductorInbound::Opened(id, _, hello, sayer) => {
                if let Err(why) = self.opened(id, hello, sayer) {
                    self.note(format!("a stream is closed: {why}"));
                }
            }
            // Without an open stream it ended, and this was still on its way.
            ConductorInbound::Peer(id, report) => {
                if let Some(who) = self.streams.who(id).cloned() {
                    self.handle(ConductorEvent::Peer(who.name, report));
                }
            }
            ConductorInbound::Trainer(id, report) => {
                if let Some(who) = self.streams.who(id).cloned() {
                    self.handle(ConductorEvent::Trainer(who.name, report));
                }
            }
            ConductorInbound::Closed(id) => self.ended(id),
            ConductorInbound::Observe(_, answer) => {
                let _ = answer.send(self.observation());
            }
            ConductorInbound::Suspend(caller, answer) => {
                info!(%caller, "is asked to suspend the run");
                self.handle(ConductorEvent::Suspend);
                // The caller may have gone away.
                let _ = answer.send(self.observation());
            }
        }
    }

    fn ended(&mut self, id: StreamId) {
        if let Some(lost) = self.streams.end(id) {
            self.handle(ConductorEvent::Gone(lost));
        }
    }

    /// Somebody is here. Dropping `sayer` ends the stream.
    fn opened(&mut self, id: StreamId, hello: Hello, sayer: mpsc::Sender<ToMember>) -> Result<(), String> {
        let name = hello.me.name.clone();
        if let TrainingRole::Trainer { data } = &hello.role {
            let known = self.data.get_or_insert_with(|| data.clone()).clone();
            if known != *data {
                let why = other_data(&name, data, &known);
                // It hears it, or that the stream is closed.
                let _ = sayer.try_send(ToTrainer::Refused { why: why.clone() }.into());
                return Err(why);
            }
        }
        let data = match &hello.role {
            TrainingRole::Trainer { data } => Some(data.clone()),
            TrainingRole::Peer { .. } => None,
        };
        self.streams.opened(id, Who { name, data }, sayer);
        self.handle(ConductorEvent::Connected(hello));
        Ok(())
    }

    /// The core decides, and is obeyed. If somebody turns out to be lost when it is to be told something, that is the next event.
    fn handle(&mut self, event: ConductorEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Vec::new();
            let now = self.now();
            self.core.handle(now, event, &mut out);
            let lost = out.into_iter().filter_map(|effect| self.perform(effect));
            events.extend(lost.map(ConductorEvent::Gone));
        }
    }

    /// The record as of now, which otherwise is as of the last tick.
    fn observation(&self) -> proto::Observation {
        let mut record = lock(&self.record);
        record.look(&self.core);
        record.observation()
    }

    /// Something was done with the destination of checkpoints.
    fn kept(&mut self, kept: Kept) -> anyhow::Result<()> {
        let event = match kept {
            Kept::Unread(why) => ConductorEvent::Unread(why),
            Kept::Opened(opened) => self.found(opened),
            Kept::Inspected(Ok(found)) => ConductorEvent::Checkpoints(found),
            Kept::Inspected(Err(why)) => ConductorEvent::Unread(why),
            Kept::Prepared(outcome) => ConductorEvent::Prepared(outcome.err()),
            Kept::Sealed(step, outcome) => {
                if let Ok(sealed) = &outcome {
                    lock(&self.record).saved(step, sealed);
                }
                ConductorEvent::Sealed { step, error: outcome.err() }
            }
            Kept::Confirmed(step, outcome) => ConductorEvent::Confirmed { step, error: outcome.err() },
            Kept::TakenOver(why) => ConductorEvent::Refused(why),
            Kept::Ended => return Ok(()),
            Kept::Refused(why) => return Err(anyhow!(why)).needs_user(),
        };
        self.handle(event);
        Ok(())
    }

    /// The keeper of checkpoints ends first, if it can: a run that has none yet gives its place back.
    async fn end(&self, kept: &mut mpsc::Receiver<Kept>) {
        self.order(KeeperOrder::End);
        let ended = async { while kept.recv().await.is_some_and(|kept| !matches!(kept, Kept::Ended)) {} };
        if timeout(END, ended).await.is_err() {
            info!("the destination of checkpoints does not answer");
        }
    }

    /// The destination is this run's, or nobody's.
    fn found(&mut self, opened: Opened) -> ConductorEvent {
        if let Some((step, sealed)) = &opened.newest {
            info!(step, "goes on from a checkpoint");
            lock(&self.record).saved(*step, sealed);
        }
        let changes: Vec<String> = opened.changes.iter().map(ToString::to_string).collect();
        for change in &changes {
            self.note(format!("the run goes on with another {change}"));
        }
        lock(&self.record).changed(changes);
        if let Some(data) = opened.data_sha256 {
            self.begun_with(data);
        }
        ConductorEvent::Checkpoints(opened.checkpoints)
    }

    /// It is known now which data the run was begun with. Trainers that have other data may have been here before that.
    fn begun_with(&mut self, data: String) {
        for who in self.streams.all() {
            let Some(why) = who.data.filter(|of| *of != data).map(|of| other_data(&who.name, &of, &data))
            else {
                continue;
            };
            self.note(why.clone());
            if self.streams.say(&who.name, ToTrainer::Refused { why }.into()).is_none() {
                self.streams.hang_up(&who.name);
            }
            self.handle(ConductorEvent::Gone(who.name));
        }
        self.data = Some(data);
    }

    /// What is said again and again is logged ever more seldom.
    fn note(&self, text: String) {
        let times = lock(&self.record).note(text.clone());
        match times {
            1 => warn!("{text}"),
            times if times.is_power_of_two() => warn!("{text} ({times} times)"),
            _ => {}
        }
    }

    fn order(&self, order: KeeperOrder) {
        if let Some(keeper) = &self.keeper {
            keeper.give(order);
        }
    }

    /// The processes that were lost on the way.
    fn perform(&mut self, effect: ConductorEffect) -> Option<PeerName> {
        match effect {
            ConductorEffect::ToPeer(name, message) => return self.streams.say(&name, message.into()),
            ConductorEffect::ToTrainer(name, message) => return self.streams.say(&name, message.into()),
            ConductorEffect::Drop(name) => self.streams.hang_up(&name),
            ConductorEffect::Note(text) => self.note(text),
            ConductorEffect::Moved(moved) => {
                info!(peer = %moved.peer, from = moved.from, to = moved.to, "moves: {}", moved.reason);
                lock(&self.record).moved(moved);
            }
            ConductorEffect::Committed(committed) => {
                if !std::mem::replace(&mut self.claimed, true) {
                    self.order(KeeperOrder::Claim);
                }
                let tokens = self.run.config.tokens_per_step();
                lock(&self.record).committed(&committed, tokens, self.started.elapsed());
            }
            ConductorEffect::Inspect => self.order(KeeperOrder::Inspect),
            ConductorEffect::Discard { step } => self.order(KeeperOrder::Discard(step)),
            ConductorEffect::Prepare => self.order(KeeperOrder::Prepare),
            ConductorEffect::Confirm { step } => self.order(KeeperOrder::Confirm(step)),
            ConductorEffect::Seal { step, records } => {
                self.order(KeeperOrder::Seal(step, records, self.data.clone().unwrap_or_default()));
            }
        }
        None
    }
}
