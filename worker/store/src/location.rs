//! Where bytes are.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::is_sha256;
use crate::s3::S3Location;

/// A file or folder: here, on an HTTP server, or in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Location {
    /// Here.
    Path(PathBuf),
    /// On an HTTP server.
    Http(HttpLocation),
    /// In a bucket of object storage.
    S3(S3Location),
}

/// A place on an HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpLocation {
    /// `http://` or `https://`.
    pub url: String,
    /// What the bytes must hash to, in hexadecimal; of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// A folder with headers that every request has, such as `Authorization`: a file each with its name and value. They are read for each
    /// request, so that they can change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<PathBuf>,
}

impl HttpLocation {
    /// A URL that needs nothing beside it.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), sha256: None, headers: None }
    }
}

/// A place that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongLocation {
    /// The field of the location, after the name of the location's own; empty for all of it.
    pub field: &'static str,
    /// What is wrong with it and what to do, in the words after its name.
    pub problem: String,
}

impl Location {
    /// From a path, a URL, or `s3://bucket/prefix`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Self::Http(HttpLocation::new(text));
        }
        match text.strip_prefix("s3://") {
            Some(place) => Self::S3(S3Location::parse(place)),
            None => Self::Path(text.into()),
        }
    }

    /// Checks all that can be wrong before anything is asked for.
    ///
    /// # Errors
    /// The first thing that is.
    pub fn check(&self) -> Result<(), WrongLocation> {
        let wrong = |field, problem| Err(WrongLocation { field, problem });
        match self {
            Self::Path(path) if path.as_os_str().is_empty() => {
                wrong(".path", "is empty; use the path of a file".to_owned())
            }
            Self::Path(_) => Ok(()),
            Self::Http(HttpLocation { url, sha256, .. }) => {
                if !url.starts_with("http://") && !url.starts_with("https://") {
                    let problem = format!("is `{url}`; use an address that begins with http:// or https://");
                    return wrong(".http.url", problem);
                }
                if sha256.as_ref().is_some_and(|s| !is_sha256(s)) {
                    let problem = "is not a digest; use 64 hexadecimal digits".to_owned();
                    return wrong(".http.sha256", problem);
                }
                Ok(())
            }
            Self::S3(place) => place.check().or_else(|problem| wrong("", problem)),
        }
    }

    /// A name for what is there when nobody gave one.
    #[must_use]
    pub fn stem(&self) -> String {
        let text = self.to_string();
        Path::new(&text).file_stem().map_or(text.clone(), |s| s.to_string_lossy().into_owned())
    }

    /// The folder on a server that a file is in, and its name there; none when it does not end with a name, or is here.
    #[must_use]
    pub fn parent(&self) -> Option<(Self, String)> {
        match self {
            Self::Path(_) => None,
            Self::Http(place) => {
                let (url, name) = place.url.rsplit_once('/')?;
                let is_name = url.contains("://") && !name.is_empty();
                let folder =
                    HttpLocation { url: url.to_owned(), sha256: None, headers: place.headers.clone() };
                is_name.then(|| (Self::Http(folder), name.to_owned()))
            }
            Self::S3(place) => {
                let (prefix, name) = place.prefix.rsplit_once('/').unwrap_or(("", &place.prefix));
                let folder = S3Location { prefix: prefix.to_owned(), ..place.clone() };
                (!name.is_empty()).then(|| (Self::S3(folder), name.to_owned()))
            }
        }
    }

    /// The digest that the file must have, if one is said.
    #[must_use]
    pub fn sha256(&self) -> Option<String> {
        match self {
            Self::Http(place) => place.sha256.as_ref().map(|s| s.to_ascii_lowercase()),
            Self::Path(_) | Self::S3(_) => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Http(place) => f.write_str(place.url.trim_end_matches('/')),
            Self::S3(place) => place.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_a_url_or_a_bucket() {
        for (text, stem, shown) in [
            ("/models/tiny.gguf", "tiny", "/models/tiny.gguf"),
            ("models/tiny", "tiny", "models/tiny"),
            ("https://store/a/tiny.gguf", "tiny", "https://store/a/tiny.gguf"),
            ("http://store/a/", "a", "http://store/a"),
            ("s3://models/runs/tiny.gguf", "tiny", "s3://models/runs/tiny.gguf"),
            ("s3://models", "models", "s3://models"),
        ] {
            let place = Location::parse(text);
            assert_eq!((place.stem().as_str(), place.to_string().as_str()), (stem, shown));
            assert_eq!(place.check(), Ok(()));
        }
        let Location::S3(place) = Location::parse("s3://models/runs/tiny") else { panic!("a bucket") };
        assert_eq!((place.bucket.as_str(), place.prefix.as_str()), ("models", "runs/tiny"));
    }

    #[test]
    fn what_is_beside_a_file_has_its_place_but_for_the_name() {
        for (text, parent) in [
            ("https://host/models/m.gguf", Some(("https://host/models", "m.gguf"))),
            ("https://host/m.gguf", Some(("https://host", "m.gguf"))),
            ("https://host/models/", None),
            ("https://host", None),
            ("s3://bucket/models/m.gguf", Some(("s3://bucket/models", "m.gguf"))),
            ("s3://bucket/m.gguf", Some(("s3://bucket", "m.gguf"))),
            ("s3://bucket", None),
            ("/models/m.gguf", None),
        ] {
            let found = Location::parse(text).parent().map(|(folder, name)| (folder.to_string(), name));
            assert_eq!(found, parent.map(|(folder, name)| (folder.to_owned(), name.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_is_named_before_anything_is_asked() {
        let http = |url: &str, sha256: &str| {
            Location::Http(HttpLocation { sha256: Some(sha256.to_owned()), ..HttpLocation::new(url) })
        };
        for (place, field, problem) in [
            (Location::Path(PathBuf::new()), ".path", "is empty"),
            (http("ftp://a", &"a".repeat(64)), ".http.url", "begins with http://"),
            (http("http://a", "abc"), ".http.sha256", "64 hexadecimal digits"),
            (Location::parse("s3:///a"), "", "has no s3.bucket"),
        ] {
            let wrong = place.check().unwrap_err();
            assert_eq!(wrong.field, field);
            assert!(wrong.problem.contains(problem), "{}", wrong.problem);
        }
    }

    #[test]
    fn a_place_is_written_as_it_was_read() {
        for json in [
            serde_json::json!({"path": "/a"}),
            serde_json::json!({"http": {"url": "http://a", "sha256": "00"}}),
            serde_json::json!({"s3": {"region": "us-east-1", "bucket": "b", "prefix": "p/f"}}),
        ] {
            let place: Location = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::json!(place), json);
        }
        let unknown = serde_json::json!({"http": {"url": "http://a", "sha512": "00"}});
        assert!(serde_json::from_value::<Location>(unknown).is_err());
    }
}
