//! Nodes of the local cluster that have GPUs, as clusters have them: offered by a device plugin, and tainted so that nothing else runs there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::plugin::{DevicePlugin, Offer};
use crate::cluster::Cluster;
use crate::wait;

/// What GPUs of a whole card are called.
pub const GPU: &str = "nvidia.com/gpu";
/// What nodes with GPUs are commonly tainted with.
const TAINT: &str = "nvidia.com/gpu=present:NoSchedule";
/// How long the API server may take to learn of a device.
const OFFER_LIMIT: Duration = Duration::from_secs(30);

/// Nodes with GPUs. Dropping it takes GPUs and taints away.
pub struct GpuNodes<'a> {
    cluster: &'a Cluster,
    plugins: BTreeMap<String, DevicePlugin>,
}

/// One GPU `gpu-0` with the emulated driver, which containers may use.
///
/// # Errors
/// When the driver cannot be put where all nodes see it.
pub fn emulated_gpu(cluster: &Cluster) -> Result<Offer> {
    let environment = BTreeMap::from([("DUNLIN_EMULATED_GPU".to_owned(), "allow".to_owned())]);
    let driver = Some(driver_folder(cluster)?);
    Ok(Offer { resource: GPU.to_owned(), devices: vec!["gpu-0".to_owned()], driver, environment })
}

/// A folder that all nodes see with the emulated driver and nothing else.
fn driver_folder(cluster: &Cluster) -> Result<PathBuf> {
    let folder = cluster.folder("driver")?;
    // Renamed into its place: whoever still runs has the file of before.
    let unfinished = folder.join("unfinished");
    let driver = dunlin_cuda_emulator::path();
    std::fs::copy(driver, &unfinished).with_context(|| driver.display().to_string())?;
    std::fs::rename(unfinished, folder.join("libcuda.so.1"))?;
    Ok(folder)
}

impl<'a> GpuNodes<'a> {
    /// Gives each of `nodes` what is offered, and waits until the scheduler can know of it.
    ///
    /// # Errors
    /// When a kubelet does not take the device plugin.
    pub fn start(cluster: &'a Cluster, nodes: &[String], offer: &Offer) -> Result<Self> {
        let mut gpus = Self { cluster, plugins: BTreeMap::new() };
        for node in nodes {
            cluster.kubectl(&["taint", "node", node, TAINT, "--overwrite"])?;
            let folder = cluster.kubelet_folder(node)?.join("device-plugins");
            let plugin = DevicePlugin::start(&folder, offer.clone()).with_context(|| node.clone())?;
            gpus.plugins.insert(node.clone(), plugin);
            gpus.wait_offered(node, &offer.resource, offer.devices.len())?;
        }
        Ok(gpus)
    }

    /// The device plugin of a node.
    ///
    /// # Errors
    /// When the node has none.
    pub fn plugin(&self, node: &str) -> Result<&DevicePlugin> {
        self.plugins.get(node).with_context(|| format!("{node} has no device plugin"))
    }

    /// Waits until a node has exactly so many of a resource for pods.
    ///
    /// # Errors
    /// After half a minute.
    pub fn wait_offered(&self, node: &str, resource: &str, count: usize) -> Result<()> {
        wait::until_true(&format!("{node} offers {count} {resource}"), OFFER_LIMIT, || {
            let allocatable = self.cluster.get(&["node", node])?["status"]["allocatable"].clone();
            let offered = allocatable[resource].as_str().and_then(|number| number.parse().ok());
            Ok((offered == Some(count), allocatable.to_string()))
        })
    }
}

impl Drop for GpuNodes<'_> {
    fn drop(&mut self) {
        for node in self.plugins.keys() {
            // A cluster that does not answer any more needs no untainted nodes.
            let _ = self.cluster.kubectl(&["taint", "node", node, &format!("{TAINT}-")]);
        }
    }
}
