//! Updates that a stage makes while its state is on the way. Mates keep the last few, and a large state takes longer than those.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_protocol::training::{Mate, StageId, Step};
use dunlin_train::scratch::Scratch;
use dunlin_wire::proto::pull_request::What;
use tokio::fs;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use super::super::values::{Clients, Fault, from_bytes, to_bytes};

/// How often mates are asked whether they have made the next update.
const PAUSE: Duration = Duration::from_millis(100);

/// The updates of a stage from some step on, as files among what is temporary. Dropped, it collects no more, and removes them.
pub(super) struct Collected {
    files: Arc<Files>,
    task: JoinHandle<()>,
}

struct Files {
    folder: Scratch,
    bytes: AtomicU64,
    /// The step behind the newest update that is here.
    end: watch::Sender<Step>,
}

impl Files {
    fn path(&self, step: Step) -> PathBuf {
        self.folder.path().join(step.to_string())
    }

    async fn write(&self, step: Step, gradient: &[f32]) -> std::io::Result<()> {
        // A reader that finds the file finds all of it.
        let (path, part) = (self.path(step), self.folder.path().join("part"));
        let bytes = to_bytes(gradient);
        fs::write(&part, &bytes).await?;
        fs::rename(&part, &path).await?;
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.end.send_replace(step + 1);
        Ok(())
    }
}

impl Collected {
    /// Collects updates of `len` values from that of `step` on, as long as they take no more than `bytes_max`.
    ///
    /// # Errors
    /// When there is nowhere to put them.
    pub fn start(
        clients: Clients,
        stage: StageId,
        step: Step,
        mates: Vec<Mate>,
        len: usize,
        bytes_max: u64,
    ) -> std::io::Result<Self> {
        let folder = Scratch::new("updates")?;
        let files = Arc::new(Files { folder, bytes: AtomicU64::new(0), end: watch::Sender::new(step) });
        let task = tokio::spawn(collect(clients, (stage, len), step, mates, Arc::clone(&files), bytes_max));
        Ok(Self { files, task })
    }

    /// The update of `step`, if it is here; then no longer.
    pub async fn take(&self, step: Step) -> Option<Vec<f32>> {
        let path = self.files.path(step);
        let bytes = fs::read(&path).await.ok()?;
        // It goes with the others at the latest.
        let _ = fs::remove_file(&path).await;
        self.files.bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        Some(from_bytes(&bytes).collect())
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn collect(
    clients: Clients,
    (stage, len): (StageId, usize),
    from: Step,
    mates: Vec<Mate>,
    files: Arc<Files>,
    bytes_max: u64,
) {
    let mut step = from;
    loop {
        let Ok(gradient) = made_update(&clients, (stage, len), step, &mates).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let bytes = size_of_val(gradient.as_slice()) as u64;
        if files.bytes.load(Ordering::Relaxed) + bytes > bytes_max {
            warn!(
                stage,
                step,
                bytes_max,
                "no more updates are kept while the state of the stage is fetched: give the pool more disk"
            );
            return;
        }
        if let Err(error) = files.write(step, &gradient).await {
            warn!(stage, step, %error, "an update cannot be kept while the state of the stage is fetched");
            return;
        }
        step += 1;
    }
}

/// The scaled average that led from `step` to the next, from the first mate that has it.
pub(super) async fn made_update(
    clients: &Clients,
    (stage, len): (StageId, usize),
    step: Step,
    mates: &[Mate],
) -> Result<Vec<f32>, Fault> {
    let mut fault = Fault::from("there is nobody to get it from");
    for mate in mates {
        match clients.pull(mate, stage, What::Update(step), len).await {
            Ok((_, values)) => return Ok(values),
            Err(error) => fault = error,
        }
    }
    Err(fault)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use dunlin_kernels::Pool;
    use dunlin_protocol::training::mates::Mates;
    use dunlin_protocol::training::{Mate, Step};
    use dunlin_train::config::{ModelSource, TrainingConfig, model_config};
    use dunlin_train::{Run, Stage};
    use dunlin_wire::train::{StageInbound, TrainStageService};
    use dunlin_wire::{Caller, LinksConfig, Role, proto};
    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::timeout;

    use super::super::alarm::Alarm;
    use super::super::engine::Engine;
    use super::super::serve::Pulls;
    use super::super::server;
    use super::{Clients, Collected};

    /// Whatever is waited for comes within this time.
    const LIMIT: Duration = Duration::from_secs(20);
    /// Of one call.
    const CALL_BYTES: usize = 1 << 20;

    /// A peer that makes updates when it is told to, and gives them to whoever asks.
    struct Maker {
        engine: Engine,
        mate: Mate,
        values: usize,
    }

    fn links() -> LinksConfig {
        let hello = proto::Hello { name: "tester".to_owned(), ..proto::Hello::default() };
        LinksConfig::new(hello, None)
    }

    impl Maker {
        async fn start() -> Self {
            let json = serde_json::json!({
                "model": {"config": {"hiddenSize": 32, "layers": 1, "heads": 2, "ffn": 64, "contextLength": 16}},
                "data": {"text": {"path": "unread"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 99,
                "optimizer": {"kind": "Sgd", "learningRate": 1e-3},
            });
            let config = TrainingConfig::from_json(&json.to_string()).unwrap();
            let ModelSource::Config(shape) = &config.model else { unreachable!("the model is above") };
            let model = model_config(shape, 256).unwrap();
            let run = Arc::new(Run::new(config, model).unwrap());
            let stage = Stage::initial(&run, 0, &Pool::new(1)).unwrap();
            let (values, (engine, _)) = (stage.layout().len(), Engine::start(1).unwrap());
            engine.run(move |bench| bench.stage = Some(stage));
            let (stage_in, mut inbound) = mpsc::channel(16);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap().to_string();
            let service = TrainStageService::service(stage_in, CALL_BYTES, 4);
            let router = server().add_service(service);
            let tester = Caller::unproven(Role::Peer, "tester");
            let incoming = dunlin_wire::incoming_in_plain_text(listener, tester).unwrap();
            tokio::spawn(router.serve_with_incoming(incoming));
            let (mut pulls, mut served) = Pulls::new(engine.clone(), Alarm::silent());
            pulls.mates(Mates { stage: BTreeSet::from(["tester".into()]), shared: None });
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        Some(ask) = served.recv() => pulls.ended(ask),
                        event = inbound.recv() => match event {
                            Some(StageInbound::Pull(caller, request, pieces)) => {
                                pulls.asked(&caller, request, pieces, Some(0));
                            }
                            Some(_) => {}
                            None => return,
                        },
                    }
                }
            });
            Self { engine, mate: Mate { name: "maker".into(), addr, host: String::new() }, values }
        }

        /// What the update of a step is.
        fn gradient(&self, step: Step) -> Vec<f32> {
            (0..self.values).map(|i| (i as f32 + step as f32) * 1e-6).collect()
        }

        async fn update(&self, step: Step) {
            let (made_in, made) = oneshot::channel();
            let gradient = Arc::new(self.gradient(step));
            self.engine.run(move |bench| {
                let stage = bench.stage.as_mut().unwrap();
                assert_eq!(stage.step(), step);
                made_in.send(stage.follow(&bench.pool, gradient).unwrap()).unwrap();
            });
            made.await.unwrap();
        }

        fn collect(&self, bytes_max: u64) -> Collected {
            let mates = vec![self.mate.clone()];
            Collected::start(Clients::new(links(), CALL_BYTES), 0, 0, mates, self.values, bytes_max).unwrap()
        }
    }

    /// Waits until the update of a step was collected.
    async fn has(collected: &Collected, step: Step) {
        let mut end = collected.files.end.subscribe();
        let found = timeout(LIMIT, end.wait_for(|end| *end > step)).await;
        found.expect("the update is not collected").unwrap();
        assert!(collected.files.path(step).exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn updates_that_mates_no_longer_keep_are_here_once() {
        let maker = Maker::start().await;
        let collected = maker.collect(u64::MAX);
        for step in 0..7 {
            maker.update(step).await;
            has(&collected, step).await;
        }
        let mates = std::slice::from_ref(&maker.mate);
        let clients = Clients::new(links(), CALL_BYTES);
        assert!(super::made_update(&clients, (0, maker.values), 2, mates).await.is_err());
        for step in 0..7 {
            assert_eq!(collected.take(step).await.unwrap(), maker.gradient(step), "step {step}");
            assert!(collected.take(step).await.is_none(), "it takes no place any longer");
        }
        assert_eq!(collected.files.bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn they_take_no_more_disk_than_they_may_and_go_with_their_owner() {
        let maker = Maker::start().await;
        let mut collected = maker.collect(2 * 4 * maker.values as u64);
        for step in 0..3 {
            maker.update(step).await;
        }
        has(&collected, 1).await;
        // It gives up, and that is the end of its task.
        timeout(LIMIT, &mut collected.task).await.expect("it goes on").unwrap();
        assert!(!collected.files.path(2).exists());
        let folder = collected.files.folder.path().to_owned();
        assert!(folder.exists());
        drop(collected);
        assert!(!folder.exists());
    }
}
