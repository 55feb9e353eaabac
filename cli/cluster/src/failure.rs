//! Errors of the API server as sentences that say what to do.

use std::error::Error as _;

use kube::Error;

/// What was asked of the API server when it failed.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `list`, `get`, `create`.
    pub verb: &'a str,
    /// `inferenceswarms.dunlin.dev`, `pods`, `pods/eviction`.
    pub resource: &'a str,
    /// `None` for all of them, and for what is in none.
    pub namespace: Option<&'a str>,
}

impl Call<'_> {
    /// `error` in a sentence.
    #[must_use]
    pub fn failed(&self, error: &Error) -> String {
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
            Call { verb: "list", resource: "inferenceswarms.dunlin.dev", namespace: Some("default") };
        let said = |code, message| swarms.failed(&api(code, message));
        assert_eq!(
            said(403, "inferenceswarms.dunlin.dev is forbidden: User \"eve\" cannot list resource ..."),
            "you may not list inferenceswarms.dunlin.dev in namespace default: you need a Role or ClusterRole with the verb list on \
             inferenceswarms.dunlin.dev"
        );
        assert!(said(404, "404 page not found").contains("is not installed in this cluster: install Dunlin"));
        assert!(said(401, "Unauthorized").contains("log in again"));
        let pods = Call { verb: "get", resource: "nodes", namespace: None };
        assert_eq!(
            pods.failed(&api(500, "etcd is away")),
            "cannot get nodes in the whole cluster: etcd is away"
        );
    }
}
