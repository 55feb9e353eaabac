//! What is wrong with a peer that goes on.

/// What can be wrong with a peer, its memory or its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A bit of its parameters has changed; it computes with that until it notices.
    Flipped,
    /// Its next update comes out wrong, and it does not notice.
    Miscalculates,
    /// Its last update came out wrong.
    Differs,
    /// It says that it cannot compute the next call.
    Refuses,
    /// Its next average is another than that of the others.
    OtherAverage,
    /// What it writes of its next checkpoint is not what it has.
    Miswrites,
}
