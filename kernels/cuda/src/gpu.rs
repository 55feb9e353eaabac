//! A device, and what is known of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, sys};
use cudarc::nvrtc::Ptx;

use crate::error::{GpuError, OpenError, Tried};
use crate::image::{IMAGES, choose};

/// What the emulated device calls itself.
const EMULATED: &str = "emulated on the host";
/// The first compute capability with 8-bit products on tensor cores.
const CAPABILITY_MIN: (u32, u32) = (7, 5);

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory of the whole device.
    pub memory_bytes: u64,
    /// The version of CUDA that the driver supports.
    pub driver: (u32, u32),
    /// The kernels that it got: see [`KernelImage::target`](crate::image::KernelImage::target).
    pub image: String,
}

/// A device with its kernels. Operations run in the order of the calls, whichever thread they come from.
pub struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    /// Where everything is computed, and most is copied.
    pub(crate) compute: Arc<CudaStream>,
    /// For copies beside the computation.
    pub(crate) copies: Arc<CudaStream>,
    pub(crate) kernels: BTreeMap<&'static str, CudaFunction>,
    facts: Facts,
}

impl Gpu {
    /// Opens a device by its number, from 0.
    ///
    /// # Errors
    /// When there is no driver or no such device, when this build has no kernels for it, or when it is an emulated one and that is not allowed.
    pub fn open(ordinal: usize) -> Result<Self, OpenError> {
        // SAFETY: the library is a driver, whose initialisers may run.
        if !unsafe { sys::is_culib_present() } {
            return Err(OpenError::NoDriver);
        }
        let count = device_count()?;
        if ordinal >= count {
            return Err(OpenError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).tried("opening the device")?;
        // SAFETY: buffers are used on the stream of computation, on which they are freed; `stream` has what the other one needs.
        unsafe { context.disable_event_tracking() };
        let mut facts = facts(&context).tried("asking what the device is")?;
        if facts.name == EMULATED
            && std::env::var_os("DUNLIN_EMULATED_GPU").is_none_or(|value| value != "allow")
        {
            return Err(OpenError::Emulated);
        }
        if facts.capability < CAPABILITY_MIN {
            return Err(OpenError::NotSupported { name: facts.name, capability: facts.capability });
        }
        let module = load_image(&context, &mut facts)?;
        let kernels = load_kernels(&module, &facts)?;
        let compute = context.new_stream().tried("making a stream")?;
        let copies = context.new_stream().tried("making a stream")?;
        Ok(Self { context, compute, copies, kernels, facts })
    }

    /// What is known of the device.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Memory that nobody uses, here or in another process.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn free_memory(&self) -> Result<u64, GpuError> {
        let (free, _) = self.context.mem_get_info().tried("asking for free memory")?;
        Ok(free as u64)
    }

    /// Waits until everything is computed and copied.
    ///
    /// # Errors
    /// When something of it failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.compute.synchronize().tried("waiting for the device")?;
        self.copies.synchronize().tried("waiting for copies")
    }
}

/// How many devices the driver knows.
fn device_count() -> Result<usize, OpenError> {
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(error) => Err(GpuError::new("starting the driver", error).into()),
    }
}

fn facts(context: &Arc<CudaContext>) -> Result<Facts, DriverError> {
    let (major, minor) = context.compute_capability()?;
    let mut version = 0;
    // SAFETY: writes the version, and nothing else.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(Facts {
        name: context.name()?,
        capability: (major.unsigned_abs(), minor.unsigned_abs()),
        memory_bytes: context.total_mem()? as u64,
        driver: (version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10),
        image: String::new(),
    })
}

fn no_image(facts: &Facts, reason: String) -> OpenError {
    let Facts { name, capability, driver, .. } = facts.clone();
    OpenError::Image { name, capability, driver, reason }
}

/// Loads the image that fits, and puts its name into the facts.
fn load_image(context: &Arc<CudaContext>, facts: &mut Facts) -> Result<Arc<CudaModule>, OpenError> {
    let (target, bytes) = if facts.name == EMULATED {
        // It has the kernels already.
        ("emulated", &[][..])
    } else if IMAGES.is_empty() {
        return Err(no_image(
            facts,
            "this build has none at all; it was made without DUNLIN_CUDA_IMAGES".into(),
        ));
    } else {
        let image = choose(IMAGES, facts.capability);
        let image = image.ok_or_else(|| no_image(facts, "this build has none that fit".into()))?;
        (image.target, image.bytes)
    };
    facts.image = target.into();
    // PTX is text that ends with a zero byte, which machine code does not mind.
    let image = Ptx::from_binary([bytes, b"\0"].concat());
    context.load_module(image).map_err(|error| {
        no_image(
            facts,
            format!("the driver does not take {target}: {}", GpuError::new("loading", error).name),
        )
    })
}

fn load_kernels(
    module: &Arc<CudaModule>,
    facts: &Facts,
) -> Result<BTreeMap<&'static str, CudaFunction>, OpenError> {
    let mut kernels = BTreeMap::new();
    for name in crate::names::all() {
        let kernel = module.load_function(name);
        let kernel = kernel.map_err(|_| no_image(facts, format!("{} has no kernel {name}", facts.image)))?;
        kernels.insert(name, kernel);
    }
    Ok(kernels)
}
