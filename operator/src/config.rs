//! Command line and environment, resolved once into values that need no further checks.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;

use crate::apply::network::Reach;
use crate::apply::parts::Image;

/// Kubernetes operator of Dunlin: plans and runs swarms of preemptible pods that serve one model together.
#[derive(Clone, Debug, Parser)]
#[command(name = "dunlin-operator", version)]
pub struct Config {
    /// Image of stage and gateway pods.
    #[arg(long, env = "DUNLIN_WORKER_IMAGE")]
    pub worker_image: String,
    /// imagePullPolicy of stage and gateway pods.
    #[arg(long, env = "DUNLIN_WORKER_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub worker_image_pull_policy: String,
    /// Names of image pull secrets in the namespace of each swarm.
    #[arg(long, env = "DUNLIN_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// Keys of labels that the objects and pods of a swarm have from it.
    #[arg(long, env = "DUNLIN_INHERITED_LABELS", value_delimiter = ',')]
    pub inherited_labels: Vec<String>,
    /// Pods of swarms run as the user that images are made for. False where the platform gives every namespace users of its own.
    #[arg(long, env = "DUNLIN_FIXED_USER", default_value_t = true, action = clap::ArgAction::Set)]
    pub fixed_user: bool,
    /// The only namespace to watch; all of them when empty.
    #[arg(long, env = "DUNLIN_WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,
    /// Watch nodes: spot markers, taints and readiness. Needs a ClusterRole.
    #[arg(long, env = "DUNLIN_WATCH_NODES", default_value_t = true, action = clap::ArgAction::Set)]
    pub watch_nodes: bool,
    /// Watch names and versions of the Secrets of swarms: what is deleted comes back at once. Needs the right to list Secrets.
    #[arg(long, env = "DUNLIN_WATCH_SECRETS", default_value_t = true, action = clap::ArgAction::Set)]
    pub watch_secrets: bool,
    /// Namespace of the operator: where its lease lives and which NetworkPolicies let in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// NetworkPolicies also limit what the pods of swarms reach.
    #[arg(long, env = "DUNLIN_LIMIT_EGRESS", default_value_t = true, action = clap::ArgAction::Set)]
    pub limit_egress: bool,
    /// Identity in the lease.
    #[arg(long, env = "POD_NAME", default_value = "dunlin-operator")]
    pub identity: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "DUNLIN_HTTP", default_value = "0.0.0.0:9090")]
    pub http: SocketAddr,
    /// A worker that answered before and is silent for this long is lost, in milliseconds.
    #[arg(long, env = "DUNLIN_SILENCE_MS_MAX", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(500..))]
    pub silence_ms_max: u64,
    /// DNS domain of the cluster, for the URL in the status.
    #[arg(long, env = "DUNLIN_CLUSTER_DOMAIN", default_value = "svc")]
    pub service_domain: String,
}

impl Config {
    /// What pods of a swarm may reach of which these roles read from URLs or write to them.
    #[must_use]
    pub fn reach<'a>(&self, outside: &'a [&'static str]) -> Reach<'a> {
        if self.limit_egress { Reach::Inside { but: outside } } else { Reach::Everything }
    }

    /// Image, pull settings and user of all pods of swarms.
    #[must_use]
    pub fn image(&self) -> Image {
        Image {
            reference: self.worker_image.clone(),
            pull_policy: self.worker_image_pull_policy.clone(),
            pull_secrets: self.image_pull_secrets.clone(),
            fixed_user: self.fixed_user,
        }
    }

    /// How long a worker may be silent.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        Duration::from_millis(self.silence_ms_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_required_and_the_rest_has_defaults() {
        assert!(Config::try_parse_from(["dunlin-operator", "--silence-ms-max", "100"]).is_err());
        let config = Config::try_parse_from(["dunlin-operator", "--worker-image", "w:1"]);
        assert_eq!(config.map(|c| c.silence_ms_max).ok(), Some(3000));
    }
}
