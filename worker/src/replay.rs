//! `replay`: a training swarm on a recorded spot trace, in virtual time.

use anyhow::Context;
use dunlin_sim::replay::{Options, Policy, Report, run as simulate};

use crate::cli::{ReplayArgs, ReplayPolicy};
use crate::print;

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
    let report = simulate(&options, &csv).with_context(|| args.trace.display().to_string())?;
    let text = if args.json { serde_json::to_string(&report)? } else { table(&report) };
    // Who reads no longer has seen enough.
    let _ = print::line(text)?;
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
    rows.map(|(name, value)| format!("{name:<18}{value}")).join("\n")
}
