//! What a stage computes with: the processor, or a GPU.

use clap::ValueEnum;
use dunlin_cuda::{Gpu, OpenError};
use dunlin_engine::CpuSpan;
use dunlin_engine::span::{DeviceError, Span};
use dunlin_gpu::GpuSpan;
use dunlin_model::ModelConfig;
use tracing::info;

use crate::model::Problem;

/// Which device a stage is to compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU. Without one nothing is computed.
    Nvidia,
    /// An NVIDIA GPU if there is one, and the processor otherwise.
    Auto,
}

/// A device that is open.
pub enum OpenDevice {
    /// The processor, with so many threads.
    Cpu(usize),
    /// A GPU, and the memory that it had free.
    Gpu(Box<Gpu>, u64),
}

impl DeviceChoice {
    /// Opens it; `threads` are those of the processor, if it is to be that.
    ///
    /// # Errors
    /// When a GPU is asked for, and there is none that can be used.
    pub fn open(self, threads: usize) -> Result<OpenDevice, Problem> {
        if self == Self::Cpu {
            return Ok(OpenDevice::Cpu(threads));
        }
        let opened = Gpu::open(0).and_then(|gpu| {
            let free = gpu.free_memory()?;
            Ok((gpu, free))
        });
        match opened {
            Ok((gpu, free)) => {
                let facts = gpu.facts();
                let (major, minor) = facts.capability;
                info!(
                    name = facts.name,
                    capability = format!("{major}.{minor}"),
                    memory_mib = facts.memory_bytes >> 20,
                    free_mib = free >> 20,
                    driver = format!("{}.{}", facts.driver.0, facts.driver.1),
                    image = facts.image,
                    "computes on a GPU"
                );
                Ok(OpenDevice::Gpu(Box::new(gpu), free))
            }
            Err(OpenError::NoDriver | OpenError::NoDevice { .. }) if self == Self::Auto => {
                info!("there is no GPU here: computes on the processor");
                Ok(OpenDevice::Cpu(threads))
            }
            Err(error) => Err(Problem { reason: NO_DEVICE, message: error.to_string() }),
        }
    }
}

/// Reason of a problem with the device.
const NO_DEVICE: &str = "NoDevice";

impl OpenDevice {
    /// Its own memory that may be used, in bytes, if it is not the process's.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        match self {
            Self::Cpu(_) => None,
            Self::Gpu(_, free) => Some(*free),
        }
    }

    /// Layers of a model on it, none yet, for sequences of up to `positions_max`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn span(self, model: &ModelConfig, positions_max: usize) -> Result<Box<dyn Span>, DeviceError> {
        Ok(match self {
            Self::Cpu(threads) => Box::new(CpuSpan::new(model, threads, positions_max)),
            Self::Gpu(gpu, _) => Box::new(GpuSpan::new(*gpu, model, positions_max)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceChoice, NO_DEVICE, OpenDevice};

    /// Where there is a driver, `local` and the tests of dunlin-cuda show what it does.
    #[test]
    fn a_gpu_that_is_asked_for_and_not_there_is_never_replaced_in_silence() {
        let nvidia = DeviceChoice::Nvidia.open(2);
        let Err(problem) = nvidia else { return };
        assert_eq!(problem.reason, NO_DEVICE);
        assert!(problem.message.contains("device plugin"), "{}", problem.message);
        assert!(matches!(DeviceChoice::Auto.open(2), Ok(OpenDevice::Cpu(2))));
        assert!(matches!(DeviceChoice::Cpu.open(2), Ok(OpenDevice::Cpu(2))));
    }
}
