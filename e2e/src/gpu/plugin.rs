//! A device plugin: by it a kubelet learns which devices its node has, and what a container needs that gets one.
//!
//! A kubelet that starts removes the sockets of all plugins, so a plugin looks whether its own is still there, and registers again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::proto::device_plugin_server::{DevicePlugin as Service, DevicePluginServer};
use super::proto::registration_client::RegistrationClient;
use super::proto::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse, Device,
    DevicePluginOptions, Empty, ListAndWatchResponse, Mount, RegisterRequest,
};

/// Version of the API that is spoken.
const VERSION: &str = "v1beta1";
/// Socket of the kubelet.
const KUBELET: &str = "kubelet.sock";
/// Where the driver's libraries lie in a container that has a device.
const DRIVER_IN_CONTAINER: &str = "/usr/local/nvidia/lib64";
/// How often the plugin looks whether the kubelet is another one.
const LOOK: Duration = Duration::from_millis(100);
/// How long a kubelet may take to answer, and to take a plugin at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(60);

/// What a node offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Name of the resource, `nvidia.com/gpu`.
    pub resource: String,
    /// Ids of the devices, which are healthy at first.
    pub devices: Vec<String>,
    /// Folder with the libraries of the driver, as the node sees it. Without one, a container has a device and no driver.
    pub driver: Option<PathBuf>,
    /// Environment of a container that has a device.
    pub environment: BTreeMap<String, String>,
}

/// A plugin that runs. Dropping it ends it and removes its socket.
pub struct DevicePlugin {
    health: watch::Sender<BTreeMap<String, bool>>,
    allocated: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DevicePlugin {
    /// Tells the kubelet whose sockets are in `folder` of devices, and every kubelet that comes after it there. Returns when it has been told.
    ///
    /// # Errors
    /// When no kubelet takes it within a minute.
    pub fn start(folder: &Path, offer: Offer) -> Result<Self> {
        Self::start_within(folder, offer, START_LIMIT)
    }

    fn start_within(folder: &Path, offer: Offer, limit: Duration) -> Result<Self> {
        let (health, devices) = watch::channel(offer.devices.iter().map(|id| (id.clone(), true)).collect());
        let allocated: Arc<Mutex<Vec<String>>> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let (told, hears) = mpsc::channel();
        let socket = folder.join(format!("{}.sock", offer.resource.replace('/', "-")));
        let plugin = Plugin { offer: Arc::new(offer), devices, allocated: Arc::clone(&allocated) };
        let registration = Registration { folder: folder.to_owned(), socket, plugin };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = registration.keep(&told) => {}
                }
            });
            // Streams of the kubelet end with the runtime.
            drop(runtime);
            remove(&registration.socket);
        });
        // From here on it ends when it is dropped.
        let plugin = Self { health, allocated, stop: Some(stop), thread: Some(thread) };
        let mut last = anyhow::anyhow!("nothing came of it");
        let started = Instant::now();
        while let Some(left) = limit.checked_sub(started.elapsed()) {
            match hears.recv_timeout(left) {
                Ok(Ok(())) => return Ok(plugin),
                Ok(Err(error)) => last = error,
                Err(_) => break,
            }
        }
        Err(last.context(format!("no kubelet in {} takes the device plugin", folder.display())))
    }

    /// Says that a device works, or does not.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn set_healthy(&self, device: &str, is_healthy: bool) -> Result<()> {
        let is_known = self
            .health
            .send_if_modified(|health| health.get_mut(device).map(|now| *now = is_healthy).is_some());
        if !is_known {
            bail!("there is no device {device}");
        }
        Ok(())
    }

    /// Devices in the order in which containers got them, each as often as that happened.
    #[must_use]
    pub fn allocated(&self) -> Vec<String> {
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for DevicePlugin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has panicked already when this fails.
            let _ = thread.join();
        }
    }
}

fn remove(socket: &Path) {
    // It may be gone: a kubelet that starts removes it.
    let _ = std::fs::remove_file(socket);
}

/// A plugin's place beside a kubelet.
struct Registration {
    folder: PathBuf,
    socket: PathBuf,
    plugin: Plugin,
}

/// Which socket it is that has a name: device, inode, and when it was made, in seconds and ns.
type Identity = (u64, u64, i64, i64);

fn identity(socket: &Path) -> Option<Identity> {
    let data = std::fs::symlink_metadata(socket).ok()?;
    Some((data.dev(), data.ino(), data.ctime(), data.ctime_nsec()))
}

impl Registration {
    /// Serves, and registers with every kubelet that comes. `told` hears what came of each try.
    async fn keep(&self, told: &mpsc::Sender<Result<()>>) {
        let (mut served, mut known) = (None, None);
        let mut server = JoinSet::new();
        loop {
            let kubelet = identity(&self.folder.join(KUBELET));
            if served.is_none() || identity(&self.socket) != served {
                (served, known) = (None, None);
                match self.serve(&mut server).await {
                    Ok(()) => served = identity(&self.socket),
                    Err(error) => drop(told.send(Err(error))),
                }
            }
            if served.is_some() && kubelet.is_some() && kubelet != known {
                let registered = self.register().await;
                if registered.is_ok() {
                    known = kubelet;
                }
                // Nobody listens any more when it is not the first time.
                drop(told.send(registered));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Listens in place of whoever listened before.
    async fn serve(&self, server: &mut JoinSet<()>) -> Result<()> {
        server.shutdown().await;
        remove(&self.socket);
        let listener = UnixListener::bind(&self.socket).with_context(|| self.socket.display().to_string())?;
        let service = DevicePluginServer::new(self.plugin.clone());
        server.spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            // It ends with an error when it cannot accept any more: then no kubelet takes it, which is told.
            drop(Server::builder().add_service(service).serve_with_incoming(incoming).await);
        });
        Ok(())
    }

    async fn register(&self) -> Result<()> {
        let endpoint = self.socket.file_name().context("a socket has a name")?.to_string_lossy().into_owned();
        let path = format!("unix://{}", self.folder.join(KUBELET).display());
        let channel = Endpoint::from_shared(path)?.timeout(ANSWER_LIMIT).connect().await?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint,
            resource_name: self.plugin.offer.resource.clone(),
        };
        RegistrationClient::new(channel).register(request).await?;
        Ok(())
    }
}

/// What the kubelet asks.
#[derive(Clone)]
struct Plugin {
    offer: Arc<Offer>,
    devices: watch::Receiver<BTreeMap<String, bool>>,
    allocated: Arc<Mutex<Vec<String>>>,
}

fn list(devices: &BTreeMap<String, bool>) -> ListAndWatchResponse {
    let device = |(id, is_healthy): (&String, &bool)| Device {
        id: id.clone(),
        health: if *is_healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
    };
    ListAndWatchResponse { devices: devices.iter().map(device).collect() }
}

impl Plugin {
    /// What a container gets with its devices.
    fn allocate_one(&self, request: &ContainerAllocateRequest) -> Result<ContainerAllocateResponse, Status> {
        let devices = self.devices.borrow();
        for id in &request.devices_ids {
            if devices.get(id) != Some(&true) {
                return Err(Status::not_found(format!("there is no healthy device {id}")));
            }
        }
        let mut allocated = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        allocated.extend(request.devices_ids.iter().cloned());
        let mount = |folder: &PathBuf| Mount {
            container_path: DRIVER_IN_CONTAINER.to_owned(),
            host_path: folder.display().to_string(),
            read_only: true,
        };
        Ok(ContainerAllocateResponse {
            envs: self.offer.environment.clone().into_iter().collect(),
            mounts: self.offer.driver.iter().map(mount).collect(),
        })
    }
}

#[tonic::async_trait]
impl Service for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {}))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut devices = self.devices.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let now = list(&devices.borrow_and_update());
                if sender.send(now).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = devices.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let responses = requests.iter().map(|one| self.allocate_one(one)).collect::<Result<_, _>>()?;
        Ok(Response::new(AllocateResponse { container_responses: responses }))
    }

    async fn get_preferred_allocation(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn pre_start_container(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }
}

#[cfg(test)]
mod tests;
