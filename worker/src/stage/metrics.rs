//! Figures of a stage for Prometheus.

use std::sync::atomic::AtomicU64;

use dunlin_engine::EngineStatus;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Gauges, brought up to date with each tick.
pub struct StageMetrics {
    registry: Registry,
    layers: Gauge,
    queue_rows: Gauge,
    free_pages: Gauge,
    total_pages: Gauge,
    rate: Gauge<f64, AtomicU64>,
    weight_bytes: Gauge,
    sessions: Gauge,
    journal_bytes: Gauge,
}

impl Default for StageMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("dunlin_stage");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let layers = gauge("layers", "Layers that can be executed");
        let queue_rows = gauge("queue_rows", "Rows that wait for the engine");
        let free_pages = gauge("free_pages", "Pages of KV cache not in use");
        let total_pages = gauge("total_pages", "Pages of KV cache");
        let weight_bytes = gauge("weight_bytes", "Memory of weights");
        let sessions = gauge("sessions", "Sessions with state here");
        let journal_bytes = gauge("journal_bytes", "Memory of journals");
        let rate = Gauge::default();
        registry.register("rows_per_second_per_layer", "Measured speed", rate.clone());
        Self {
            registry,
            layers,
            queue_rows,
            free_pages,
            total_pages,
            rate,
            weight_bytes,
            sessions,
            journal_bytes,
        }
    }
}

impl StageMetrics {
    /// Takes over new values.
    pub fn update(&self, status: &EngineStatus, sessions: usize, journal_bytes: usize) {
        self.layers.set(status.held.iter().map(|l| i64::from(l.len())).sum());
        self.queue_rows.set(i64::from(status.queue_rows));
        self.free_pages.set(i64::from(status.free_pages));
        self.total_pages.set(i64::from(status.total_pages));
        self.rate.set(status.rows_per_s_per_layer);
        self.weight_bytes.set(status.weight_bytes as i64);
        self.sessions.set(sessions as i64);
        self.journal_bytes.set(journal_bytes as i64);
    }

    /// The page for Prometheus.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}
