//! Where checkpoints go: a folder, a URL, or a bucket.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::folder;
use super::read::{latest, open};
use super::remote::Remote;
use super::s3::S3Place;
use super::write::{discard, retain, write_manifest, write_stage};
use super::{
    Checkpoint, CheckpointError, Identity, Latest, Manifest, Scrutiny, Stage, StageRecord, TensorSpec,
};
use crate::config::TrainingConfig;
use crate::optimizer::OptimizerState;

/// A folder that all peers see, or a place on a server. In a configuration it is a path, a URL, an object with `url` and `headers`, or one
/// with `s3` and `credentials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Destination {
    /// A folder.
    Folder(PathBuf),
    /// A place on a server.
    Server(Place),
}

/// A place on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A URL.
    Http(HttpPlace),
    /// A bucket of object storage.
    S3(S3Place),
}

/// A URL below which a server takes PUT, gives GET and HEAD, and takes DELETE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpPlace {
    /// `http://` or `https://`.
    pub url: String,
    /// A folder with headers that every request has, such as `Authorization`: a file each with its name and value. They are read for each
    /// request, so that they can change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<PathBuf>,
}

/// A destination in a configuration.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "checkpoint.destination is neither a path, a URL, {url, headers} nor {s3: {bucket, ...}, credentials}"
)]
enum Written {
    Text(String),
    Http(HttpPlace),
    S3(S3Place),
}

impl From<Written> for Destination {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => text.into(),
            Written::Http(place) => Self::Server(Place::Http(place)),
            Written::S3(place) => Self::Server(Place::S3(place)),
        }
    }
}

impl From<Destination> for Written {
    fn from(destination: Destination) -> Self {
        match destination {
            Destination::Server(Place::Http(place)) if place.headers.is_some() => Self::Http(place),
            Destination::Server(Place::S3(place)) => Self::S3(place),
            other => Self::Text(other.to_string()),
        }
    }
}

impl From<String> for Destination {
    fn from(text: String) -> Self {
        let remote = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
        if !remote {
            return Self::Folder(text.into());
        }
        Self::Server(Place::Http(HttpPlace { url: text, headers: None }))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Server(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(place) => f.write_str(place.url.trim_end_matches('/')),
            Self::S3(place) => place.s3.fmt(f),
        }
    }
}

impl Destination {
    /// Checks all that can be wrong before it is used.
    ///
    /// # Errors
    /// What is wrong, in the words after `checkpoint.destination`.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Folder(path) if path.as_os_str().is_empty() => {
                Err("is empty; use a folder that all peers see, a URL, or a bucket".to_owned())
            }
            Self::Folder(_) => Ok(()),
            Self::Server(Place::Http(_)) => Ok(()),
            Self::Server(Place::S3(place)) => place.check(),
        }
    }

    /// Where the checkpoint of `step` is.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        match self {
            Self::Folder(path) => folder(path, step),
            Self::Server(place) => folder(Path::new(&place.to_string()), step),
        }
    }

    /// The newest checkpoint that stands up to `scrutiny`.
    ///
    /// # Errors
    /// When the destination cannot be read. That there is nothing is no error.
    pub fn latest(&self, scrutiny: Scrutiny) -> Result<Latest, CheckpointError> {
        match self {
            Self::Folder(path) => latest(path, scrutiny),
            Self::Server(place) => Remote::new(place)?.latest(scrutiny),
        }
    }

    /// The scrutiny of a start: a folder is read as a whole, of what is on a server whoever reads a file checks its digest.
    #[must_use]
    pub fn usual_scrutiny(&self) -> Scrutiny {
        match self {
            Self::Folder(_) => Scrutiny::Digests,
            Self::Server(_) => Scrutiny::Lengths,
        }
    }

    /// Writes a stage into the checkpoint of `step`; the record is for [`super::Claim::seal`].
    ///
    /// # Errors
    /// When tensors do not fit together or a file cannot be written.
    pub fn write_stage(&self, step: u64, stage: &Stage<'_>) -> Result<StageRecord, CheckpointError> {
        match self {
            Self::Folder(path) => write_stage(path, step, stage),
            Self::Server(place) => Remote::new(place)?.write_stage(step, stage),
        }
    }

    /// Makes the checkpoint complete, then removes all but the `keep` newest. Returns what is in it, and the steps that were removed.
    pub(super) fn seal(
        &self,
        identity: Identity<'_>,
        stages: Vec<StageRecord>,
        keep: usize,
    ) -> Result<(Manifest, Vec<u64>), CheckpointError> {
        match self {
            Self::Folder(path) => {
                let manifest = write_manifest(path, identity, stages)?;
                Ok((manifest, retain(path, keep)?))
            }
            Self::Server(place) => Remote::new(place)?.seal(identity, stages, keep),
        }
    }

    /// Removes what an attempt at the checkpoint of `step` left, if it is not complete.
    pub(super) fn discard(&self, step: u64, config: &TrainingConfig) -> Result<(), CheckpointError> {
        match self {
            Self::Folder(path) => discard(path, step),
            Self::Server(place) => Remote::new(place)?.discard(step, config),
        }
    }

    /// The checkpoint of `step`, whose files have the right lengths.
    pub(super) fn open(&self, step: u64) -> Result<Checkpoint, CheckpointError> {
        let found = match self {
            Self::Folder(path) => open(path, step)?,
            Self::Server(place) => Remote::new(place)?.open(step)?,
        };
        found.ok_or_else(|| CheckpointError::Missing(self.checkpoint(step)))
    }

    /// Reads `wanted` of the checkpoint of `step` into flat vectors of `length` values.
    ///
    /// # Errors
    /// When there is no such checkpoint, a tensor is missing or of another shape, or a file is damaged or cannot be read.
    pub fn read_stage(
        &self,
        step: u64,
        wanted: &[TensorSpec],
        length: usize,
    ) -> Result<(Vec<f32>, OptimizerState), CheckpointError> {
        match self {
            Self::Folder(_) => self.open(step)?.read_stage(wanted, length),
            Self::Server(place) => Remote::new(place)?.read_stage(step, wanted, length),
        }
    }
}

impl From<&Path> for Destination {
    fn from(path: &Path) -> Self {
        Self::Folder(path.to_owned())
    }
}
