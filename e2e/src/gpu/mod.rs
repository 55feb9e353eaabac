//! GPUs for nodes that have none: a device plugin tells the kubelet of them, and gives containers the emulated driver.
//!
//! * [`plugin`] the device plugin of one node · [`proto`] what it and the kubelet say to each other
//! * [`nodes`] nodes of the local cluster that have such GPUs, and are tainted for them

pub mod nodes;
pub mod plugin;
pub mod proto;

pub use nodes::GpuNodes;
pub use plugin::{DevicePlugin, Offer};
