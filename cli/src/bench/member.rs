//! One member of a group that forms averages. It prints a line of JSON when it is ready, and one for every line on stdin, for which it has
//! formed an average.

use clap::Args;
use dunlin_terminal::print;
use dunlin_worker::training::peer::member::{AveragingMember, Options};
use serde_json::json;
use tokio::sync::mpsc;

/// Options of a member of averages.
#[derive(Args, Clone)]
pub struct AverageMemberArgs {
    /// Where all members listen, `host:port` on loopback.
    #[arg(long, value_delimiter = ',', required = true)]
    pub group: Vec<String>,
    /// Which of them this is.
    #[arg(long)]
    pub index: usize,
    /// Encoding, as `wire.gradients` of a run has it.
    #[arg(long, default_value = "Exact")]
    pub gradients: String,
    /// Width of the feed-forward part of the one block whose gradients they are; it makes the number of values.
    #[arg(long, default_value_t = 6688)]
    pub ffn: usize,
}

/// Runs until stdin ends.
///
/// # Errors
/// When the arguments make no sense, or an average cannot be formed.
pub async fn run(args: AverageMemberArgs) -> anyhow::Result<()> {
    let AverageMemberArgs { group, index, gradients, ffn } = args;
    let mut member = AveragingMember::start(&Options { group, index, gradients, ffn }).await?;
    if print::line(json!({"values": member.count()}))?.is_break() {
        return Ok(());
    }
    let (line_in, mut lines) = mpsc::channel(1);
    // It ends with stdin, or with the process.
    std::thread::spawn(move || {
        let mut each = std::io::stdin().lines();
        while each.next().is_some_and(|line| line.is_ok()) && line_in.blocking_send(()).is_ok() {}
    });
    while lines.recv().await.is_some() {
        let outcome = member.average().await?;
        let digest = format!("{:016x}", outcome.digest);
        let line = json!({"seconds": outcome.seconds, "digest": digest, "error": outcome.error});
        if print::line(line)?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}
