//! Why a configuration cannot be used.

use thiserror::Error;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON or YAML, or not of this shape.
    #[error("the training configuration cannot be read: {0}")]
    Unreadable(String),
    /// A value that makes no sense.
    #[error("{field} {problem}")]
    Field {
        /// Path of the field, as in the file.
        field: String,
        /// What is wrong and what to do.
        problem: String,
    },
}
