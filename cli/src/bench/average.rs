//! `bench average`: how long processes take to average gradients, by the engine, server and exchange of a peer that trains.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;
use dunlin_terminal::print::{self, OutputArgs};
use dunlin_terminal::progress::Progress;
use serde_json::{Value, json};

use super::median;
use crate::processes::ports::free_addr;

/// What to average.
#[derive(Args, Clone)]
pub struct AverageArgs {
    /// Processes that average with one another.
    #[arg(long, default_value_t = 4)]
    pub members: usize,
    /// How values travel, as `wire.gradients` of a run has it: Exact, F32, F16 or Q8.
    #[arg(long, default_value = "Exact")]
    pub gradients: String,
    /// Averages, after a first one that makes connections.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Form.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Prints the seconds of the slowest member.
///
/// # Errors
/// When a member ends, or members hold different averages.
pub async fn run(args: AverageArgs) -> anyhow::Result<()> {
    ensure!(args.members > 0 && args.rounds > 0, "--members and --rounds have to be at least 1");
    let mut group = Vec::new();
    for _ in 0..args.members {
        group.push(free_addr((Ipv4Addr::LOCALHOST, 0).into()).await?.to_string());
    }
    let progress = Progress::of(args.rounds as u64, "averages");
    let start = |index| Member::start(&group.join(","), index, &args.gradients);
    let mut members = (0..args.members).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let mut values = 0;
    for member in &mut members {
        values = member.answer()?["values"].as_u64().unwrap_or(0);
    }
    let (mut seconds, mut error) = (Vec::new(), 0.0);
    for round in 0..=args.rounds {
        for member in &mut members {
            member.go_on()?;
        }
        let answers = members.iter_mut().map(Member::answer).collect::<anyhow::Result<Vec<_>>>()?;
        let same = answers.windows(2).all(|pair| pair[0]["digest"] == pair[1]["digest"]);
        ensure!(same, "members hold different averages: {answers:?}");
        let slowest = answers.iter().filter_map(|a| a["seconds"].as_f64()).fold(0.0, f64::max);
        error = answers[0]["error"].as_f64().unwrap_or(0.0);
        if round > 0 {
            seconds.push(slowest);
        }
        progress.done(round as u64);
    }
    drop(progress);
    let middle = median(&seconds);
    let result = json!({
        "values": values, "members": args.members, "gradients": args.gradients,
        "seconds": seconds, "median_s": middle, "relative_error": error,
    });
    let text = || {
        print::table(&[
            ["VALUES".to_owned(), values.to_string()],
            ["MEMBERS".to_owned(), args.members.to_string()],
            ["MEDIAN".to_owned(), format!("{:.1} ms", 1e3 * middle)],
            ["RELATIVE ERROR".to_owned(), format!("{error:.1e}")],
        ])
    };
    args.output.print(&result, text)?;
    Ok(())
}

/// A process that averages once for every line that it gets. Dropping it ends it.
struct Member {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Member {
    fn start(group: &str, index: usize, gradients: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--log", "warn", "bench", "average-member", "--group", group])
            .args(["--index", &index.to_string(), "--gradients", gradients])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a member")?;
        let output = child.stdout.take().context("stdout is piped")?;
        Ok(Self { child, lines: BufReader::new(output).lines() })
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        Ok(self.child.stdin.as_mut().context("stdin is piped")?.write_all(b"\n")?)
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let line = self.lines.next().context("a member has ended; its last line is above")??;
        serde_json::from_str(&line).with_context(|| format!("a member says {line:?}"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It has ended by itself when these fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
