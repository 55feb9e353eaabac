//! Why bytes cannot be had, said so that a user knows what to do.

use std::fmt;
use std::io::{self, ErrorKind};

use thiserror::Error;

/// Why bytes cannot be had or put.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is nothing of that name.
    #[error("{0}")]
    Missing(String),
    /// Whoever asks may not.
    #[error("{0}")]
    Denied(String),
    /// It stays so until somebody changes something.
    #[error("{0}")]
    Refused(String),
    /// It may be otherwise at another time.
    #[error("{0}")]
    Unavailable(String),
    /// The bytes are not those that were meant.
    #[error("it has the SHA-256 {found}, not {expected}; correct the digest or the file")]
    Digest {
        /// The digest that they have.
        found: String,
        /// The one that was said.
        expected: String,
    },
    /// Something on this machine.
    #[error(transparent)]
    Local(io::Error),
}

impl From<io::Error> for StoreError {
    /// What it was before it had to be one of the system's.
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Local)
    }
}

impl StoreError {
    /// Nothing is at `place`.
    #[must_use]
    pub fn missing(place: &dyn fmt::Display) -> Self {
        Self::Missing(format!("there is nothing at {place}"))
    }

    /// Whether there is nothing, as far as we may know: buckets answer 403 where there is nothing, to whoever may not list them.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Denied(_))
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Missing(_) => ErrorKind::NotFound,
            StoreError::Denied(_) => ErrorKind::PermissionDenied,
            StoreError::Refused(_) => ErrorKind::InvalidInput,
            StoreError::Unavailable(_) => ErrorKind::Other,
            StoreError::Digest { .. } => ErrorKind::InvalidData,
            StoreError::Local(error) => error.kind(),
        };
        match error {
            StoreError::Local(error) => error,
            error => Self::new(kind, error),
        }
    }
}
