//! Who the processes of a local swarm are to one another: the authority that issues their certificates.

use std::io::{PipeReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use dunlin_wire::{Authority, Credentials, LinksConfig, Role, Validity, proto};

/// Who issues the certificates of a local swarm.
#[derive(Args, Clone)]
pub struct AuthorityArgs {
    /// Folder with ca.crt and ca.key of the authority that issues the certificates of this swarm, for programs outside that want one, too.
    /// Without it the authority is a new one that never leaves memory.
    #[arg(long, value_name = "FOLDER")]
    pub authority: Option<PathBuf>,
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
