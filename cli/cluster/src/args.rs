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
