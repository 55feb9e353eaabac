//! Machine code of the kernels, and which of it a device can run.

/// Major and minor number of what a device can do.
pub type Capability = (u32, u32);

/// Kernels compiled for one kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// `sm_90` is machine code for compute capability 9.0, `compute_80` is PTX, which the driver compiles for 8.0 and all that came later.
    pub target: &'static str,
    /// A cubin, or PTX as text.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

impl KernelImage {
    /// The kind of target, and its compute capability.
    fn parsed(&self) -> Option<(&str, Capability)> {
        let (kind, number) = self.target.split_once('_')?;
        let number: u32 = number.parse().ok()?;
        Some((kind, (number / 10, number % 10)))
    }

    /// For machine code, its capability if the device can run it: that of the same generation, and not newer.
    fn machine_code_for(&self, device: Capability) -> Option<Capability> {
        let (kind, capability) = self.parsed()?;
        let fits = kind == "sm" && capability.0 == device.0 && capability.1 <= device.1;
        fits.then_some(capability)
    }

    /// For PTX, its capability if the driver can compile it for the device.
    fn ptx_for(&self, device: Capability) -> Option<Capability> {
        let (kind, capability) = self.parsed()?;
        let fits = kind == "compute" && capability <= device;
        fits.then_some(capability)
    }
}

/// The image for a device of this compute capability: the newest machine code that it runs, or the newest PTX.
#[must_use]
pub fn choose(images: &[KernelImage], device: Capability) -> Option<&KernelImage> {
    let newest = |capability: fn(&KernelImage, Capability) -> Option<Capability>| {
        images
            .iter()
            .filter_map(|image| Some((capability(image, device)?, image)))
            .max_by_key(|(capability, _)| *capability)
            .map(|(_, image)| image)
    };
    newest(KernelImage::machine_code_for).or_else(|| newest(KernelImage::ptx_for))
}

#[cfg(test)]
mod tests {
    use super::{KernelImage, choose};

    #[test]
    fn a_device_gets_machine_code_of_its_generation_or_ptx() {
        let targets = ["compute_75", "compute_80", "sm_100", "sm_120", "sm_75", "sm_80", "sm_86", "sm_90"];
        let images = targets.map(|target| KernelImage { target, bytes: &[] });
        let target = |device| choose(&images, device).map(|image| image.target);
        assert_eq!(target((7, 0)), None, "Volta has no 8-bit products");
        assert_eq!(target((7, 5)), Some("sm_75"));
        assert_eq!(target((8, 0)), Some("sm_80"));
        assert_eq!(target((8, 9)), Some("sm_86"));
        assert_eq!(target((9, 0)), Some("sm_90"));
        assert_eq!(target((10, 3)), Some("sm_100"));
        assert_eq!(target((12, 1)), Some("sm_120"));
        assert_eq!(target((11, 0)), Some("compute_80"), "no machine code of that generation");
        assert_eq!(target((13, 0)), Some("compute_80"), "one that does not exist yet");
        assert_eq!(choose(&images[4..], (13, 0)), None);
    }
}
