//! What a server of files is asked for.

use ureq::http::Method;

/// What is asked for. Parts are S3's alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action<'a> {
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
    pub(crate) fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Put | Self::Part { .. } => Method::PUT,
            Self::Delete | Self::Abort { .. } => Method::DELETE,
            Self::Begin | Self::Complete { .. } => Method::POST,
        }
    }
}
