//! Figures for Prometheus, under vLLM's names where it has one: gateways that know vLLM work with us unmodified.

use std::time::Duration;

use dunlin_protocol::gateway::Recovery;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type ByReason = Family<[(&'static str, &'static str); 1], Counter>;

const LATENCY_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// All figures of a gateway.
pub struct GatewayMetrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    first_token: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    success: ByReason,
    recoveries: ByReason,
    stall: Histogram,
    replayed_rows: Counter,
    peers: Gauge,
    epoch: Gauge,
    topologies_refused: Counter,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let latency = || Histogram::new(LATENCY_S);
        let new = Self {
            registry: Registry::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            first_token: latency(),
            inter_token: latency(),
            whole: latency(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            success: ByReason::default(),
            recoveries: ByReason::default(),
            stall: latency(),
            replayed_rows: Counter::default(),
            peers: Gauge::default(),
            epoch: Gauge::default(),
            topologies_refused: Counter::default(),
        };
        let mut r = Registry::default();
        r.register("vllm:num_requests_running", "Sessions that run", new.running.clone());
        r.register("vllm:num_requests_waiting", "Sessions that wait for their turn", new.waiting.clone());
        r.register("vllm:time_to_first_token_seconds", "Until the first token", new.first_token.clone());
        r.register("vllm:inter_token_latency_seconds", "Between two tokens", new.inter_token.clone());
        r.register("vllm:e2e_request_latency_seconds", "Whole requests", new.whole.clone());
        r.register("vllm:prompt_tokens", "Tokens of prompts", new.prompt_tokens.clone());
        r.register("vllm:generation_tokens", "Tokens generated", new.generation_tokens.clone());
        r.register("vllm:request_success", "Requests by finish reason", new.success.clone());
        r.register("dunlin_recoveries", "Sessions that went on after a disturbance", new.recoveries.clone());
        r.register(
            "dunlin_recovery_stall_seconds",
            "From a disturbance to the next token",
            new.stall.clone(),
        );
        r.register("dunlin_replayed_rows", "Rows computed again", new.replayed_rows.clone());
        r.register("dunlin_peers", "Peers with a working link", new.peers.clone());
        r.register("dunlin_epoch", "Epoch of the topology", new.epoch.clone());
        r.register(
            "dunlin_topologies_refused",
            "Topologies of another model than the gateway's",
            new.topologies_refused.clone(),
        );
        Self { registry: r, ..new }
    }
}

impl GatewayMetrics {
    /// Sessions at the moment.
    pub fn sessions(&self, running: usize, waiting: usize) {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
    }

    /// Peers at the moment.
    pub fn peers(&self, up: usize) {
        self.peers.set(up as i64);
    }

    /// Sets the epoch of the topology that the gateway follows.
    pub fn epoch(&self, epoch: u64) {
        self.epoch.set(epoch as i64);
    }

    /// A topology of another model came.
    pub fn topology_refused(&self) {
        self.topologies_refused.inc();
    }

    /// A session went on.
    pub fn recovered(&self, recovery: &Recovery) {
        self.recoveries.get_or_create(&[("reason", recovery.reason.as_str())]).inc();
        self.stall.observe(recovery.stall_ms as f64 / 1e3);
        self.replayed_rows.inc_by(recovery.replayed_rows);
    }

    /// A token came, so long after the one before (or after the request, if it is the first).
    pub fn token(&self, after: Duration, first: bool) {
        self.generation_tokens.inc();
        let histogram = if first { &self.first_token } else { &self.inter_token };
        histogram.observe(after.as_secs_f64());
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.generation_tokens.get()
    }

    /// A request was taken.
    pub fn prompt(&self, tokens: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
    }

    /// A request is complete.
    pub fn finished(&self, reason: &'static str, after: Duration) {
        self.success.get_or_create(&[("finished_reason", reason)]).inc();
        self.whole.observe(after.as_secs_f64());
    }

    /// The page for Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}
