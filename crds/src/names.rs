//! Labels and names of what the operator makes: stable, because users select by them and tools look for them.

/// Field manager of every server-side apply, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "dunlin-operator";
/// What begins the keys of labels that only the operator gives.
pub const OURS: &str = "dunlin.dev/";
/// Name of the swarm an object belongs to.
pub const SWARM: &str = "dunlin.dev/swarm";
/// Kind of the swarm an object belongs to.
pub const KIND: &str = "dunlin.dev/kind";
/// Pool a worker runs in.
pub const POOL: &str = "dunlin.dev/pool";
/// [`ROLE_STAGE`], [`ROLE_GATEWAY`], [`ROLE_CONDUCTOR`], [`ROLE_PEER`] or [`ROLE_TRAINER`].
pub const ROLE: &str = "dunlin.dev/role";
/// Epoch of the plan that asked for the object.
pub const EPOCH: &str = "dunlin.dev/epoch";
/// Fingerprint of what all workers of a swarm share, the model's source or the training run: those of two do not work together.
pub const TEMPLATE: &str = "dunlin.dev/template";
/// Fingerprint of all that a pod was made from: one with another is replaced when its turn comes.
pub const POD_HASH: &str = "dunlin.dev/pod-template-hash";
/// Role of a worker that holds layers.
pub const ROLE_STAGE: &str = "stage";
/// Role of a worker that answers clients.
pub const ROLE_GATEWAY: &str = "gateway";
/// Role of the pod that keeps the ledger of a training run.
pub const ROLE_CONDUCTOR: &str = "conductor";
/// Role of a pod that trains a stage.
pub const ROLE_PEER: &str = "train-peer";
/// Role of a pod that drives data through the stages.
pub const ROLE_TRAINER: &str = "trainer";

/// gRPC between workers, and from the operator.
pub const GRPC_PORT: u16 = 7070;
/// Probes and metrics of a worker.
pub const HEALTH_PORT: u16 = 9090;
/// The HTTP of gateways and conductors.
pub const HTTP_PORT: u16 = 8080;

/// Key of the JSON in the ConfigMap [`topology`], and name of the file that gateways mount.
pub const TOPOLOGY_KEY: &str = "topology.json";

/// ConfigMap with the topology of the InferenceSwarm `swarm`.
#[must_use]
pub fn topology(swarm: &str) -> String {
    format!("{swarm}-topology")
}
