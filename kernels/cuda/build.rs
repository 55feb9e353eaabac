//! Embeds the machine code of the kernels, `kernels.sm_90.cubin` and the like, from the folder that `DUNLIN_CUDA_IMAGES` names. Without it there
//! is none, and no GPU can be used.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=DUNLIN_CUDA_IMAGES");
    let paths = match env::var_os("DUNLIN_CUDA_IMAGES").filter(|folder| !folder.is_empty()) {
        Some(folder) => images(Path::new(&folder))?,
        None => Vec::new(),
    };
    let mut source = String::from("pub(crate) static IMAGES: &[KernelImage] = &[\n");
    for path in &paths {
        println!("cargo:rerun-if-changed={}", path.display());
        let target = target(path).ok_or("an image is called kernels.TARGET.cubin or kernels.TARGET.ptx")?;
        writeln!(source, "    KernelImage {{ target: {target:?}, bytes: include_bytes!({path:?}) }},")?;
    }
    source.push_str("];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("images.rs"), source)?;
    Ok(())
}

/// The images of a folder, in the order of their names.
fn images(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path().canonicalize()?;
        if path.extension().is_some_and(|end| end == "cubin" || end == "ptx") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(format!("there are no images in {}", folder.display()).into());
    }
    paths.sort();
    Ok(paths)
}

/// `sm_90` of `kernels.sm_90.cubin`.
fn target(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()?.strip_prefix("kernels.")
}
