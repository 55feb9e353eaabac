//! Everything together: HTTP, control service, topology, driver.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use axum::serve::ListenerExt;
use dunlin_protocol::{GatewayConfig, GatewayId};
use dunlin_swarm::timing::GATEWAY_LEASE;
use dunlin_swarm::{NumericsClass, Topology};
use dunlin_wire::control::{ControlRequest, ControlService, Question};
use dunlin_wire::{Credentials, LinksConfig, WireRuntime, proto};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::driver::{Driver, Handle};
use crate::metrics::GatewayMetrics;
use crate::model_text::ModelText;
use crate::openai::{App, router};

/// Time for error events to reach clients whose requests are cut off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a gateway is started with.
pub struct GatewayOptions {
    /// Name of this life of it.
    pub name: String,
    /// Drawn at start.
    pub incarnation: u64,
    /// Digest of the model's source, by which the operator tells models apart; empty: that of the first topology.
    pub model_digest: String,
    /// The HTTP API.
    pub http: TcpListener,
    /// The control service.
    pub control: SocketAddr,
    /// Certificates.
    pub credentials: Credentials,
    /// A file with the topology, looked at once a second.
    pub topology: Option<PathBuf>,
    /// Tokenizer and template, once the model is there.
    pub model: watch::Receiver<Option<Arc<ModelText>>>,
    /// Why the model is not there: what a user must mend.
    pub trouble: watch::Receiver<Option<proto::Problem>>,
    /// Whether requests are to be sent here: once the model is there, and as long as the swarm has no other one.
    pub ready: Arc<AtomicBool>,
    /// Sessions that run at once.
    pub running_max: usize,
    /// Sessions that wait for their turn.
    pub queue_max: usize,
    /// Time for requests to end after SIGTERM; what runs then is told so.
    pub drain: Duration,
}

/// Serves until SIGTERM; then takes no more requests and lets those that run end, or tells them that they are cut off.
///
/// # Errors
/// When an address cannot be bound, certificates cannot be used, or the task that owns the sessions ends.
#[expect(clippy::too_many_lines, reason = "wires a process from its options")]
pub async fn serve(options: GatewayOptions) -> anyhow::Result<()> {
    let metrics = Arc::new(GatewayMetrics::default());
    let id = GatewayId { name: options.name.clone(), incarnation: options.incarnation };
    let hello = proto::Hello {
        name: options.name.clone(),
        incarnation: options.incarnation,
        gateway: true,
        lease_ms: GATEWAY_LEASE.as_millis() as u64,
        model_digest: options.model_digest.clone(),
        ..proto::Hello::default()
    };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let config = GatewayConfig {
        id,
        model_digest: options.model_digest,
        started_ms: u64::try_from(since_1970.as_millis()).unwrap_or(0),
        running_max: options.running_max,
        queue_max: options.queue_max,
        stall_ms: 2000,
        retry_after_s: 1,
    };
    let links = LinksConfig::new(hello, Some(options.credentials.clone()));
    // Sessions and links have threads of their own: HTTP requests may keep the others busy.
    let wire = WireRuntime::start()?;
    let (driver, handle) = Driver::new(config, links, Arc::clone(&metrics), wire.handle());
    let mut driver = wire.handle().spawn(driver.run());

    let (questions_in, questions) = mpsc::channel(64);
    let listener = TcpListener::bind(options.control)
        .await
        .with_context(|| format!("cannot listen on {}", options.control))?;
    let control = tonic::transport::Server::builder().add_service(ControlService::service(questions_in));
    wire.serve(listener, options.credentials, move |incoming| control.serve_with_incoming(incoming))?;
    let figures = Arc::clone(&metrics);
    let (model, trouble) = (options.model.clone(), options.trouble.clone());
    tokio::spawn(control_loop(options.name, questions, handle.clone(), model, trouble, figures));
    tokio::spawn(keep_ready(options.model.clone(), handle.other_model(), options.ready));
    if let Some(path) = options.topology {
        tokio::spawn(watch_topology(path, handle.clone()));
    }

    let app = App {
        handle: handle.clone(),
        model: options.model,
        trouble: options.trouble,
        metrics,
        requests: Arc::new(AtomicU64::new(options.incarnation)),
        intake: Arc::default(),
    };
    info!(addr = %options.http.local_addr()?, "serves HTTP");
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopping) = watch::channel(false);
    let mut stopped = stopping.clone();
    let http = options.http.tap_io(|stream| {
        // Without it a token may wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "a connection keeps Nagle's delay");
        }
    });
    let serving = axum::serve(http, router(app)).with_graceful_shutdown(async move {
        // An error means that the sender is gone, which is as good as a stop.
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let mut serving = tokio::spawn(serving.into_future());
    let outcome = tokio::select! {
        ended = &mut serving => return Ok(ended??),
        ended = &mut driver => Err(driver_ended(ended)),
        _ = terminate.recv() => Ok(()),
    };
    if outcome.is_ok() {
        info!("SIGTERM: no more requests");
    }
    let _ = stop.send(true);
    // Without a driver every stream has been told so, and there is nothing to wait for.
    let time = if outcome.is_ok() { options.drain } else { Duration::ZERO };
    if timeout(time, &mut serving).await.is_err() {
        warn!("requests still run and are cut off");
        handle.end_all().await;
        // What clients do not read by then they do not get.
        let _ = timeout(LAST_WORDS, serving).await;
    }
    outcome
}

/// Ready means that requests are answered, be it with 503: which peers there are is not this pod's state. What only gateways of another model can
/// answer is not sent here.
async fn keep_ready(
    mut model: watch::Receiver<Option<Arc<ModelText>>>,
    mut other_model: watch::Receiver<bool>,
    ready: Arc<AtomicBool>,
) {
    // Whoever tells of the one or the other is gone when the process ends.
    if model.wait_for(Option::is_some).await.is_err() {
        return;
    }
    loop {
        ready.store(!*other_model.borrow_and_update(), Ordering::Relaxed);
        if other_model.changed().await.is_err() {
            return;
        }
    }
}

/// The task that owns the sessions never ends by itself.
fn driver_ended(ended: Result<(), JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow!("the task that owns the sessions ended"),
        Err(error) => anyhow!("the task that owns the sessions ended: {error}"),
    }
}

/// Answers the operator.
async fn control_loop(
    name: String,
    mut questions: mpsc::Receiver<ControlRequest>,
    handle: Handle,
    model: watch::Receiver<Option<Arc<ModelText>>>,
    trouble: watch::Receiver<Option<proto::Problem>>,
    metrics: Arc<GatewayMetrics>,
) {
    while let Some(request) = questions.recv().await {
        if let Question::PushTopology(topology) | Question::Assign(topology) = request.question {
            handle.set_topology(topology).await;
        }
        let snapshot = handle.snapshot().await;
        let ready = model.borrow().is_some() && snapshot.not_ready.is_none();
        let topology = snapshot.topology.unwrap_or_default();
        let lost = topology.peers.iter().filter(|p| !snapshot.up.contains(&p.name)).map(|p| p.name.0.clone());
        let status = proto::Status {
            name: name.clone(),
            state: if ready { proto::State::Ready } else { proto::State::Loading }.into(),
            epoch: topology.epoch,
            sessions: u32::try_from(snapshot.sessions.len()).unwrap_or(u32::MAX),
            lost: lost.collect(),
            behind: snapshot.behind.into_iter().map(|name| name.0).collect(),
            tokens: metrics.tokens(),
            problem: trouble.borrow().clone(),
            model_digest: topology.model.digest,
            needed: snapshot.needed.into_iter().map(NumericsClass::number_of).collect(),
            ..proto::Status::default()
        };
        // The caller may have gone away.
        let _ = request.answer.send(status);
    }
}

/// The file of a mounted ConfigMap: a restarted gateway knows the swarm without the operator.
async fn watch_topology(path: PathBuf, handle: Handle) {
    let mut last = String::new();
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(text) = read(&path).await
            && text != last
        {
            match Topology::parse(&text) {
                Ok(topology) => handle.set_topology(topology).await,
                Err(error) => warn!(%error, "a topology is not sound"),
            }
            last = text;
        }
    }
}

async fn read(path: &Path) -> Option<String> {
    tokio::fs::read_to_string(path).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::model;

    #[tokio::test]
    async fn a_gateway_is_ready_with_its_model_as_long_as_the_swarm_has_no_other_one() {
        let (model_in, model_out) = watch::channel(None);
        let (other_in, other_out) = watch::channel(false);
        let ready = Arc::new(AtomicBool::new(false));
        tokio::spawn(keep_ready(model_out, other_out, Arc::clone(&ready)));
        let becomes = async |wanted| {
            let look = async {
                while ready.load(Ordering::Relaxed) != wanted {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(20), look).await.is_ok()
        };
        other_in.send_replace(true);
        model_in.send_replace(Some(Arc::new(model())));
        // Whoever opened it ends then.
        drop(model_in);
        other_in.send_replace(false);
        assert!(becomes(true).await);
        other_in.send_replace(true);
        assert!(becomes(false).await);
        other_in.send_replace(false);
        assert!(becomes(true).await);
    }
}
