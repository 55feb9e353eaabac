//! Where checkpoints go: a folder, a URL, or a bucket.

use std::fmt;
use std::path::{Path, PathBuf};

use dunlin_store::{HttpLocation, Location, S3Location};
use serde::{Deserialize, Serialize};

use super::names::folder;

/// A folder that all peers see, or a place on a server. In a configuration it is a path, a URL, an object with `url` and `headers`, or one
/// with `s3` and `credentials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Destination(Location);

/// A destination in a configuration.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "checkpoint.destination is neither a path, a URL, {url, headers} nor {s3: {bucket, ...}, credentials}"
)]
enum Written {
    Text(String),
    Http(HttpLocation),
    S3(InBucket),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InBucket {
    s3: S3Location,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<PathBuf>,
}

impl From<Written> for Destination {
    fn from(written: Written) -> Self {
        Self(match written {
            Written::Text(text) => Location::parse(&text),
            Written::Http(place) => Location::Http(place),
            Written::S3(InBucket { s3, credentials }) => {
                Location::S3(S3Location { credentials: credentials.or(s3.credentials.clone()), ..s3 })
            }
        })
    }
}

impl From<Destination> for Written {
    fn from(destination: Destination) -> Self {
        match destination.0 {
            Location::Http(place) if place.headers.is_none() => Self::Text(Location::Http(place).to_string()),
            Location::Http(place) => Self::Http(place),
            Location::S3(s3) => {
                let credentials = s3.credentials.clone();
                Self::S3(InBucket { s3: S3Location { credentials: None, ..s3 }, credentials })
            }
            path @ Location::Path(_) => Self::Text(path.to_string()),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Destination {
    /// Checks all that can be wrong before it is used.
    ///
    /// # Errors
    /// What is wrong, in the words after `checkpoint.destination`.
    pub fn check(&self) -> Result<(), String> {
        match &self.0 {
            Location::Path(path) if path.as_os_str().is_empty() => {
                Err("is empty; use a folder that all peers see, a URL, or a bucket".to_owned())
            }
            Location::Http(HttpLocation { sha256: Some(_), .. }) => {
                Err("has a sha256, but it is a place for many files; leave it out".to_owned())
            }
            other => other.check().map_err(|wrong| wrong.problem),
        }
    }

    /// The folder, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match &self.0 {
            Location::Path(path) => Some(path),
            Location::Http(_) | Location::S3(_) => None,
        }
    }

    /// Where it is.
    pub(super) fn location(&self) -> &Location {
        &self.0
    }

    /// Where the checkpoint of `step` is.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        folder(Path::new(&self.to_string()), step)
    }
}

impl From<&Path> for Destination {
    fn from(path: &Path) -> Self {
        Self(Location::Path(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_place_is_read_from_a_configuration_and_written_as_it_was() {
        let full = json!({
            "s3": {"endpoint": "https://store", "region": "us-east-1", "bucket": "models", "prefix": "runs/tiny", "pathStyle": false},
            "credentials": "/etc/dunlin/s3",
        });
        let http = json!({"url": "https://store/runs", "headers": "/etc/dunlin/headers"});
        for (written, shown) in [
            (full, "s3://models/runs/tiny"),
            (json!({"s3": {"region": "us-east-1", "bucket": "models"}}), "s3://models"),
            (http, "https://store/runs"),
            (json!("https://store/runs"), "https://store/runs"),
            (json!("/runs"), "/runs"),
        ] {
            let destination: Destination = serde_json::from_value(written.clone()).unwrap();
            assert_eq!((destination.check(), json!(destination)), (Ok(()), written));
            assert_eq!(destination.to_string(), shown);
            assert_eq!(destination.checkpoint(7), Path::new(shown).join("step-00000007"));
        }
        let bucket: Destination = serde_json::from_value(json!("s3://models/runs")).unwrap();
        assert!(bucket.folder().is_none() && bucket.to_string() == "s3://models/runs");
        let error = serde_json::from_value::<Destination>(json!({"s3": {"name": "x"}})).unwrap_err();
        assert!(error.to_string().contains("{s3: {bucket"), "{error}");
        let digest: Destination =
            serde_json::from_value(json!({"url": "http://a", "sha256": "0".repeat(64)})).unwrap();
        assert!(digest.check().unwrap_err().contains("leave it out"));
    }
}
