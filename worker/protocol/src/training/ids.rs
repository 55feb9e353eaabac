//! How steps and their parts are counted.

/// Number of optimizer updates applied so far; the step that is under way.
pub type Step = u64;
/// Index of a microbatch within its step. From [`super::ConductorConfig::microbatches`] on they are for validation.
pub type Microbatch = u32;
/// Which attempt at the steps that are open a microbatch is driven in: all of them are begun anew when a peer turns out to have computed with wrong values. Grows,
/// also from one life of the conductor to the next.
pub type StepAttempt = u64;
/// Attempts and rounds of one life of the conductor differ in so many low bits.
pub const LIFE_BITS: u32 = 20;
/// A key that a peer asks for: a microbatch of a step, in an attempt.
pub type MicrobatchClaim = (Step, Microbatch, StepAttempt);
/// Index of a stage in the pipeline.
pub type StageId = u32;
/// A set of tensors that one group of peers averages: the stage of that index; one past the last stage, the embedding that both ends hold.
pub type ShardId = u32;
/// One pull by somebody else; numbered by whoever performs.
pub type AskId = u64;

/// What tells one average from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AverageId {
    /// Of which step.
    pub step: Step,
    /// The tensors that are averaged.
    pub shard: ShardId,
    /// Number of this average: an answer to an earlier one counts nothing.
    pub round: u64,
}
