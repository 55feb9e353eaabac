//! One task per worker asks every second over gRPC and repeats the newest order until it is acknowledged: level-triggered, so a lost message or
//! a restarted worker needs no special care.

use std::collections::BTreeMap;
use std::mem::{replace, take};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_wire::TlsFiles;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::pace::Speed;
use super::report::{WorkerRecord, WorkerReport};
use super::talk::{Connect, Conversations, Target, WorkerOrder, WorkerQuestion};
use crate::key::SwarmKey;

/// Pause between questions to one worker.
const INTERVAL: Duration = Duration::from_millis(1000);
/// Deadline of one question.
const DEADLINE: Duration = Duration::from_millis(1000);

struct Entry {
    addr: String,
    /// Who we are in this conversation.
    identity: Arc<TlsFiles>,
    answer: WorkerRecord,
    speed: Speed,
    order: watch::Sender<Option<WorkerOrder>>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Swarms = BTreeMap<SwarmKey, BTreeMap<String, Entry>>;

/// All conversations of the leader.
pub struct Monitor {
    swarms: Arc<Mutex<Swarms>>,
    connect: Arc<dyn Connect>,
    triggers: broadcast::Sender<SwarmKey>,
    silence: Duration,
}

impl Monitor {
    /// No conversations yet. `silence`: see [`WorkerRecord::is_silent`].
    #[must_use]
    pub fn new(connect: Arc<dyn Connect>, triggers: broadcast::Sender<SwarmKey>, silence: Duration) -> Self {
        Self { swarms: Arc::default(), connect, triggers, silence }
    }
}

impl Conversations for Monitor {
    fn follow(&self, swarm: &SwarmKey, targets: Vec<Target>) {
        let mut swarms = lock(&self.swarms);
        let entries = swarms.entry(swarm.clone()).or_default();
        entries.retain(|name, entry| targets.iter().any(|t| t.name == *name && t.addr == entry.addr));
        for target in targets {
            let known = entries.get_mut(&target.name);
            if known.as_ref().is_none_or(|entry| !Arc::ptr_eq(&entry.identity, &target.identity)) {
                // With a renewed certificate we go on with the pods that we know.
                let now = Instant::now();
                let (answer, speed) = known.map_or_else(
                    || (WorkerRecord::default(), Speed::new(now)),
                    |entry| (take(&mut entry.answer), replace(&mut entry.speed, Speed::new(now))),
                );
                let (order, orders) = watch::channel(None);
                let (addr, name, identity) =
                    (target.addr.clone(), target.name.clone(), Arc::clone(&target.identity));
                let task = tokio::spawn(converse(Conversation {
                    swarms: Arc::clone(&self.swarms),
                    connect: Arc::clone(&self.connect),
                    triggers: self.triggers.clone(),
                    silence: self.silence,
                    swarm: swarm.clone(),
                    target,
                    orders,
                }));
                let task = task.abort_handle();
                entries.insert(name, Entry { addr, identity, answer, speed, order, task });
            }
        }
        if entries.is_empty() {
            swarms.remove(swarm);
        }
    }

    fn forget(&self, swarm: &SwarmKey) {
        lock(&self.swarms).remove(swarm);
    }

    fn answers(&self, swarm: &SwarmKey) -> BTreeMap<String, WorkerRecord> {
        let swarms = lock(&self.swarms);
        let entries = swarms.get(swarm).into_iter().flatten();
        entries.map(|(name, entry)| (name.clone(), entry.answer.clone())).collect()
    }

    fn order(&self, swarm: &SwarmKey, name: &str, order: WorkerOrder) {
        if let Some(entry) = lock(&self.swarms).get(swarm).and_then(|entries| entries.get(name)) {
            entry.order.send_if_modified(|current| {
                let changed = current.as_ref() != Some(&order);
                *current = Some(order);
                changed
            });
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The tasks hold the map, and the map holds the tasks.
        lock(&self.swarms).clear();
    }
}

struct Conversation {
    swarms: Arc<Mutex<Swarms>>,
    connect: Arc<dyn Connect>,
    triggers: broadcast::Sender<SwarmKey>,
    silence: Duration,
    swarm: SwarmKey,
    target: Target,
    orders: watch::Receiver<Option<WorkerOrder>>,
}

async fn converse(mut conversation: Conversation) {
    let target = conversation.target.clone();
    let mut talk = match conversation.connect.connect(&target) {
        Ok(talk) => talk,
        Err(error) => {
            info!(peer = target.name, error, "no connection is possible");
            return;
        }
    };
    let mut acknowledged = WorkerOrder::default();
    loop {
        let order = conversation.orders.borrow_and_update().clone();
        let question = order.as_ref().map_or(WorkerQuestion::Status, |order| order.question(&acknowledged));
        let is_order = question != WorkerQuestion::Status;
        let answer = match timeout(DEADLINE, talk.ask(question)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".to_owned()),
        };
        if let Some(order) = order.filter(|_| is_order && answer.is_ok()) {
            acknowledged = order;
        }
        conversation.take(answer);
        if let Ok(Err(_)) = timeout(INTERVAL, conversation.orders.changed()).await {
            return;
        }
    }
}

impl Conversation {
    /// Keeps an answer, and has the swarm looked at again when it says something new.
    fn take(&self, answer: Result<WorkerReport, String>) {
        let mut swarms = lock(&self.swarms);
        let Some(entries) = swarms.get_mut(&self.swarm) else { return };
        let now = Instant::now();
        let news = match answer {
            Ok(report) => note(entries, &self.target.name, report, self.silence, now),
            Err(error) => {
                debug!(peer = self.target.name, error, "no answer");
                entries.get(&self.target.name).is_some_and(|e| e.answer.is_silent(now, self.silence))
            }
        };
        if news {
            let _ = self.triggers.send(self.swarm.clone());
        }
    }
}

/// Keeps a report; whether it says something new.
fn note(
    entries: &mut BTreeMap<String, Entry>,
    name: &str,
    report: WorkerReport,
    silence: Duration,
    now: Instant,
) -> bool {
    let Some(entry) = entries.get_mut(name) else { return false };
    let measured = entry.speed.see(entry.answer.report.as_ref(), &report, now);
    let mut news = entry.answer.take(report, silence, now);
    if measured {
        let rates: Vec<f64> = entries.values().filter_map(|e| e.speed.rate(now)).collect();
        if let Some(entry) = entries.get_mut(name) {
            entry.speed.compare(&rates, now);
            let speed = entry.speed.known();
            news |= entry.answer.speed != speed;
            entry.answer.speed = speed;
        }
    }
    news
}

fn lock(swarms: &Mutex<Swarms>) -> MutexGuard<'_, Swarms> {
    swarms.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::Epoch;

    use super::super::report::WorkerState;
    use super::super::talk::{Answering, Talk};
    use super::*;
    use crate::key::Kind;

    /// Answers Ready, or nothing while told to be silent; records what it is asked.
    #[derive(Default)]
    struct Fake {
        asked: Arc<Mutex<Vec<WorkerQuestion>>>,
        silent: Arc<std::sync::atomic::AtomicBool>,
    }

    struct FakeTalk(Arc<Mutex<Vec<WorkerQuestion>>>, Arc<std::sync::atomic::AtomicBool>);

    impl Connect for Fake {
        fn connect(&self, _: &Target) -> Result<Box<dyn Talk>, String> {
            Ok(Box::new(FakeTalk(Arc::clone(&self.asked), Arc::clone(&self.silent))))
        }
    }

    impl Talk for FakeTalk {
        fn ask(&mut self, question: WorkerQuestion) -> Answering<'_> {
            let silent = self.1.load(std::sync::atomic::Ordering::SeqCst);
            if !silent {
                self.0.lock().unwrap().push(question);
            }
            Box::pin(async move {
                if silent {
                    return Err("silent".to_owned());
                }
                Ok(WorkerReport { state: WorkerState::Ready, ..WorkerReport::default() })
            })
        }
    }

    fn target(name: &str) -> Target {
        Target {
            name: name.into(),
            role: dunlin_wire::Role::Stage,
            addr: "10.0.0.1:7070".into(),
            server_name: name.into(),
            identity: Arc::default(),
        }
    }

    fn swarm() -> SwarmKey {
        SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: "smollm2".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_given_once_and_a_new_one_again() {
        let fake = Fake::default();
        let asked = Arc::clone(&fake.asked);
        let (triggers, mut triggered) = broadcast::channel(16);
        let monitor = Monitor::new(Arc::new(fake), triggers, Duration::from_secs(3));
        monitor.follow(&swarm(), vec![target("a")]);
        assert_eq!(triggered.recv().await.unwrap(), swarm());
        let order = |epoch| WorkerOrder { topology: Some((epoch, "{}".into())), ..WorkerOrder::default() };
        for epoch in [1, 1, 2] {
            monitor.order(&swarm(), "a", order(epoch));
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let taken: Vec<Epoch> = asked
            .lock()
            .unwrap()
            .iter()
            .filter_map(|q| if let WorkerQuestion::Take(epoch, _) = q { Some(*epoch) } else { None })
            .collect();
        assert_eq!(taken, [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_a_worker_that_was_ready_triggers_its_swarm() {
        let fake = Fake::default();
        let silent = Arc::clone(&fake.silent);
        let (triggers, mut triggered) = broadcast::channel(16);
        let limit = Duration::from_secs(3);
        let monitor = Monitor::new(Arc::new(fake), triggers, limit);
        monitor.follow(&swarm(), vec![target("a")]);
        triggered.recv().await.unwrap();
        assert!(!monitor.answers(&swarm())["a"].is_silent(Instant::now(), limit));
        silent.store(true, std::sync::atomic::Ordering::SeqCst);
        triggered.recv().await.unwrap();
        assert!(monitor.answers(&swarm())["a"].is_silent(Instant::now(), limit));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_no_longer_followed_is_forgotten() {
        let (triggers, _keep) = broadcast::channel(16);
        let monitor = Monitor::new(Arc::new(Fake::default()), triggers, Duration::from_secs(3));
        monitor.follow(&swarm(), vec![target("a"), target("b")]);
        monitor.follow(&swarm(), vec![target("b")]);
        assert_eq!(monitor.answers(&swarm()).into_keys().collect::<Vec<_>>(), ["b"]);
        monitor.forget(&swarm());
        assert!(monitor.answers(&swarm()).is_empty());
    }
}
