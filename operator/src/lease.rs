//! Leader election over a `coordination.k8s.io` Lease: who may write. Correctness of swarms does not hang on it (epochs fence), so a
//! short overlap of two leaders is harmless.
//!
//! Expiry is judged by the local clock since the lease was last seen to change, never by comparing clocks of machines.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// Others wait this long after the last renewal they saw.
const LEASE_DURATION: Duration = Duration::from_secs(10);
/// A leader that cannot renew for this long stops writing, before others may start.
const RENEW_DEADLINE: Duration = Duration::from_secs(6);
/// Time between attempts.
const RETRY: Duration = Duration::from_secs(2);

/// What an attempt should do about the lease it read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// Ours, or free, or expired.
    Take,
    /// Somebody else's.
    Wait,
}

/// The lease as last seen to change.
#[derive(Debug)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    at: Instant,
}

/// One candidate.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Option<Seen>,
}

impl Elector {
    /// A candidate called `identity` for the lease `name`.
    #[must_use]
    pub fn new(api: Api<Lease>, name: &str, identity: &str) -> Self {
        Self { api, name: name.to_owned(), identity: identity.to_owned(), seen: None }
    }

    /// Keeps `leader` up to date until `stop` is true, then gives the lease back.
    pub async fn run(mut self, leader: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut renewed = Instant::now();
        while !*stop.borrow() {
            match timeout(RETRY, self.attempt()).await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    set(&leader, true, &self.identity);
                }
                Ok(Ok(false)) => set(&leader, false, &self.identity),
                Ok(Err(error)) => warn!(%error, "cannot read or renew the lease"),
                Err(_) => warn!("reading or renewing the lease takes too long"),
            }
            if renewed.elapsed() > RENEW_DEADLINE {
                set(&leader, false, &self.identity);
            }
            // A closed channel means that the process is going down.
            if let Ok(Err(_)) = timeout(RETRY, stop.changed()).await {
                break;
            }
        }
        if *leader.borrow() {
            set(&leader, false, &self.identity);
            if let Ok(Err(error)) = timeout(RETRY, self.release()).await {
                warn!(%error, "cannot give the lease back; others wait until it expires");
            }
        }
    }

    /// Tries to get or keep the lease; true when we hold it.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        let written = match self.judge(found.as_ref(), Instant::now()) {
            Step::Wait => return Ok(false),
            Step::Create => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
                    spec: Some(self.spec(None)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Take => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                // resourceVersion makes this fail when somebody else was quicker.
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn judge(&mut self, lease: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let changed =
            self.seen.as_ref().is_none_or(|seen| seen.holder != holder || seen.renewed != spec.renew_time);
        if changed {
            self.seen = Some(Seen { holder: holder.clone(), renewed: spec.renew_time, at: now });
        }
        let expired = self.seen.as_ref().is_some_and(|seen| now.duration_since(seen.at) >= LEASE_DURATION);
        if holder.is_empty() || holder == self.identity || expired { Step::Take } else { Step::Wait }
    }

    fn spec(&self, previous: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = previous.is_some_and(|p| p.holder_identity.as_deref() == Some(&self.identity));
        let transitions = previous.and_then(|p| p.lease_transitions).unwrap_or(0);
        LeaseSpec {
            acquire_time: if ours {
                previous.and_then(|p| p.acquire_time.clone())
            } else {
                Some(now.clone())
            },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.name).await?;
        if let Some(spec) =
            lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity))
        {
            spec.holder_identity = Some(String::new());
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

fn set(leader: &watch::Sender<bool>, value: bool, identity: &str) {
    leader.send_if_modified(|current| {
        let changed = *current != value;
        if changed {
            info!(identity, leader = value, "leadership changed");
        }
        *current = value;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mock_client;

    fn elector() -> Elector {
        let (client, _handle) = mock_client();
        Elector::new(Api::namespaced(client, "dunlin"), "dunlin-operator", "me")
    }

    fn lease(holder: &str, renewed_s: i64) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                renew_time: Timestamp::from_second(renewed_s).ok().map(MicroTime),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[tokio::test]
    async fn another_holder_keeps_the_lease_while_it_renews_and_loses_it_afterwards() {
        let mut elector = elector();
        let start = Instant::now();
        assert_eq!(elector.judge(None, start), Step::Create);
        assert_eq!(elector.judge(Some(&lease("other", 1)), start), Step::Wait);
        assert_eq!(elector.judge(Some(&lease("other", 2)), start + Duration::from_secs(9)), Step::Wait);
        assert_eq!(elector.judge(Some(&lease("other", 2)), start + Duration::from_secs(18)), Step::Wait);
        assert_eq!(elector.judge(Some(&lease("other", 2)), start + Duration::from_secs(19)), Step::Take);
    }

    #[tokio::test]
    async fn a_released_lease_and_our_own_are_taken_at_once() {
        let mut elector = elector();
        assert_eq!(elector.judge(Some(&lease("", 1)), Instant::now()), Step::Take);
        assert_eq!(elector.judge(Some(&lease("me", 1)), Instant::now()), Step::Take);
    }

    #[tokio::test]
    async fn transitions_grow_only_when_the_holder_changes() {
        let elector = elector();
        let taken = elector.spec(lease("other", 1).spec.as_ref());
        assert_eq!(taken.lease_transitions, Some(1));
        let kept = elector.spec(Some(&taken));
        assert_eq!((kept.lease_transitions, kept.acquire_time), (Some(1), taken.acquire_time));
    }
}
