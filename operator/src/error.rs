//! Why a reconciliation failed, what users are told about it, and when to try again.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::apply::certificates::CertificateError;

/// Longest pause between attempts at what only time brings. It is less than half of a node's notice, so that a notice which comes in such a pause is acted upon.
pub const BACKOFF_MAX: Duration = Duration::from_secs(12);
/// What only a user or an administrator mends is tried again this seldom.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What went wrong. `source()` has the cause.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("cannot {action}")]
    Api {
        /// What was tried, with kind and name.
        action: String,
        /// What the API server answered, or why there was no answer.
        source: Arc<kube::Error>,
        /// Which attempt it was.
        attempt: WriteAttempt,
    },
    /// No pod can be made.
    #[error("cannot create a pod of pool {pool}")]
    Pod {
        /// The pool that it was for.
        pool: String,
        /// Why it could not be made.
        source: Box<Error>,
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
    Certificate(#[from] Arc<CertificateError>),
    /// An object could not be written as JSON.
    #[error("cannot write {what} as JSON")]
    Json {
        /// Kind of the object.
        what: &'static str,
        /// What cannot be written.
        source: Arc<serde_json::Error>,
    },
    /// The planner's own check refuses its plan: a bug, nothing was applied.
    #[error("the plan breaks a rule and was not applied: {0}")]
    Plan(String),
}

/// An attempt at one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAttempt {
    /// How many failed in a row, this one included.
    pub times: u32,
    /// It was not made: the last one failed a short while ago.
    pub held: bool,
}

impl Default for WriteAttempt {
    fn default() -> Self {
        Self { times: 1, held: false }
    }
}

impl Error {
    /// An answer of the API server to the first attempt at `action`.
    #[must_use]
    pub fn api(action: String, source: kube::Error) -> Self {
        Self::Api { action, source: Arc::new(source), attempt: WriteAttempt::default() }
    }

    /// `what` could not be written as JSON.
    #[must_use]
    pub fn json(what: &'static str, source: serde_json::Error) -> Self {
        Self::Json { what, source: Arc::new(source) }
    }

    /// Label of metrics and choice of back-off: from a fixed set.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => "conflict",
                    401 | 403 => "forbidden",
                    // Too slow or too many: nothing is wrong with what was asked.
                    408 | 429 => "api",
                    400..500 => "refused",
                    _ => "api",
                },
                _ => "api",
            },
            Self::Pod { source, .. } => source.category(),
            Self::Timeout { .. } | Self::Unread => "timeout",
            Self::Certificate(_) => "certificate",
            Self::Json { .. } => "json",
            Self::Plan(_) => "plan",
        }
    }

    /// The API server has said that it does not want this object as it is: asking again at once changes nothing, and others need not wait.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.category(), "forbidden" | "refused")
    }

    /// Another leader has written since we read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.category() == "conflict"
    }

    /// Nothing was tried: it repeats the last failure.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.attempt().held
    }

    fn attempt(&self) -> WriteAttempt {
        match self {
            Self::Api { attempt, .. } => *attempt,
            Self::Pod { source, .. } => source.attempt(),
            _ => WriteAttempt::default(),
        }
    }

    /// The failure in one sentence, for people: what was tried, and the API server's own words.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Api { source, .. } => format!("{self}: {}", words(source)),
            Self::Pod { source, .. } => match source.as_ref() {
                Self::Api { source, .. } => format!("{self}: {}", words(source)),
                other => format!("{self}: {}", other.sentence()),
            },
            Self::Json { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    /// What the user has to fix before it can work: (CamelCase reason, what to do). A ban may be that of the moment (a pod that is going still
    /// counts for a quota), so it must be said twice.
    #[must_use]
    pub fn trouble(&self) -> Option<(String, String)> {
        let reason = if matches!(self, Self::Pod { .. }) { "PodRefused" } else { "Refused" };
        let lasting = match self.category() {
            "refused" | "certificate" => true,
            "forbidden" => self.attempt().times > 1,
            _ => false,
        };
        lasting.then(|| (reason.to_owned(), self.sentence()))
    }

    /// Pause before attempt number `attempt` (from 1): doubles, up to [`BACKOFF_MAX`], or to a minute if somebody has to mend something, with `random` spreading it by half.
    #[must_use]
    pub fn backoff(&self, attempt: u32, random: u64) -> Duration {
        let (first, longest) = match self.category() {
            "conflict" => (Duration::from_millis(100), BACKOFF_MAX),
            "api" | "timeout" => (Duration::from_millis(500), BACKOFF_MAX),
            // Waiting changes little about these; somebody has to mend something.
            _ => (Duration::from_secs(5), REFUSED_PAUSE),
        };
        let pause = first.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(longest);
        // 50% to 100% of the pause.
        let spread = u32::try_from(random % 1000).unwrap_or(0);
        pause / 2 + pause / 2 * spread / 1000
    }

    /// How long one write rests after it failed for the `attempt`-th time, whatever wakes us meanwhile.
    #[must_use]
    pub fn rest(&self, attempt: u32, random: u64) -> Duration {
        if self.is_refusal() { REFUSED_PAUSE } else { self.backoff(attempt, random) }
    }
}

/// The API server's own words, or why it could not be asked.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answers {} {}", status.code, status.reason),
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            format!("the API server cannot be asked: {cause}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Error {
        let status = kube::core::Status { code, message: message.into(), ..Default::default() };
        Error::api("apply Service m-gateway".into(), kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn pauses_grow_and_are_spread() {
        let error = Error::Timeout { action: "apply".into(), limit_s: 10 };
        assert_eq!(error.backoff(1, 0), Duration::from_millis(250));
        assert!(error.backoff(1, 999) < Duration::from_millis(500));
        assert!(error.backoff(3, 0) > error.backoff(2, 0));
        assert!(error.backoff(99, 999) <= BACKOFF_MAX);
        assert!(BACKOFF_MAX < dunlin_swarm::timing::GRACE / 2, "a notice is acted upon");
        assert!(status(403, "").backoff(99, 999) > BACKOFF_MAX);
        assert_eq!(status(422, "").rest(1, 0), REFUSED_PAUSE);
        assert_eq!(error.rest(1, 0), error.backoff(1, 0));
    }

    #[test]
    fn categories_come_from_the_answer() {
        for (code, category) in [
            (409, "conflict"),
            (403, "forbidden"),
            (422, "refused"),
            (404, "refused"),
            (429, "api"),
            (500, "api"),
        ] {
            assert_eq!(status(code, "").category(), category);
        }
    }

    #[test]
    fn people_read_the_api_server_s_own_words() {
        assert_eq!(
            status(422, "metadata.name: Invalid value").sentence(),
            "cannot apply Service m-gateway: metadata.name: Invalid value"
        );
        assert_eq!(status(503, "").sentence(), "cannot apply Service m-gateway: the API server answers 503 ");
        let pod = Error::Pod { pool: "spot".into(), source: Box::new(status(403, "exceeded quota: pods")) };
        assert_eq!(pod.sentence(), "cannot create a pod of pool spot: exceeded quota: pods");
        let lost = std::io::Error::other("connection refused");
        let unreachable = Error::api("apply".into(), kube::Error::Service(Box::new(lost)));
        assert_eq!(
            unreachable.sentence(),
            "cannot apply: the API server cannot be asked: connection refused"
        );
    }

    #[test]
    fn what_is_invalid_needs_a_user_at_once_and_what_is_forbidden_when_it_stays_so() {
        let again = |error: Error| match error {
            Error::Api { action, source, .. } => {
                Error::Api { action, source, attempt: WriteAttempt { times: 2, held: true } }
            }
            other => other,
        };
        let reason = |error: &Error| error.trouble().map(|(reason, _)| reason);
        assert_eq!(reason(&status(422, "x")).as_deref(), Some("Refused"));
        assert_eq!(reason(&status(403, "x")), None);
        assert_eq!(reason(&again(status(403, "x"))).as_deref(), Some("Refused"));
        assert_eq!(reason(&again(status(503, "x"))), None);
        let pod = Error::Pod { pool: "spot".into(), source: Box::new(again(status(403, "x"))) };
        assert_eq!(reason(&pod).as_deref(), Some("PodRefused"));
    }
}
