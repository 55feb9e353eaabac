//! Calls as values, and who performs them.

use std::future::Future;
use std::pin::Pin;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::Event;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Error;
use crate::key::SwarmKey;

/// What is asked. Objects are whole manifests, with `apiVersion`, `kind`, name and namespace.
pub enum ApiVerb {
    /// An object of the core group.
    Get {
        /// Its kind.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An object that is not there yet.
    Create(Value),
    /// An object as it should be, whether or not it is there. One that names its `metadata.resourceVersion` takes the place of that version alone.
    Apply(Value),
    /// The end of a pod.
    Delete {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID: not another pod of the same name.
        uid: String,
        /// Without waiting for its node to confirm.
        now: bool,
    },
    /// The status of a swarm.
    Status {
        /// Which swarm.
        key: SwarmKey,
        /// `apiVersion`, `kind` and `status`.
        body: Value,
    },
    /// An Event.
    Tell {
        /// The swarm that it is about.
        swarm: ObjectReference,
        /// What happened.
        event: Box<Event>,
    },
}

/// A boxed future of an answer.
pub type ApiAnswer<'a> = Pin<Box<dyn Future<Output = Result<Value, Error>> + Send + 'a>>;

/// Performs calls, one at a time for each pass.
pub trait ApiServer: Send + Sync {
    /// Performs `verb`, and answers with the object as it is then: `Null` when there is none to get, and after what has no object. `action` says
    /// in words what is tried, for the error.
    ///
    /// # Errors
    /// The refusal, or that there was no answer in time: what was asked may have been done then.
    fn call(&self, action: String, verb: ApiVerb) -> ApiAnswer<'_>;
}

/// `value` as what it should be.
///
/// # Errors
/// When the API server has answered with something else.
pub fn read<T: DeserializeOwned>(action: &str, value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|source| Error::api(action.to_owned(), kube::Error::SerdeError(source)))
}

/// Whether an answer has this HTTP status.
#[must_use]
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
