//! The role that owns the ledger: streams, checkpoints and a page around [`Conductor`].
//!
//! * [`page`] what people and scrapers see
//! * [`record`] the course of the run, as shown

mod page;
mod record;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use dunlin_planner::PeerName;
use dunlin_planner::rebalance::Policy;
use dunlin_protocol::training::{
    Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Hello, PeerReport, Role, Step, ToPeer,
    TrainerReport,
};
use dunlin_train::Run;
use dunlin_train::checkpoint::{Destination, Scrutiny};
use dunlin_wire::train::{ConductorInbound, ConductorService, Sayer, StreamId};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::read_config;
use super::saved::{self, Found, Sealed};
use crate::certificates::tls;
use crate::cli::ConductorArgs;
use crate::health;
use record::Record;

/// How long peers may take to report after a start.
const GATHER_MS: u64 = 2000;
/// A peer that keeps a microbatch from others for so long is taken to be lost.
const CLAIM_MS_MAX: u64 = 120_000;
/// A peer that will be gone serves on until so long before: as long as one that is terminated has.
const HAND_OVER_MS: u64 = 25_000;
/// A stage's state is expected to be fetched in this time, until the first was.
const FETCH_MS: u64 = 10_000;
/// Pause after a checkpoint that could not be begun.
const SAVE_PAUSE: Duration = Duration::from_secs(2);
/// How often time passes.
const TICK: Duration = Duration::from_millis(50);

/// Runs a conductor until SIGTERM.
///
/// # Errors
/// When the configuration, certificates or checkpoints cannot be used, or an address cannot be bound.
pub async fn run(args: ConductorArgs) -> anyhow::Result<()> {
    let config = read_config(&args.config)?;
    let run = Arc::new(super::run_of(config)?);
    let destination = run.config.checkpoint.as_ref().map(|c| c.destination.clone());
    let found = match &destination {
        None => None,
        Some(destination) => {
            let (destination, run) = (destination.clone(), Arc::clone(&run));
            let find = move || saved::find(&destination, &run, destination.usual_scrutiny());
            Some(tokio::task::spawn_blocking(find).await??)
        }
    };
    let newest = found.as_ref().and_then(|found| found.newest.as_ref());
    let data = newest.map(|c| c.manifest.data_sha256.clone());
    let mut record = Record::new(&run);
    if let Some(newest) = newest {
        info!(step = newest.manifest.step, "goes on from a checkpoint");
        record.saved(newest.manifest.step, &Sealed::new(newest.folder.clone(), &newest.manifest)?);
    }
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
        hand_over_ms: HAND_OVER_MS,
        policy: Policy::default(),
        fetch_ms: FETCH_MS,
        // Milliseconds since 1970 grow from one life to the next, and leave room for the rounds of each.
        incarnation: u64::try_from(now.as_millis()).unwrap_or(u64::MAX) & ((1 << 43) - 1),
    };
    let record = Arc::new(Mutex::new(record));
    let listener = TcpListener::bind(args.process.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.process.listen))?;
    info!(addr = %listener.local_addr()?, "conductor listens");
    let (inbound_in, inbound) = mpsc::channel(4096);
    let mut server = tonic::transport::Server::builder().tls_config(tls(&args.process)?.server())?;
    let router = server.add_service(ConductorService::service(inbound_in));
    tokio::spawn(router.serve_with_incoming(dunlin_wire::incoming(listener)));
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let metrics = Arc::clone(&record);
    health::serve(args.process.health, ready, move || page::metrics(&lock(&metrics))).await?;
    page::serve(args.http, Arc::clone(&record)).await?;
    let (sealed_in, sealed) = mpsc::channel(16);
    let (found_in, looked) = mpsc::channel(1);
    let mut shell = Shell {
        core: Conductor::new(config),
        data,
        run,
        destination,
        streams: BTreeMap::new(),
        names: BTreeMap::new(),
        record,
        sealed: sealed_in,
        found: found_in,
        started: Instant::now(),
    };
    if let Some(found) = found {
        shell.handle(ConductorEvent::Checkpoints(found.checkpoints));
    }
    shell.run(inbound, sealed, looked).await
}

/// The record, whoever panicked while holding it.
fn lock(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Stream {
    sayer: Sayer,
    name: PeerName,
    is_trainer: bool,
}

struct Shell {
    core: Conductor,
    /// Digest of the tokens of the run, once a trainer or a checkpoint has told it.
    data: Option<String>,
    run: Arc<Run>,
    destination: Option<Destination>,
    streams: BTreeMap<StreamId, Stream>,
    /// The present stream of everybody.
    names: BTreeMap<PeerName, StreamId>,
    record: Arc<Mutex<Record>>,
    sealed: mpsc::Sender<(Step, Result<Sealed, String>)>,
    found: mpsc::Sender<anyhow::Result<Found>>,
    started: Instant,
}

impl Shell {
    async fn run(
        mut self,
        mut inbound: mpsc::Receiver<ConductorInbound>,
        mut sealed: mpsc::Receiver<(Step, Result<Sealed, String>)>,
        mut looked: mpsc::Receiver<anyhow::Result<Found>>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                Some(event) = inbound.recv() => self.arrived(event),
                Some(found) = looked.recv() => self.handle(ConductorEvent::Checkpoints(found?.checkpoints)),
                Some((step, outcome)) = sealed.recv() => {
                    let error = match outcome {
                        Ok(sealed) => {
                            lock(&self.record).saved(step, &sealed);
                            None
                        }
                        Err(why) => Some(why),
                    };
                    self.handle(ConductorEvent::Sealed { step, error });
                }
                _ = ticks.tick() => {
                    self.handle(ConductorEvent::Tick);
                    lock(&self.record).look(&self.core);
                }
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn arrived(&mut self, event: ConductorInbound) {
        match event {
            ConductorInbound::Opened(id, _, hello, sayer) => {
                if let Err(why) = self.opened(id, hello, sayer) {
                    warn!(why, "a stream is closed");
                    lock(&self.record).note(why);
                }
            }
            ConductorInbound::Said(id, json) => {
                if let Err(why) = self.said(id, &json) {
                    warn!(why, "a stream that makes no sense is closed");
                    self.close(id);
                }
            }
            ConductorInbound::Closed(id) => self.close(id),
            ConductorInbound::Observe(_, answer) => {
                let _ = answer.send(self.observation());
            }
            ConductorInbound::Suspend(caller, answer) => {
                info!(%caller, "is asked to suspend the run");
                self.handle(ConductorEvent::Suspend);
                // Who asked may have gone.
                let _ = answer.send(self.observation());
            }
        }
    }

    fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else { return };
        if self.names.get(&stream.name) == Some(&id) {
            self.names.remove(&stream.name);
            self.handle(ConductorEvent::Gone(stream.name));
        }
    }

    /// Somebody is here. Dropping `sayer` ends the stream.
    fn opened(&mut self, id: StreamId, hello: Hello, sayer: Sayer) -> Result<(), String> {
        let name = hello.me.name.clone();
        if let Role::Trainer { data } = &hello.role {
            let known = self.data.get_or_insert_with(|| data.clone());
            if known != data {
                return Err(format!("{name} has other data than the run was begun with"));
            }
        }
        let is_trainer = matches!(hello.role, Role::Trainer { .. });
        self.streams.insert(id, Stream { sayer, name: name.clone(), is_trainer });
        // What an older stream of the same process still says is of the past.
        if let Some(old) = self.names.insert(name, id) {
            self.streams.remove(&old);
        }
        self.handle(ConductorEvent::Connected(hello));
        Ok(())
    }

    fn said(&mut self, id: StreamId, json: &str) -> Result<(), String> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let name = stream.name.clone();
        let wrong = |e: serde_json::Error| format!("{name}: {e}");
        if stream.is_trainer {
            let report: TrainerReport = serde_json::from_str(json).map_err(wrong)?;
            self.handle(ConductorEvent::Trainer(name, report));
        } else {
            let report: PeerReport = serde_json::from_str(json).map_err(wrong)?;
            self.handle(ConductorEvent::Peer(name, report));
        }
        Ok(())
    }

    fn handle(&mut self, event: ConductorEvent) {
        let mut out = Vec::new();
        let now = self.now();
        self.core.handle(now, event, &mut out);
        self.begin_saving(&mut out);
        for effect in out {
            self.perform(effect);
        }
    }

    /// The record as of now, which otherwise is as of the last tick.
    fn observation(&self) -> String {
        let mut record = lock(&self.record);
        record.look(&self.core);
        record.observation()
    }

    /// A checkpoint that peers are about to write needs its folder; without, nobody writes, and the conductor hears of it.
    fn begin_saving(&mut self, out: &mut Vec<ConductorEffect>) {
        let saves = out.iter().find_map(|effect| match effect {
            ConductorEffect::ToPeer(_, ToPeer::Save { step }) => Some(*step),
            _ => None,
        });
        let (Some(step), Some(destination)) = (saves, &self.destination) else { return };
        if let Err(error) = destination.begin(step) {
            out.retain(|e| !matches!(e, ConductorEffect::ToPeer(_, ToPeer::Save { .. })));
            // Later, not at once: a full disk is not emptied by asking again.
            let (sealed, why) = (self.sealed.clone(), format!("{:#}", anyhow::Error::new(error)));
            tokio::spawn(async move {
                sleep(SAVE_PAUSE).await;
                // The receiver is gone only when the process ends.
                let _ = sealed.send((step, Err(why))).await;
            });
        }
    }

    fn perform(&mut self, effect: ConductorEffect) {
        match effect {
            ConductorEffect::ToPeer(name, message) => self.say(&name, &message),
            ConductorEffect::ToTrainer(name, message) => self.say(&name, &message),
            ConductorEffect::Drop(name) => {
                if let Some(id) = self.names.remove(&name) {
                    self.streams.remove(&id);
                }
            }
            ConductorEffect::Note(text) => {
                warn!("{text}");
                lock(&self.record).note(text);
            }
            ConductorEffect::Moved(moved) => {
                info!(peer = %moved.peer, from = moved.from, to = moved.to, "moves: {}", moved.reason);
                lock(&self.record).moved(moved);
            }
            ConductorEffect::Committed(committed) => {
                let tokens = self.run.config.tokens_per_step();
                lock(&self.record).committed(&committed, tokens, self.started.elapsed());
            }
            ConductorEffect::Inspect => {
                let Some(destination) = self.destination.clone() else { return };
                let (run, found) = (Arc::clone(&self.run), self.found.clone());
                tokio::task::spawn_blocking(move || {
                    // The receiver is gone only when the process ends.
                    let _ = found.blocking_send(saved::find(&destination, &run, Scrutiny::Digests));
                });
            }
            ConductorEffect::Seal { step, records } => {
                let Some(destination) = self.destination.clone() else { return };
                let (run, sealed) = (Arc::clone(&self.run), self.sealed.clone());
                let data = self.data.clone().unwrap_or_default();
                tokio::task::spawn_blocking(move || {
                    let outcome =
                        saved::seal(&destination, step, &run, &data, &records).map_err(|e| format!("{e:#}"));
                    // The receiver is gone only when the process ends.
                    let _ = sealed.blocking_send((step, outcome));
                });
            }
        }
    }

    fn say(&mut self, name: &PeerName, message: &impl serde::Serialize) {
        let Some(stream) = self.names.get(name).and_then(|id| self.streams.get(id)) else { return };
        match serde_json::to_string(message) {
            // A stream that takes nothing more is broken: dropping its sayer ends it.
            Ok(json) => {
                if stream.sayer.try_send(json).is_err()
                    && let Some(id) = self.names.get(name)
                {
                    self.streams.remove(&id.clone());
                }
            }
            Err(error) => warn!(%error, "a message cannot be written"),
        }
    }
}
