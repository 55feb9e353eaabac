//! Swarms of both kinds, and how they are found by name.

use anyhow::{Result, anyhow, bail};
use dunlin_crds::{InferenceSwarm, PoolSpec, TrainingSwarm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::failure::CallFailure;

/// A swarm.
#[derive(Clone, Debug)]
pub enum AnySwarm {
    /// It serves a model.
    Inference(Box<InferenceSwarm>),
    /// It trains one.
    Training(Box<TrainingSwarm>),
}

impl AnySwarm {
    /// As Kubernetes calls its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Inference(_) => "InferenceSwarm",
            Self::Training(_) => "TrainingSwarm",
        }
    }

    /// `inferenceswarm/NAME`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.kind().to_lowercase(), self.name())
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Inference(swarm) => swarm.name_any(),
            Self::Training(swarm) => swarm.name_any(),
        }
    }

    /// `metadata.namespace`.
    #[must_use]
    pub fn namespace(&self) -> String {
        let namespace = match self {
            Self::Inference(swarm) => swarm.namespace(),
            Self::Training(swarm) => swarm.namespace(),
        };
        namespace.unwrap_or_default()
    }

    /// What the operator found.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        match self {
            Self::Inference(swarm) => swarm.status.as_ref().map_or(&[], |s| &s.conditions),
            Self::Training(swarm) => swarm.status.as_ref().map_or(&[], |s| &s.conditions),
        }
    }

    /// Where its peers may run.
    #[must_use]
    pub fn pools(&self) -> &[PoolSpec] {
        match self {
            Self::Inference(swarm) => &swarm.spec.pools,
            Self::Training(swarm) => &swarm.spec.pools,
        }
    }

    /// `spec.suspend`.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        match self {
            Self::Inference(swarm) => swarm.spec.suspend,
            Self::Training(swarm) => swarm.spec.suspend,
        }
    }

    /// Generation of the manifest, and the one that the operator speaks about.
    #[must_use]
    pub fn generations(&self) -> (i64, Option<i64>) {
        let (generation, observed) = match self {
            Self::Inference(s) => {
                (s.metadata.generation, s.status.as_ref().and_then(|s| s.observed_generation))
            }
            Self::Training(s) => {
                (s.metadata.generation, s.status.as_ref().and_then(|s| s.observed_generation))
            }
        };
        (generation.unwrap_or(0), observed)
    }

    /// Seconds since it was made.
    #[must_use]
    pub fn age_s(&self, now_s: i64) -> i64 {
        let made = match self {
            Self::Inference(swarm) => swarm.creation_timestamp(),
            Self::Training(swarm) => swarm.creation_timestamp(),
        };
        made.map_or(0, |made| now_s - made.0.as_second())
    }

    /// The manifest as JSON.
    #[must_use]
    pub fn spec(&self) -> Value {
        let spec = match self {
            Self::Inference(swarm) => serde_json::to_value(&swarm.spec),
            Self::Training(swarm) => serde_json::to_value(&swarm.spec),
        };
        spec.unwrap_or_default()
    }

    /// Selects its pods: swarms of two kinds may have one name.
    #[must_use]
    pub fn selector(&self) -> String {
        use dunlin_crds::names::{KIND, SWARM};
        format!("{SWARM}={},{KIND}={}", self.name(), self.kind())
    }

    /// Whether its condition Ready is True.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.conditions().iter().any(|c| c.type_ == "Ready" && c.status == "True")
    }
}

/// What somebody named, or all that there is.
#[derive(Debug)]
pub struct Chosen {
    /// Those that serve first.
    pub swarms: Vec<AnySwarm>,
    /// The kind that may not be listed, in a sentence.
    pub unread: Option<String>,
}

/// The swarm called `name`, or all of them; of one kind alone when the other may not be listed.
///
/// # Errors
/// When there is none, or several of that name; with the names that there are. When no kind can be listed.
pub async fn chosen(cluster: &Cluster, name: Option<&str>) -> Result<Chosen> {
    let (serving, training) =
        tokio::join!(cluster.list::<InferenceSwarm>(""), cluster.list::<TrainingSwarm>(""));
    let serving = serving.map(|all| all.into_iter().map(|s| AnySwarm::Inference(Box::new(s))).collect());
    let training = training.map(|all| all.into_iter().map(|s| AnySwarm::Training(Box::new(s))).collect());
    let Chosen { swarms, unread } = both(serving, training)?;
    let place = cluster.namespace.as_deref().map_or("this cluster".to_owned(), |n| format!("namespace {n}"));
    let besides = |unread: &Option<String>| unread.as_ref().map_or(String::new(), |why| format!("; {why}"));
    match name {
        Some(name) => match one(swarms, name, &place) {
            Ok(swarm) => Ok(Chosen { swarms: vec![swarm], unread: None }),
            Err(error) => Err(anyhow!("{error}{}", besides(&unread))),
        },
        None if swarms.is_empty() => bail!(
            "no swarms in {place}: look elsewhere with -n NAMESPACE or -A, or apply one: kubectl apply -f examples/smollm2.yaml{}",
            besides(&unread)
        ),
        None => Ok(Chosen { swarms, unread }),
    }
}

/// Swarms of both kinds. One kind may be kept from whoever asks.
fn both(
    serving: Result<Vec<AnySwarm>, CallFailure>,
    training: Result<Vec<AnySwarm>, CallFailure>,
) -> Result<Chosen, CallFailure> {
    match (serving, training) {
        (Ok(serving), Ok(training)) => {
            Ok(Chosen { swarms: serving.into_iter().chain(training).collect(), unread: None })
        }
        (Ok(swarms), Err(why)) | (Err(why), Ok(swarms)) if why.stays() => {
            Ok(Chosen { swarms, unread: Some(why.to_string()) })
        }
        (Err(why), _) | (_, Err(why)) => Err(why),
    }
}

/// The one of `all` that is called `name`.
fn one(all: Vec<AnySwarm>, name: &str, place: &str) -> Result<AnySwarm> {
    let (kind, plain) = name.split_once('/').map_or((None, name), |(kind, plain)| (Some(kind), plain));
    let kind = match kind.map(|kind| kind.split('.').next().unwrap_or(kind).to_lowercase()) {
        None => None,
        Some(kind) => match kind.as_str() {
            "isw" | "inferenceswarm" | "inferenceswarms" => Some("InferenceSwarm"),
            "tsw" | "trainingswarm" | "trainingswarms" => Some("TrainingSwarm"),
            _ => bail!("{kind} is no kind of swarm: write isw/{plain} or tsw/{plain}"),
        },
    };
    let names: Vec<String> = all.iter().map(|s| format!("{} in {}", s.id(), s.namespace())).collect();
    let mut found: Vec<AnySwarm> =
        all.into_iter().filter(|s| s.name() == plain && kind.is_none_or(|kind| s.kind() == kind)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(swarm), true) => Ok(swarm),
        (Some(_), false) => bail!(
            "several swarms are called {plain} ({}): say which with isw/{plain}, tsw/{plain} or -n NAMESPACE",
            names
                .iter()
                .filter(|n| n.contains(&format!("/{plain} ")))
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        ),
        (None, _) if names.is_empty() => {
            bail!("no swarm {name} in {place}, nor any other: look elsewhere with -n NAMESPACE or -A")
        }
        (None, _) => bail!("no swarm {name} in {place}; there are: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failure::ApiCall;

    fn swarm(kind: &str, name: &str, namespace: &str) -> AnySwarm {
        let object = json!({
            "apiVersion": "dunlin.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": {"source": {}}, "pools": []},
        });
        AnySwarm::Inference(Box::new(serde_json::from_value(object).unwrap()))
    }

    #[test]
    fn one_kind_is_enough_for_whoever_may_not_list_the_other() {
        let status = |code| {
            kube::Error::Api(Box::new(kube::core::Status {
                code,
                message: "eve cannot list".into(),
                ..kube::core::Status::default()
            }))
        };
        let call = ApiCall { verb: "list", resource: "trainingswarms.dunlin.dev", namespace: Some("x") };
        let serving = || Ok(vec![swarm("InferenceSwarm", "a", "x")]);
        let found = both(serving(), Err(call.failed(&status(403)))).unwrap();
        assert_eq!(found.swarms.len(), 1);
        assert!(found.unread.unwrap().contains("the verb list on trainingswarms.dunlin.dev"));
        assert!(both(serving(), Err(call.failed(&status(500)))).is_err(), "nobody knows what is missing");
        let none = both(Err(call.failed(&status(403))), Err(call.failed(&status(403))));
        assert!(none.unwrap_err().stays());
    }

    #[test]
    fn a_swarm_is_found_by_its_name_and_others_are_named_when_there_is_none() {
        let all = || {
            vec![
                swarm("InferenceSwarm", "a", "x"),
                swarm("InferenceSwarm", "a", "y"),
                swarm("InferenceSwarm", "b", "x"),
            ]
        };
        let found = |name: &str| one(all(), name, "this cluster").map(|s| s.id()).map_err(|e| e.to_string());
        assert_eq!(found("isw/b"), Ok("inferenceswarm/b".into()));
        assert_eq!(found("inferenceswarms.dunlin.dev/b"), Ok("inferenceswarm/b".into()));
        let several = found("a").unwrap_err();
        assert!(
            several.starts_with("several swarms are called a (inferenceswarm/a in x, inferenceswarm/a in y)"),
            "{several}"
        );
        let none = found("tsw/b").unwrap_err();
        assert_eq!(
            none,
            "no swarm tsw/b in this cluster; there are: inferenceswarm/a in x, inferenceswarm/a in y, inferenceswarm/b in x"
        );
        assert!(found("pod/b").unwrap_err().contains("write isw/b or tsw/b"));
    }
}
