//! The main job, shown: a swarm on a local cluster answers a question while the node of its middle stage is killed.
#![allow(clippy::print_stdout, reason = "this program talks to a person")]

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dunlin_e2e::chat::{self, Answer, Question, Stream};
use dunlin_e2e::cluster::Cluster;
use dunlin_e2e::swarm::{Peer, Swarm};
use dunlin_e2e::{deploy, report, scenarios};

#[derive(Parser)]
struct Args {
    /// Name of the cluster; it stays up.
    #[arg(long, default_value = "dunlin")]
    name: String,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 4)]
    nodes: u32,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 220)]
    tokens: u32,
}

/// The node is killed after this many tokens.
const KILL_AT: usize = 80;

fn main() -> Result<()> {
    let args = Args::parse();
    let mut progress = Progress { started: Instant::now() };
    progress.say(&format!("starting a Kubernetes cluster of {} nodes", args.nodes));
    let mut cluster = Cluster::up(&args.name, args.nodes)?;
    cluster.keep();
    scenarios::heal(&cluster)?;
    progress.say("loading the images into the nodes");
    deploy::load_images(&cluster, &deploy::image_dir())?;
    progress.say("helm install dunlin charts/dunlin");
    deploy::install_chart(&cluster, &[])?;
    deploy::storage(&cluster)?;
    progress.say("kubectl apply -f examples/smollm2.yaml");
    // Nodes have no way out: they load the model from a server beside them.
    deploy::start_model_server(&cluster)?;
    let swarm = deploy::apply_example_swarm(&cluster)?;
    swarm.wait_whole(scenarios::PEERS)?;
    progress.say("the swarm is ready");
    println!("\n{}", cluster.kubectl(&["get", "isw,pods", "-o", "wide"])?);

    let question = Question::greedy(
        &swarm.model,
        "Tell me a story about a dunlin, a small bird on a cold shore.",
        args.tokens,
    );
    let victim = swarm.middle_peer()?;
    let url = swarm.gateway(&[&victim.node])?;
    progress.say("asking once undisturbed, to have something to compare with");
    let quiet = chat::ask(&url, &question)?;
    progress.say(&format!(
        "asking again; node {} (layers {}..{}) dies on the way",
        victim.node, victim.start, victim.end
    ));
    println!("\n> {}\n", question.text);
    let (answer, killed_at_s, killed) = disturbed(&cluster, &swarm, &url, &question, &victim)?;
    println!("\n");
    progress.say("waiting for the replacement to hold its layers");
    swarm.wait_whole(scenarios::PEERS).context("the swarm did not heal")?;
    let replaced_s = killed.elapsed().as_secs_f64();
    summary(&quiet, &answer, killed_at_s, replaced_s)?;
    next_commands(&args, &swarm)
}

fn disturbed(
    cluster: &Cluster,
    swarm: &Swarm<'_>,
    url: &str,
    question: &Question,
    victim: &Peer,
) -> Result<(Answer, f64, Instant)> {
    let mut stream = Stream::start(url, question);
    let mut shown = 0;
    let show = |answer: &Answer, shown: &mut usize| -> Result<()> {
        print!("{}", &answer.text[*shown..]);
        *shown = answer.text.len();
        Ok(std::io::stdout().flush()?)
    };
    let sent = Instant::now();
    for count in 1..=KILL_AT {
        stream.read_tokens(count)?;
        show(stream.so_far(), &mut shown)?;
    }
    // The kill runs beside the stream: its tokens keep coming (or not) while the node dies.
    let killed = Instant::now();
    let killed_at_s = killed.duration_since(sent).as_secs_f64();
    std::thread::scope(|scope| -> Result<()> {
        let kill = scope.spawn(|| cluster.verb(&["kill", &victim.node]));
        print!("\x1b[7m[{} on {} killed]\x1b[0m", victim.name, victim.node);
        for count in KILL_AT + 1..=question.tokens as usize {
            stream.read_tokens(count).with_context(|| format!("the swarm {} lost the stream", swarm.name))?;
            show(stream.so_far(), &mut shown)?;
        }
        kill.join().map_err(|_| anyhow::anyhow!("the kill panicked"))??;
        Ok(())
    })?;
    Ok((stream.finish()?, killed_at_s, killed))
}

fn summary(quiet: &Answer, answer: &Answer, killed_at_s: f64, replaced_s: f64) -> Result<()> {
    // The stall is the longest gap after the kill; the rates are measured on either side of it.
    let gap = (KILL_AT..answer.arrived_s.len())
        .max_by(|&a, &b| gap_s(answer, a).total_cmp(&gap_s(answer, b)))
        .context("no token after the kill")?;
    let same = quiet.ids == answer.ids;
    println!(
        "{}",
        report::table(&[
            ("tokens/s undisturbed", format!("{:.1}", quiet.rate(1, quiet.ids.len()))),
            ("tokens/s before the loss", format!("{:.1}", answer.rate(1, gap))),
            ("node killed after", format!("{killed_at_s:.2} s, {KILL_AT} tokens")),
            ("stall", format!("{:.0} ms", gap_s(answer, gap) * 1e3)),
            ("tokens/s after the loss", format!("{:.1}", answer.rate(gap, answer.ids.len()))),
            ("same tokens as undisturbed", if same { "yes" } else { "NO" }.to_owned()),
            ("replacement has its layers after", format!("{replaced_s:.1} s")),
        ])
    );
    ensure!(
        same,
        "the answer changed: this is a bug, please report it with `kubectl logs -l dunlin.dev/swarm`"
    );
    Ok(())
}

fn gap_s(answer: &Answer, index: usize) -> f64 {
    answer.arrived_s[index] - answer.arrived_s[index - 1]
}

fn next_commands(args: &Args, swarm: &Swarm<'_>) -> Result<()> {
    let kubeconfig = swarm.cluster.verb(&["env"])?;
    let kubeconfig = kubeconfig.lines().find(|l| l.contains("KUBECONFIG=")).unwrap_or_default().to_owned();
    let (cluster, url) = ("e2e/cluster/cluster", swarm.gateway(&[])?);
    let kubectl = if args.name == "dunlin" {
        format!("{cluster} kubectl")
    } else {
        format!("NAME={} {cluster} kubectl", args.name)
    };
    println!("The cluster stays up. To play with it:");
    println!("  {kubeconfig}");
    println!("  {kubectl} get isw,pods -o wide");
    println!("  {kubectl} explain inferenceswarm.spec");
    println!("  {kubectl} scale isw {} --replicas 4", swarm.name);
    println!("  curl {url}/v1/chat/completions -H 'content-type: application/json' \\");
    println!(
        "    -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'",
        swarm.model
    );
    println!("  {cluster} example train-bible.yaml | {kubectl} apply -f -");
    println!("  make cluster-kill NODE=n2        make cluster-start NODE=n2");
    println!("  make cluster-silence NODE=n1     make cluster-unsilence NODE=n1");
    println!("  make quickstart-down             removes every trace");
    Ok(())
}

struct Progress {
    started: Instant,
}

impl Progress {
    fn say(&mut self, what: &str) {
        let elapsed: Duration = self.started.elapsed();
        println!("[{:6.1} s] {what}", elapsed.as_secs_f64());
    }
}
