//! Conditions as kstatus reads them, for every kind of swarm. Pure: what a swarm says of itself and the conditions of before in, conditions out.
//!
//! `Ready` summary · `Reconciling` while a change of the manifest is being carried out · `Stalled` when a user must mend something ·
//! `Degraded` at work below plan · and one of the kind's own. A loss makes a swarm Degraded, never Reconciling or not Ready, as long as it does
//! what it is for: a reclaimed node must not turn a GitOps application red.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::error::Error;

/// Longest message, in characters.
const MESSAGE_MAX: usize = 1024;

/// Status, reason and message of a condition.
pub type ConditionStatement<'a> = (bool, &'a str, String);

/// What a kind of swarm says of itself. The conditions of all kinds follow from it by the same rules.
pub struct Account<'a> {
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether users have what they asked for.
    pub ready: ConditionStatement<'a>,
    /// It does what it is for.
    pub at_work: bool,
    /// It does, or it rests because that is asked for: what it does from now on is no part of a change.
    pub settled: bool,
    /// Everything is as planned, be it from before the last change.
    pub complete: bool,
    /// Everything is as planned, and of the present manifest.
    pub whole: bool,
    /// Pods from before the last change that are still to be replaced. A change of the image is none of the manifest.
    pub outdated: u32,
    /// What is still to come.
    pub missing: String,
    /// What a user must mend: (CamelCase reason, what to do).
    pub trouble: Option<&'a (String, String)>,
    /// What is not as it should be although nothing is missing: (CamelCase reason, what and what to do).
    pub flaw: Option<&'a (String, String)>,
    /// In words, that nothing is missing.
    pub as_planned: &'a str,
    /// Reason and words of one that is not at work, and so is not degraded either.
    pub idle: (&'a str, &'a str),
    /// The condition that only this kind has.
    pub own: (&'a str, ConditionStatement<'a>),
}

impl Account<'_> {
    /// All five conditions. `before`: what they were; `observed`: the generation that those speak about.
    #[must_use]
    pub fn conditions(self, before: &[Condition], observed: Option<i64>, now: Timestamp) -> Vec<Condition> {
        let changing = observed != Some(self.generation)
            || self.outdated > 0
            || is_true(before, "Reconciling")
            || !self.settled;
        let reconciling = match self.trouble {
            Some(_) => (false, "Blocked", "it waits for what Stalled says".to_owned()),
            None if changing && !self.whole => (true, "Progressing", self.missing.clone()),
            None => (false, "Observed", format!("generation {} is carried out", self.generation)),
        };
        let stalled = match self.trouble {
            Some((reason, message)) => (true, reason.as_str(), message.clone()),
            None => (false, "NotStalled", "nothing needs mending".to_owned()),
        };
        let degraded = match self.flaw {
            _ if !self.at_work => (false, self.idle.0, self.idle.1.to_owned()),
            Some((reason, message)) => (true, reason.as_str(), message.clone()),
            None if !self.complete => (true, "BelowPlan", self.missing),
            None => (false, "AsPlanned", self.as_planned.to_owned()),
        };
        [
            ("Ready", self.ready),
            ("Reconciling", reconciling),
            ("Stalled", stalled),
            ("Degraded", degraded),
            self.own,
        ]
        .into_iter()
        .map(|(kind, statement)| condition(kind, statement, self.generation, before, now))
        .collect()
    }
}

/// The conditions when nothing could be found out because of `failure`: they say what is in the way, and otherwise what they said. `None` when
/// that is not worth a word: a failure that goes by.
#[must_use]
pub fn unreached(before: &[Condition], generation: i64, failure: &Error) -> Option<Vec<Condition>> {
    let trouble = failure.trouble();
    let observed = before.iter().all(|c| c.observed_generation == Some(generation));
    if trouble.is_none() && observed && is_true(before, "Ready") {
        return None;
    }
    let sentence = failure.sentence();
    let now = Timestamp::now();
    let told = before.iter().map(|c| {
        let statement = match (c.type_.as_str(), &trouble) {
            ("Ready", Some((reason, message))) if c.status == "False" => {
                (false, reason.as_str(), message.clone())
            }
            ("Ready", None) if c.status == "False" => (false, c.reason.as_str(), sentence.clone()),
            ("Stalled", Some((reason, message))) => (true, reason.as_str(), message.clone()),
            ("Reconciling", None) => (true, "Progressing", sentence.clone()),
            ("Reconciling", Some(_)) => (false, "Blocked", sentence.clone()),
            _ => (c.status == "True", c.reason.as_str(), c.message.clone()),
        };
        condition(&c.type_, statement, generation, before, now)
    });
    Some(told.collect())
}

/// Whether the condition `kind` is True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|c| c.type_ == kind && c.status == "True")
}

/// One condition; its time moves only with its status.
fn condition(
    kind: &str,
    (status, reason, message): ConditionStatement<'_>,
    generation: i64,
    before: &[Condition],
    now: Timestamp,
) -> Condition {
    let status = if status { "True" } else { "False" };
    let since = before
        .iter()
        .find(|c| c.type_ == kind && c.status == status)
        .map_or_else(|| Time(now), |c| c.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(MESSAGE_MAX).collect(),
        observed_generation: Some(generation),
        last_transition_time: since,
    }
}
