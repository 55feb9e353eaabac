//! The operator's process: its own controller, and what that has seen, remembers and is asking. All of it ends with the process.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use dunlin_crds::InferenceSwarm;
use dunlin_operator::api::{ApiAnswer, ApiServer, ApiVerb};
use dunlin_operator::apply::Applier;
use dunlin_operator::config::Config;
use dunlin_operator::error::Error;
use dunlin_operator::metrics::OperatorMetrics;
use dunlin_operator::observe::Caches;
use dunlin_operator::swarm::Controller;
use dunlin_operator::swarm::context::Context;
use dunlin_sim::model::mix;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::cluster::{Cluster, News};
use crate::flaw::Flaw;
use crate::so_far::PassSoFar;
use crate::talks::Talks;

/// A call to the API server, and who waits for the answer.
pub(crate) struct Call {
    pub action: String,
    pub verb: ApiVerb,
    pub answer: oneshot::Sender<Result<Value, Error>>,
}

/// What the operator takes for the API server.
struct Calls(mpsc::UnboundedSender<Call>);

impl ApiServer for Calls {
    fn call(&self, action: String, verb: ApiVerb) -> ApiAnswer<'_> {
        let (answer, answered) = oneshot::channel();
        let lost = Error::Timeout { action: action.clone(), limit_s: 10 };
        let sent = self.0.send(Call { action, verb, answer });
        Box::pin(async move {
            match sent {
                Ok(()) => answered.await.unwrap_or(Err(lost)),
                Err(_) => Err(lost),
            }
        })
    }
}

type Pass = Pin<Box<dyn Future<Output = Result<Option<Duration>, Error>> + Send>>;

/// How far a pass is.
pub(crate) enum Step {
    /// It waits for an answer.
    Calls(Call),
    /// It is over; the swarm is looked at again so many milliseconds later.
    Ended { pause_ms: u64, failure: Option<Error> },
}

/// One life of the operator's process, as the leader.
pub(crate) struct Operator {
    controller: Arc<Controller<InferenceSwarm>>,
    calls: mpsc::UnboundedReceiver<Call>,
    pub talks: Talks,
    pass: Option<Pass>,
    /// What the pass has done so far.
    pub so_far: PassSoFar,
    /// It looks again then, once the pass is over.
    pub wake_ms: u64,
    flaw: Option<Flaw>,
}

impl Operator {
    /// One that has just become the leader, and has seen all of `cluster` once. What it draws follows from `seed`.
    pub fn new(config: Config, cluster: &Cluster, flaw: Option<Flaw>, seed: u64, now: u64) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let api: Arc<dyn ApiServer> = Arc::new(Calls(sender));
        let (metrics, drawn) = (Arc::new(OperatorMetrics::default()), AtomicU64::new(0));
        let chance = move || mix(seed, drawn.fetch_add(1, Ordering::Relaxed));
        let talks = Talks::new(config.silence_max(), flaw);
        let context = Arc::new(Context {
            applier: Applier::new(Arc::clone(&api), Arc::clone(&metrics), Arc::new(chance)),
            monitor: Box::new(talks.clone()),
            api,
            config,
            caches: Caches::default(),
            metrics,
        });
        let controller = Arc::new(Controller::new(context));
        let so_far = PassSoFar::default();
        let operator = Self { controller, calls, talks, pass: None, so_far, wake_ms: now, flaw };
        for news in cluster.list() {
            operator.see(&news);
        }
        operator
    }

    /// A watch says something; whether the swarm is to be looked at again.
    pub fn see(&self, news: &News) -> bool {
        let caches = &self.controller.context.caches;
        let concerned = match news {
            News::Pod(event) => caches.take_pod(event),
            News::Node(event) if self.flaw == Some(Flaw::IgnoresNotice) => {
                let mut event = event.clone();
                Flaw::forget_notice(&mut event);
                caches.take_node(&event)
            }
            News::Node(event) => caches.take_node(event),
        };
        !concerned.is_empty()
    }

    /// When it looks next, unless it is looking.
    pub fn looks_ms(&self) -> Option<u64> {
        self.pass.is_none().then_some(self.wake_ms)
    }

    /// Begins to look at `swarm`.
    pub fn begin(&mut self, swarm: &InferenceSwarm) {
        self.wake_ms = u64::MAX;
        self.so_far = PassSoFar::of(&self.talks);
        let pass = Controller::pass(Arc::new(swarm.clone()), Arc::clone(&self.controller));
        self.pass = Some(Box::pin(pass));
    }

    /// The pass goes on at `now` until it asks the API server something, or is over. `None`: there is none, or nothing that it waits for has come.
    pub fn go_on(&mut self, swarm: &InferenceSwarm, clock: &mut Clock, now: u64) -> Option<Step> {
        match clock.poll(self.pass.as_mut()?, now) {
            Poll::Pending => self.calls.try_recv().ok().map(Step::Calls),
            Poll::Ready(result) => {
                self.pass = None;
                let (pause, failure) = match result {
                    Ok(pause) => (pause.unwrap_or(Duration::MAX), None),
                    Err(failure) => (self.controller.pause(swarm, &failure), Some(failure)),
                };
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                self.wake_ms = self.wake_ms.min(now.saturating_add(pause_ms));
                Some(Step::Ended { pause_ms, failure })
            }
        }
    }
}
