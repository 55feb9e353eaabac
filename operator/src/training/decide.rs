//! The whole decision about a run, from what is known to what is done. Pure but for the memory it keeps of what it saw.
//!
//! A run is at one of four points of its life: it trains; it waits for a checkpoint because its pods are to go; it is cleared, all pods go; it rests,
//! no pod is left and none is wanted. A changed manifest and `suspend` take the same way: wait, clear, then train again or rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::conditions::Facts;
use super::desired::Desired;
use super::memory::{Memory, Stop};
use super::post::Post;
use crate::deletion::Deletion;
use crate::observe::{Phase, SwarmView, WorkerView};
use crate::peers::observation::{CHECKPOINTS_FAILING, Degraded};
use crate::peers::{Answer, Observation, RunPhase};
use crate::pools::{PoolDesired, scaled};
use crate::roll::{self, Roll};
use crate::roster::{Creation, Evidence, Readiness, Roster, Wanted, roster};
use crate::status::events::SwarmEvent;
use crate::turnover::Turnover;

/// Pods that are to go wait so long for a conductor that answers: it, or the one in its place, has a checkpoint written.
const UNHEARD_MAX: Duration = Duration::from_secs(60);
/// And this long for the checkpoint, unless the conductor says that its destination does not take it: that is waited for.
const STOP_MAX: Duration = Duration::from_secs(300);
/// A run whose conductor is being replaced still counts as training for this long.
const CONDUCTOR_PATIENCE: Duration = Duration::from_secs(60);

/// What is done about the pods of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifecycle {
    /// Keep all pods there that are wanted.
    #[default]
    Train,
    /// Keep those that are there until all that was trained is in a checkpoint.
    Wait,
    /// Delete all.
    Clear,
    /// None is there and none is wanted.
    Rest,
}

/// What to do about a run.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// The way it is on.
    pub lifecycle: Lifecycle,
    /// The configuration may be written: no pod reads another one.
    pub configure: bool,
    /// Pods to make.
    pub create: Vec<(Post, Creation)>,
    /// Pods to delete.
    pub delete: Vec<Deletion>,
    /// The conductor should have a checkpoint written and stop.
    pub suspend: bool,
    /// For the status.
    pub facts: Facts,
    /// What happened.
    pub events: Vec<SwarmEvent>,
    /// Ready peers on preemptible nodes' pools and on others.
    pub ready_by_kind: (u32, u32),
}

/// What a decision is made from.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Pods.
    pub view: &'a SwarmView,
    /// Reports.
    pub answers: &'a BTreeMap<String, Answer>,
    /// Now.
    pub now: Instant,
    /// Silence that means loss.
    pub silence: Duration,
}

/// Decides. `generation`: of the manifest.
#[must_use]
pub fn decide(desired: &Desired, generation: i64, known: &Known<'_>, memory: &mut Memory) -> Decision {
    let run = heard(known);
    remember(desired, run.as_ref(), memory, known.now);
    let lifecycle = lifecycle(desired, known, run.as_ref(), memory);
    let mut decision =
        Decision { lifecycle, configure: lifecycle == Lifecycle::Train, ..Decision::default() };
    let mut crews = Crews::default();
    match lifecycle {
        Lifecycle::Train => crews = Crews::new(desired, &desired.template, known, memory),
        Lifecycle::Wait => {
            let template = living(known.view).map(|w| w.template.clone()).next().unwrap_or_default();
            crews = Crews::new(desired, &template, known, memory);
            decision.suspend = true;
        }
        Lifecycle::Clear => decision.delete = all(known.view),
        Lifecycle::Rest => {}
    }
    for (post, crew) in
        [(Post::Conductor, &crews.conductor), (Post::Peer, &crews.peers), (Post::Trainer, &crews.trainers)]
    {
        decision.create.extend(crew.roster.create.iter().map(|c| (post, c.clone())));
        decision.delete.extend(crew.roster.delete.iter().cloned());
        decision.events.extend(crew.events.iter().cloned());
    }
    decision.ready_by_kind = ready_by_kind(desired, known.view, &crews.peers.roster);
    decision.facts = facts(desired, generation, known, run.as_ref(), &crews, lifecycle, memory);
    decision
}

/// What the conductor says, if one answers; of two, the one that is not about to go.
fn heard(known: &Known<'_>) -> Option<Observation> {
    let mut conductors: Vec<&WorkerView> = known.view.conductors.values().collect();
    conductors.sort_by_key(|w| (w.deleting, w.phase != Phase::Running));
    conductors.into_iter().find_map(|w| {
        let answer = known.answers.get(&w.name)?;
        let report = answer.report.as_ref().filter(|_| !answer.is_silent(known.now, known.silence))?;
        report.run.clone()
    })
}

fn remember(desired: &Desired, run: Option<&Observation>, memory: &mut Memory, now: Instant) {
    let Some(run) = run else { return };
    match run.phase {
        RunPhase::Training => {
            memory.trained = Some(now);
            memory.failed = None;
        }
        RunPhase::Succeeded => memory.finished = Some(run.steps.max(run.step)),
        RunPhase::Failed => {
            memory.trained = None;
            let failed = (run.message.clone(), desired.template.clone());
            // That of a run that is about to go is not the new one's.
            memory.failed = memory.failed.take().or_else(|| memory.stop.is_none().then_some(failed));
        }
        _ => {}
    }
    let mut run = memory.totalled(run);
    if !run.checkpoints_known && run.degraded.is_none() {
        // It does not know yet whether what was wrong still is.
        run.degraded = memory.last.as_ref().and_then(|last| last.degraded.clone());
    }
    let run = &run;
    // A conductor that starts does not know yet how far the run was.
    let known = memory.last.take().filter(|last| run.phase == RunPhase::Starting && run.step < last.step);
    memory.last = Some(match known {
        Some(last) => Observation {
            phase: run.phase,
            message: run.message.clone(),
            stages: run.stages.clone(),
            redone: run.redone,
            lost: run.lost,
            moves: run.moves,
            degraded: run.degraded.clone(),
            checkpoints_known: run.checkpoints_known,
            ..last
        },
        None => run.clone(),
    });
}

/// Pods that run or will; one on a node that is gone cannot be waited for.
fn living(view: &SwarmView) -> impl Iterator<Item = &WorkerView> {
    pods(view).filter(|w| !matches!(w.phase, Phase::Lost(_)))
}

fn pods(view: &SwarmView) -> impl Iterator<Item = &WorkerView> {
    view.trainers.values().chain(view.workers.values()).chain(view.conductors.values())
}

fn finished(desired: &Desired, memory: &Memory) -> bool {
    memory.finished.is_some_and(|steps| steps >= desired.steps)
}

fn lifecycle(
    desired: &Desired,
    known: &Known<'_>,
    run: Option<&Observation>,
    memory: &mut Memory,
) -> Lifecycle {
    let done = finished(desired, memory);
    if living(known.view).next().is_none() {
        memory.stop = None;
        let rests = desired.suspended || done;
        return match (rests, pods(known.view).next()) {
            (true, Some(_)) => Lifecycle::Clear,
            (true, None) => Lifecycle::Rest,
            (false, _) => Lifecycle::Train,
        };
    }
    let phase = run.map(|run| run.phase);
    let outdated = living(known.view).any(|w| w.template != desired.template);
    // A suspension that has begun is carried through, whatever the manifest says by now.
    let ending = matches!(phase, Some(RunPhase::Suspending | RunPhase::Suspended));
    if !(desired.suspended || done || outdated || ending || memory.stop.is_some()) {
        return Lifecycle::Train;
    }
    let unsaved = memory.has_unsaved_steps();
    let failing = degraded(run, memory).is_some_and(|d| d.reason == CHECKPOINTS_FAILING);
    let stop = memory.stop.get_or_insert(Stop { since: known.now, unheard: None, released: false });
    stop.unheard = if phase.is_some() { None } else { stop.unheard.or(Some(known.now)) };
    if failing {
        stop.since = known.now;
    }
    let saved = match phase {
        Some(RunPhase::Suspended | RunPhase::Succeeded | RunPhase::Failed) => true,
        Some(RunPhase::Training | RunPhase::Suspending) => false,
        Some(RunPhase::Starting) | None => !unsaved,
    };
    let unheard = stop.unheard.is_some_and(|at| known.now.duration_since(at) >= UNHEARD_MAX);
    stop.released |= done || saved || unheard || known.now.duration_since(stop.since) >= STOP_MAX;
    if stop.released { Lifecycle::Clear } else { Lifecycle::Wait }
}

/// What the conductor says is not as it should be, or said until it was replaced.
fn degraded<'a>(run: Option<&Observation>, memory: &'a Memory) -> Option<&'a Degraded> {
    run.and(memory.last.as_ref())?.degraded.as_ref()
}

/// Every pod; those that are being deleted already only when their node does not confirm it.
fn all(view: &SwarmView) -> Vec<Deletion> {
    pods(view).filter(|w| !w.deleting || w.node_gone).map(deletion).collect()
}

fn deletion(worker: &WorkerView) -> Deletion {
    Deletion { name: worker.name.clone(), uid: worker.uid.clone(), now: worker.node_gone }
}

/// Pods of one post, and what happened to them.
#[derive(Default)]
struct Crew {
    roster: Roster,
    /// Those from before a change of their pool.
    roll: Roll,
    events: Vec<SwarmEvent>,
    /// Why new ones must wait.
    held: Option<String>,
    /// What the user has to fix before they can start.
    to_mend: Option<String>,
}

impl Crew {
    fn ready(&self) -> u32 {
        let ready = self.roster.readiness.values().filter(|s| **s == Readiness::Ready).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }
}

#[derive(Default)]
struct Crews {
    conductor: Crew,
    peers: Crew,
    trainers: Crew,
}

impl Crews {
    /// `template`: of the pods that are kept; new ones are made only when it is that of the manifest.
    fn new(desired: &Desired, template: &str, known: &Known<'_>, memory: &mut Memory) -> Self {
        let view = known.view;
        let answered = |name: &str| known.answers.get(name).is_some_and(|a| a.was_ready);
        let failed = |name: &str| {
            let report = known.answers.get(name).and_then(|a| a.report.as_ref());
            report.and_then(|r| r.run.as_ref()).is_some_and(|run| run.phase == RunPhase::Failed)
        };
        let unplaced = memory.peers.unplaced(&view.workers, known.answers, known.now);
        let none = BTreeSet::new();
        let ready = view.trainers.values().filter(|w| w.ready).map(|w| w.name.clone());
        memory.trainers_served.extend(ready);
        memory.trainers_served.retain(|name| view.trainers.contains_key(name));
        let trained = &memory.trainers_served;
        let edition_of = |worker: &WorkerView| worker.template.clone();

        let training = memory.last.as_ref().is_some_and(|run| run.phase == RunPhase::Training);
        let goes_on = training && template == desired.template;

        // `may_roll`: pods from before a change of their pool may be replaced, one after the other.
        let crew = |post: Post,
                    pools: &[PoolDesired],
                    workers: &BTreeMap<String, WorkerView>,
                    unplaced,
                    turnover: &mut Turnover,
                    served: &dyn Fn(&str) -> bool,
                    may_roll: bool| {
            let held = turnover.holds_creation(template, &edition_of, workers, known.now);
            let evidence = Evidence {
                workers,
                answers: known.answers,
                unreachable: &none,
                silent: &none,
                superseded: &none,
                awaited: &none,
                unplaced,
                by_probe: post == Post::Trainer,
                dispensable: &|_| true,
                hold_creation: held || template != desired.template,
                now: known.now,
                silence: known.silence,
            };
            let wanted = Wanted { pools, template, suspended: false };
            let unchanged = roster(wanted, &evidence);
            let is_ready = |name: &str| match post {
                Post::Trainer => workers[name].ready,
                Post::Conductor | Post::Peer => answered(name),
            };
            let newer = roll::Crew {
                pools,
                workers,
                roster: &unchanged,
                unplaced,
                is_ready: &is_ready,
                mix: &|_, _| true,
            };
            let roll = Roll::of(newer, may_roll);
            let roster = if roll.going.is_empty() {
                unchanged
            } else {
                roster(wanted, &Evidence { superseded: &roll.going, awaited: &roll.awaited, ..evidence })
            };
            let losses = turnover.losses(&roster, workers, served, &edition_of, known.now);
            let lost = losses.iter().map(|loss| SwarmEvent::lost(post.noun(), &loss.name, &loss.why));
            let rolled = roster.delete.iter().filter(|deletion| roll.going.contains(&deletion.name));
            let rolled = rolled.map(|deletion| SwarmEvent::rolled(post.noun(), &deletion.name));
            let events = lost.chain(rolled).collect();
            let held = turnover.held(&format!("{}s", post.noun().to_lowercase()), template, known.now);
            let to_mend =
                turnover.to_mend(template).map(|words| format!("{}: {words}", post.noun().to_lowercase()));
            Crew { roster, roll, events, held, to_mend }
        };
        let conducted = |name: &str| answered(name) && !failed(name);
        let conductor = crew(
            Post::Conductor,
            &desired.conductor,
            &view.conductors,
            &none,
            &mut memory.conductors,
            &conducted,
            goes_on,
        );
        let goes_on = goes_on && conductor.roll.outdated.is_empty();
        let peers =
            crew(Post::Peer, &desired.pools, &view.workers, &unplaced, &mut memory.peers, &answered, goes_on);
        let trainers = crew(
            Post::Trainer,
            &desired.trainers,
            &view.trainers,
            &none,
            &mut memory.trainers,
            &|name| trained.contains(name),
            goes_on && peers.roll.outdated.is_empty(),
        );
        let mut crews = Self { conductor, peers, trainers };
        one_at_a_time(&mut crews.conductor.roster, &view.conductors);
        let spare = memory.last.as_ref().is_some_and(|run| {
            run.phase == RunPhase::Training
                && run.stages.iter().map(|s| s.peers).sum::<u32>() > desired.stages
        });
        surplus_in_turn(&mut crews.peers.roster, &view.workers, spare);
        crews
    }
}

/// Two conductors would keep two ledgers: the next one is made when the last one is gone, or lost. It holds nothing, so one that has notice
/// goes at once.
fn one_at_a_time(roster: &mut Roster, conductors: &BTreeMap<String, WorkerView>) {
    let leaving = |name: &str| roster.readiness.get(name) == Some(&Readiness::Leaving);
    let leaving: Vec<&WorkerView> = conductors.values().filter(|w| leaving(&w.name)).collect();
    if leaving.is_empty() {
        return;
    }
    roster.create.clear();
    roster.delete.retain(|d| !leaving.iter().any(|w| w.name == d.name));
    roster.delete.extend(leaving.iter().filter(|w| !w.deleting || w.node_gone).map(|w| deletion(w)));
}

/// Peers that are no longer wanted go one after the other, as long as there is more than one for each stage: each hands over what it has.
fn surplus_in_turn(roster: &mut Roster, peers: &BTreeMap<String, WorkerView>, spare: bool) {
    let readiness = &roster.readiness;
    let leaves = |name: &str| readiness.get(name) == Some(&Readiness::Leaving);
    let busy = peers.values().any(|w| leaves(&w.name) && matches!(w.phase, Phase::Draining(_)));
    // A pod that has not begun has nothing to hand over.
    let serves = |name: &str| peers.get(name).is_some_and(|w| w.phase == Phase::Running);
    let mut turn = spare && !busy;
    roster.delete.retain(|d| !leaves(&d.name) || !serves(&d.name) || std::mem::take(&mut turn));
}

fn ready_by_kind(desired: &Desired, view: &SwarmView, roster: &Roster) -> (u32, u32) {
    let spot = |pool: &str| desired.pools.iter().any(|p| p.template.name == pool && p.template.spot);
    let mut counts = (0, 0);
    for (name, _) in roster.readiness.iter().filter(|(_, s)| **s == Readiness::Ready) {
        if spot(&view.workers[name].pool) { counts.0 += 1 } else { counts.1 += 1 }
    }
    counts
}

fn facts(
    desired: &Desired,
    generation: i64,
    known: &Known<'_>,
    run: Option<&Observation>,
    crews: &Crews,
    lifecycle: Lifecycle,
    memory: &Memory,
) -> Facts {
    let problem = crews.peers.roster.readiness.iter().find_map(|(name, readiness)| {
        let current = matches!(readiness, Readiness::Ready | Readiness::Coming);
        known.answers.get(name).filter(|_| current)?.report.as_ref()?.error.clone()
    });
    let failed = memory.failed.as_ref().filter(|(_, template)| *template == desired.template);
    let failed = failed.map(|(message, _)| ("TrainingFailed".to_owned(), message.clone()));
    let pending = pods(known.view).find_map(|w| Some(format!("a pod waits: {}", w.blocked.as_ref()?.why)));
    let training = run.is_some_and(|run| run.phase == RunPhase::Training);
    // A pod that is missing while the run goes on degrades it.
    let hopeless = pods(known.view)
        .filter(|_| !training)
        .filter_map(|w| w.blocked.as_ref())
        .find_map(|b| Some((b.reason?.to_owned(), format!("a pod cannot start: {}", b.why))));
    let to_mend =
        [&crews.conductor, &crews.peers, &crews.trainers].into_iter().find_map(|c| c.to_mend.clone());
    let to_mend = to_mend.map(|words| ("CannotStart".to_owned(), words));
    let crashing =
        [&crews.conductor, &crews.peers, &crews.trainers].iter().find_map(|crew| crew.held.clone());
    let message = run.map(|run| run.message.clone()).filter(|message| !message.is_empty());
    let trained = memory.trained.is_some_and(|at| known.now.duration_since(at) < CONDUCTOR_PATIENCE);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let wanted = matches!(lifecycle, Lifecycle::Train | Lifecycle::Wait);
    Facts {
        generation,
        suspended: desired.suspended,
        finished: finished(desired, memory),
        waits: lifecycle == Lifecycle::Wait,
        ends: lifecycle == Lifecycle::Clear,
        step: memory.last.as_ref().map_or(0, |run| run.step),
        steps: desired.steps,
        training,
        trained,
        peers_desired: if wanted { desired.peers() } else { 0 },
        peers_ready: crews.peers.ready(),
        replicas: scaled(&desired.pools).map_or(0, |pool| known.view.replicas(pool)),
        trainers_desired: if wanted { desired.trainers.iter().map(|p| p.peers).sum() } else { 0 },
        trainers_ready: crews.trainers.ready(),
        pods: count(pods(known.view).count()),
        outdated: count(
            [&crews.conductor, &crews.peers, &crews.trainers]
                .map(|crew| crew.roll.outdated.len())
                .iter()
                .sum(),
        ),
        trouble: failed.or(problem).or(to_mend).or(hopeless),
        degraded: degraded(run, memory).map(|d| (d.reason.clone(), d.message.clone())),
        waiting: crashing.or(pending).or(message),
    }
}
