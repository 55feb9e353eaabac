//! Compiles the emulated driver, which has the kernels of `../device` in it, with the C++ compiler of the machine.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["driver.cpp", "emu.h", "faults.cu", "../device"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=CXX");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("libcuda.so.1");
    let unfinished = out.with_extension("new");
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
    let status = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function"])
        // No multiplication and addition becomes one operation unless the source says so.
        .args(["-ffp-contract=off", "-fno-strict-aliasing"])
        // It goes into containers that have a C library and no other.
        .args(["-static-libstdc++", "-static-libgcc"])
        .args(["-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ftls-model=initial-exec"])
        // The first name that cudarc asks for: what is loaded under it is taken, even where there is a real driver.
        .arg("-Wl,-soname,libcuda.so")
        .args(instructions())
        .arg("driver.cpp")
        .arg("-o")
        .arg(&unfinished)
        .status()
        .map_err(|error| format!("cannot run the C++ compiler {compiler}: {error}"))?;
    if !status.success() {
        return Err(format!("{compiler} could not compile the emulated driver: {status}").into());
    }
    fs::rename(unfinished, out)?;
    Ok(())
}

/// Fused multiply-add as one instruction, where it is not part of every processor.
fn instructions() -> &'static [&'static str] {
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        &["-mavx2", "-mfma", "-mf16c"]
    } else {
        &[]
    }
}
