//! What gateways, conductors and peers say on their pages: as much of it as is told here. Fields that are missing are as if nothing were said.

use std::collections::BTreeMap;

use dunlin_swarm::Layers;
use serde::Deserialize;

/// `/swarm` of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayPage {
    /// The name clients ask for.
    pub model: String,
    /// Number of the plan that it follows.
    pub epoch: u64,
    /// Layers of the model.
    pub layers: u32,
    /// Peers of that plan.
    pub peers: Vec<PeerSeen>,
    /// Answers in the making.
    pub sessions: Vec<SessionSeen>,
    /// Sessions that went on after a disturbance, newest last.
    pub recoveries: Vec<RecoverySeen>,
    /// Tokens generated since it started.
    pub tokens: u64,
    /// Why it would not answer.
    pub not_ready: Option<String>,
}

/// A peer as a gateway sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeerSeen {
    /// Pod name.
    pub name: String,
    /// It is within reach.
    pub up: bool,
    /// Sessions go around it.
    pub slow: bool,
    /// Rows that wait there.
    pub queue_rows: u32,
    /// Pages of KV cache not in use.
    pub free_pages: u32,
    /// Pages of KV cache.
    pub total_pages: u32,
    /// Rows a second through one layer.
    pub rows_per_s_per_layer: f64,
    /// Layers that it can execute now.
    pub held: Vec<Layers>,
    /// It is about to go.
    pub draining: bool,
}

/// A session as its gateway sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SessionSeen {
    /// Its name.
    pub id: String,
    /// Tokens of prompt and answer.
    pub tokens: u64,
    /// What it does or waits for.
    pub phase: String,
    /// `PEER [0,10)` for each step.
    pub route: Vec<String>,
}

impl SessionSeen {
    /// Whether it goes over `peer`.
    #[must_use]
    pub fn is_on(&self, peer: &str) -> bool {
        self.route.iter().any(|hop| hop.split(' ').next() == Some(peer))
    }
}

/// A session that went on after a disturbance.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RecoverySeen {
    /// How long ago.
    pub ago_ms: u64,
    /// Why.
    pub reason: String,
    /// From the disturbance to the next token.
    pub stall_ms: u64,
    /// Rows computed again.
    pub replayed_rows: u64,
}

/// `/status` of a conductor, beside what the operator writes into the status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConductorPage {
    /// `Starting`, `Training`, `Succeeded`, `Suspended`, `Failed`.
    pub phase: String,
    /// What it waits for, or why it failed.
    pub message: String,
    /// In the order of their layers.
    pub stages: Vec<StageSeen>,
    /// The last things that happened.
    pub notes: Vec<String>,
}

/// A stage as the conductor sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StageSeen {
    /// Its number.
    pub stage: u32,
    /// `0-7`.
    pub layers: String,
    /// Who trains it.
    pub members: Vec<MemberSeen>,
}

/// A peer as the conductor sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MemberSeen {
    /// Pod name.
    pub name: String,
    /// Its machine.
    pub host: String,
    /// Rows a second.
    pub rows_per_second: f64,
}

/// Figures of a page for Prometheus by name; those of one name with several labels are added up.
#[must_use]
pub fn figures(page: &str) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or(name).trim();
        if let Ok(value) = value.parse::<f64>() {
            *figures.entry(name.to_owned()).or_insert(0.0) += value;
        }
    }
    figures
}

/// Figures of `name` by the value of the label `label`.
#[must_use]
pub fn by_label(page: &str, name: &str, label: &str) -> BTreeMap<String, f64> {
    let value_of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let labels = series.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
        let pair = labels.split(',').find_map(|pair| pair.strip_prefix(label)?.strip_prefix("=\""))?;
        Some((pair.strip_suffix('"')?.to_owned(), value.parse().ok()?))
    };
    page.lines().filter_map(value_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateways_page_is_read_and_what_it_lacks_is_nothing() {
        let page = r#"{"model": "m", "epoch": 3, "layers": 30, "tokens": 7, "not_ready": null, "later": {},
            "peers": [{"name": "p", "up": true, "held": [{"start": 0, "end": 10}], "state": "Ready"}],
            "sessions": [{"id": "s", "tokens": 5, "phase": "running", "route": ["p [0,10)", "q [10,30)"]}]}"#;
        let page: GatewayPage = serde_json::from_str(page).unwrap();
        assert_eq!((page.layers, page.tokens, page.peers[0].held[0]), (30, 7, Layers::new(0, 10)));
        assert!(page.sessions[0].is_on("q") && !page.sessions[0].is_on("r") && page.recoveries.is_empty());
    }

    #[test]
    fn figures_are_read_from_prometheus_text() {
        let page = "# HELP a_total Things\n# TYPE a_total counter\na_total{reason=\"lost\"} 2\na_total{reason=\"drained\",x=\"y\"} 3\nb 0.5\n# EOF\n";
        assert_eq!(figures(page), BTreeMap::from([("a_total".into(), 5.0), ("b".into(), 0.5)]));
        let by = by_label(page, "a_total", "reason");
        assert_eq!(by, BTreeMap::from([("lost".into(), 2.0), ("drained".into(), 3.0)]));
    }
}
