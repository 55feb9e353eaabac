//! A peer in virtual time: how it begins, and what its node wants done.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::training::serve::{ServeConfig, ServeEvent, Serving, Wanted};
use dunlin_protocol::training::{AverageId, Job, Mate, PeerConfig, PeerEffect, PeerNode, Refused};
use dunlin_swarm::PeerName;

use super::events::{Answer, Down, Event, Requests, Up};
use super::numbers::{ARITHMETIC, State};
use super::peer_shell::{PeerShell, Work};
use super::pulling::Purpose;
use super::world::World;

/// Calls that may wait at a peer.
const CALLS_MAX: usize = 256;

impl World {
    pub(super) fn join(&mut self) {
        if self.finished_at.is_some() {
            return;
        }
        self.born += 1;
        let name = PeerName(format!("p{}", self.born));
        self.say(|| format!("{name} starts"));
        // Some are so slow that calls to them are given up.
        let script = self.scenario.script.clone();
        let given = self.scenario.slowness.get(self.born as usize - 1).copied();
        let drawn = if self.draw(8) == 0 { 60 + self.draw(200) } else { 4 + self.draw(30) };
        let host = match self.scenario.hosts {
            0 => String::new(),
            hosts => format!("h{}", self.draw(hosts)),
        };
        let peer = PeerShell {
            node: PeerNode::new(
                Mate { name: name.clone(), addr: name.to_string(), host },
                PeerConfig {
                    microbatches: self.scenario.shape.microbatches,
                    delayed_updates: self.scenario.shape.delayed_updates,
                    calls_max: CALLS_MAX,
                    arithmetic: ARITHMETIC,
                },
            ),
            stream: None,
            retired: false,
            deaf: false,
            silent: false,
            leaving: false,
            broken_disk: false,
            flaw: None,
            slowness: script.as_ref().map(|s| s.forward_ms).or(given).unwrap_or(drawn),
            engine: VecDeque::new(),
            requests: Requests::new(),
            answers: BTreeMap::new(),
            stage: 0,
            step: 0,
            state: State::default(),
            sums: BTreeMap::new(),
            serving: Serving::new(ServeConfig::default()),
            takers: BTreeMap::new(),
            pulls: BTreeMap::new(),
            wakes: None,
            averages: BTreeMap::new(),
            history: BTreeMap::new(),
            arrived: BTreeMap::new(),
            adding: VecDeque::new(),
            fetching: None,
        };
        self.peers.insert(name.clone(), peer);
        if let Some(script) = script
            && let Some((_, Some(until))) = script.lives.get(self.born as usize - 1)
        {
            let left = until.saturating_sub(self.now);
            if script.notice_ms > 0 {
                self.at(left.saturating_sub(script.notice_ms), Event::Notice(name.clone()));
            }
            self.at(left, Event::Kill(name.clone()));
        }
        self.at(1, Event::Connect(name));
    }

    pub(super) fn connected(&mut self, name: &PeerName, stream: u64) {
        let Some(peer) = self.peers.get_mut(name) else {
            self.trainer_connected(name, stream);
            return;
        };
        let mut out = Vec::new();
        peer.stream = Some(stream);
        let hello = peer.node.connected(&mut out);
        self.up(name, Some(stream), Up::Hello(hello));
        self.peer_effects(name, out);
    }

    pub(super) fn arrives_down(&mut self, stream: u64, to: &PeerName, message: Down) {
        let here = self.peers.get(to).filter(|p| !p.silent).and_then(|p| p.stream);
        let there = self.trainers.get(to).and_then(|t| t.stream);
        if here.or(there) != Some(stream) {
            return;
        }
        self.say(|| format!("conductor -> {to}: {message:?}"));
        match message {
            Down::Peer(message) => self.with_peer(to, |node, out| node.hear(message, out)),
            Down::Trainer(message) => self.trainer_hears(to, message),
        }
    }

    /// The node decides, the shell obeys.
    pub(super) fn with_peer(
        &mut self,
        name: &PeerName,
        decide: impl FnOnce(&mut PeerNode, &mut Vec<PeerEffect>),
    ) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let mut out = Vec::new();
        decide(&mut peer.node, &mut out);
        self.peer_effects(name, out);
    }

    pub(super) fn peer_effects(&mut self, name: &PeerName, effects: Vec<PeerEffect>) {
        for effect in effects {
            let Some(peer) = self.peers.get_mut(name) else { return };
            match effect {
                PeerEffect::Run(job) => {
                    if let Job::Add(take) = &job {
                        match peer.arrived.remove(&take.from.name) {
                            Some(sums) => peer.adding.push_back(sums),
                            None => {
                                return self.violation(format!("{name} has no sums to add for {take:?}"));
                            }
                        }
                    }
                    self.give(name, Work::Job(job));
                }
                PeerEffect::Reply(request) => {
                    if let Some((asked, answer)) = peer.answers.remove(&request) {
                        self.answer(name, asked, answer);
                    }
                }
                PeerEffect::Refuse(request, why) => {
                    let computed = peer.answers.remove(&request).map(|(asked, _)| asked);
                    if let Some(asked) = peer.requests.remove(&request).or(computed) {
                        let answer = match why {
                            Refused::Stale => Answer::Stale,
                            Refused::Failed(what) => Answer::Failed(what),
                            Refused::NotServing | Refused::Busy => Answer::Refused,
                        };
                        self.answer(name, asked, answer);
                    }
                }
                PeerEffect::Tell(report) => {
                    let stream = peer.stream;
                    self.up(name, stream, Up::Peer(report));
                }
                PeerEffect::Load(load) => self.load(name, &load),
                PeerEffect::Fetch { fetch, from } => self.begin_fetch(name, fetch, from),
                PeerEffect::Average { step, shard, round, group } => {
                    self.average(name, AverageId { step, shard, round }, group);
                }
                PeerEffect::Close => self.close_averages(name),
                PeerEffect::Take(take) => {
                    let (stage, mate) = (peer.stage, take.from.name.clone());
                    self.pull(name, &mate, stage, Wanted::AllSums(take.step), Purpose::Take(take));
                }
                PeerEffect::GiveTo(mates) => self.serve(name, ServeEvent::Mates(mates)),
                PeerEffect::Discard(take) => drop(peer.arrived.remove(&take.from.name)),
                PeerEffect::Save { step, check } => self.give(name, Work::Save { step, check }),
                PeerEffect::End(why) => self.peer_ends(name, &why),
                PeerEffect::Retire => self.peer_retires(name),
            }
        }
    }
}
