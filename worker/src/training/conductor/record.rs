//! The course of a run, as people and the operator see it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_protocol::training::conductor::{Committed, Expelled, MemberView, Moved, Totals};
use dunlin_protocol::training::{Conductor, Phase, Step};
use dunlin_train::Run;
use dunlin_wire::proto;
use serde::Serialize;
use serde_json::json;

use super::super::saved::Sealed;

/// Why a run is degraded whose checkpoints cannot be written.
const CHECKPOINTS_FAILING: &str = "CheckpointsFailing";
/// Steps that are kept for the page.
const STEPS_KEPT: usize = 20_000;
/// Notes that are kept.
const NOTES_KEPT: usize = 200;
/// Moves that are kept.
const MOVES_KEPT: usize = 100;
/// Checkpoints that are kept.
const CHECKPOINTS_KEPT: usize = 200;
/// Steps over which speed is averaged.
const SPEED_STEPS: usize = 10;

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// Updates applied before it.
    pub step: Step,
    /// Mean over the tokens, in nats.
    pub loss: f64,
    /// The same of the validation data, before the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Of the last few steps.
    pub tokens_per_second: f64,
    /// Contributions computed again.
    pub redone: u32,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Seconds since the start.
    pub seconds: f64,
    /// Peers of every stage.
    pub peers: Vec<usize>,
    /// Peers lost without notice since the start of the conductor.
    pub lost: u64,
}

/// Something that was said, as often as it was.
struct Note {
    text: String,
    times: u64,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.times {
            1 => f.write_str(&self.text),
            times => write!(f, "{} ({times} times)", self.text),
        }
    }
}

/// Everything that is shown.
pub struct Record {
    steps: VecDeque<StepRecord>,
    notes: VecDeque<Note>,
    /// What is wrong with checkpoints.
    trouble: Option<String>,
    /// Are there checkpoints?
    saves: bool,
    /// Is it known which?
    checkpoints_known: bool,
    /// What the run has otherwise than before its start.
    changes: Vec<String>,
    moves: VecDeque<Moved>,
    layers: Vec<String>,
    total: Step,
    phase: Phase,
    step: Step,
    peers: Vec<usize>,
    members: Vec<Vec<MemberView>>,
    totals: Totals,
    expelled: Vec<Expelled>,
    checkpoint: Option<(Step, String, String)>,
    /// Steps of the last checkpoints.
    checkpoints: VecDeque<Step>,
    sequences_per_step: usize,
    validation_loss: Option<f64>,
    validation_tokens: u64,
}

impl Record {
    /// Nothing has happened yet.
    pub fn new(run: &Run) -> Self {
        let stages = 0..run.config.stages;
        Self {
            steps: VecDeque::new(),
            notes: VecDeque::new(),
            trouble: None,
            saves: run.config.checkpoint.is_some(),
            checkpoints_known: false,
            changes: Vec::new(),
            moves: VecDeque::new(),
            layers: stages
                .map(|s| {
                    let l = run.layers(s);
                    format!("{}-{}", l.start, l.end - 1)
                })
                .collect(),
            total: run.config.steps,
            phase: Phase::Gathering,
            step: 0,
            peers: vec![0; run.config.stages as usize],
            members: Vec::new(),
            totals: Totals::default(),
            expelled: Vec::new(),
            checkpoint: None,
            checkpoints: VecDeque::new(),
            sequences_per_step: run.config.global_batch,
            validation_loss: None,
            validation_tokens: run.validation_tokens().max(1),
        }
    }

    /// What the conductor knows now.
    pub fn look(&mut self, core: &Conductor) {
        self.phase = core.phase().clone();
        self.step = core.step();
        self.members = core.member_views();
        self.peers = self.members.iter().map(Vec::len).collect();
        self.totals = core.totals();
        self.trouble = core.checkpoint_trouble();
        self.checkpoints_known = core.knows_checkpoints();
        if self.expelled.len() != core.expelled().len() || self.expelled.last() != core.expelled().next_back()
        {
            self.expelled = core.expelled().cloned().collect();
        }
        if let Some(sum) = core.final_validation() {
            self.validation_loss = Some(sum / self.validation_tokens as f64);
        }
    }

    /// A step is complete.
    pub fn committed(&mut self, c: &Committed, tokens: u64, at: Duration) {
        let seconds = at.as_secs_f64();
        let before = self.steps.iter().rev().nth(SPEED_STEPS - 1).or_else(|| self.steps.front());
        let speed = before.map_or(0.0, |b| {
            let steps = c.step.saturating_sub(b.step) as f64;
            steps * tokens as f64 / (seconds - b.seconds).max(1e-9)
        });
        let validation_loss = c.validation.map(|v| v / self.validation_tokens as f64);
        self.validation_loss = validation_loss.or(self.validation_loss);
        // After going back to a checkpoint, what came behind it is of another life.
        while self.steps.back().is_some_and(|s| s.step >= c.step) {
            self.steps.pop_back();
        }
        self.steps.push_back(StepRecord {
            step: c.step,
            loss: c.loss / tokens as f64,
            validation_loss,
            tokens_per_second: speed,
            redone: c.redone,
            norm: c.norm,
            seconds,
            peers: self.peers.clone(),
            lost: self.totals.lost,
        });
        if self.steps.len() > STEPS_KEPT {
            self.steps.pop_front();
        }
    }

    /// A checkpoint is complete.
    pub fn saved(&mut self, step: Step, sealed: &Sealed) {
        self.checkpoints.push_back(step);
        if self.checkpoints.len() > CHECKPOINTS_KEPT {
            self.checkpoints.pop_front();
        }
        self.checkpoint = Some((step, sealed.path.display().to_string(), sealed.sha256.clone()));
    }

    /// For people. What is among the kept ones already is counted. Returns how often it was said.
    pub fn note(&mut self, text: String) -> u64 {
        let known = self.notes.iter().position(|note| note.text == text);
        let mut note = known.and_then(|at| self.notes.remove(at)).unwrap_or(Note { text, times: 0 });
        note.times += 1;
        let times = note.times;
        self.notes.push_back(note);
        if self.notes.len() > NOTES_KEPT {
            self.notes.pop_front();
        }
        times
    }

    /// The run goes on from a checkpoint of one with other values.
    pub fn changed(&mut self, changes: Vec<String>) {
        self.changes = changes;
    }

    /// A peer goes to another stage.
    pub fn moved(&mut self, moved: Moved) {
        self.moves.push_back(moved);
        if self.moves.len() > MOVES_KEPT {
            self.moves.pop_front();
        }
    }

    /// Steps from `from` on, at most `max`.
    pub fn steps(&self, from: Step, max: usize) -> Vec<StepRecord> {
        let first = self.steps.partition_point(|s| s.step < from);
        self.steps.iter().skip(first).take(max).cloned().collect()
    }

    /// The newest step.
    pub fn last(&self) -> Option<&StepRecord> {
        self.steps.back()
    }

    /// Counts of the whole run.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Can checkpoints not be written?
    pub fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Peers of every stage.
    pub fn peers(&self) -> &[usize] {
        &self.peers
    }

    /// What it is doing, and a message for people.
    fn phase(&self) -> (proto::RunPhase, String) {
        use proto::RunPhase::{Failed, Starting, Succeeded, Suspended, Training};
        let last = if self.saves { "all steps are done; the last checkpoint is being written" } else { "" };
        match &self.phase {
            Phase::Gathering => (Starting, self.trouble.clone().unwrap_or_default()),
            Phase::Running => (Training, String::new()),
            Phase::Finishing => (Training, self.trouble.clone().unwrap_or_else(|| last.to_owned())),
            Phase::Finished => (Succeeded, String::new()),
            Phase::Suspended => (Suspended, String::new()),
            Phase::Failed(why) => (Failed, why.clone()),
        }
    }

    /// What the operator asks for.
    pub fn observation(&self) -> proto::Observation {
        let ((phase, message), last) = (self.phase(), self.steps.back());
        let samples_per_second = self.samples_per_second();
        let stages = (0..).zip(self.peers.iter().zip(&self.layers)).map(|(stage, (peers, layers))| {
            let peers = u32::try_from(*peers).unwrap_or(u32::MAX);
            proto::StageProgress { stage, layers: layers.clone(), peers, samples_per_second }
        });
        let saved = self.checkpoint.clone();
        let degraded = |message| proto::Degraded { reason: CHECKPOINTS_FAILING.to_owned(), message };
        proto::Observation {
            phase: phase.into(),
            message,
            step: self.step,
            steps: self.total,
            loss: last.map(|s| s.loss),
            validation_loss: self.validation_loss,
            tokens_per_second: last.map(|s| s.tokens_per_second),
            stages: stages.collect(),
            redone: self.totals.redone,
            lost: self.totals.lost,
            moves: self.totals.moves,
            last_checkpoint: saved.map(|(step, path, sha256)| proto::SavedCheckpoint { step, path, sha256 }),
            degraded: self.trouble.clone().map(degraded),
            checkpoints_known: self.checkpoints_known,
        }
    }

    /// What people see, as JSON.
    pub fn page(&self) -> String {
        let (phase, message) = self.phase();
        let phase = match phase {
            proto::RunPhase::Starting => "Starting",
            proto::RunPhase::Training => "Training",
            proto::RunPhase::Suspending => "Suspending",
            proto::RunPhase::Suspended => "Suspended",
            proto::RunPhase::Succeeded => "Succeeded",
            proto::RunPhase::Failed => "Failed",
        };
        let last = self.steps.back();
        let (tokens, samples) =
            (last.map(|s| s.tokens_per_second).unwrap_or_default(), self.samples_per_second());
        let stages: Vec<_> = (0..)
            .zip(self.peers.iter().zip(&self.layers))
            .map(|(stage, (peers, layers)): (u32, _)| {
                let members = self.members.get(stage as usize).into_iter().flatten();
                let members: Vec<_> = members
                    .map(|m| json!({"name": m.name, "host": m.host, "rowsPerSecond": m.rows_per_s}))
                    .collect();
                json!({
                    "stage": stage, "layers": layers, "peers": peers, "samplesPerSecond": samples, "members": members,
                })
            })
            .collect();
        let names: Vec<Vec<_>> =
            self.members.iter().map(|stage| stage.iter().map(|m| &m.name).collect()).collect();
        json!({
            "phase": phase, "message": message, "step": self.step, "steps": self.total,
            "loss": last.map(|s| s.loss), "validationLoss": self.validation_loss,
            "tokensPerSecond": tokens, "stages": stages,
            "redone": self.totals.redone, "lost": self.totals.lost, "moves": self.totals.moves,
            "expelled": self.expelled.iter().map(|e| {
                json!({"peer": e.peer, "host": e.host, "step": e.step, "why": e.why})
            }).collect::<Vec<_>>(),
            "lastCheckpoint": self.checkpoint.as_ref().map(|(step, path, sha256)| {
                json!({"step": step, "path": path, "sha256": sha256})
            }),
            "lastMoves": self.moves.iter().map(|m| {
                json!({"step": m.step, "peer": m.peer, "from": m.from, "to": m.to, "reason": m.reason})
            }).collect::<Vec<_>>(),
            "degraded": self.trouble.as_ref().map(|message| {
                json!({"reason": CHECKPOINTS_FAILING, "message": message})
            }),
            "checkpointsKnown": self.checkpoints_known, "changes": self.changes, "members": names, "checkpoints": self.checkpoints,
            "notes": self.notes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn samples_per_second(&self) -> f64 {
        let recent: Vec<&StepRecord> = self.steps.iter().rev().take(SPEED_STEPS + 1).collect();
        match (recent.first(), recent.last()) {
            (Some(new), Some(old)) if new.seconds > old.seconds => {
                (new.step - old.step) as f64 * self.sequences_per_step as f64 / (new.seconds - old.seconds)
            }
            _ => 0.0,
        }
    }
}

/// The record, whoever panicked while holding it.
pub fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_is_counted_and_pushes_nothing_out() {
        let json = serde_json::json!({
            "model": {"config": {"hiddenSize": 32, "layers": 1, "heads": 2, "ffn": 64, "contextLength": 16}},
            "data": {"text": {"path": "unread"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 9,
            "optimizer": {"kind": "Sgd", "learningRate": 1e-3},
        });
        let config = dunlin_train::TrainingConfig::from_json(&json.to_string()).unwrap();
        let mut record = Record::new(&super::super::super::run_of(config).unwrap());
        record.note("first".to_owned());
        for _ in 0..2 * NOTES_KEPT {
            record.note("again".to_owned());
            record.note("and again".to_owned());
        }
        let status: serde_json::Value = serde_json::from_str(&record.page()).unwrap();
        assert_eq!(
            status["notes"],
            serde_json::json!(["first", "again (400 times)", "and again (400 times)"])
        );
    }
}
