//! The pods of a run, role by role: the conductor, peers, trainers. Pure but for the turnover of each role.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_wire::Role;

use super::desired::TrainingDesired;
use super::state::RunState;
use crate::observe::{PodPhase, WorkerView};
use crate::peers::RunPhase;
use crate::roster::{Readiness, RoleEvidence, Roster, WantedPods};
use crate::swarm::{Evidence, Rules, Workers};
use crate::turnover::Turnover;

/// The pods of a run.
#[derive(Default)]
pub(super) struct RunWorkers {
    /// The one conductor, and those that it replaces.
    pub conductor: Workers,
    /// Those that hold stages.
    pub peers: Workers,
    /// Those that read data.
    pub trainers: Workers,
}

impl RunWorkers {
    /// `template`: of the pods that are kept; new ones are made only when it is that of the manifest.
    pub fn new(
        desired: &TrainingDesired,
        template: &str,
        evidence: &Evidence<'_>,
        state: &mut RunState,
    ) -> Self {
        let view = evidence.view;
        let served = |name: &str| evidence.was_ready(name);
        let unplaced = state.peers.unplaced(&view.workers, &served, evidence.now);
        let ready = view.trainers.values().filter(|w| w.ready).map(|w| w.name.clone());
        state.trainers_served.extend(ready);
        state.trainers_served.retain(|name| view.trainers.contains_key(name));
        let staffing =
            Staffing { desired, template, evidence, unplaced, trainers_served: &state.trainers_served };

        let training = state.last.as_ref().filter(|run| run.phase == RunPhase::Training);
        let goes_on = training.is_some() && template == desired.template;
        let mut conductor = staffing.workers(Role::Conductor, goes_on, &mut state.conductors);
        let goes_on = goes_on && conductor.roll.outdated.is_empty();
        let mut peers = staffing.workers(Role::Peer, goes_on, &mut state.peers);
        let goes_on = goes_on && peers.roll.outdated.is_empty();
        let trainers = staffing.workers(Role::Trainer, goes_on, &mut state.trainers);
        one_at_a_time(&mut conductor.roster, &view.conductors);
        let spare =
            training.is_some_and(|run| run.stages.iter().map(|s| s.peers).sum::<u32>() > desired.stages);
        surplus_in_turn(&mut peers.roster, &view.workers, spare);
        Self { conductor, peers, trainers }
    }

    /// All of them, the most urgent first.
    pub fn each(&self) -> [(Role, &Workers); 3] {
        [(Role::Conductor, &self.conductor), (Role::Peer, &self.peers), (Role::Trainer, &self.trainers)]
    }
}

/// What pods of all roles are judged by.
struct Staffing<'a> {
    desired: &'a TrainingDesired,
    template: &'a str,
    evidence: &'a Evidence<'a>,
    /// Peers for which there has been no node for long.
    unplaced: BTreeSet<String>,
    trainers_served: &'a BTreeSet<String>,
}

impl Staffing<'_> {
    /// `may_roll`: pods from before a change of their pool may be replaced, one after the other.
    fn workers(&self, role: Role, may_roll: bool, turnover: &mut Turnover) -> Workers {
        let (evidence, none) = (self.evidence, BTreeSet::new());
        let (pools, workers) = (self.desired.pools_of(role), evidence.view.of(role));
        let failed = |name: &str| {
            let run = evidence.report(name).and_then(|report| report.run.as_ref());
            run.is_some_and(|run| run.phase == RunPhase::Failed)
        };
        let served = |name: &str| match role {
            Role::Trainer => self.trainers_served.contains(name),
            Role::Conductor => evidence.was_ready(name) && !failed(name),
            _ => evidence.was_ready(name),
        };
        let is_ready =
            |name: &str| if role == Role::Trainer { workers[name].ready } else { evidence.was_ready(name) };
        let rules = Rules {
            role,
            wanted: WantedPods { pools, template: self.template, suspended: false },
            evidence: RoleEvidence {
                unplaced: if role == Role::Peer { &self.unplaced } else { &none },
                by_probe: role == Role::Trainer,
                hold_creation: self.template != self.desired.template,
                ..evidence.of(workers)
            },
            edition: self.template,
            edition_of: &|worker: &WorkerView| worker.template.clone(),
            served: &served,
            is_ready: &is_ready,
            mix: &|_, _| true,
            may_roll,
        };
        Workers::of(rules, turnover)
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
    roster.delete.extend(leaving.iter().filter(|w| !w.deleting || w.node_gone).map(|w| w.deletion()));
}

/// Peers that are no longer wanted go one after the other, as long as there is more than one for each stage: each hands over what it has.
fn surplus_in_turn(roster: &mut Roster, peers: &BTreeMap<String, WorkerView>, spare: bool) {
    let readiness = &roster.readiness;
    let leaves = |name: &str| readiness.get(name) == Some(&Readiness::Leaving);
    let busy = peers.values().any(|w| leaves(&w.name) && matches!(w.phase, PodPhase::Draining(_)));
    // A pod that has not begun has nothing to hand over.
    let serves = |name: &str| peers.get(name).is_some_and(|w| w.phase == PodPhase::Running);
    let mut turn = spare && !busy;
    roster.delete.retain(|d| !leaves(&d.name) || !serves(&d.name) || std::mem::take(&mut turn));
}
