//! Where checkpoints go: a folder, a URL, or a bucket.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names::folder;
use super::place::{HttpPlace, Place};
use super::s3::S3Place;

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
}

impl From<&Path> for Destination {
    fn from(path: &Path) -> Self {
        Self::Folder(path.to_owned())
    }
}
