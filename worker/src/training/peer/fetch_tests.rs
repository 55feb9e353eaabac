//! A state and the updates that are made meanwhile, from a peer of this process, over real streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dunlin_kernels::Pool;
use dunlin_protocol::training::fetch::{FetchEffect, FetchEvent, Fetcher};
use dunlin_protocol::training::mates::Mates;
use dunlin_protocol::training::{Fetch, Mate, StateDigest, Step};
use dunlin_train::config::{InitialModel, TrainingConfig, model_config};
use dunlin_train::{Run, Stage};
use dunlin_wire::train::TrainStageService;
use dunlin_wire::{Caller, LinksConfig, Role, proto};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::super::values::Clients;
use super::clock::Clock;
use super::engine::TrainingEngine;
use super::event::Event;
use super::fetch::{self, Fetching};
use super::giving::{Giving, Order};
use super::kept::Kept;
use super::server;

/// Whatever is waited for comes within this time.
const LIMIT: Duration = Duration::from_secs(20);
/// Of one call.
const CALL_BYTES: usize = 1 << 20;
/// Everybody calls itself that.
const CALLER: &str = "tester";

fn run() -> Arc<Run> {
    let json = serde_json::json!({
        "model": {"config": {"hiddenSize": 32, "layers": 1, "heads": 2, "ffn": 64, "contextLength": 16}},
        "data": {"text": {"path": "unread"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 99,
        "optimizer": {"kind": "Sgd", "learningRate": 1e-3},
    });
    let config = TrainingConfig::from_json(&json.to_string()).unwrap();
    let InitialModel::Config(shape) = &config.model else { unreachable!("the model is above") };
    let model = model_config(shape, 256).unwrap();
    Arc::new(Run::new(config, model).unwrap())
}

/// A peer that makes updates when it is told to, and gives them to whoever asks.
struct Maker {
    engine: TrainingEngine,
    mate: Mate,
    values: usize,
    /// It gives as long as this is here.
    _orders: mpsc::Sender<Order>,
}

impl Maker {
    async fn start(run: &Arc<Run>) -> Self {
        let stage = Stage::initial(run, 0, &Pool::new(1)).unwrap();
        let (values, (engine, _)) = (stage.layout().len(), TrainingEngine::start(1).unwrap());
        engine.run(move |bench| bench.stage = Some(stage));
        let (stage_in, inbound) = mpsc::channel(16);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let router = server().add_service(TrainStageService::service(stage_in, CALL_BYTES, 4));
        let caller = Caller::unproven(Role::Peer, CALLER);
        let incoming = dunlin_wire::incoming_in_plain_text(listener, caller).unwrap();
        tokio::spawn(router.serve_with_incoming(incoming));
        let mates = Mates { stage: BTreeSet::from([CALLER.into()]), shared: None };
        let (orders, ordered) = mpsc::channel(1);
        tokio::spawn(Giving::new(engine.clone(), 0, mates).run(inbound, ordered));
        let mate = Mate { name: "maker".into(), addr, host: String::new() };
        Self { engine, mate, values, _orders: orders }
    }

    /// Makes the update of a step. What its state is then.
    async fn update(&self, step: Step) -> u64 {
        let (made_in, made) = oneshot::channel();
        let gradient = (0..self.values).map(|i| (i as f32 + step as f32) * 1e-6).collect();
        self.engine.run(move |bench| {
            let stage = bench.stage.as_mut().unwrap();
            assert_eq!(stage.step(), step);
            made_in.send(stage.follow(&bench.pool, Arc::new(gradient)).unwrap()).unwrap();
        });
        made.await.unwrap()
    }
}

/// A peer without a state.
struct Newcomer {
    machine: Fetcher,
    clock: Clock,
    fetching: Fetching,
    events: mpsc::Receiver<Event>,
    /// What it has come to.
    ready: Option<(Step, StateDigest)>,
}

impl Newcomer {
    fn new(run: &Arc<Run>, updates_bytes_max: u64) -> Self {
        let hello = proto::Hello { name: CALLER.to_owned(), ..proto::Hello::default() };
        let clients = Clients::new(LinksConfig::new(hello, None), CALL_BYTES);
        let (events_in, events) = mpsc::channel(16);
        let (engine, _) = TrainingEngine::start(1).unwrap();
        let machine = Fetcher::new(fetch::config(run, updates_bytes_max));
        let fetching = Fetching::new(Arc::clone(run), clients, engine, events_in);
        Self { machine, clock: Clock::start(), fetching, events, ready: None }
    }

    fn handle(&mut self, event: FetchEvent) {
        let mut out = Vec::new();
        self.machine.handle(self.clock.now_ms(), event, &mut out);
        for effect in out {
            match effect {
                FetchEffect::Do(id, work) => self.fetching.begin(id, work).unwrap(),
                FetchEffect::Drop(id) => self.fetching.forget(id),
                FetchEffect::Forget(steps) => self.fetching.forget_updates(steps),
                FetchEffect::Ready { step, state, .. } => self.ready = Some((step, state)),
                FetchEffect::Note(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn fetch(&mut self, step: Step, maker: &Maker, from: Option<Step>) {
        self.ready = None;
        let mates = vec![maker.mate.clone()];
        self.handle(FetchEvent::Fetch(Fetch { stage: 0, step, mates, whole: false }, from));
    }

    /// Goes on until that holds.
    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let go_on = async {
            while !holds(self) {
                let (clock, wake_ms) = (self.clock, self.machine.wake_ms());
                tokio::select! {
                    event = self.events.recv() => match event {
                        Some(Event::Fetched(id, outcome)) => {
                            if let Some(event) = self.fetching.came(id, outcome).unwrap() {
                                self.handle(event);
                            }
                        }
                        _ => panic!("something else has happened"),
                    },
                    () = clock.until(wake_ms) => self.handle(FetchEvent::Deadline),
                }
            }
        };
        timeout(LIMIT, go_on).await.expect("it does not come to that");
    }
}

/// A state may take longer than the last few updates that mates keep.
#[tokio::test(flavor = "multi_thread")]
async fn updates_that_mates_no_longer_have_are_followed_when_the_state_is_here() {
    let run = run();
    let maker = Maker::start(&run).await;
    let mut newcomer = Newcomer::new(&run, u64::MAX);
    newcomer.fetch(0, &maker, None);
    newcomer.until(|newcomer| newcomer.ready.is_some()).await;
    let mut fingerprint = 0;
    for step in 0..7 {
        fingerprint = maker.update(step).await;
        let is_kept = |n: &Newcomer| n.fetching.kept_now().is_some_and(|kept| kept.path(step).exists());
        newcomer.until(is_kept).await;
    }
    newcomer.fetch(7, &maker, Some(0));
    newcomer.until(|newcomer| newcomer.ready.is_some()).await;
    let (step, state) = newcomer.ready.take().unwrap();
    assert_eq!((step, state.fingerprint), (7, fingerprint));
    newcomer.handle(FetchEvent::TakesPart);
    let kept = newcomer.fetching.kept_now().unwrap();
    assert!((0..6).all(|step| !kept.path(step).exists()), "they take no place any longer");
}

#[tokio::test]
async fn a_kept_update_is_here_once_and_goes_with_its_owner() {
    let kept = Kept::new().unwrap();
    kept.write(3, &[1.0, -2.5]).await.unwrap();
    assert_eq!(kept.take(3).await.unwrap(), [1.0, -2.5]);
    assert!(kept.take(3).await.is_err());
    kept.write(4, &[0.5]).await.unwrap();
    kept.remove(4);
    assert!(!kept.path(4).exists());
    kept.write(5, &[0.5]).await.unwrap();
    let path = kept.path(5);
    drop(kept);
    assert!(!path.exists());
}
