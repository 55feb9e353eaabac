//! Certificates of this process.

use std::io::Read;

use anyhow::Context;
use dunlin_wire::{Credentials, TlsFiles};

use crate::cli::ProcessArgs;

/// Bytes of certificates that are read from stdin.
const STDIN_BYTES_MAX: u64 = 64 << 10;

/// The certificates that a process was started with; those in a folder may be renewed.
///
/// # Errors
/// When they cannot be read or used.
pub fn credentials(args: &ProcessArgs) -> anyhow::Result<Credentials> {
    match &args.tls_dir {
        Some(folder) => Ok(Credentials::in_folder(folder)?),
        None => {
            let mut json = String::new();
            std::io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut json)?;
            let files: TlsFiles = serde_json::from_str(&json).context("stdin has no certificates")?;
            Ok(Credentials::fixed(files)?)
        }
    }
}
