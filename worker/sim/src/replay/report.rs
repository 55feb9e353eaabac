//! What came of it.

use serde::Serialize;

/// Means over the seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Samples done, less those that redoing held up, of those that complete pipelines of all nodes would have done.
    pub share_of_optimal: f64,
    /// The same of the seed with the smallest.
    pub share_of_optimal_min: f64,
    /// Samples done, of those that a swarm of all nodes would have done that nobody joins or leaves. For a fluid there is no difference.
    pub share_of_undisturbed: f64,
    /// Of that, the share within reach of any policy if joiners have to fetch: see the module.
    pub share_reachable: f64,
    /// Samples redone, in seconds of one peer.
    pub redone: f64,
    /// Seconds with a stage that nobody serves.
    pub downtime_s: f64,
    /// Times that nobody had a stage's state any more.
    pub states_lost: f64,
    /// Peers that joined.
    pub joins: f64,
    /// Changes of stage.
    pub switches: f64,
    /// States fetched by peers that served meanwhile.
    pub fetches: f64,
}
