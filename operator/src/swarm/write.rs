//! Carries out a decision, in the order in which its parts are needed.
//!
//! Orders are given as soon as what they follow from is published, before anything else is written: who hands over or takes layers on need not
//! wait for pods to be made. While nothing can be published, they follow from what was published last: a new leader would not know of anything
//! newer, and give its number to something else. They are withheld when another leader has published meanwhile: it is the one to obey.

use kube::ResourceExt;

use super::contract::{Pass, ResourcesOf, Swarm};
use crate::error::Error;
use crate::key::SwarmKey;
use crate::making::{Maker, Refusals, delete};
use crate::status::events::SwarmEvent;

/// Everything, most urgent first. A refusal concerns one object: the others are written all the same.
pub(super) async fn all<S: Swarm>(
    key: &SwarmKey,
    pass: &Pass<'_, S>,
    resources: &mut ResourcesOf<S>,
    events: &mut Vec<SwarmEvent>,
) -> Result<(), Error> {
    let published = S::publish(pass, resources).await;
    if !published.as_ref().is_err_and(Error::is_conflict) {
        for (name, order) in S::orders(pass, resources)? {
            pass.context.monitor.order(key, &name, order);
        }
    }
    // What follows was decided for what is published.
    published?;
    let (applier, mut refusals) = (&pass.context.applier, Refusals::default());
    for object in S::objects(pass) {
        refusals.pass(applier.ensure(&mut resources.applied, &object).await)?;
    }
    S::deploy(pass, resources, &mut refusals).await?;
    pods(pass, resources, &mut refusals, events).await?;
    for deletions in [&pass.view.strays, &pass.decision.delete] {
        delete(applier, pass.owner, deletions, &mut resources.making, &mut refusals).await?;
    }
    refusals.end()
}

/// New pods, and certificates of those that wait for theirs.
async fn pods<S: Swarm>(
    pass: &Pass<'_, S>,
    resources: &mut ResourcesOf<S>,
    refusals: &mut Refusals,
    events: &mut Vec<SwarmEvent>,
) -> Result<(), Error> {
    let Some(trust) = &resources.trust else { return Ok(()) };
    let mut maker = Maker {
        owner: pass.owner,
        generation: pass.generation,
        trust,
        applier: &pass.context.applier,
        making: &mut resources.making,
        holds: &mut resources.applied.holds,
    };
    for (role, creation) in &pass.decision.create {
        let manifest = |name: &str| S::pod(pass, *role, &creation.pool, name);
        let went = maker.create(*role, creation, manifest, events).await;
        if let Some(pod) = refusals.pass(went)? {
            let went = maker.certify(&pod.name_any(), &pod.uid().unwrap_or_default(), *role).await;
            refusals.pass(went)?;
        }
    }
    for role in S::ROLES {
        for pod in pass.view.of(*role).values() {
            refusals.pass(maker.certify_if_due(pod, *role).await)?;
        }
    }
    Ok(())
}
