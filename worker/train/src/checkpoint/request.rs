//! What a server of files is asked for, and what it says when it does not do it.

use std::io;

use ureq::http::Method;

/// What is asked for. Parts are S3's alone.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action<'a> {
    Get,
    Head,
    Put,
    Delete,
    /// Begins an upload in parts, which gets a name.
    Begin,
    /// One of the parts; the first is 1.
    Part {
        upload: &'a str,
        number: u16,
    },
    /// Makes an object of the parts.
    Complete {
        upload: &'a str,
    },
    /// Forgets the parts.
    Abort {
        upload: &'a str,
    },
}

impl Action<'_> {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Put | Self::Part { .. } => Method::PUT,
            Self::Delete | Self::Abort { .. } => Method::DELETE,
            Self::Begin | Self::Complete { .. } => Method::POST,
        }
    }
}

/// What a server says when it does not do what it is asked for.
pub(super) struct Refusal {
    /// There is no such bucket, which is something else than no such object.
    pub(super) no_bucket: bool,
    pub(super) text: String,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::other(refusal.text)
    }
}
