//! Asks for what is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_crds::names::{HTTP_PORT, ROLE_CONDUCTOR, ROLE_GATEWAY, TOPOLOGY_KEY, topology};
use dunlin_swarm::Topology;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use tokio::time::Instant;

use super::serving::{self, Said};
use super::training;
use super::view::StatusView;
use crate::cluster::Cluster;
use crate::failure::CallFailure;
use crate::pages::{ConductorPage, GatewayPage};
use crate::pods::PodFacts;
use crate::proxy::{page, pages};
use crate::swarm::AnySwarm;

/// Between two looks at how many tokens have been generated.
const MOMENT: Duration = Duration::from_secs(1);

/// How many tokens gateways had generated, for the speed between two looks.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    tokens: BTreeMap<String, u64>,
}

/// Looks at swarms, again and again if asked to.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// By namespace and name of the swarm.
    samples: BTreeMap<(String, String), Sample>,
}

impl Looks {
    /// `swarm` as it is now.
    ///
    /// # Errors
    /// When its pods cannot be listed. Without the right to, the object alone is shown.
    pub async fn look(
        &mut self,
        cluster: &Cluster,
        swarm: &AnySwarm,
        now_s: i64,
    ) -> Result<StatusView, CallFailure> {
        let here = cluster.of(&swarm.namespace());
        let mut unread = Vec::new();
        let pods = unless_refused(here.list::<Pod>(&swarm.selector()).await, &mut unread)?;
        let pods: Option<Vec<PodFacts>> =
            pods.map(|pods| pods.iter().map(|pod| PodFacts::of(pod, now_s)).collect());
        let known = pods.as_deref().unwrap_or_default();
        let mut view = match swarm {
            AnySwarm::Inference(object) => {
                let topology = read_topology(&here, &swarm.name()).await;
                let topology = unless_refused(topology, &mut unread)?.flatten();
                let key = (swarm.namespace(), swarm.name());
                let (said, sample) = gateways(&here, known, self.samples.get(&key)).await;
                self.samples.insert(key, sample);
                StatusView::Serving(serving::view(object, topology.as_ref(), pods.as_deref(), &said))
            }
            AnySwarm::Training(object) => {
                let said = conductor(&here, known).await;
                StatusView::Training(training::view(object, known, said))
            }
        };
        view.head_mut().unread = unread;
        Ok(view)
    }
}

/// `None` for what may not be read, and a sentence more in `unread`.
fn unless_refused<T>(
    found: Result<T, CallFailure>,
    unread: &mut Vec<String>,
) -> Result<Option<T>, CallFailure> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.stays() => {
            unread.push(failure.to_string());
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// What the operator published last; `None` before the first plan.
///
/// # Errors
/// When it cannot be read, in a sentence.
pub async fn read_topology(here: &Cluster, swarm: &str) -> Result<Option<Topology>, CallFailure> {
    let Some(map) = here.get::<ConfigMap>(&topology(swarm)).await? else { return Ok(None) };
    let Some(text) = map.data.as_ref().and_then(|data| data.get(TOPOLOGY_KEY)) else { return Ok(None) };
    Topology::parse(text).map(Some).map_err(|e| {
        CallFailure::passing(format!("ConfigMap {} is of another version: {e}", topology(swarm)))
    })
}

/// Running pods of `role`.
fn running(pods: &[PodFacts], role: &str) -> Vec<String> {
    let running = pods.iter().filter(|p| p.role == role && p.phase == "Running" && !p.deleting);
    running.map(|p| p.name.clone()).collect()
}

/// What each gateway's `/swarm` says.
pub async fn gateway_pages(
    here: &Cluster,
    pods: &[PodFacts],
) -> BTreeMap<String, Result<GatewayPage, String>> {
    let namespace = here.namespace.as_deref().unwrap_or_default();
    let said = pages(&here.client, namespace, &running(pods, ROLE_GATEWAY), HTTP_PORT, "/swarm").await;
    let read = |pod: &str, said: Result<String, String>| {
        serde_json::from_str(&said?)
            .map_err(|e| format!("{pod} says something that this program does not know: {e}"))
    };
    said.into_iter().map(|(pod, said)| (pod.clone(), read(&pod, said))).collect()
}

async fn gateways(here: &Cluster, pods: &[PodFacts], before: Option<&Sample>) -> (Said, Sample) {
    let namespace = here.namespace.as_deref().unwrap_or_default();
    let names = running(pods, ROLE_GATEWAY);
    let first = match before {
        Some(sample) => sample.clone(),
        None => {
            let sample = sample(&gateway_pages(here, pods).await);
            if !sample.tokens.is_empty() {
                tokio::time::sleep(MOMENT).await;
            }
            sample
        }
    };
    let (pages, metrics) = tokio::join!(
        gateway_pages(here, pods),
        pages(&here.client, namespace, &names, HTTP_PORT, "/metrics")
    );
    let now = sample(&pages);
    let tokens_per_s = rate(&first, &now);
    let metrics = metrics.into_iter().filter_map(|(pod, text)| Some((pod, text.ok()?))).collect();
    (Said { pages, metrics, tokens_per_s }, now)
}

fn sample(pages: &BTreeMap<String, Result<GatewayPage, String>>) -> Sample {
    let tokens = pages.iter().filter_map(|(pod, page)| Some((pod.clone(), page.as_ref().ok()?.tokens)));
    Sample { at: Instant::now(), tokens: tokens.collect() }
}

/// Tokens a second between two samples, of the gateways that are in both.
fn rate(before: &Sample, now: &Sample) -> Option<f64> {
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let both = now.tokens.iter().filter_map(|(pod, now)| Some(now.saturating_sub(*before.tokens.get(pod)?)));
    let (count, tokens) = both.fold((0, 0), |(count, sum), more| (count + 1, sum + more));
    (count > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// What the conductor's `/status` says; `None` when no conductor runs.
pub async fn conductor(here: &Cluster, pods: &[PodFacts]) -> Option<Result<ConductorPage, String>> {
    let namespace = here.namespace.as_deref().unwrap_or_default();
    let pod = running(pods, ROLE_CONDUCTOR).into_iter().next()?;
    let said = page(&here.client, namespace, &pod, HTTP_PORT, "/status").await;
    Some(said.and_then(|text| {
        serde_json::from_str(&text)
            .map_err(|e| format!("{pod} says something that this program does not know: {e}"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_of_gateways_that_were_there_before() {
        let at = Instant::now();
        let sample = |at, tokens: &[(&str, u64)]| Sample {
            at,
            tokens: tokens.iter().map(|(pod, tokens)| ((*pod).to_owned(), *tokens)).collect(),
        };
        let before = sample(at, &[("a", 100), ("b", 10)]);
        let now = sample(at + Duration::from_secs(2), &[("a", 160), ("b", 2), ("c", 500)]);
        assert_eq!(rate(&before, &now), Some(30.0), "one started again, one is new");
        assert_eq!(rate(&sample(at, &[]), &now), None);
    }
}
