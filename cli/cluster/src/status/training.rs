//! What is shown of a swarm that trains. Pure.

use dunlin_crds::TrainingSwarm;

use super::serving::{head, is_spot, state};
use super::view::{RunPodView, StageView, TrainingView};
use crate::pages::ConductorPage;
use crate::pods::PodFacts;
use crate::swarm::AnySwarm;

/// Most notes that are shown.
const NOTES_MAX: usize = 3;

/// The swarm as its object, its pods and its conductor tell. `pods`: none, too, when they may not be looked at; `said`: `None` when there is no
/// conductor to ask.
#[must_use]
pub fn view(
    swarm: &TrainingSwarm,
    pods: &[PodFacts],
    said: Option<Result<ConductorPage, String>>,
) -> TrainingView {
    let status = swarm.status.clone().unwrap_or_default();
    let (page, silent) = match said {
        Some(Ok(page)) => (page, None),
        Some(Err(why)) => (ConductorPage::default(), Some(why)),
        None => (ConductorPage::default(), None),
    };
    let member = |pod: &PodFacts, rows_per_s| RunPodView {
        name: pod.name.clone(),
        role: pod.role.clone(),
        node: pod.node.clone(),
        pool: pod.pool.clone(),
        spot: is_spot(&swarm.spec.pools, &pod.pool),
        state: state(pod),
        rows_per_s,
    };
    let members = |stage: u32| {
        let seen = page.stages.iter().filter(|s| s.stage == stage).flat_map(|s| &s.members);
        let known = seen.map(|seen| match pods.iter().find(|pod| pod.name == seen.name) {
            Some(pod) => member(pod, Some(seen.rows_per_second)),
            None => RunPodView {
                name: seen.name.clone(),
                node: seen.host.clone(),
                state: "gone".into(),
                rows_per_s: Some(seen.rows_per_second),
                ..RunPodView::default()
            },
        });
        known.collect::<Vec<_>>()
    };
    let stages: Vec<StageView> = status
        .stages
        .iter()
        .map(|s| StageView {
            stage: s.stage,
            layers: s.layers.clone(),
            peers: s.peers,
            members: members(s.stage),
        })
        .collect();
    let placed = |pod: &&PodFacts| stages.iter().flat_map(|s| &s.members).any(|m| m.name == pod.name);
    let others =
        pods.iter().filter(|pod| !pod.is_over() && !placed(pod)).map(|pod| member(pod, None)).collect();
    let newest = page.notes.len().saturating_sub(NOTES_MAX);
    TrainingView {
        head: head(&AnySwarm::Training(Box::new(swarm.clone()))),
        step: status.step,
        steps: status.steps,
        loss: status.loss,
        validation_loss: status.validation_loss,
        tokens_per_s: status.tokens_per_second,
        checkpoint: status.last_checkpoint.map(|c| (c.step, c.path)),
        redone_lost_moved: [status.redone, status.lost, status.moves],
        stages,
        others,
        notes: page.notes[newest..].to_vec(),
        silent,
    }
}
