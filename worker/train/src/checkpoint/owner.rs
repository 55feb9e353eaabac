//! Whose destination it is: `owner.json`, which is written before any checkpoint.
//!
//! A destination belongs to one run: another one is refused, unless the run ended before it had a checkpoint and gave the destination back. Of that run it belongs to one life of its conductor, the latest: each life
//! writes a nonce of its own, and reads it again before it completes a checkpoint. A conductor that finds another's has been replaced.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use dunlin_store::digest::{hexadecimal, sha256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::destination::Destination;
use super::disk::Disk;
use super::error::CheckpointError;
use super::identity::Identity;
use super::manifest::{Manifest, StageRecord};
use super::read::{Latest, Scrutiny};
use super::remote::Remote;
use crate::config::TrainingConfig;

/// Below the destination.
const FILE: &str = "owner.json";
const BYTES_MAX: u64 = 1 << 20;
const VERSION: u32 = 1;

/// One life of a conductor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConductorLife {
    /// No other life has it.
    pub nonce: String,
    /// What people know it by.
    pub name: String,
    /// When it came, for people.
    pub since: String,
}

impl ConductorLife {
    /// A new life, of the process that people know by `name`.
    ///
    /// # Errors
    /// When this machine gives no random numbers.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let mut nonce = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self {
            nonce: hexadecimal(&nonce),
            name: format!("{name} (process {} on {})", std::process::id(), host.trim()),
            since: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        })
    }
}

/// What `owner.json` has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// Of this form.
    version: u32,
    /// SHA-256 of what says which run it is, in hexadecimal.
    identity: String,
    /// The run, as its owner has it.
    config: TrainingConfig,
    owner: ConductorLife,
}

/// The right to write checkpoints of a run to its destination, as long as nobody else takes it.
pub struct Claim {
    destination: Destination,
    record: Record,
    /// Steps of attempts that came to nothing, whose files may still be there.
    left_over: BTreeSet<u64>,
    /// What was sealed last.
    sealed: Option<Manifest>,
}

impl Claim {
    /// Takes `destination` for the run of `config`, from the owner before if there is one, who is returned.
    ///
    /// # Errors
    /// When it belongs to another run, or cannot be read or written.
    pub fn take(
        destination: &Destination,
        config: &TrainingConfig,
        owner: ConductorLife,
    ) -> Result<(Self, Option<ConductorLife>), CheckpointError> {
        let before = Self::admit(destination, config)?;
        let identity = sha256(config.identity().to_string().as_bytes());
        let record = Record { version: VERSION, identity, config: config.clone(), owner };
        let claim =
            Self { destination: destination.clone(), record, left_over: BTreeSet::new(), sealed: None };
        claim.write()?;
        Ok((claim, before))
    }

    /// Checks that `destination` is of the run of `config`, or of none so far. Nothing is written.
    ///
    /// # Errors
    /// When it belongs to another run, or cannot be read.
    pub fn admit(
        destination: &Destination,
        config: &TrainingConfig,
    ) -> Result<Option<ConductorLife>, CheckpointError> {
        let Some(before) = read(destination)? else { return Ok(None) };
        let refused = config.changes_since(&before.config).refused;
        if refused.is_empty() {
            return Ok(Some(before.owner));
        }
        let error = CheckpointError::of_another_run(&destination.to_string(), &refused);
        let Latest { checkpoint, damaged } = destination.latest(Scrutiny::Lengths)?;
        if checkpoint.is_some() || !damaged.is_empty() {
            return Err(error);
        }
        let ConductorLife { name, since, .. } = before.owner;
        Err(CheckpointError::Refused(format!(
            "{error}. It has no checkpoint so far: if {name}, which came at {since}, no longer runs, remove {destination}/{FILE}"
        )))
    }

    /// Gives the destination back, if this run has no checkpoint there that would say whose it is.
    ///
    /// # Errors
    /// When it is no longer this run's, or cannot be written.
    pub fn release(self) -> Result<(), CheckpointError> {
        self.check()?;
        let Latest { checkpoint, damaged } = self.destination.latest(Scrutiny::Lengths)?;
        if checkpoint.is_some() || !damaged.is_empty() {
            return Ok(());
        }
        match self.destination.folder() {
            Some(path) => Disk::default().remove_file(&path.join(FILE)),
            None => Remote::new(&self.destination)?.delete(FILE),
        }
    }

    /// The destination that is owned.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Is it still this life's? When the file is gone nobody else has claimed the destination, and it is written again.
    ///
    /// # Errors
    /// When somebody else has taken it, or it cannot be read.
    pub fn check(&self) -> Result<(), CheckpointError> {
        match read(&self.destination)? {
            None => self.write(),
            Some(found) if found.owner.nonce == self.record.owner.nonce => Ok(()),
            Some(Record { owner: ConductorLife { name, since, .. }, .. }) => {
                Err(CheckpointError::TakenOver(format!(
                    "{name} has taken over {} at {since}: two runs had one checkpoint.destination, and the later one goes on from the newest \
                     checkpoint. For a run of its own choose another destination",
                    self.destination
                )))
            }
        }
    }

    /// After something failed: removes what attempts left, and finds out whether the destination takes anything.
    ///
    /// # Errors
    /// When it does not, or somebody else has taken it.
    pub fn prepare(&mut self) -> Result<(), CheckpointError> {
        self.check()?;
        for step in self.left_over.clone() {
            self.destination.discard(step, &self.record.config)?;
            self.left_over.remove(&step);
        }
        self.write()
    }

    /// An attempt at a checkpoint has come to nothing: its files go, now or with the next [`Claim::prepare`].
    ///
    /// # Errors
    /// When they cannot be removed now.
    pub fn discard(&mut self, step: u64) -> Result<(), CheckpointError> {
        self.left_over.insert(step);
        self.check()?;
        self.destination.discard(step, &self.record.config)?;
        self.left_over.remove(&step);
        Ok(())
    }

    /// Makes a checkpoint complete, then removes all but the `keep` newest. Returns what is in it, and the steps that were removed.
    ///
    /// # Errors
    /// When something is missing, or cannot be written or removed, or somebody else has taken the destination.
    pub fn seal(
        &mut self,
        identity: Identity<'_>,
        stages: Vec<StageRecord>,
        keep: usize,
    ) -> Result<(Manifest, Vec<u64>), CheckpointError> {
        self.check()?;
        let (manifest, removed) = self.destination.seal(identity, stages, keep)?;
        self.left_over.remove(&manifest.step);
        self.sealed = Some(manifest.clone());
        Ok((manifest, removed))
    }

    /// Reads the checkpoint of `step` again before it is called the result of the run: its manifest, which is the one that was sealed here if
    /// one was, and the lengths of its files.
    ///
    /// # Errors
    /// When it is not there as it was written, or somebody else has taken the destination.
    pub fn confirm(&self, step: u64) -> Result<(), CheckpointError> {
        self.check()?;
        let found = self.destination.open(step)?.manifest;
        match &self.sealed {
            Some(sealed) if sealed.step == step && *sealed != found => Err(CheckpointError::Damaged {
                path: self.destination.checkpoint(step),
                problem: "its manifest is another than this run wrote".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn write(&self) -> Result<(), CheckpointError> {
        let mut bytes = serde_json::to_vec_pretty(&self.record)
            .map_err(|e| CheckpointError::Mismatch(format!("{FILE} cannot be written as JSON: {e}")))?;
        bytes.push(b'\n');
        match self.destination.folder() {
            Some(path) => {
                let disk = Disk::default();
                disk.make(path)?;
                disk.write(path, FILE, |out| out.write_all(&bytes))
            }
            None => Remote::new(&self.destination)?.put(FILE, &bytes),
        }
    }
}

fn read(destination: &Destination) -> Result<Option<Record>, CheckpointError> {
    let (bytes, path) = match destination.folder() {
        Some(path) => (read_file(&path.join(FILE))?, path.join(FILE)),
        None => (Remote::new(destination)?.text(FILE)?, PathBuf::from(format!("{destination}/{FILE}"))),
    };
    let Some(bytes) = bytes else { return Ok(None) };
    let wrong = |problem: String| {
        let path = path.display();
        CheckpointError::Refused(format!(
            "{path}, which says whose checkpoints these are, cannot be used: {problem}. Remove it if they are this run's"
        ))
    };
    #[derive(Deserialize)]
    struct Form {
        version: u32,
    }
    let form: Form = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if form.version != VERSION {
        return Err(wrong(format!("its version is {}, and this program knows {VERSION}", form.version)));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| wrong(e.to_string()))
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let wrong = |source| CheckpointError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error)),
        Ok(metadata) if metadata.len() > BYTES_MAX => {
            return Err(wrong(std::io::Error::other(format!("it has {} bytes", metadata.len()))));
        }
        Ok(_) => {}
    }
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(wrong),
    }
}
