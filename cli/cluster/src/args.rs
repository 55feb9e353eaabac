//! The command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use dunlin_terminal::print::OutputArgs;

/// What is asked of a cluster.
#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Say why a swarm of a cluster is not Ready: one line, then what shows it and what to do.
    ///
    /// Reads the swarm's conditions, its pods, their Events, nodes, quotas, claims, Secrets, and the operator. What may not be read is left out,
    /// and said. Ends with 3 when something needs mending.
    #[command(after_help = "\
Examples:
  dunlin doctor smollm2
  dunlin doctor -A            a check of a whole cluster")]
    Doctor(DoctorArgs),
    /// Show who holds which layers, sessions, speed and recoveries; of a run its stages, step, loss and checkpoint.
    ///
    /// Ends with 3 when a swarm is not Ready.
    #[command(after_help = "\
Examples:
  dunlin status smollm2 --watch
  dunlin status tsw/bible --output json")]
    Status(StatusArgs),
    /// Move a peer of a cluster away with notice, or all of a node, and wait until their sessions have gone over.
    ///
    /// A peer is evicted, as by `kubectl drain`: it hands over before it ends, and disruption budgets are kept to. The last holder of a layer
    /// stays, unless --force is given. A node takes no new pods afterwards; a peer of it that is the last holder goes when another one holds
    /// its layers.
    #[command(after_help = "\
Examples:
  dunlin drain smollm2-spot-x7x7x
  dunlin drain node-3 -A      all pods of swarms on a node, in all namespaces")]
    Drain(DrainArgs),
    /// Show the peers of a cluster with their speed, sessions, KV pages and memory.
    #[command(after_help = "\
Example:
  dunlin top smollm2 --sort pages --watch")]
    Top(TopArgs),
    /// Write all that somebody needs who is to help into one .tar.gz, without secrets.
    ///
    /// Manifests, pods, Events, the ends of logs, metrics, versions and what the doctor finds. Of Secrets only names and the names of their keys,
    /// of environments and URLs nothing that may be a key. Logs hold no prompts and no answers; look through it before you pass it on.
    #[command(after_help = "\
Example:
  dunlin support-bundle smollm2")]
    SupportBundle(BundleArgs),
}

/// `drain`.
#[derive(Args)]
pub struct DrainArgs {
    /// A pod of a swarm, or a node.
    #[arg(value_name = "POD|NODE")]
    pub target: String,
    /// Evict the last holder of a layer, too: the swarm does not answer until another one has loaded it.
    #[arg(long)]
    pub force: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Where to look.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `top`.
#[derive(Args)]
pub struct TopArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent.
    pub name: Option<String>,
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    pub sort: Sort,
    /// Look again every two seconds until interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Where to look.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What comes first in `top`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Most sessions.
    #[default]
    Sessions,
    /// Slowest.
    Rows,
    /// Largest share of KV pages in use.
    Pages,
    /// Most memory.
    Memory,
    /// By name.
    Name,
}

/// `support-bundle`.
#[derive(Args)]
pub struct BundleArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent.
    pub name: Option<String>,
    /// The file; dunlin-NAME-TIME.tar.gz in this folder when absent.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// Where to look.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent.
    pub name: Option<String>,
    /// Where to look.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `status`.
#[derive(Args)]
pub struct StatusArgs {
    /// A swarm of either kind, also as isw/NAME or tsw/NAME; all of the namespace when absent.
    pub name: Option<String>,
    /// Look again every two seconds until interrupted.
    #[arg(short, long)]
    pub watch: bool,
    /// Where to look.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which cluster, and where in it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterArgs {
    /// Namespace of the swarm; that of the kubeconfig's context when absent.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Look in all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Context of the kubeconfig.
    #[arg(long)]
    pub context: Option<String>,
    /// The kubeconfig; $KUBECONFIG or ~/.kube/config when absent.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use dunlin_terminal::print::Form;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(subcommand)]
        command: ClusterCommand,
    }

    #[test]
    fn the_command_line_holds_together() {
        Program::command().debug_assert();
        let parsed = |line: &str| Program::try_parse_from(line.split(' ')).map(|p| p.command);
        let Ok(ClusterCommand::Status(args)) = parsed("x status isw/m -w -n lab -o json") else {
            panic!("status")
        };
        assert_eq!((args.name.as_deref(), args.watch), (Some("isw/m"), true));
        assert_eq!((args.cluster.namespace.as_deref(), args.output.output), (Some("lab"), Form::Json));
        assert!(parsed("x doctor -A -n lab").is_err(), "one or all");
        assert!(parsed("x drain").is_err(), "what?");
    }
}
