//! What has come of something that was to be got.

use dunlin_protocol::training::fetch::FetchId;
use dunlin_protocol::training::{StateDigest, Step};
use dunlin_train::Stage;

use super::state::Part;
use super::unfetched::Unfetched;

/// What has come of something.
pub(super) enum Fetched {
    /// First values or a checkpoint.
    Stage(Box<Stage>),
    /// With the root of all of the state, as its giver has it.
    Part(Box<Part>, String),
    Update(Vec<f32>),
    Kept,
    /// The parts back, and those that are not what their givers say.
    Checked(Vec<(FetchId, Box<Part>)>, Vec<(FetchId, String)>),
    /// The engine has this state.
    At(Step, StateDigest),
}

/// How it ended.
pub(super) type Outcome = Result<Fetched, Unfetched>;
