//! Bits that flip in the memory of real peers: the culprit is named and replaced, and the run ends with the bits of one that nothing happened to.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod run;
mod tool;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use dunlin_e2e::local::LocalTraining;
use dunlin_e2e::wait;
use dunlin_train::TrainingConfig;
use dunlin_train::config::{InitialModel, model_config};
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::{Pieces, dial_stage};
use dunlin_wire::{Role, proto};
use run::{Run, named, resume, stop};

/// Where a bit flips.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In a parameter.
    Parameter,
    /// In what the optimizer keeps.
    Vector,
    /// In a packed copy of a parameter, which computations read.
    Packed,
    /// In a gradient sum.
    Sum,
}

/// A process that computes a stage.
struct Peer {
    pid: u64,
    name: String,
    addr: String,
    stage: u32,
    /// Another peer that serves the stage: values are given to mates only.
    mate: String,
}

/// A peer that serves a stage, if it is not the only one.
fn peer_of(training: &LocalTraining, run: &Run, stage: u32) -> Option<Peer> {
    let status = training.status()?;
    let members: Vec<String> = serde_json::from_value(status["members"][stage as usize].clone()).ok()?;
    let pids = training.present("peer").ok()?;
    let pid = pids.iter().copied().find(|pid| members.contains(&run.name_of(*pid)))?;
    let name = run.name_of(pid);
    let mate = members.into_iter().find(|other| *other != name)?;
    Some(Peer { pid, name, addr: run.argument(pid, "--listen"), stage, mate })
}

/// What a peer answers to its mate: the step it is at, and bytes.
fn pull(run: &Run, peer: &Peer, what: What) -> Result<(u64, Vec<u8>), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let links = run.links(Role::Peer, &peer.mate);
        let mut client = dial_stage(&links, &peer.name, &peer.addr, 1 << 20).await?;
        let request = proto::PullRequest { stage: peer.stage, what: Some(what), ..Default::default() };
        let mut pieces = Pieces::ask(&mut client, request, Duration::from_secs(5)).await?;
        let (mut step, mut bytes) = (0, Vec::new());
        while let Some(piece) = pieces.next().await? {
            step = piece.step;
            bytes.extend_from_slice(&piece.data);
        }
        Ok((step, bytes))
    })
}

/// All places of `pattern` in the memory of a process that can be written to.
fn find(pid: u64, pattern: &[u8]) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|l| l.split(' ').nth(1).is_some_and(|access| access.starts_with("rw-p")))
    {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // A part that cannot be read has nothing of ours.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        let mut at = 0;
        while let Some(next) = bytes[at..].windows(pattern.len()).position(|w| w == pattern) {
            found.push(from + (at + next) as u64);
            at += next + 1;
        }
    }
    found
}

/// Flips a bit of the byte at each of these addresses.
fn flip(pid: u64, addresses: &[u64]) {
    assert!(!addresses.is_empty(), "there is nothing to flip");
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    for address in addresses {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, *address).unwrap();
        memory.write_all_at(&[byte[0] ^ 0x10], *address).unwrap();
    }
}

/// Values of a stage, and the first of its matrices with rows of at least 32.
fn layout(run: &Run, stage: u32) -> (usize, usize) {
    let text = std::fs::read_to_string(run.folder.join("run.json")).unwrap();
    let config = TrainingConfig::from_json(&text).unwrap();
    let InitialModel::Config(shape) = &config.model else { unreachable!("the configuration has a shape") };
    let model = model_config(shape, 256).unwrap();
    let layout = dunlin_train::Run::new(config, model).unwrap().layout(stage);
    let matrix = layout.tensors().iter().find(|t| t.decay && t.shape[1] >= 32 && t.name.contains("layers"));
    (layout.len(), matrix.unwrap().offset)
}

/// Flips a bit of a peer while the run stands still, because nobody drives it. True when that was possible.
fn strike(training: &LocalTraining, run: &Run, peer: &Peer, place: Place) -> bool {
    let (len, matrix) = layout(run, peer.stage);
    let Ok((step, state)) = pull(run, peer, What::State(proto::Span { from: 0, to: len as u64 })) else {
        return false;
    };
    let value = |index: usize| &state[4 * index..4 * index + 4];
    let addresses = match place {
        Place::Parameter => find(peer.pid, &state[4 * (matrix + 40)..4 * (matrix + 56)]),
        Place::Vector => {
            let from = len + matrix + 40;
            if state[4 * from..4 * (from + 16)].iter().all(|b| *b == 0) {
                return false;
            }
            find(peer.pid, &state[4 * from..4 * (from + 16)])
        }
        Place::Packed => {
            // In neither packing the next value in memory is that of the vector.
            let index = matrix + 15;
            let memory = File::open(format!("/proc/{}/mem", peer.pid)).unwrap();
            let alone = |address: &u64| {
                let mut next = [0; 4];
                address.is_multiple_of(4)
                    && memory.read_exact_at(&mut next, address + 4).is_ok()
                    && next != *value(index + 1)
            };
            find(peer.pid, value(index)).into_iter().filter(alone).collect()
        }
        Place::Sum => {
            let Ok((_, sums)) = pull(run, peer, What::AllSums(step)) else { return false };
            let from = 8 * (matrix + 40);
            if sums[from..from + 64].iter().all(|b| *b == 0) {
                return false;
            }
            find(peer.pid, &sums[from..from + 64])
        }
    };
    flip(peer.pid, &addresses);
    eprintln!("{place:?} of {} flips at step {step}, {} places", peer.name, addresses.len());
    training.present("trainer").is_ok()
}

/// A bit flips at a peer of some stage; returns who it was.
fn flips(training: &LocalTraining, run: &Run, place: Place, stage: u32) -> String {
    let name = wait::until(&format!("{place:?} flips"), Duration::from_secs(30), || {
        let trainers = training.present("trainer")?;
        trainers.iter().for_each(|pid| stop(*pid));
        // What was under way ends.
        std::thread::sleep(Duration::from_millis(300));
        let struck = peer_of(training, run, stage).filter(|peer| strike(training, run, peer, place));
        trainers.iter().for_each(|pid| resume(*pid));
        Ok(struck.map(|peer| peer.name))
    });
    name.unwrap()
}

#[test]
fn a_bit_that_flips_is_noticed_its_peer_named_and_the_run_goes_on() {
    let run = Run::new("flips");
    let mut training = run.start_with(2, 4, Run::without_end);
    let reader = training.read_on();
    for (place, stage) in [(Place::Parameter, 0), (Place::Vector, 1), (Place::Packed, 0), (Place::Sum, 1)] {
        let name = flips(&training, &run, place, stage);
        let why = named(&training, &name);
        assert!(why.contains("memory has changed"), "{place:?}: {why}");
    }
    run.ends_as_if_nothing_had_happened(training, reader);
}
