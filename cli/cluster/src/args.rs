//! The command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What exit codes mean, for the end of `--help`.
pub const EXIT_CODES: &str =
    "Exit codes: 0 all is well, 1 the command failed, 2 a swarm is not Ready or something needs mending.";

/// What is asked of a cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Why a swarm is not Ready: one line, then what shows it and what to do
    #[command(after_help = "Example:\n  kubectl dunlin doctor smollm2\n\n\
        Reads the swarm's conditions, its pods, their Events, nodes, quotas, claims, Secrets, and the operator.\n\
        What may not be read is left out, and said. Exit code 2 when something needs mending.")]
    Doctor(DoctorArgs),
    /// Who holds which layers, sessions, speed and recoveries; of a run its stages, step, loss and checkpoint
    #[command(after_help = "Example:\n  kubectl dunlin status smollm2 --watch\n\n\
        Exit code 2 when a swarm is not Ready.")]
    Status(StatusArgs),
    /// What the planner would do now with the swarm's manifest and pods, and why
    #[command(after_help = "Example:\n  kubectl dunlin plan smollm2\n\n\
        Says which peers would compute which layers, what changes, and what is not as it should be. Nothing is changed.\n\
        Exit code 2 when something is not as it should be.")]
    Plan(NamedArgs),
    /// Move a peer away with notice, or all of a node, and wait until their sessions have gone over
    #[command(
        after_help = "Examples:\n  kubectl dunlin drain smollm2-spot-x7x7x\n  kubectl dunlin drain node-3 -A\n\n\
        A peer is evicted, as by `kubectl drain`: it hands its sessions over before it ends, and disruption budgets are kept to.\n\
        The last holder of a layer stays, unless --force is given. A node takes no new pods afterwards."
    )]
    Drain(DrainArgs),
    /// Peers with their speed, sessions, KV pages and memory
    #[command(after_help = "Example:\n  kubectl dunlin top smollm2 --sort pages --watch")]
    Top(TopArgs),
    /// All that somebody needs who is to help: one .tar.gz, without secrets
    #[command(after_help = "Example:\n  kubectl dunlin support-bundle smollm2\n\n\
        Manifests, pods, Events, the ends of logs, metrics, versions and what the doctor finds. Of Secrets only names and the names of their keys,\n\
        of environments and URLs nothing that may be a key. Logs hold no prompts and no answers; look through it before you pass it on.")]
    SupportBundle(BundleArgs),
}

/// What takes a name.
#[derive(Clone, Debug, Args)]
pub struct NamedArgs {
    /// A swarm, also as isw/NAME
    pub name: String,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// `drain`.
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// A pod of a swarm, or a node
    #[arg(value_name = "POD|NODE")]
    pub target: String,
    /// Evict the last holder of a layer, too: the swarm does not answer until another one has loaded it
    #[arg(long)]
    pub force: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent
    pub name: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Look again every two seconds until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// What comes first in `top`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Most sessions
    #[default]
    Sessions,
    /// Slowest
    Rows,
    /// Largest share of KV pages in use
    Pages,
    /// Most memory
    Memory,
    /// By name
    Name,
}

/// `support-bundle`.
#[derive(Clone, Debug, Args)]
pub struct BundleArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent
    pub name: Option<String>,
    /// The file; dunlin-NAME-TIME.tar.gz in this folder when absent
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent
    pub name: Option<String>,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent
    pub name: Option<String>,
    /// Look again every two seconds until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Where to look, and how to print
    #[command(flatten)]
    pub common: Common,
}

/// What all commands take.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Namespace of the swarm; that of the kubeconfig's context when absent
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Look in all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,
    /// The kubeconfig; $KUBECONFIG or ~/.kube/config when absent
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn the_command_line_holds_together() {
        Program::command().debug_assert();
        let parsed = |line: &str| Program::try_parse_from(line.split(' ')).map(|p| p.command);
        let Ok(Command::Status(args)) = parsed("x status isw/m -w -n lab -o json") else { panic!("status") };
        assert_eq!((args.name.as_deref(), args.watch), (Some("isw/m"), true));
        assert_eq!((args.common.namespace.as_deref(), args.common.output), (Some("lab"), Format::Json));
        assert!(parsed("x doctor -A -n lab").is_err(), "one or all");
        assert!(parsed("x drain").is_err() && parsed("x plan").is_err(), "what?");
    }
}
