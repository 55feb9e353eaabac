//! Certificates of this process, and of those that it starts.

use std::io::{PipeReader, Read, Write};
use std::path::Path;

use anyhow::Context;
use dunlin_wire::{Authority, Credentials, LinksConfig, Role, TlsFiles, Validity, proto};

use crate::cli::{AuthorityArgs, ProcessArgs};

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

/// Issues the certificates of a local swarm; its supervisor gives orders as an operator does.
pub struct LocalTrust {
    authority: Authority,
    supervisor: Credentials,
}

impl LocalTrust {
    /// The authority that the caller keeps, or a new one that is never written anywhere.
    ///
    /// # Errors
    /// When that of the caller cannot be read.
    pub fn new(args: &AuthorityArgs) -> anyhow::Result<Self> {
        let authority = match &args.authority {
            None => Authority::generate("dunlin local")?,
            Some(folder) => load(folder).with_context(|| format!("--authority {}", folder.display()))?,
        };
        let supervisor = authority.issue(Role::Operator, &["supervisor".to_owned()], Validity::Authority)?;
        let supervisor = Credentials::fixed(supervisor)?;
        Ok(Self { authority, supervisor })
    }

    /// A pipe with the certificates of a process, to be its stdin. They are written to no file and no command line, where others could read
    /// them.
    ///
    /// # Errors
    /// When a name is no name, or there is no pipe.
    pub fn stdin_of(&self, role: Role, names: &[&str]) -> anyhow::Result<PipeReader> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let json = serde_json::to_vec(&self.authority.issue(role, &names, Validity::Authority)?)?;
        let (reader, mut writer) = std::io::pipe()?;
        // They are far fewer bytes than a pipe holds without a reader.
        writer.write_all(&json)?;
        Ok(reader)
    }

    /// How the supervisor makes connections.
    pub fn links(&self) -> LinksConfig {
        LinksConfig::new(proto::Hello::default(), Some(self.supervisor.clone()))
    }
}

fn load(folder: &Path) -> anyhow::Result<Authority> {
    let read = |name: &str| {
        std::fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"))
    };
    Ok(Authority::from_pem(&read("ca.crt")?, &read("ca.key")?)?)
}
