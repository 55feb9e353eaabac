//! Pods of one role: which stay, go and are missing, which of them are from before a change, and what happened to them. Pure but for the
//! turnover, which is handed in.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_wire::Role;

use crate::observe::WorkerView;
use crate::pools::PoolDesired;
use crate::roll::{Mix, Roll, Rolling};
use crate::roster::{Readiness, RoleEvidence, Roster, WantedPods, roster};
use crate::status::events::{SwarmEvent, noun};
use crate::turnover::{EditionOf, Turnover};

/// What is wanted of the pods of one role, and what is known about them.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Their role.
    pub role: Role,
    /// The pods that are wanted.
    pub wanted: WantedPods<'a>,
    /// What is known about those that are there, if nobody's turn to be replaced came.
    pub evidence: RoleEvidence<'a>,
    /// What new ones are made from, in a word.
    pub edition: &'a str,
    /// What one that is there was made from.
    pub edition_of: EditionOf<'a>,
    /// It has done what it is for at some time: one that ends before that is not replaced at once for ever.
    pub served: &'a dyn Fn(&str) -> bool,
    /// It does all that it is for.
    pub is_ready: &'a dyn Fn(&str) -> bool,
    /// Older and newer ones can work together.
    pub mix: Mix<'a>,
    /// Those from before a change may be replaced, one after the other.
    pub may_roll: bool,
}

/// Pods of one role, and what becomes of them.
#[derive(Default)]
pub struct Workers {
    /// Who stays, goes and is missing.
    pub roster: Roster,
    /// Those from before a change.
    pub roll: Roll,
    /// What happened to them.
    pub events: Vec<SwarmEvent>,
    /// Why new ones must wait.
    pub held: Option<String>,
    /// What the user has to fix before they can start: (`CannotStart`, what they said last).
    pub to_mend: Option<(String, String)>,
}

impl Workers {
    /// By `rules`. Losses are told once, so `turnover` remembers them.
    #[must_use]
    pub fn of(rules: Rules<'_>, turnover: &mut Turnover) -> Self {
        let Rules { role, wanted, evidence, edition, edition_of, .. } = rules;
        let (workers, now) = (evidence.workers, evidence.now);
        let hold_creation =
            evidence.hold_creation || turnover.holds_creation(edition, edition_of, workers, now);
        let evidence = RoleEvidence { hold_creation, ..evidence };
        let mut roster = self::roster(wanted, &evidence);
        let rolling = Rolling {
            pools: wanted.pools,
            workers,
            roster: &roster,
            unplaced: evidence.unplaced,
            is_ready: rules.is_ready,
            mix: rules.mix,
        };
        let roll = Roll::of(rolling, rules.may_roll);
        if !roll.going.is_empty() {
            let superseded = evidence.superseded.union(&roll.going).cloned().collect();
            let evidence = RoleEvidence { superseded: &superseded, awaited: &roll.awaited, ..evidence };
            roster = self::roster(wanted, &evidence);
        }
        let losses = turnover.losses(&roster, workers, rules.served, edition_of, now);
        let lost = losses.iter().map(|loss| SwarmEvent::lost(role, &loss.name, &loss.why));
        let rolled = roster.delete.iter().filter(|deletion| roll.going.contains(&deletion.name));
        let rolled = rolled.map(|deletion| SwarmEvent::rolled(role, &deletion.name));
        let events = lost.chain(rolled).collect();
        let who = noun(role).to_lowercase();
        let held = turnover.held(&format!("{who}s"), edition, now);
        let to_mend = turnover.to_mend(edition);
        let to_mend = to_mend.map(|words| ("CannotStart".to_owned(), format!("{who}: {words}")));
        Self { roster, roll, events, held, to_mend }
    }

    /// How many are Ready.
    #[must_use]
    pub fn ready(&self) -> u32 {
        let ready = self.roster.readiness.values().filter(|readiness| **readiness == Readiness::Ready);
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }

    /// How many are Ready in `pools` on preemptible nodes, and in others.
    #[must_use]
    pub fn ready_by_kind(&self, pools: &[PoolDesired], workers: &BTreeMap<String, WorkerView>) -> (u32, u32) {
        let spot: BTreeSet<&str> =
            pools.iter().filter(|p| p.template.spot).map(|p| p.template.name.as_str()).collect();
        let ready = self.roster.readiness.iter().filter(|(_, readiness)| **readiness == Readiness::Ready);
        let by_spot = ready.filter(|(name, _)| spot.contains(workers[*name].pool.as_str())).count();
        let by_spot = u32::try_from(by_spot).unwrap_or(u32::MAX);
        (by_spot, self.ready().saturating_sub(by_spot))
    }
}
