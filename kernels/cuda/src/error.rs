//! What can fail.

use cudarc::driver::{DriverError, sys};
use thiserror::Error;

/// An operation that failed. Where it is not for lack of memory, the device must be opened anew, in another process: an error stays.
///
/// Operations are not waited for, so a kernel's error may show in the one that waits next.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{op} failed on the GPU: {name} ({code})")]
pub struct GpuError {
    /// What was tried.
    pub op: &'static str,
    /// The driver's name of the error.
    pub name: String,
    /// Its number.
    pub code: u32,
}

impl GpuError {
    pub(crate) fn new(op: &'static str, error: DriverError) -> Self {
        let name =
            error.error_name().map_or_else(|_| "an unknown error".into(), |name| name.to_string_lossy());
        Self { op, name: name.into_owned(), code: error.0 as u32 }
    }

    /// Is there too little memory on the device? Everything else goes on.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32
    }
}

/// Makes an error of the driver one that says what was tried.
pub(crate) trait Tried<T> {
    fn tried(self, op: &'static str) -> Result<T, GpuError>;
}

impl<T> Tried<T> for Result<T, DriverError> {
    fn tried(self, op: &'static str) -> Result<T, GpuError> {
        self.map_err(|error| GpuError::new(op, error))
    }
}

/// Why there is no GPU to compute on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no libcuda.
    #[error(
        "there is no NVIDIA driver here (libcuda.so.1 was not found): on a node with GPUs, is the device plugin or the nvidia RuntimeClass installed?"
    )]
    NoDriver,
    /// There is a driver, and no such device.
    #[error("there is no GPU {ordinal} here, the driver knows {count}")]
    NoDevice {
        /// Its number, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// A device that is too old.
    #[error("{name} has compute capability {}.{}, and 7.5 is the least that is supported", capability.0, capability.1)]
    NotSupported {
        /// Its name.
        name: String,
        /// Major and minor number.
        capability: (u32, u32),
    },
    /// This build has no kernels that the device can run.
    #[error("no kernels for {name}, compute capability {}.{}, driver {}.{}: {reason}", capability.0, capability.1, driver.0, driver.1)]
    Image {
        /// Name of the device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// The version of CUDA that the driver supports.
        driver: (u32, u32),
        /// What is missing, or what the driver says.
        reason: String,
    },
    /// The driver does not work.
    #[error(transparent)]
    Driver(#[from] GpuError),
    /// The device is the emulated one of tests, which is thousands of times as slow as a GPU.
    #[error("the GPU is an emulated one, for tests: set DUNLIN_EMULATED_GPU=allow to use it")]
    Emulated,
}
