//! Who may call what. docs/security.md has the same table for people.

use std::fmt;

use tonic::{Request, Status};
use tracing::warn;

use crate::connection::Connection;
use crate::identity::{Caller, Role};

/// The calls that processes of a swarm make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rpc {
    /// Sessions of a swarm that serves.
    Exchange,
    /// How a process is.
    GetStatus,
    /// Which layers a stage holds.
    Assign,
    /// What a gateway routes over.
    PushTopology,
    /// Hand over and end.
    Drain,
    /// The stream to a conductor.
    Join,
    /// How a training run is going.
    Observe,
    /// Save and stop a training run.
    Suspend,
    /// A pass of a microbatch through a stage.
    Compute,
    /// State, sums and averages of a stage.
    Pull,
}

impl Rpc {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Exchange,
        Self::GetStatus,
        Self::Assign,
        Self::PushTopology,
        Self::Drain,
        Self::Join,
        Self::Observe,
        Self::Suspend,
        Self::Compute,
        Self::Pull,
    ];

    /// The roles that may make this call. What they may say with it depends on their name, too.
    #[must_use]
    pub const fn callers(self) -> &'static [Role] {
        match self {
            Self::Exchange => &[Role::Gateway, Role::Stage],
            Self::GetStatus
            | Self::Assign
            | Self::PushTopology
            | Self::Drain
            | Self::Observe
            | Self::Suspend => &[Role::Operator],
            Self::Join => &[Role::Trainer, Role::Peer],
            Self::Compute => &[Role::Trainer],
            Self::Pull => &[Role::Peer],
        }
    }

    /// As `proto/dunlin.proto` names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "Stage.Exchange",
            Self::GetStatus => "Control.GetStatus",
            Self::Assign => "Control.Assign",
            Self::PushTopology => "Control.PushTopology",
            Self::Drain => "Control.Drain",
            Self::Join => "Train.Join",
            Self::Observe => "Train.Observe",
            Self::Suspend => "Train.Suspend",
            Self::Compute => "TrainStage.Compute",
            Self::Pull => "TrainStage.Pull",
        }
    }

    /// The caller of `request`, if its role may make this call. There is no other way to learn who it is, so no service can forget to ask.
    ///
    /// # Errors
    /// `PermissionDenied` with a sentence that says who may.
    pub fn admit<T>(self, request: &Request<T>) -> Result<Caller, Status> {
        let connection = Connection::of(request.extensions());
        let caller = Connection::caller(request.extensions())
            .map_err(|why| denied(connection, format!("{self} is refused: {why}")))?;
        if self.callers().contains(&caller.role) {
            return Ok(caller);
        }
        let may = self.callers().iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ");
        Err(denied(connection, format!("{caller} may not call {self}: only {may} may")))
    }
}

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Logged once a connection, so that nobody can fill the log.
fn denied(connection: Option<&Connection>, why: String) -> Status {
    if connection.is_none_or(Connection::is_first_refusal) {
        warn!("{why}");
    }
    Status::permission_denied(why)
}
