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
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::api::{call, is_code};
use crate::error::Error;

/// Others wait this long after the last renewal they saw.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader stops writing so long after the beginning of its last renewal, before others may start. With calls of 5 s, two fit.
const RENEW_DEADLINE: Duration = Duration::from_secs(13);
/// From the beginning of one attempt to that of the next.
const PERIOD: Duration = Duration::from_secs(2);
/// At least this long between two attempts, however long they take.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// A candidate reads and writes, each within the deadline of any call.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Deadline of giving the lease back, when the process is to end.
const RELEASE: Duration = Duration::from_secs(5);

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
    /// The lease as we wrote it last: the next renewal needs no look at it, and fails when somebody else has written since.
    ours: Option<Lease>,
}

impl Elector {
    /// A candidate called `identity` for the lease `name`.
    #[must_use]
    pub fn new(api: Api<Lease>, name: &str, identity: &str) -> Self {
        Self { api, name: name.to_owned(), identity: identity.to_owned(), seen: None, ours: None }
    }

    /// Keeps `leader` up to date until `stop` is true, then gives the lease back.
    pub async fn run(mut self, leader: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut renewed = Instant::now();
        while !*stop.borrow() {
            let began = Instant::now();
            let leads = *leader.borrow();
            // Others count from when they see the renewal, which is never before it began.
            let end = if leads { renewed + RENEW_DEADLINE } else { began + ATTEMPT };
            match timeout_at(end, self.attempt()).await {
                Ok(Ok(Some(at))) => {
                    renewed = at;
                    set(&leader, true, &self.identity);
                }
                Ok(Ok(None)) => set(&leader, false, &self.identity),
                Ok(Err(failure)) => {
                    self.ours = None;
                    warn!(failure = failure.sentence(), "cannot read or renew the lease");
                }
                Err(_) => {
                    self.ours = None;
                    warn!("reading or renewing the lease takes too long");
                }
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                set(&leader, false, &self.identity);
            }
            let pause = PERIOD.saturating_sub(began.elapsed()).max(PAUSE_MIN);
            // A closed channel means that the process is going down.
            if let Ok(Err(_)) = timeout(pause, stop.changed()).await {
                break;
            }
        }
        if *leader.borrow() {
            set(&leader, false, &self.identity);
            match timeout(RELEASE, self.release()).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    warn!(
                        failure = failure.sentence(),
                        "cannot give the lease back; others wait until it expires"
                    );
                }
                Err(_) => warn!("giving the lease back takes too long; others wait until it expires"),
            }
        }
    }

    /// Tries to get or keep the lease; when we hold it, since when at the latest others count.
    async fn attempt(&mut self) -> Result<Option<Instant>, Error> {
        let (found, step) = match self.ours.take() {
            Some(ours) => (Some(ours), Step::Take),
            None => {
                let found = call("read the lease".into(), self.api.get_opt(&self.name)).await?;
                let step = self.judge(found.as_ref(), Instant::now());
                (found, step)
            }
        };
        let (params, began) = (PostParams::default(), Instant::now());
        let written = match step {
            Step::Wait => return Ok(None),
            Step::Create => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
                    spec: Some(self.spec(None)),
                };
                call("create the lease".into(), self.api.create(&params, &lease)).await
            }
            Step::Take => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                // resourceVersion makes this fail when somebody else was quicker.
                call("renew the lease".into(), self.api.replace(&self.name, &params, &lease)).await
            }
        };
        match written {
            Ok(lease) => {
                self.ours = Some(lease);
                Ok(Some(began))
            }
            // Somebody else was quicker, or it was deleted: the next attempt looks.
            Err(Error::Api { source, .. }) if is_code(&source, 409) => Ok(None),
            Err(failure) => Err(failure),
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

    async fn release(&self) -> Result<(), Error> {
        let mut lease = call("read the lease".into(), self.api.get(&self.name)).await?;
        if let Some(spec) =
            lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity))
        {
            spec.holder_identity = Some(String::new());
            call("give the lease back".into(), self.api.replace(&self.name, &PostParams::default(), &lease))
                .await?;
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
    use std::sync::{Arc, Mutex};

    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Server, described, mock_client};

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
        assert_eq!(elector.judge(Some(&lease("other", 2)), start + Duration::from_secs(23)), Step::Wait);
        assert_eq!(elector.judge(Some(&lease("other", 2)), start + Duration::from_secs(24)), Step::Take);
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

    /// The lease on an API server of which each call takes `delay`, and is carried out in the middle of it.
    fn serve(mut server: Server, delay: Duration) -> tokio::task::JoinHandle<()> {
        let stored = Arc::new(Mutex::new(None::<(u64, Value)>));
        tokio::spawn(async move {
            while let Some((request, respond)) = server.next_request().await {
                let stored = Arc::clone(&stored);
                tokio::spawn(async move {
                    let (call, body) = described(request).await;
                    tokio::time::sleep(delay / 2).await;
                    let (code, answer) = carry_out(&mut stored.lock().unwrap(), &call, body);
                    tokio::time::sleep(delay / 2).await;
                    let body = Body::from(serde_json::to_vec(&answer).unwrap());
                    respond.send_response(http::Response::builder().status(code).body(body).unwrap());
                });
            }
        })
    }

    fn carry_out(stored: &mut Option<(u64, Value)>, call: &str, body: Value) -> (u16, Value) {
        let version = stored.as_ref().map(|(version, _)| version.to_string());
        let accepted = match call.split(' ').next() {
            Some("GET") => version.is_some(),
            Some("POST") => version.is_none(),
            _ => version.as_deref() == body["metadata"]["resourceVersion"].as_str(),
        };
        if !accepted {
            let (code, reason) = if call.starts_with("GET") { (404, "NotFound") } else { (409, "Conflict") };
            return (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}));
        }
        if !call.starts_with("GET") {
            *stored = Some((stored.as_ref().map_or(1, |(version, _)| version + 1), body));
        }
        let (version, mut lease) = stored.clone().unwrap();
        lease["metadata"]["resourceVersion"] = json!(version.to_string());
        (200, lease)
    }

    /// Two candidates over an API server of which each call takes `delay_s`.
    struct Race {
        leads: [watch::Receiver<bool>; 2],
        tasks: Vec<tokio::task::JoinHandle<()>>,
        _stop: watch::Sender<bool>,
    }

    impl Race {
        fn new(delay_s: u64) -> Self {
            let (client, server) = mock_client();
            let mut tasks = vec![serve(server, Duration::from_secs(delay_s))];
            let (stop, stopped) = watch::channel(false);
            let leads = ["a", "b"].map(|identity| {
                let (leader, leads) = watch::channel(false);
                let api = Api::namespaced(client.clone(), "dunlin");
                let elector = Elector::new(api, "dunlin-operator", identity);
                tasks.push(tokio::spawn(elector.run(leader, stopped.clone())));
                leads
            });
            Self { leads, tasks, _stop: stop }
        }

        fn leaders(&self) -> Vec<usize> {
            (0..2).filter(|i| *self.leads[*i].borrow()).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_leads_on_while_each_call_takes_five_seconds() {
        let race = Race::new(5);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let first = race.leaders();
        assert_eq!(first.len(), 1);
        for second in 0..600 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(race.leaders(), first, "after {second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cut_off_stops_before_the_other_one_leads() {
        let race = Race::new(1);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let first = race.leaders()[0];
        race.tasks[1 + first].abort();
        let cut_off = Instant::now();
        let mut other = race.leads[1 - first].clone();
        other.wait_for(|leads| *leads).await.unwrap();
        let after = cut_off.elapsed();
        assert!(after >= RENEW_DEADLINE - PERIOD && after <= LEASE_DURATION + 2 * PERIOD, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_api_server_hangs_gives_up_in_time() {
        let race = Race::new(1);
        tokio::time::sleep(Duration::from_secs(10)).await;
        race.tasks[0].abort();
        let mut leads = race.leads[race.leaders()[0]].clone();
        let gone = Instant::now();
        leads.wait_for(|leads| !*leads).await.unwrap();
        assert!(gone.elapsed() <= RENEW_DEADLINE, "{:?}", gone.elapsed());
    }
}
