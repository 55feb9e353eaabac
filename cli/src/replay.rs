//! `replay`: a training swarm on a recorded spot trace, in virtual time.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use dunlin_sim::replay::{Options, Policy, Report, run_telling};
use dunlin_terminal::print::{self, OutputArgs};
use dunlin_terminal::progress::Progress;

/// What to replay, and how.
#[derive(Args)]
pub struct ReplayArgs {
    /// A CSV file: `milliseconds,add|remove,node`, in order of time.
    #[arg(long)]
    pub trace: PathBuf,
    /// Stages of the pipeline.
    #[arg(long, default_value_t = 4)]
    pub stages: usize,
    /// Seconds in which a peer fetches one stage's state.
    #[arg(long, default_value_t = 60)]
    pub download_s: u64,
    /// Seconds between a notice and the loss; 0: without notice.
    #[arg(long, default_value_t = 120)]
    pub notice_s: u64,
    /// Seconds of a step: peers change their stage at its edges.
    #[arg(long, default_value_t = 20)]
    pub step_s: u64,
    /// Peers are a fluid that the planner alone moves; otherwise they run the training protocol, microbatch by microbatch.
    #[arg(long)]
    pub fluid: bool,
    /// Stages' states that a peer has memory for beside its own. Peers that run the protocol have none.
    #[arg(long, default_value_t = 1, requires = "fluid")]
    pub room: usize,
    /// Runs, over which the result is a mean. With the protocol one of a trace of a day takes about half a minute.
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// Who decides which peer serves what.
    #[arg(long, value_enum, default_value = "dunlin", requires = "fluid")]
    pub policy: ReplayPolicy,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Who decides in a replay.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ReplayPolicy {
    /// The planner, as in a run.
    Dunlin,
    /// Nobody: peers go to a random stage and stay.
    None,
}

/// Replays a trace and prints what came of it: a table, or one line of JSON.
///
/// # Errors
/// When there is no such trace, or it cannot be replayed.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let csv = std::fs::read_to_string(&args.trace)
        .with_context(|| format!("{} cannot be read", args.trace.display()))?;
    let options = Options {
        stages: args.stages,
        download_ms: args.download_s.saturating_mul(1000),
        notice_ms: args.notice_s.saturating_mul(1000),
        step_ms: args.step_s.saturating_mul(1000),
        room: args.room,
        seeds: args.seeds,
        fluid: args.fluid,
        policy: match args.policy {
            ReplayPolicy::Dunlin => Policy::Dunlin,
            ReplayPolicy::None => Policy::None,
        },
    };
    let progress = Progress::of(args.seeds, "replays the trace, seed by seed");
    let report = run_telling(&options, &csv, &mut |seeds| progress.done(seeds));
    drop(progress);
    let report = report.with_context(|| args.trace.display().to_string())?;
    args.output.print(&report, || table(&report))?;
    Ok(())
}

fn table(report: &Report) -> String {
    let rows = [
        ("SHARE OF OPTIMAL", format!("{:.2} %", 100.0 * report.share_of_optimal)),
        ("WORST SEED", format!("{:.2} %", 100.0 * report.share_of_optimal_min)),
        ("OF UNDISTURBED", format!("{:.2} %", 100.0 * report.share_of_undisturbed)),
        ("WITHIN REACH", format!("{:.2} %", 100.0 * report.share_reachable)),
        ("REDONE", format!("{:.0} peer-seconds", report.redone)),
        ("DOWNTIME", format!("{:.1} s", report.downtime_s)),
        ("STATES LOST", format!("{:.2}", report.states_lost)),
        ("JOINS", format!("{:.1}", report.joins)),
        ("SWITCHES", format!("{:.1}", report.switches)),
        ("FETCHES", format!("{:.1}", report.fetches)),
    ];
    print::table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
}
