//! Pages of pods, by the API server's proxy: nothing has to be reachable from where this program runs.

use std::time::Duration;

use futures::AsyncReadExt;
use kube::Client;

use crate::failure::ApiCall;

/// How long a page may take.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes of a page.
const PAGE_MAX: u64 = 8 << 20;

/// The page `path` of `pod`.
///
/// # Errors
/// Why it cannot be had, in a sentence.
pub async fn page(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, String> {
    let call = ApiCall { verb: "get", resource: "pods/proxy", namespace: Some(namespace) };
    let url = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}");
    let read = async {
        let request =
            http::Request::get(url).body(Vec::new()).map_err(|e| format!("{pod} cannot be asked: {e}"))?;
        let stream = client.request_stream(request).await.map_err(|e| call.failed(&e).to_string())?;
        let mut text = String::new();
        let read = Box::pin(stream.take(PAGE_MAX)).read_to_string(&mut text).await;
        read.map_err(|e| format!("{pod} stopped in the middle of its answer: {e}"))?;
        Ok(text)
    };
    let late = || Err(format!("{pod} has not answered for {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| late())
}

/// The page `path` of each of `pods`, all at once.
pub async fn pages(
    client: &Client,
    namespace: &str,
    pods: &[String],
    port: u16,
    path: &str,
) -> Vec<(String, Result<String, String>)> {
    let ask = |pod: &String| {
        let pod = pod.clone();
        async move {
            let said = page(client, namespace, &pod, port, path).await;
            (pod, said)
        }
    };
    futures::future::join_all(pods.iter().map(ask)).await
}
