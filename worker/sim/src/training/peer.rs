//! A peer in virtual time: how it begins, and what its driver wants done.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::training::driver::{DriverEffect, DriverEvent, PeerDriver};
use dunlin_protocol::training::serve::{ServeConfig, Wanted};
use dunlin_protocol::training::{Job, Mate, PeerConfig, PeerReport, Refused};
use dunlin_swarm::PeerName;

use super::events::{Answer, Down, Event, Requests, Up};
use super::got::Update;
use super::numbers::{ARITHMETIC, State};
use super::peer_shell::{PeerShell, Work};
use super::pulling::Purpose;
use super::scenario::Kinds;
use super::world::World;
use super::{fetch, order};

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
            driver: self.driver(Mate { name: name.clone(), addr: name.to_string(), host }),
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
            takers: BTreeMap::new(),
            pulls: BTreeMap::new(),
            wakes: None,
            averages: BTreeMap::new(),
            history: BTreeMap::new(),
            arrived: BTreeMap::new(),
            adding: VecDeque::new(),
            got: BTreeMap::new(),
            kept: BTreeMap::new(),
        };
        self.peers.insert(name.clone(), peer);
        if let Some(script) = script
            && let Some((_, Some(until))) = script.lives.get(self.born as usize - 1)
        {
            let left = until.saturating_sub(self.now());
            if script.notice_ms > 0 {
                self.at(left.saturating_sub(script.notice_ms), Event::Notice(name.clone()));
            }
            self.at(left, Event::Kill(name.clone()));
        }
        self.at(1, Event::Connect(name));
    }

    fn driver(&self, me: Mate) -> PeerDriver {
        let peer = PeerConfig {
            microbatches: self.scenario.shape.microbatches,
            delayed_updates: self.scenario.shape.delayed_updates,
            calls_max: CALLS_MAX,
            arithmetic: ARITHMETIC,
        };
        PeerDriver::new(me, peer, ServeConfig::default(), fetch::config(&self.scenario))
    }

    pub(super) fn connected(&mut self, name: &PeerName, stream: u64) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(name) else {
            self.trainer_connected(name, stream);
            return;
        };
        let mut out = Vec::new();
        peer.stream = Some(stream);
        let hello = peer.driver.connected(now, &mut out);
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
            Down::Peer(message) => self.drive(to, DriverEvent::Heard(message)),
            Down::Trainer(message) => self.trainer_hears(to, message),
        }
    }

    /// The driver decides, and is obeyed.
    pub(super) fn drive(&mut self, name: &PeerName, event: DriverEvent) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let mut out = Vec::new();
        peer.driver.handle(now, event, &mut out);
        self.peer_effects(name, out);
        self.wake_later(name);
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each effect")]
    fn peer_effects(&mut self, name: &PeerName, mut effects: Vec<DriverEffect>) {
        self.scenario.order.apply(&mut effects, order::of_driver, &mut self.out.pairs);
        for effect in effects {
            let Some(peer) = self.peers.get_mut(name) else { return };
            match effect {
                DriverEffect::Run(Job::Apply { step, scale, prove }) => {
                    let Some(averages) = self.averages_of(name, step) else { return };
                    self.give(name, Work::Apply(Update { step, averages, scale }, prove));
                }
                DriverEffect::Run(job) => {
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
                DriverEffect::Reply(request) => {
                    if let Some((asked, answer)) = peer.answers.remove(&request) {
                        self.answer(name, asked, answer);
                    }
                }
                DriverEffect::Refuse(request, why) => {
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
                DriverEffect::Tell(PeerReport::Wrong { mate, what })
                    if self.scenario.kinds != Kinds::Wrong =>
                {
                    return self.violation(format!("{name} accuses {mate}, who is right: {what}"));
                }
                DriverEffect::Tell(report) => {
                    let stream = peer.stream;
                    self.up(name, stream, Up::Peer(report));
                }
                DriverEffect::Begin(id, group) => self.average(name, id, group),
                DriverEffect::CancelAverages => self.cancel_averages(name),
                DriverEffect::DropAverages => self.drop_averages(name),
                DriverEffect::Serve(effect) => self.serve(name, effect),
                DriverEffect::Fetch(id, work) => self.fetch(name, id, work),
                DriverEffect::DropFetched(id) => self.drop_fetched(name, id),
                DriverEffect::ForgetUpdates(steps) => peer.kept.retain(|step, _| !steps.contains(step)),
                DriverEffect::Note(text) => self.say(|| format!("{name}: {text}")),
                DriverEffect::Take(take) => {
                    let (stage, mate) = (peer.stage, take.from.name.clone());
                    let of = take.contributions.iter().map(|c| c.microbatch).collect();
                    self.pull(name, &mate, stage, Wanted::AllSums(take.step, of), Purpose::Take(take));
                }
                DriverEffect::Discard(take) => drop(peer.arrived.remove(&take.from.name)),
                DriverEffect::Save { step, check } => self.give(name, Work::Save { step, check }),
                DriverEffect::End(why) => self.peer_ends(name, &why),
                DriverEffect::Retire => self.peer_retires(name),
            }
        }
    }
}
