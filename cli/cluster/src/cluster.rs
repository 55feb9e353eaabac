//! The API server of the chosen context.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::args::ClusterArgs;
use crate::failure::{ApiCall, CallFailure, is_missing};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Most objects of one list.
pub const LIST_MAX: u32 = 500;

/// The API server, and where to look.
#[derive(Clone)]
pub struct Cluster {
    /// Asks it.
    pub client: Client,
    /// `None`: all namespaces.
    pub namespace: Option<String>,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked yet.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub async fn connect(args: &ClusterArgs) -> Result<Self> {
        // An error means that one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context("no kubeconfig: set KUBECONFIG or --kubeconfig")?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(ANSWER);
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let namespace = (!args.all_namespaces).then_some(namespace);
        Ok(Self { client: Client::try_from(config).context("the kubeconfig cannot be used")?, namespace })
    }

    /// The same cluster, as far as `namespace` goes.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// Objects of a kind where to look is.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Those that `selector` takes, at most [`LIST_MAX`].
    ///
    /// # Errors
    /// A sentence about what the API server said.
    pub async fn list<K>(&self, selector: &str) -> Result<Vec<K>, CallFailure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        listed(&self.api::<K>(), selector, self.namespace.as_deref()).await
    }

    /// One of them; `None` when it is not there.
    ///
    /// # Errors
    /// A sentence about what the API server said.
    pub async fn get<K>(&self, name: &str) -> Result<Option<K>, CallFailure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let resource = resource::<K>();
        let call = ApiCall { verb: "get", resource: &resource, namespace: self.namespace.as_deref() };
        self.api::<K>().get_opt(name).await.map_err(|e| call.failed(&e))
    }
}

/// Objects of `api` that `selector` takes, at most [`LIST_MAX`].
///
/// # Errors
/// A sentence about what the API server said.
pub async fn listed<K>(api: &Api<K>, selector: &str, namespace: Option<&str>) -> Result<Vec<K>, CallFailure>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params = ListParams::default().labels(selector).limit(LIST_MAX);
    let resource = resource::<K>();
    let call = ApiCall { verb: "list", resource: &resource, namespace };
    api.list(&params).await.map(|list| list.items).map_err(|e| call.failed(&e))
}

/// `pods`, `inferenceswarms.dunlin.dev`.
#[must_use]
pub fn resource<K: Resource<DynamicType = ()>>() -> String {
    match K::group(&()).as_ref() {
        "" => K::plural(&()).into_owned(),
        group => format!("{}.{group}", K::plural(&())),
    }
}

/// `Ok(None)` for what is missing.
///
/// # Errors
/// Everything else.
pub fn if_there<T>(found: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
