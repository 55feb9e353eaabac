//! `replay`: a training swarm on a recorded spot trace, in virtual time.

use anyhow::Context;
use dunlin_sim::replay::{Options, Policy, run as simulate};

use crate::cli::{ReplayArgs, ReplayPolicy};

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
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("SHARE OF OPTIMAL  {:.2} %", 100.0 * report.share_of_optimal);
    println!("WORST SEED        {:.2} %", 100.0 * report.share_of_optimal_min);
    println!("OF UNDISTURBED    {:.2} %", 100.0 * report.share_of_undisturbed);
    println!("WITHIN REACH      {:.2} %", 100.0 * report.share_reachable);
    println!("REDONE            {:.0} peer-seconds", report.redone);
    println!("DOWNTIME          {:.1} s", report.downtime_s);
    println!("STATES LOST       {:.2}", report.states_lost);
    println!("JOINS             {:.1}", report.joins);
    println!("SWITCHES          {:.1}", report.switches);
    println!("FETCHES           {:.1}", report.fetches);
    Ok(())
}
