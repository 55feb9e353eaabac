//! A device plugin beside a kubelet that only takes registrations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::super::proto::device_plugin_client::DevicePluginClient;
use super::super::proto::registration_server::{Registration, RegistrationServer};
use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// Sends what registers, but for a name that it refuses.
struct Kubelet(mpsc::Sender<RegisterRequest>);

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.resource_name.contains("refused") {
            return Err(Status::invalid_argument("a bad name"));
        }
        self.0.send(request).map_err(|_| Status::unavailable("nobody listens"))?;
        Ok(Response::new(Empty {}))
    }
}

/// Starts in `folder` as a kubelet does, which removes all sockets first; it is gone with the runtime.
fn kubelet(folder: &Path) -> (Runtime, mpsc::Receiver<RegisterRequest>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, registered) = mpsc::channel();
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(folder.join(KUBELET)).unwrap()
    };
    let server = Server::builder().add_service(RegistrationServer::new(Kubelet(sender)));
    runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    (runtime, registered)
}

fn offer(resource: &str) -> Offer {
    Offer {
        resource: resource.to_owned(),
        devices: vec!["a".to_owned(), "b".to_owned()],
        driver: Some(PathBuf::from("/opt/driver")),
        environment: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
    }
}

async fn client(socket: &Path) -> DevicePluginClient<Channel> {
    let path = format!("unix://{}", socket.display());
    DevicePluginClient::new(Endpoint::from_shared(path).unwrap().connect().await.unwrap())
}

fn health(list: &ListAndWatchResponse) -> Vec<(&str, &str)> {
    list.devices.iter().map(|device| (device.id.as_str(), device.health.as_str())).collect()
}

#[test]
fn a_kubelet_learns_of_devices_of_their_health_and_of_what_containers_need() {
    let folder = tempfile::tempdir().unwrap();
    let (runtime, registered) = kubelet(folder.path());
    let plugin = DevicePlugin::start(folder.path(), offer("nvidia.com/gpu")).unwrap();
    let request = registered.recv_timeout(LIMIT).unwrap();
    assert_eq!((&*request.version, &*request.resource_name), ("v1beta1", "nvidia.com/gpu"));
    let socket = folder.path().join(&request.endpoint);
    runtime.block_on(async {
        let mut client = client(&socket).await;
        client.get_device_plugin_options(Empty {}).await.unwrap();
        let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
        let first = lists.next().await.unwrap().unwrap();
        assert_eq!(health(&first), [("a", "Healthy"), ("b", "Healthy")]);
        plugin.set_healthy("b", false).unwrap();
        assert!(plugin.set_healthy("c", false).is_err());
        let second = lists.next().await.unwrap().unwrap();
        assert_eq!(health(&second), [("a", "Healthy"), ("b", "Unhealthy")]);

        let ask = |id: &str| AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { devices_ids: vec![id.to_owned()] }],
        };
        let given = client.allocate(ask("a")).await.unwrap().into_inner().container_responses;
        let [given] = &given[..] else { panic!("{given:?}") };
        assert_eq!(given.envs["KEY"], "value");
        assert_eq!(given.mounts.len(), 1);
        assert_eq!(given.mounts[0].host_path, "/opt/driver");
        assert_eq!(given.mounts[0].container_path, "/usr/local/nvidia/lib64");
        assert!(given.mounts[0].read_only);
        assert!(client.allocate(ask("b")).await.is_err(), "what is not healthy is given to nobody");
    });
    assert_eq!(plugin.allocated(), ["a"]);
    drop(plugin);
    assert!(!socket.exists(), "its socket goes with it");
}

#[test]
fn every_kubelet_that_comes_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (first, registered) = kubelet(folder.path());
    let plugin = DevicePlugin::start(folder.path(), offer("nvidia.com/gpu")).unwrap();
    registered.recv_timeout(LIMIT).unwrap();
    plugin.set_healthy("a", false).unwrap();
    for _ in 0..3 {
        let (second, registered) = kubelet(folder.path());
        let request = registered.recv_timeout(LIMIT).unwrap();
        second.block_on(async {
            let mut client = client(&folder.path().join(&request.endpoint)).await;
            let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
            let list = lists.next().await.unwrap().unwrap();
            assert_eq!(health(&list), [("a", "Unhealthy"), ("b", "Healthy")]);
        });
    }
    drop(first);
}

#[test]
fn a_plugin_whose_kubelet_does_not_take_it_is_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let (_kubelet, _registered) = kubelet(folder.path());
    let begun = std::time::Instant::now();
    let error = DevicePlugin::start_within(folder.path(), offer("refused"), Duration::from_secs(1)).err();
    let error = format!("{:#}", error.unwrap());
    assert!(error.contains("a bad name"), "{error}");
    assert!(begun.elapsed() < LIMIT);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the kubelet's socket is left");
}
