//! In which order a pass does what it does, as far as that is anybody's business: each rule says what goes wrong when the order is another, or when
//! the process ends in between.

use dunlin_operator::api::ApiVerb;
use dunlin_operator::labels::EPOCH;
use serde_json::Value;

use crate::objects::key;
use crate::world::World;

impl World {
    /// The operator calls `verb`.
    pub fn check_order(&mut self, verb: &ApiVerb) {
        let violation = match verb {
            ApiVerb::Create(object) | ApiVerb::Apply(object) => {
                let late = self.late_orders().or_else(|| self.told_before(&key(object).0));
                late.or_else(|| self.early_pod(object))
            }
            ApiVerb::Delete { name, .. } => {
                let late = self.late_orders().or_else(|| self.told_before(name));
                late.or_else(|| self.early_deletion(name))
            }
            _ => None,
        };
        if let Some(violation) = violation {
            self.violation(violation);
        }
        let is_new = self.swarm.status.as_ref().is_none_or(|status| status.conditions.is_empty());
        let Some(operator) = &mut self.operator else { return };
        match verb {
            ApiVerb::Delete { .. } => operator.so_far.has_deleted = true,
            // The first one says that nobody has looked.
            ApiVerb::Status { .. } => operator.so_far.has_told = !is_new,
            _ => {}
        }
    }

    /// Who takes layers over waits for nothing but that somebody may obey.
    fn late_orders(&self) -> Option<String> {
        let operator = self.operator.as_ref()?;
        let epoch = operator.so_far.published?;
        let name = operator.talks.untold(epoch)?;
        Some(format!("epoch {epoch} is published, and others are served before {name} is told"))
    }

    /// A status that is written before the rest does not say what came of it.
    fn told_before(&self, what: &str) -> Option<String> {
        let told = self.operator.as_ref()?.so_far.has_told;
        told.then(|| format!("the status was written before {what}: it does not say whether that worked"))
    }

    /// A pod that is made too early, if `object` is one.
    fn early_pod(&self, object: &Value) -> Option<String> {
        let (kind, name) = key(object);
        if kind != "Pod" {
            return None;
        }
        let epoch = object["metadata"]["labels"][EPOCH].as_str().and_then(|epoch| epoch.parse().ok());
        let published = self.cluster.published.as_ref().map_or(0, |topology| topology.epoch);
        if epoch > Some(published) {
            // Whoever leads next plans again, and gives that number to something else.
            return Some(format!("{name} is made for epoch {epoch:?}, and {published} is published"));
        }
        if !self.cluster.objects.has_some("NetworkPolicy") {
            return Some(format!("{name} is made, and everybody may reach it"));
        }
        if !self.cluster.objects.has_some("PodDisruptionBudget") {
            return Some(format!("{name} is made, and all peers may be evicted at once"));
        }
        let waited = self.operator.as_ref()?.so_far.has_deleted;
        waited.then(|| format!("{name} is made after others were deleted: a lost peer is replaced first"))
    }

    /// Workers know all that is said to them before any of them is ended: where layers go, and that they should hand over.
    fn early_deletion(&self, name: &str) -> Option<String> {
        let operator = self.operator.as_ref()?;
        let is_silent = operator.talks.orders() == operator.so_far.orders;
        (is_silent && self.cluster.published.is_some())
            .then(|| format!("{name} is deleted before anybody is told anything"))
    }
}
