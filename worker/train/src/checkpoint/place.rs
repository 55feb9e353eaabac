//! Places on servers.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::s3::S3Place;

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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(place) => f.write_str(place.url.trim_end_matches('/')),
            Self::S3(place) => place.s3.fmt(f),
        }
    }
}
