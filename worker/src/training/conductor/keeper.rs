//! All that the conductor does with the destination of checkpoints, on a thread of its own: a destination that answers late, or not at all,
//! must not stop the loop that hears peers.
//!
//! At first the destination is looked through, however long that takes; once the run makes steps, it is claimed ([`Claim`]). Orders are
//! carried out one by one, and in between it is made sure that nobody else has taken the destination.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use dunlin_protocol::training::{Checkpoints, Step};
use dunlin_train::Run;
use dunlin_train::checkpoint::{CheckpointError, Claim, ConductorLife, Destination, Scrutiny, Texts};
use dunlin_train::config::Change;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::super::saved::{self, Sealed};

/// Orders that wait; the conductor gives a handful at most.
const ORDERS_MAX: usize = 64;
/// First and longest pause before a destination that cannot be read is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is looked whether somebody else has taken the destination.
const WATCH: Duration = Duration::from_secs(10);

/// What the conductor wants done.
pub enum KeeperOrder {
    /// The run makes steps: the destination is its own from now on.
    Claim,
    /// Find the newest checkpoint that is sound, reading all of it.
    Inspect,
    /// Make the destination ready for another attempt.
    Prepare,
    /// Remove what an attempt left.
    Discard(Step),
    /// Write the manifest, from the records of all stages, for data with this digest.
    Seal(Step, Vec<String>, String),
    /// Read the last checkpoint again.
    Confirm(Step),
    /// The conductor ends.
    End,
}

/// What came of it.
pub enum Kept {
    /// The destination cannot be read so far; it is tried again.
    Unread(String),
    /// It is this run's, or nobody's.
    Opened(Opened),
    /// What was found, or why nothing could be.
    Inspected(Result<Checkpoints, String>),
    /// Whether it is ready.
    Prepared(Result<(), String>),
    /// Whether there is a checkpoint.
    Sealed(Step, Result<Sealed, String>),
    /// Whether it is there.
    Confirmed(Step, Result<(), String>),
    /// What is there is not for this run, or not for this program: nothing was done.
    Refused(String),
    /// Somebody else has taken the destination: the end.
    TakenOver(String),
    /// Nothing is done any longer.
    Ended,
}

/// A destination that is this run's, or nobody's.
pub struct Opened {
    /// What there is to go on from.
    pub checkpoints: Checkpoints,
    /// The newest sound checkpoint.
    pub newest: Option<(Step, Sealed)>,
    /// Digest of the tokens that it was trained on.
    pub data_sha256: Option<String>,
    /// What this run has otherwise than the one that wrote it.
    pub changes: Vec<Change>,
}

/// The conductor's side of the thread.
pub struct Keeper {
    orders: SyncSender<KeeperOrder>,
}

impl Keeper {
    /// Begins to open `destination` for `run`, as `owner`. What comes of it and of all orders arrives at `events`.
    ///
    /// # Errors
    /// When this machine gives no thread.
    pub fn start(
        destination: Destination,
        run: Arc<Run>,
        texts: Texts,
        owner: ConductorLife,
        events: mpsc::Sender<Kept>,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        let texts = Arc::new(texts);
        let worker = Worker { destination, run, texts, owner, claim: None, events };
        std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || worker.run(&inbox))?;
        Ok(Self { orders })
    }

    /// Has something done.
    pub fn give(&self, order: KeeperOrder) {
        if self.orders.try_send(order).is_err() {
            warn!("more is to be done with the destination of checkpoints than can wait");
        }
    }
}

struct Worker {
    destination: Destination,
    run: Arc<Run>,
    /// What goes beside the weights.
    texts: Arc<Texts>,
    owner: ConductorLife,
    /// Once the destination is claimed.
    claim: Option<Claim>,
    events: mpsc::Sender<Kept>,
}

impl Worker {
    /// False when nobody listens any longer, which is the end of the process.
    fn say(&self, kept: Kept) -> bool {
        self.events.blocking_send(kept).is_ok()
    }

    fn run(mut self, inbox: &Receiver<KeeperOrder>) {
        if !self.open() {
            return;
        }
        loop {
            let goes_on = match inbox.recv_timeout(WATCH) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Disconnected) => false,
                Err(RecvTimeoutError::Timeout) => self.watch(),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Tries until it works, or will never.
    fn open(&mut self) -> bool {
        let mut pause = PAUSE.0;
        loop {
            match self.try_open() {
                Ok(opened) => return self.say(Kept::Opened(opened)),
                Err(error) if error.is_refusal() => {
                    self.say(Kept::Refused(words(error)));
                    return false;
                }
                Err(error) => {
                    if !self.say(Kept::Unread(words(error))) {
                        return false;
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn try_open(&mut self) -> Result<Opened, CheckpointError> {
        // Nothing is written before it is known that it is this run's.
        Claim::admit(&self.destination, &self.run.config)?;
        let found = saved::find(&self.destination, self.destination.usual_scrutiny())?;
        let newest = found.newest.as_ref();
        let mut changes = Vec::new();
        if let Some(newest) = newest {
            changes = newest.manifest.admit(&self.destination, &self.run.config)?;
            self.claimed()?;
        }
        Ok(Opened {
            newest: newest.map(|c| (c.manifest.step, Sealed::new(c.folder.clone(), &c.manifest))),
            data_sha256: newest.map(|c| c.manifest.data_sha256.clone()),
            checkpoints: found.checkpoints,
            changes,
        })
    }

    /// The claim, which is made if there is none yet.
    fn claimed(&mut self) -> Result<&mut Claim, CheckpointError> {
        let claim = match self.claim.take() {
            Some(claim) => claim,
            None => {
                let (claim, before) = Claim::take(&self.destination, &self.run.config, self.owner.clone())?;
                if let Some(before) = before {
                    info!(
                        owner = before.name,
                        since = before.since,
                        "takes over the destination of checkpoints"
                    );
                }
                claim
            }
        };
        Ok(self.claim.insert(claim))
    }

    /// Has somebody else taken the destination? What cannot be read now is found out when something is written.
    fn watch(&self) -> bool {
        match self.claim.as_ref().map(Claim::check) {
            Some(Err(error)) if error.is_refusal() => {
                self.say(Kept::TakenOver(words(error)));
                false
            }
            _ => true,
        }
    }

    fn obey(&mut self, order: KeeperOrder) -> bool {
        match order {
            KeeperOrder::Claim => match self.claimed().map(drop) {
                Err(error) if error.is_refusal() => {
                    self.say(Kept::TakenOver(words(error)));
                    false
                }
                // Before anything is written it is tried again.
                _ => true,
            },
            KeeperOrder::Inspect => {
                let found = saved::find(&self.destination, Scrutiny::Digests);
                self.say(Kept::Inspected(found.map(|found| found.checkpoints).map_err(words)))
            }
            KeeperOrder::Prepare => {
                let prepared = self.claimed().and_then(Claim::prepare);
                self.told(prepared, Kept::Prepared)
            }
            KeeperOrder::Discard(step) => {
                if let Err(error) = self.claimed().and_then(|claim| claim.discard(step)) {
                    // It is done with the next preparation.
                    info!(step, "the files of an attempt stay for now: {}", words(error));
                }
                true
            }
            KeeperOrder::Seal(step, records, data) => {
                let (run, texts) = (Arc::clone(&self.run), Arc::clone(&self.texts));
                let claim = self.claimed();
                let sealed = claim.and_then(|claim| saved::seal(claim, step, &run, &texts, &data, &records));
                self.told(sealed, |sealed| Kept::Sealed(step, sealed))
            }
            KeeperOrder::Confirm(step) => {
                let confirmed = self.claimed().and_then(|claim| claim.confirm(step));
                self.told(confirmed, |confirmed| Kept::Confirmed(step, confirmed))
            }
            KeeperOrder::End => {
                if let Some(Err(error)) = self.claim.take().map(Claim::release) {
                    info!("the destination of checkpoints stays claimed: {}", words(error));
                }
                self.say(Kept::Ended);
                false
            }
        }
    }

    /// Says what came of an order; a destination that is no longer ours is the end.
    fn told<T>(
        &self,
        outcome: Result<T, CheckpointError>,
        kept: impl FnOnce(Result<T, String>) -> Kept,
    ) -> bool {
        match outcome {
            Err(error) if error.is_refusal() => {
                self.say(Kept::TakenOver(words(error)));
                false
            }
            other => self.say(kept(other.map_err(words))),
        }
    }
}

/// An error with its causes.
fn words(error: CheckpointError) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
