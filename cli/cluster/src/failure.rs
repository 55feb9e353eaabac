//! Errors of the API server as sentences that say what to do.

use std::error::Error as _;
use std::fmt;

use kube::Error;

/// What was asked of the API server when it failed.
#[derive(Clone, Copy, Debug)]
pub struct ApiCall<'a> {
    /// `list`, `get`, `create`.
    pub verb: &'a str,
    /// `inferenceswarms.dunlin.dev`, `pods`, `pods/eviction`.
    pub resource: &'a str,
    /// `None` for all of them, and for what is in none.
    pub namespace: Option<&'a str>,
}

/// Why a call failed, in a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFailure {
    sentence: String,
    /// Another try does not help: a right, a definition or another version is missing.
    stays: bool,
}

impl CallFailure {
    /// One that may be gone at the next try.
    #[must_use]
    pub fn passing(sentence: String) -> Self {
        Self { sentence, stays: false }
    }

    /// The same with what else is to be said about it.
    #[must_use]
    pub fn and(self, more: &str) -> Self {
        Self { sentence: format!("{}; {more}", self.sentence), ..self }
    }

    /// Whether another try does not help.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.stays
    }
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for CallFailure {}

/// Whether `error` stays until somebody changes something.
#[must_use]
pub fn is_for_user(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<CallFailure>()).any(CallFailure::stays)
}

impl ApiCall<'_> {
    /// `error` in a sentence.
    #[must_use]
    pub fn failed(&self, error: &Error) -> CallFailure {
        let stays = match error {
            Error::Api(status) => {
                matches!(status.code, 401 | 403)
                    || (status.code == 404 && self.resource.ends_with(".dunlin.dev"))
            }
            other => matches!(other, Error::SerdeError(_)),
        };
        CallFailure { sentence: self.sentence(error), stays }
    }

    fn sentence(&self, error: &Error) -> String {
        let Self { verb, resource, .. } = self;
        let place = self
            .namespace
            .map_or_else(|| " in the whole cluster".to_owned(), |n| format!(" in namespace {n}"));
        match error {
            Error::Api(status) if status.code == 403 && status.message.contains(" cannot ") => format!(
                "you may not {verb} {resource}{place}: you need a Role or ClusterRole with the verb {verb} on {resource}"
            ),
            Error::Api(status) if status.code == 401 => {
                "the API server does not know you: log in again, or choose another --context".to_owned()
            }
            Error::Api(status) if status.code == 404 && resource.ends_with(".dunlin.dev") => format!(
                "the CustomResourceDefinition {resource} is not installed in this cluster: install Dunlin with `helm install dunlin charts/dunlin`, or \
                 choose another cluster with --context"
            ),
            Error::Api(status) => format!("cannot {verb} {resource}{place}: {}", status.message),
            Error::SerdeError(cause) => format!(
                "the API server's {resource} are not of the form that this program knows ({cause}): use the program of the version that is installed"
            ),
            other => {
                format!("cannot reach the API server: {}: see that `kubectl version` works", root(other))
            }
        }
    }
}

/// The error at the bottom: the layers above it say only that there is one.
fn root(error: &Error) -> String {
    let mut cause = error.source();
    let mut text = error.to_string();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// Whether the API server knows no such object or resource.
#[must_use]
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.into(), ..Status::default() }))
    }

    #[test]
    fn errors_say_what_to_do() {
        let swarms =
            ApiCall { verb: "list", resource: "inferenceswarms.dunlin.dev", namespace: Some("default") };
        let said = |code, message| swarms.failed(&api(code, message)).to_string();
        assert_eq!(
            said(403, "inferenceswarms.dunlin.dev is forbidden: User \"eve\" cannot list resource ..."),
            "you may not list inferenceswarms.dunlin.dev in namespace default: you need a Role or ClusterRole with the verb list on \
             inferenceswarms.dunlin.dev"
        );
        assert!(said(404, "404 page not found").contains("is not installed in this cluster: install Dunlin"));
        assert!(said(401, "Unauthorized").contains("log in again"));
        let pods = ApiCall { verb: "get", resource: "nodes", namespace: None };
        assert_eq!(
            pods.failed(&api(500, "etcd is away")).to_string(),
            "cannot get nodes in the whole cluster: etcd is away"
        );
        let stays = |code, message| {
            let failure = swarms.failed(&api(code, message)).and("more");
            is_for_user(&anyhow::Error::new(failure).context("around it"))
        };
        assert!(stays(403, "eve cannot list") && stays(404, "page not found") && !stays(500, "etcd is away"));
    }
}
