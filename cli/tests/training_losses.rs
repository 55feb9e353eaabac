//! Training runs as real processes that lose others of all kinds, again and again: the run goes on within seconds, with the bits of one that nothing happened to.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod run;
mod tool;

use std::time::{Duration, Instant};

use dunlin_e2e::{local::LocalTraining, wait};
use run::{Run, resume, signal, stop};

/// Nothing holds up a run for longer, whatever is lost.
const GAP_MAX: Duration = Duration::from_secs(10);
/// Losses of the test.
const LOSSES: usize = 25;

/// What is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Peer,
    Pair,
    Stage,
    AllPeers,
    AllPeersWhileSealing,
    Trainer,
    Conductor,
    PeerAndConductor,
    PeerBehindPeer,
    PeerStops,
    TrainerStops,
    ConductorStops,
}

const KINDS: [Loss; 12] = [
    Loss::Peer,
    Loss::Stage,
    Loss::AllPeers,
    Loss::Trainer,
    Loss::AllPeersWhileSealing,
    Loss::Conductor,
    Loss::PeerBehindPeer,
    Loss::PeerStops,
    Loss::Pair,
    Loss::TrainerStops,
    Loss::PeerAndConductor,
    Loss::ConductorStops,
];

/// Numbers without a pattern (splitmix64), the same in every run of the test.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    fn one(&mut self, of: &[u64]) -> u64 {
        of[self.below(of.len())]
    }
}

fn kill(pids: &[u64]) {
    // All of them before any of them is noticed to be gone.
    pids.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
}

/// The step that is under way; 0 while the conductor does not answer.
fn step(training: &LocalTraining) -> u64 {
    training.status().and_then(|s| s["step"].as_u64()).unwrap_or_default()
}

/// Pids of the peers that serve a stage.
fn of_stage(training: &LocalTraining, run: &Run, stage: usize) -> Vec<u64> {
    let Some(status) = training.status() else { return Vec::new() };
    let names: Vec<String> = serde_json::from_value(status["members"][stage].clone()).unwrap_or_default();
    let peers = training.present("peer").unwrap();
    peers.into_iter().filter(|pid| names.contains(&run.name_of(*pid))).collect()
}

/// Waits until all files of a checkpoint are there and its manifest is not.
fn sealing(run: &Run) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        for folder in std::fs::read_dir(run.checkpoints()).into_iter().flatten().flatten() {
            let has = |name: &str| folder.path().join(name).exists();
            if has("optimizer-00002-of-00002.safetensors") && !has("training.json") {
                return true;
            }
        }
    }
    false
}

/// Returns when something was lost, and the step that was under way then.
fn lose(loss: Loss, training: &LocalTraining, run: &Run, draw: &mut Draw) -> (Instant, u64) {
    let mut lost = (Instant::now(), step(training));
    let peers = training.present("peer").unwrap();
    let (trainers, conductor) =
        (training.present("trainer").unwrap(), training.present("conductor").unwrap());
    match loss {
        Loss::Peer => kill(&[draw.one(&peers)]),
        Loss::Pair => {
            let first = draw.below(peers.len());
            let second = (first + 1 + draw.below(peers.len() - 1)) % peers.len();
            kill(&[peers[first], peers[second]]);
        }
        Loss::Stage => kill(&of_stage(training, run, draw.below(2))),
        Loss::AllPeers => kill(&peers),
        Loss::AllPeersWhileSealing => {
            sealing(run);
            kill(&peers);
            lost = (Instant::now(), step(training));
        }
        Loss::Trainer => kill(&[draw.one(&trainers)]),
        Loss::Conductor => kill(&conductor),
        Loss::PeerAndConductor => kill(&[draw.one(&peers), conductor[0]]),
        Loss::PeerBehindPeer => {
            // Another one while the first is being replaced, and its mates have moved perhaps.
            kill(&[peers[0]]);
            std::thread::sleep(Duration::from_millis(100 + draw.below(700) as u64));
            kill(&[draw.one(&training.present("peer").unwrap())]);
        }
        // Whoever sleeps is replaced by others, and may come back when it is missed no longer.
        Loss::PeerStops | Loss::TrainerStops | Loss::ConductorStops => {
            let pid = match loss {
                Loss::PeerStops => draw.one(&peers),
                Loss::TrainerStops => draw.one(&trainers),
                _ => conductor[0],
            };
            stop(pid);
            let (begin, from) = lost;
            if matches!(loss, Loss::ConductorStops) {
                // Nobody can be asked meanwhile.
                std::thread::sleep(Duration::from_secs(2));
            } else {
                while begin.elapsed() < Duration::from_secs(8) && step(training) < from + 3 {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            resume(pid);
        }
    }
    lost
}

#[test]
fn twenty_five_losses_of_all_kinds_change_no_bit_and_hold_nobody_up() {
    let run = Run::new("losses");
    let mut training = run.start_with(2, 4, Run::without_end);
    let reader = training.read_on();
    let mut draw = Draw(1);
    let mut gaps = Vec::new();
    for i in 0..LOSSES {
        let loss = KINDS[i % KINDS.len()];
        let (begin, before) = lose(loss, &training, &run, &mut draw);
        let goes_on = wait::until_true(&format!("the run goes on after {i}: {loss:?}"), GAP_MAX, || {
            let now = step(&training);
            Ok((now > before + 2, format!("step {now}, {before} before; {:?}", training.status())))
        });
        goes_on.unwrap();
        assert!(begin.elapsed() < GAP_MAX, "{:?} until the run goes on after {i}: {loss:?}", begin.elapsed());
        gaps.push((begin.elapsed(), loss));
    }
    let (longest, loss) = gaps.iter().max_by_key(|(gap, _)| *gap).unwrap();
    println!("{LOSSES} losses, the longest gap {longest:?} after {loss:?}");
    run.ends_as_if_nothing_had_happened(training, reader);
}
