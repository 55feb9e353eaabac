//! The calls of a cluster.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::events::{Recorder, Reporter};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::server::{ApiAnswer, ApiServer, ApiVerb, read};
use crate::error::Error;
use crate::labels::MANAGER;

/// Deadline of one call.
const CALL: Duration = Duration::from_secs(10);

/// A client of the API server of a cluster.
pub struct ApiClient {
    client: Client,
    recorder: Recorder,
}

impl ApiClient {
    /// Calls through `client`; Events are those of `reporter`.
    #[must_use]
    pub fn new(client: Client, reporter: Reporter) -> Self {
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Objects of the kind of `object`, in its namespace.
    fn of(&self, object: &Value, namespace: &str) -> Api<DynamicObject> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = text(&object["kind"]);
        let plural = match kind.as_str() {
            "NetworkPolicy" => "networkpolicies".to_owned(),
            _ => format!("{}s", kind.to_lowercase()),
        };
        let gvk = GroupVersionKind::gvk(group, version, &kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, &plural);
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    async fn perform(&self, action: String, verb: ApiVerb) -> Result<Value, Error> {
        let apply = PatchParams::apply(MANAGER).force();
        match verb {
            ApiVerb::Get { kind, namespace, name } => {
                let api = self.of(&json!({"apiVersion": "v1", "kind": kind}), &namespace);
                value(call(action, api.get_opt(&name)).await?)
            }
            ApiVerb::Create(object) => {
                let api = self.of(&object, namespace(&object));
                let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
                let object: DynamicObject = read(&action, object)?;
                value(call(action, api.create(&params, &object)).await?)
            }
            ApiVerb::Apply(object) => {
                let api = self.of(&object, namespace(&object));
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                value(call(action, api.patch(name, &apply, &Patch::Apply(&object))).await?)
            }
            ApiVerb::Delete { namespace, name, uid, now } => {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                let params = DeleteParams {
                    grace_period_seconds: now.then_some(0),
                    preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                    ..DeleteParams::default()
                };
                call(action, api.delete(&name, &params)).await.map(|_| Value::Null)
            }
            ApiVerb::Status { key, body } => {
                let api = self.of(&body, &key.namespace);
                value(call(action, api.patch_status(&key.name, &apply, &Patch::Apply(&body))).await?)
            }
            ApiVerb::Tell { swarm, event } => {
                call(action, self.recorder.publish(&event, &swarm)).await.map(|()| Value::Null)
            }
        }
    }
}

impl ApiServer for ApiClient {
    fn call(&self, action: String, verb: ApiVerb) -> ApiAnswer<'_> {
        Box::pin(self.perform(action, verb))
    }
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn value(answer: impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(answer).map_err(|source| Error::json("an answer", source))
}

/// An API call under the common deadline.
///
/// # Errors
/// The call's error, or that there was no answer.
pub async fn call<T>(
    action: String,
    future: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match timeout(CALL, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::api(action, source)),
        Err(_) => Err(Error::Timeout { action, limit_s: CALL.as_secs() }),
    }
}
