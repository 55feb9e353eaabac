//! Why a reconciliation failed, and when to try again.

use std::time::Duration;

use thiserror::Error;

use crate::apply::certificates::CertificateError;

/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What went wrong. `source()` has the cause.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("cannot {action}")]
    Api {
        /// What was tried, with kind and name.
        action: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("{action}: no answer within {limit_s} s")]
    Timeout {
        /// What was tried.
        action: String,
        /// The deadline in seconds.
        limit_s: u64,
    },
    /// What is published could not be read, so nothing may replace it.
    #[error("the published topology has not been read yet")]
    Unread,
    /// No certificate for a worker.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// An object could not be written as JSON.
    #[error("cannot write {what} as JSON")]
    Json {
        /// Which object.
        what: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The planner's own check refuses its plan: a bug, nothing was applied.
    #[error("the plan breaks a rule and was not applied: {0}")]
    Plan(String),
}

impl Error {
    /// Label of metrics and choice of back-off: from a fixed set.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 409 => "conflict",
                kube::Error::Api(status) if status.code == 403 => "forbidden",
                kube::Error::Api(status) if (400..500).contains(&status.code) => "refused",
                _ => "api",
            },
            Self::Timeout { .. } | Self::Unread => "timeout",
            Self::Certificate(_) => "certificate",
            Self::Json { .. } => "json",
            Self::Plan(_) => "plan",
        }
    }

    /// Pause before attempt number `attempt` (from 1): doubles, up to a minute, with `random` spreading it by half.
    #[must_use]
    pub fn backoff(&self, attempt: u32, random: u64) -> Duration {
        let first = match self.category() {
            "conflict" => Duration::from_millis(100),
            "api" | "timeout" => Duration::from_millis(500),
            // Waiting changes little about these; somebody has to mend something.
            _ => Duration::from_secs(5),
        };
        let pause = first.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(BACKOFF_MAX);
        // 50% to 100% of the pause.
        let spread = u32::try_from(random % 1000).unwrap_or(0);
        pause / 2 + pause / 2 * spread / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_are_spread() {
        let error = Error::Timeout { action: "apply".into(), limit_s: 10 };
        assert_eq!(error.backoff(1, 0), Duration::from_millis(250));
        assert!(error.backoff(1, 999) < Duration::from_millis(500));
        assert!(error.backoff(3, 0) > error.backoff(2, 0));
        assert!(error.backoff(99, 999) <= BACKOFF_MAX);
    }

    #[test]
    fn categories_come_from_the_answer() {
        let status = |code| Error::Api {
            action: "apply".into(),
            source: Box::new(kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() }))),
        };
        assert_eq!(status(409).category(), "conflict");
        assert_eq!(status(403).category(), "forbidden");
        assert_eq!(status(422).category(), "refused");
        assert_eq!(status(500).category(), "api");
    }
}
