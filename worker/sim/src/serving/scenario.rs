//! What happens in a run, and what came of it.

use std::collections::BTreeMap;

use dunlin_protocol::gateway::Disturbance;
use dunlin_schedule::Budget;
use dunlin_swarm::NumericsClass;

use super::flaw::Flaw;
use super::model::mix;

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything random follows from it.
    pub seed: u64,
    /// Stages.
    pub peers: u32,
    /// Gateways: one or two.
    pub gateways: u64,
    /// Every layer has a shadow on another peer, as the planner gives them.
    pub shadows: bool,
    /// Sessions.
    pub sessions: u32,
    /// They are asked for within this time.
    pub asked_ms: u64,
    /// Tokens of a prompt, at most, and exactly when `is_exact`.
    pub prompt_max: u64,
    /// Tokens of an answer, as above.
    pub answer_max: u64,
    /// All prompts and answers have their full length.
    pub is_exact: bool,
    /// Sessions that run at once on a gateway.
    pub running_max: usize,
    /// Sessions that wait for their turn on a gateway, at most; more are turned away, and come again.
    pub queue_max: usize,
    /// Rows of a batch.
    pub budget: Budget,
    /// Some clients go away in the middle of their answer.
    pub cancels: bool,
    /// Some rows give a value that is not finite: their sessions fail, and nobody else's.
    pub overflows: bool,
    /// Every second layer of the model looks at a window only, and keeps no more.
    pub slides: bool,
    /// Faults at random.
    pub faults: u32,
    /// Faults at given times.
    pub plan: Vec<(u64, Fault)>,
    /// Pages of one layer that each peer has.
    pub pages: usize,
    /// Bytes of journals that each peer has.
    pub journal_bytes_max: usize,
    /// What a row takes in one layer.
    pub row_us: u64,
    /// Largest delay of a frame.
    pub delay_ms: u64,
    /// Some peers have their adapters a while after they serve, one perhaps never.
    pub late_adapters: bool,
    /// A mistake that no swarm may make.
    pub flaw: Option<Flaw>,
    /// A peer and a gateway that are on no route send false frames of the sessions of others.
    pub impostors: bool,
    /// Keep a trace.
    pub trace: bool,
}

/// Something that goes wrong with the peer that has this place in the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is killed and its streams are reset; another takes its place so many milliseconds later, which computes these bits.
    Kill {
        /// Index of the peer in the topology.
        place: usize,
        /// Until there is another.
        replaced_ms: u64,
        /// Which bits that one computes.
        arithmetic: NumericsClass,
    },
    /// All are replaced, one after the other, as the operator does it: those that compute these bits are all there before the
    /// first of the others is told to go, and each goes when nothing of any session is left on it.
    Update {
        /// Which bits the newer ones compute.
        arithmetic: NumericsClass,
    },
    /// It takes this many times as long for everything.
    Slow {
        /// Index of the peer in the topology.
        place: usize,
        /// How many times as long everything takes.
        factor: u64,
    },
}

impl Scenario {
    /// A scenario drawn from its seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        // Some have prompts of several windows and batches.
        let is_long = mix(seed, 5).is_multiple_of(6);
        // Some have many sessions, and pages for the longest alone and little more.
        let is_scarce = mix(seed, 6).is_multiple_of(3);
        // In some of these, answers outgrow what is counted for them.
        let outgrows = is_scarce && !is_long && mix(seed, 10).is_multiple_of(3);
        let few = mix(seed, 7);
        let small = Budget {
            step_rows: 1 + (few >> 8 & 3) as u32,
            prefill_rows: 8 + (few >> 16 & 31) as u32,
            prefill_ends: 1 + (few >> 24 & 1) as u32,
        };
        Self {
            seed,
            peers: 2 + (mix(seed, 1) % 3) as u32,
            sessions: 1 + (mix(seed, 2) % 6) as u32 + if is_scarce { 6 } else { 0 },
            // Few enough in some of them that others wait, and find no place to wait.
            running_max: if !is_scarce {
                4
            } else if mix(seed, 12).is_multiple_of(3) {
                3
            } else {
                16
            },
            queue_max: if is_scarce { 2 } else { 64 },
            budget: if few.is_multiple_of(3) { small } else { Budget::ENGINE },
            cancels: mix(seed, 8).is_multiple_of(4),
            overflows: mix(seed, 9).is_multiple_of(8),
            slides: mix(seed, 11).is_multiple_of(2),
            asked_ms: 850,
            prompt_max: if is_long { 900 } else { 40 },
            answer_max: if outgrows { 400 } else { 80 },
            faults: (mix(seed, 3) % 6) as u32,
            pages: match (mix(seed, 4) % 4, is_long, is_scarce) {
                (0, false, false) => 60,
                (0, true, false) => 600,
                (_, _, false) => 4000,
                (some, false, true) if outgrows => 168 + 24 * some as usize,
                (some, false, true) => 48 + 8 * some as usize,
                (some, true, true) => 372 + 60 * some as usize,
            },
            journal_bytes_max: if seed.is_multiple_of(3) { 2000 } else { 1 << 20 },
            delay_ms: if seed.is_multiple_of(5) { 40 } else { 4 },
            late_adapters: true,
            ..Self::quiet(seed)
        }
    }

    /// What all answers take at most, one after the other, on peers that are as fast as usual. Each finds out by itself that a peer is deaf.
    pub(super) fn alone_ms(&self) -> u64 {
        let found_ms = if self.faults > 0 { 2000 + 4000 + 8000 } else { 0 };
        u64::from(self.sessions) * (found_ms + self.answer_max * u64::from(self.peers) * (self.delay_ms + 3))
    }

    /// A swarm of three with shadows to which nothing happens.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            peers: 3,
            gateways: 2,
            shadows: true,
            sessions: 1,
            asked_ms: 1,
            prompt_max: 30,
            answer_max: 60,
            is_exact: false,
            running_max: 4,
            queue_max: 64,
            budget: Budget::ENGINE,
            cancels: false,
            overflows: false,
            slides: false,
            faults: 0,
            plan: Vec::new(),
            pages: 4000,
            journal_bytes_max: 1 << 20,
            row_us: 100,
            delay_ms: 4,
            late_adapters: false,
            flaw: None,
            impostors: false,
            trace: false,
        }
    }
}

/// An answer that ended early because its swarm has another model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenOff {
    /// Number of its session.
    pub session: u64,
    /// What its own model was read from.
    pub source: String,
    /// When its gateway took it.
    pub begun_ms: u64,
    /// When its client was told.
    pub at_ms: u64,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What does not hold.
    pub violations: Vec<String>,
    /// Faults that happened.
    pub faults: u32,
    /// Sessions that went on after a disturbance, by what it was.
    pub recoveries: BTreeMap<Disturbance, u32>,
    /// Rows that gateways planned to have computed again, over all hops.
    pub replayed_rows: u64,
    /// Longest stall of a session that went on.
    pub stall_ms_max: u64,
    /// Rows that a layer computed more than once, by layer.
    pub again: BTreeMap<u32, u64>,
    /// When the last session was finished.
    pub finished_ms: u64,
    /// False frames of impostors that were refused.
    pub refused: u32,
    /// Submissions that a gateway turned away because its queue was full.
    pub turned_away: u32,
    /// Sessions that a stage refused for lack of pages.
    pub no_pages: u32,
    /// Ticks at which an engine had work and no pages for any of it.
    pub starved: u32,
    /// Sessions whose clients went away.
    pub cancelled: u32,
    /// Sessions that failed, as they must or may.
    pub failed: u32,
    /// Those of them whose swarm has another model.
    pub broken_off: Vec<BrokenOff>,
    /// Largest number of frames on their way at once.
    pub in_flight_max: usize,
    /// What happened, if asked for.
    pub trace: Vec<String>,
}

impl Outcome {
    /// `ok`, or the first thing that does not hold.
    #[must_use]
    pub fn verdict(&self) -> String {
        self.violations.first().cloned().unwrap_or_else(|| "ok".to_owned())
    }

    /// Sessions that went on after a disturbance.
    #[must_use]
    pub fn recovered(&self) -> u32 {
        self.recoveries.values().sum()
    }
}
