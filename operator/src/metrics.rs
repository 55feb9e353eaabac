//! What the operator counts, in OpenMetrics text. Label values come from fixed sets, never from error texts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::key::SwarmKey;

/// Label `category` of a failed reconciliation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Category {
    /// One of [`crate::error::Error::category`].
    pub category: &'static str,
}

/// Label `swarm` of what is measured per swarm.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SwarmLabels {
    /// Kind of the swarm.
    pub kind: &'static str,
    /// Namespace of the swarm.
    pub namespace: String,
    /// Name of the swarm.
    pub swarm: String,
}

impl SwarmLabels {
    /// Those of `swarm`.
    #[must_use]
    pub fn of(swarm: &SwarmKey) -> Self {
        Self { kind: swarm.kind.name(), namespace: swarm.namespace.clone(), swarm: swarm.name.clone() }
    }
}

/// All metrics of the process.
pub struct OperatorMetrics {
    registry: Registry,
    /// Seconds per reconciliation.
    pub reconcile_seconds: Histogram,
    /// Failed reconciliations.
    pub reconcile_failures: Family<Category, Counter>,
    /// Objects written by server-side apply.
    pub applied: Counter,
    /// Peers found lost.
    pub peers_lost: Family<SwarmLabels, Counter>,
    /// Worker pods created.
    pub peers_created: Family<SwarmLabels, Counter>,
    /// Peers Ready now.
    pub peers_ready: Family<SwarmLabels, Gauge>,
    /// Epoch of the current plan.
    pub epoch: Family<SwarmLabels, Gauge>,
    /// 1 on the replica that writes.
    pub leader: Gauge,
}

impl Default for OperatorMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("dunlin_operator");
        let metrics = Self {
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            reconcile_failures: Family::default(),
            applied: Counter::default(),
            peers_lost: Family::default(),
            peers_created: Family::default(),
            peers_ready: Family::default(),
            epoch: Family::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register_with_unit(
            "reconcile",
            "Time of one reconciliation",
            Unit::Seconds,
            metrics.reconcile_seconds.clone(),
        );
        registry.register("reconcile_failures", "Failed reconciliations", metrics.reconcile_failures.clone());
        registry.register("applied", "Objects written by server-side apply", metrics.applied.clone());
        registry.register("peers_lost", "Peers found lost", metrics.peers_lost.clone());
        registry.register("peers_created", "Worker pods created", metrics.peers_created.clone());
        registry.register("peers_ready", "Peers that are Ready", metrics.peers_ready.clone());
        registry.register("epoch", "Epoch of the current plan", metrics.epoch.clone());
        registry.register("leader", "1 on the replica that writes", metrics.leader.clone());
        Self { registry, ..metrics }
    }
}

impl OperatorMetrics {
    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// When formatting fails.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts one reconciliation.
    pub fn reconciled(&self, took: Duration, failure: Option<&'static str>) {
        self.reconcile_seconds.observe(took.as_secs_f64());
        if let Some(category) = failure {
            self.reconcile_failures.get_or_create(&Category { category }).inc();
        }
    }

    /// Forgets a deleted swarm, so that its series end.
    pub fn forget(&self, labels: &SwarmLabels) {
        self.peers_lost.remove(labels);
        self.peers_created.remove(labels);
        self.peers_ready.remove(labels);
        self.epoch.remove(labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_appear_with_their_unit_and_vanish_with_the_swarm() {
        let metrics = OperatorMetrics::default();
        let labels =
            SwarmLabels { kind: "InferenceSwarm", namespace: "default".into(), swarm: "smollm2".into() };
        metrics.peers_lost.get_or_create(&labels).inc();
        metrics.reconciled(Duration::from_millis(3), Some("api"));
        let text = metrics.text().unwrap();
        assert!(text.contains("dunlin_operator_reconcile_seconds_count 1"), "{text}");
        assert!(text.contains("dunlin_operator_reconcile_failures_total{category=\"api\"} 1"), "{text}");
        assert!(
            text.contains(
                "dunlin_operator_peers_lost_total{kind=\"InferenceSwarm\",namespace=\"default\",swarm=\"smollm2\"} 1"
            ),
            "{text}"
        );
        metrics.forget(&labels);
        assert!(!metrics.text().unwrap().contains("smollm2"));
    }
}
