//! What a peer does: jobs one after the other, averages pulled from mates, state fetched from mates.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::training::mates::{self, Mates};
use dunlin_protocol::training::peer::Take;
use dunlin_protocol::training::{
    Call, CallId, CallKind, Conductor, Fetch, FetchFailure, Job, Load, Mate, PeerConfig, PeerEffect,
    PeerNode, PeerReport, Refused, SaveFailure, ShardId, StageId, StateDigest, Step,
};
use dunlin_swarm::PeerName;

use super::events::{Answer, Asked, Down, Event, Requests, Up};
use super::flaw::Flaw;
use super::numbers::{ARITHMETIC, Keys, State, Sums};
use super::peer_shell::{Average, Fetching, PeerShell, Work};
use super::world::World;
use crate::serving::model::mix;

/// A mate that does not answer is given up after this long.
const PULL_MS_MAX: u64 = 1200;
/// A fetch fails after this long.
const FETCH_MS_MAX: u64 = 4000;
/// Calls that may wait at a peer.
const CALLS_MAX: usize = 256;
/// Steps whose averages are kept for those that fetch.
const KEEP: Step = 4;
/// The same in a script, where fetches take long: processes collect what is made meanwhile.
const KEEP_LONG: Step = 64;

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
            open: BTreeMap::new(),
            mates: Mates::default(),
            averages: BTreeMap::new(),
            history: BTreeMap::new(),
            arrived: BTreeMap::new(),
            fetching: None,
            taking: Vec::new(),
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
    fn with_peer(&mut self, name: &PeerName, decide: impl FnOnce(&mut PeerNode, &mut Vec<PeerEffect>)) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let mut out = Vec::new();
        decide(&mut peer.node, &mut out);
        self.peer_effects(name, out);
    }

    pub(super) fn call_arrives(&mut self, name: &PeerName, asked: Asked) {
        let request = self.count();
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.retired) else {
            let after = self.latency();
            let (trainer, id) = (asked.trainer, asked.id);
            self.at(after, Event::Answer { from: name.clone(), trainer, id, answer: Answer::Broken });
            return;
        };
        if peer.silent {
            return;
        }
        let call = asked.call;
        peer.requests.insert(request, asked);
        self.with_peer(name, |node, out| node.call(request, call, out));
    }

    pub(super) fn hang_up(&mut self, name: &PeerName, trainer: &PeerName, id: CallId) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let asked = peer.requests.iter().find(|(_, a)| a.id == id && a.trainer == *trainer);
        let Some(request) = asked.map(|(r, _)| *r) else { return };
        if !peer.silent {
            // What the engine has been given is computed all the same, and needs its inputs.
            let given = |w: &Work| matches!(w, Work::Job(Job::Compute { request: r, .. }) if *r == request);
            if !peer.engine.iter().any(given) {
                peer.requests.remove(&request);
            }
            self.with_peer(name, |node, out| node.hang_up(request, out));
        }
    }

    fn answer(&mut self, name: &PeerName, asked: Asked, answer: Answer) {
        let after = self.latency();
        self.at(after, Event::Answer { from: name.clone(), trainer: asked.trainer, id: asked.id, answer });
    }

    pub(super) fn peer_effects(&mut self, name: &PeerName, effects: Vec<PeerEffect>) {
        for effect in effects {
            let fetch = self.count();
            let now = self.now;
            let Some(peer) = self.peers.get_mut(name) else { return };
            match effect {
                PeerEffect::Run(job) => self.give(name, Work::Job(job)),
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
                PeerEffect::Load(Load { stage, step, checkpoint }) => {
                    let until = now + FETCH_MS_MAX;
                    let mates = Vec::new();
                    peer.fetching =
                        Some(Fetching { fetch, stage, wanted: step, mates, from: None, have: None, until });
                    let after = 50 + self.draw(250);
                    self.at(after, Event::Loaded { peer: name.clone(), fetch, stage, step, checkpoint });
                }
                PeerEffect::Fetch { fetch: Fetch { stage, step, mates, .. }, from } => {
                    let long = self.scenario.script.as_ref().map_or(0, |s| 2 * s.fetch_ms);
                    let until = now + FETCH_MS_MAX + long;
                    peer.fetching =
                        Some(Fetching { fetch, stage, wanted: step, mates, from, have: None, until });
                    match from {
                        Some(from) => self.give(name, Work::Begin { fetch, from }),
                        None => self.at(1, Event::Fetch { peer: name.clone(), fetch }),
                    }
                }
                PeerEffect::Average { step, shard, round, group } => {
                    let average = Average { round, group, sum: 0, keys: Keys::new(), complete: false };
                    peer.averages.insert(shard, (step, average));
                    self.give(name, Work::Open { shard, round });
                }
                PeerEffect::Take(take) => {
                    peer.taking.push(take.clone());
                    let after = self.latency();
                    self.at(after, Event::AskSums { peer: name.clone(), take, until: now + PULL_MS_MAX });
                }
                PeerEffect::GiveTo(mates) => peer.mates = mates,
                PeerEffect::Save { step, check } => self.give(name, Work::Save { step, check }),
                PeerEffect::End(why) => {
                    self.say(|| format!("{name} ends: {why}"));
                    self.end_peer(name);
                    if self.scenario.script.is_none() {
                        let after = 100 + self.draw(500);
                        self.at(after, Event::Join);
                    }
                }
                PeerEffect::Retire => {
                    self.say(|| format!("{name} retires"));
                    if let Some(peer) = self.peers.get_mut(name) {
                        peer.retired = true;
                        if let Some(stream) = peer.stream.take() {
                            self.break_stream(stream, false);
                        }
                    }
                    if self.finished_at.is_none() {
                        self.end_peer(name);
                    }
                }
            }
        }
    }

    fn give(&mut self, name: &PeerName, work: Work) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.engine.push_back(work);
        if peer.engine.len() == 1 {
            self.start(name);
        }
    }

    /// Begins with the first job.
    fn start(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get(name) else { return };
        let ms = match peer.engine.front() {
            None => return,
            Some(Work::Job(Job::Compute { call, .. })) => duration(call.kind, peer.slowness),
            Some(Work::Job(Job::Apply { .. } | Job::Add(_)) | Work::Set { .. }) => 3 + peer.slowness / 4,
            Some(_) => 1,
        };
        self.at(ms, Event::Engine { peer: name.clone() });
    }

    pub(super) fn engine_done(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.healthy()) else { return };
        let Some(work) = peer.engine.pop_front() else { return };
        if !peer.engine.is_empty() {
            self.start(name);
        }
        match work {
            Work::Job(Job::Compute { request, call, accumulate, check }) => {
                if !check || !self.notices(name) {
                    self.compute(name, request, call, accumulate);
                }
            }
            Work::Job(Job::Check) => {
                self.notices(name);
            }
            Work::Job(Job::Clear) => {
                self.say(|| format!("{name} has cleared"));
                if let Some(peer) = self.peers.get_mut(name) {
                    peer.sums.clear();
                    peer.changed();
                }
            }
            Work::Job(Job::Add(take)) => {
                if let Some(peer) = self.peers.get_mut(name)
                    && let Some(sums) = peer.arrived.remove(&take.from.name)
                {
                    peer.add(take.step, &sums);
                }
                self.with_peer(name, |node, out| node.added(take, out));
            }
            Work::Job(Job::Apply { step, scale, prove }) => {
                if !self.notices(name) {
                    self.apply(name, step, scale, prove);
                }
            }
            Work::Open { shard, round } => {
                if self.notices(name) {
                    return;
                }
                let Some(peer) = self.peers.get_mut(name) else { return };
                if peer.averages.get(&shard).is_some_and(|(_, a)| a.round == round) {
                    peer.open.insert(shard, round);
                    let until = self.now + PULL_MS_MAX;
                    let after = self.latency();
                    self.at(after, Event::Pull { peer: name.clone(), shard, round, index: 0, until });
                }
            }
            Work::Hand { to, take } => {
                if self.notices(name) {
                    return;
                }
                let sums = self.peers.get(name).map(|p| p.sums.get(&take.step).cloned().unwrap_or_default());
                let after = self.latency();
                self.at(after, Event::Sums { peer: to, take, sums });
            }
            Work::Save { step, check } => {
                if self.notices(name) {
                    return;
                }
                let compared = self.is_compared(name);
                let Some(peer) = self.peers.get_mut(name) else { return };
                let broken = !check && std::mem::take(&mut peer.broken_disk);
                let (stage, mut state) = (peer.stage, peer.state);
                if peer.flaw.take_if(|flaw| *flaw == Flaw::Miswrites).is_some() && compared {
                    state.now.own ^= 1 << 3;
                }
                if peer.step != step {
                    let at = peer.step;
                    self.violation(format!("{name} saves step {step} and is at {at}"));
                }
                let works = check || (!broken && !self.is_away());
                let after = 5 + self.draw(150);
                self.at(after, Event::Written { peer: name.clone(), step, stage, state, works });
            }
            Work::Begin { fetch, from } => {
                let Some(peer) = self.peers.get_mut(name) else { return };
                let (step, state) = (peer.step, peer.state);
                let Some(fetching) = peer.fetching.as_mut().filter(|f| f.fetch == fetch) else { return };
                fetching.have = Some((step, state));
                if step != from {
                    self.violation(format!("{name} fetches from step {from} and is at {step}"));
                }
                self.at(1, Event::Fetch { peer: name.clone(), fetch });
            }
            Work::Set { fetch, stage, step, state } => {
                let Some(peer) = self.peers.get_mut(name) else { return };
                let Some(fetched) = peer.fetching.take_if(|f| f.fetch == fetch) else { return };
                if !peer.sums.is_empty() {
                    self.violation(format!("{name} begins stage {stage} with sums of another"));
                    return;
                }
                (peer.stage, peer.step, peer.state) = (stage, step, state);
                peer.history.clear();
                peer.averages.clear();
                self.check(name, stage, step, state);
                let digest = digest(&state, true);
                self.with_peer(name, |node, out| node.ready(stage, step, digest, fetched.from, out));
            }
        }
    }

    fn compute(&mut self, name: &PeerName, request: u64, call: Call, accumulate: bool) {
        let shape = self.scenario.shape;
        let Some(peer) = self.peers.get_mut(name) else { return };
        let validates = call.microbatch >= shape.microbatches;
        let ahead = call.step.checked_sub(peer.step);
        let weights = match (ahead, shape.delayed_updates) {
            (Some(0), true) if !validates => peer.state.before,
            (Some(1), true) if !validates => peer.state.now,
            (Some(0), _) => peer.state.now,
            // It was told to update while it computed: nobody waits for this.
            (None, _) => peer.state.now,
            (Some(_), _) => {
                let at = peer.step;
                self.violation(format!("{name} computes {call:?} and is at {at}"));
                return;
            }
        };
        let took_us = 1000 * duration(call.kind, peer.slowness);
        let asked = peer.requests.remove(&request);
        if let Some(asked) = asked.clone()
            && peer.flaw.take_if(|flaw| *flaw == Flaw::Refuses).is_some()
        {
            peer.answers.insert(request, (asked, Answer::Broken));
            let what = "a value that is not finite".to_owned();
            return self.with_peer(name, |node, out| node.computed(request, Err(what), took_us, out));
        }
        let (mut loss, mut tensor, mut added) = (None, 0, None);
        if let Some(asked) = &asked {
            match call.kind {
                CallKind::Forward => tensor = shape.forward(asked.input, &weights),
                CallKind::Loss => loss = Some(shape.loss(asked.input, &weights)),
                CallKind::Backward => {
                    let back = shape.backward(call.stage, asked.input, asked.above, &weights);
                    (tensor, loss) = (back.input, back.loss);
                    if accumulate {
                        let text = format!(
                            "{name} adds {call:?} for {}: input {:x}, above {:x}, {}",
                            asked.trainer, asked.input, asked.above, back.own
                        );
                        added = Some(text);
                        let keys = Keys::from([((call.step, call.microbatch, call.stage), 1)]);
                        peer.add(call.step, &Sums { own: back.own, shared: back.shared, keys });
                    }
                }
            }
        }
        if let Some(text) = added {
            *self.out.added.entry(name.clone()).or_insert(0) += 1;
            self.say(|| text);
        } else if asked.is_none() {
            self.say(|| format!("{name} has no inputs of {call:?}"));
        }
        if let (Some(asked), Some(peer)) = (asked, self.peers.get_mut(name)) {
            peer.answers.insert(request, (asked, Answer::Tensors(tensor, loss)));
        }
        self.with_peer(name, |node, out| node.computed(request, Ok(loss), took_us, out));
    }

    /// Does a peer whose memory has changed notice that, before it does harm?
    fn notices(&mut self, name: &PeerName) -> bool {
        let Some(peer) = self.peers.get_mut(name).filter(|p| p.flaw == Some(Flaw::Flipped)) else {
            return false;
        };
        peer.engine.clear();
        peer.fetching = None;
        let what = "a parameter is not what was written".to_owned();
        self.say(|| format!("{name} notices that its memory has changed"));
        self.with_peer(name, |node, out| node.corrupt(what, out));
        true
    }

    /// The update: the averages must contain every key once.
    fn apply(&mut self, name: &PeerName, step: Step, scale: f32, prove: bool) {
        let shape = self.scenario.shape;
        let compared = self.is_compared(name);
        // A peer that fetches for long has to be followed for long.
        let keep = if self.scenario.script.is_some() { KEEP_LONG } else { KEEP };
        let Some(peer) = self.peers.get_mut(name) else { return };
        let stage = peer.stage;
        let mut averages = BTreeMap::new();
        for shard in shape.shards(stage) {
            let held = peer.averages.get(&shard).filter(|(s, a)| *s == step && a.complete);
            let Some((_, average)) = held else {
                self.violation(format!("{name} updates step {step} without the average of shard {shard}"));
                return;
            };
            let stages = shape.stages_of(shard);
            let all = stages.iter().flat_map(|s| (0..shape.microbatches).map(move |m| ((step, m, *s), 1)));
            if average.keys != all.collect() {
                let text =
                    format!("{name}, step {step}, shard {shard}: not every key once: {:?}", average.keys);
                self.violation(text);
                return;
            }
            averages.insert(shard, average.sum);
        }
        if peer.step != step {
            let at = peer.step;
            self.violation(format!("{name} updates step {step} and is at {at}"));
            return;
        }
        peer.state = shape.next(&peer.state, shape.update(stage, &peer.state.now, &averages, scale));
        if peer.flaw.take_if(|flaw| *flaw == Flaw::Miscalculates).is_some() && compared {
            peer.state.now.own ^= 1 << 17;
            peer.flaw = Some(Flaw::Differs);
        }
        peer.step += 1;
        peer.sums = peer.sums.split_off(&peer.step);
        peer.changed();
        peer.history.insert(step, (averages, scale));
        peer.history.retain(|s, _| s + keep > step);
        let state = peer.state;
        self.check(name, stage, step + 1, state);
        let digest = digest(&state, prove);
        self.with_peer(name, |node, out| node.applied(step + 1, digest, out));
    }

    /// Does anybody serve the stage of a peer who is right? What the only one does nobody can compare with anything.
    fn is_compared(&self, name: &PeerName) -> bool {
        let stages = self.conductor.iter().flat_map(Conductor::members);
        let right =
            |other: &&PeerName| self.peers.get(*other).is_some_and(|p| p.healthy() && p.flaw.is_none());
        stages.filter(|members| members.contains(name)).any(|members| {
            let wrong =
                |other: &PeerName| self.peers.get(other).is_some_and(|p| p.flaw == Some(Flaw::Differs));
            let others = || members.iter().filter(|other| *other != name);
            others().filter(right).count() > 0 && !others().any(wrong)
        })
    }

    /// Are these the weights of the steps done one after the other?
    fn check(&mut self, name: &PeerName, stage: StageId, step: Step, state: State) {
        let right = self.truth.get(step as usize).map(|t| t.states[stage as usize]);
        // What is wrong with somebody who is, others have to notice.
        if right != Some(state) && !self.wrong {
            self.violation(format!("{name}, stage {stage}, step {step}: {state:?} instead of {right:?}"));
        }
    }

    /// One part after the other, from whoever has it now.
    pub(super) fn pull(&mut self, name: &PeerName, shard: ShardId, round: u64, index: usize, until: u64) {
        let Some(peer) = self.peers.get(name).filter(|p| p.healthy()) else { return };
        let Some((step, average)) = peer.averages.get(&shard).filter(|(_, a)| a.round == round) else {
            return;
        };
        let step = *step;
        let stages = self.scenario.shape.stages;
        let Some(mate) = average.group.get(index) else {
            let mut squares = self.scenario.shape.squares(average.sum);
            let text = format!("{name} has the average of shard {shard}, round {round}: {:?}", average.keys);
            self.say(|| text);
            let compared = self.is_compared(name);
            if let Some(peer) = self.peers.get_mut(name) {
                if peer.flaw.take_if(|flaw| *flaw == Flaw::OtherAverage).is_some() && compared {
                    squares[0] += 1.0;
                }
                if let Some((_, average)) = peer.averages.get_mut(&shard) {
                    average.complete = true;
                }
            }
            self.with_peer(name, |node, out| node.averaged(step, shard, round, squares, out));
            return;
        };
        let mate = mate.name.clone();
        let found = self.peers.get(&mate).filter(|p| !p.retired);
        let why = match found {
            None => Some("gone"),
            Some(other)
                if other.healthy()
                    && other.open.get(&shard) == Some(&round)
                    && (mate == *name || other.mates.may_have(name, mates::Asked::Shard(shard))) =>
            {
                let sums = other.sums.get(&step).cloned().unwrap_or_default();
                let Some((_, average)) = self.peers.get_mut(name).and_then(|p| p.averages.get_mut(&shard))
                else {
                    return;
                };
                average.sum = average.sum.wrapping_add(sums.of(shard, stages));
                for (key, count) in sums.keys {
                    *average.keys.entry(key).or_insert(0) += count;
                }
                let after = self.latency() + self.scenario.script.as_ref().map_or(0, |s| s.average_ms);
                self.at(after, Event::Pull { peer: name.clone(), shard, round, index: index + 1, until });
                return;
            }
            Some(other) if other.healthy() && other.open.get(&shard).is_some_and(|r| *r > round) => {
                Some("ahead")
            }
            Some(_) if self.now > until => Some("silent"),
            Some(_) => None,
        };
        match why {
            None => self.at(25, Event::Pull { peer: name.clone(), shard, round, index, until }),
            Some(why) => {
                let why = format!("{mate} is {why}");
                self.with_peer(name, |node, out| {
                    node.average_failed(step, shard, round, why, Some(mate), out)
                });
            }
        }
    }

    pub(super) fn ask_sums(&mut self, name: &PeerName, take: Take, last: u64) {
        let until = PULL_MS_MAX + self.latency();
        match self.peers.get(&take.from.name) {
            Some(leaver)
                if !leaver.mates.may_have(name, mates::Asked::Stage) && !leaver.silent && self.now < last =>
            {
                self.at(25, Event::AskSums { peer: name.clone(), take, until: last });
            }
            Some(leaver) if !leaver.silent && leaver.mates.may_have(name, mates::Asked::Stage) => {
                let work = Work::Hand { to: name.clone(), take: take.clone() };
                self.give(&take.from.name.clone(), work);
                self.at(until, Event::Sums { peer: name.clone(), take, sums: None });
            }
            Some(_) => self.at(until, Event::Sums { peer: name.clone(), take, sums: None }),
            None => self.at(1, Event::Sums { peer: name.clone(), take, sums: None }),
        }
    }

    /// The first answer counts; what comes later than the deadline does not.
    pub(super) fn sums_arrive(&mut self, name: &PeerName, take: Take, sums: Option<Sums>) {
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.silent) else { return };
        let before = peer.taking.len();
        peer.taking.retain(|t| *t != take);
        if peer.taking.len() == before {
            return;
        }
        let arrived = sums.is_some();
        if let Some(sums) = sums {
            peer.arrived.insert(take.from.name.clone(), sums);
        }
        self.with_peer(name, |node, out| node.received(take, arrived, out));
    }

    pub(super) fn loaded(
        &mut self,
        name: &PeerName,
        fetch: u64,
        stage: StageId,
        step: Step,
        checkpoint: bool,
    ) {
        let shape = self.scenario.shape;
        if checkpoint && self.damaged.contains(&step) {
            let current = |p: &PeerShell| p.fetching.as_ref().is_some_and(|f| f.fetch == fetch);
            if self.peers.get(name).is_some_and(current) {
                let (failure, why) = (FetchFailure::Damaged(step), "a wrong bit".to_owned());
                self.with_peer(name, |node, out| node.fetch_failed(stage, failure, why, out));
            }
            return;
        }
        let state = match (checkpoint, step) {
            (false, 0) => Some(shape.first(shape.initial(stage))),
            (true, _) => self.sealed.get(&step).map(|all| all[stage as usize]),
            _ => None,
        };
        match state {
            Some(state) => self.give(name, Work::Set { fetch, stage, step, state }),
            None => self.violation(format!("{name} is to load step {step}, which is not there")),
        }
    }

    /// A snapshot of one mate, then the averages of the steps that passed meanwhile.
    pub(super) fn fetch(&mut self, name: &PeerName, fetch: u64) {
        let shape = self.scenario.shape;
        let draw = self.draw(1000) as usize;
        let whole_ms = self.scenario.script.as_ref().map(|s| s.fetch_ms);
        let Some(peer) = self.peers.get(name).filter(|p| p.healthy()) else { return };
        let Some(fetching) = peer.fetching.as_ref().filter(|f| f.fetch == fetch) else { return };
        let stage = fetching.stage;
        if let Some((step, state)) = fetching.have
            && step >= fetching.wanted
        {
            self.give(name, Work::Set { fetch, stage, step, state });
            return;
        }
        if self.now > fetching.until || fetching.mates.is_empty() {
            if let Some(peer) = self.peers.get_mut(name) {
                peer.fetching = None;
            }
            let why = "no mate has it".to_owned();
            self.with_peer(name, |node, out| node.fetch_failed(stage, FetchFailure::Passing, why, out));
            return;
        }
        let mate = &fetching.mates[draw % fetching.mates.len()].name;
        let answers = |p: &&PeerShell| {
            p.healthy()
                && !p.retired
                && p.node.serving()
                && p.stage == stage
                && p.node.position().0 == Some(stage)
                && p.mates.may_have(name, mates::Asked::Stage)
        };
        let mut have = fetching.have;
        let mut after = 30;
        let mate = mate.clone();
        if self.notices(&mate) {
            self.at(after, Event::Fetch { peer: name.clone(), fetch });
            return;
        }
        if let Some(mate) = self.peers.get(&mate).filter(answers) {
            have = match have {
                None => {
                    after = whole_ms.unwrap_or(40 + draw as u64 / 5);
                    Some((mate.step, mate.state))
                }
                Some((step, state)) => match mate.history.get(&step) {
                    Some((averages, scale)) => {
                        let now = shape.update(stage, &state.now, averages, *scale);
                        Some((step + 1, shape.next(&state, now)))
                    }
                    None if mate.step > step => None,
                    None => have,
                },
            };
        }
        if let Some(fetching) = self.peers.get_mut(name).and_then(|p| p.fetching.as_mut()) {
            // Nobody has the next update any more: all of it is copied.
            if have.is_none() {
                fetching.from = None;
            }
            fetching.have = have;
        }
        self.at(after, Event::Fetch { peer: name.clone(), fetch });
    }

    pub(super) fn written(&mut self, name: &PeerName, step: Step, stage: StageId, state: State, works: bool) {
        let report = if works {
            let record = format!("{stage}/{step}/{:x}", mix(state.now.hash(), state.before.hash()));
            self.files.insert(record.clone(), (step, stage, state));
            PeerReport::Saved { step, record }
        } else {
            let failure = SaveFailure::Destination;
            PeerReport::SaveFailed { step, failure, why: "no space".to_owned() }
        };
        let Some(peer) = self.peers.get(name).filter(|p| !p.silent) else { return };
        let stream = peer.stream;
        self.up(name, stream, Up::Peer(report));
    }

    /// Without notice, or at the end of it.
    pub(super) fn kill_peer(&mut self, name: &PeerName, again: bool) {
        if !self.peers.contains_key(name) {
            return;
        }
        self.say(|| format!("{name} is killed"));
        self.unforeseen = true;
        self.end_peer(name);
        if again {
            self.replace();
        }
    }

    fn end_peer(&mut self, name: &PeerName) {
        let Some(peer) = self.peers.remove(name) else { return };
        if let Some(stream) = peer.stream {
            self.streams.remove(&stream);
            let after = self.notice();
            self.at(after, Event::ConductorLearns { stream, name: name.clone() });
        }
        // Trainers learn that their calls will not be answered.
        let calls: Vec<(PeerName, CallId)> = self
            .trainers
            .iter()
            .flat_map(|(t, shell)| {
                shell.calls.iter().filter(|(_, c)| c.0 == *name).map(|(id, _)| (t.clone(), *id))
            })
            .collect();
        for (trainer, id) in calls {
            let after = self.notice();
            self.at(after, Event::Answer { from: name.clone(), trainer, id, answer: Answer::Broken });
        }
    }

    pub(super) fn peer_leaves(&mut self, name: &PeerName, within_ms: u64) {
        self.say(|| format!("{name} will leave"));
        if let Some(peer) = self.peers.get_mut(name) {
            peer.leaving = true;
        }
        self.with_peer(name, |node, out| node.leave(within_ms, out));
    }
}

/// What a peer says that its state is.
fn digest(state: &State, prove: bool) -> StateDigest {
    let fingerprint = mix(state.now.hash(), state.before.hash());
    StateDigest { fingerprint, root: prove.then(|| format!("{fingerprint:x}")) }
}

/// How long the engine needs.
fn duration(kind: CallKind, slowness: u64) -> u64 {
    if kind == CallKind::Backward { slowness * 5 / 2 } else { slowness }
}
