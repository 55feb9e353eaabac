//! Values go to mates only. A mate may come before the conductor's word that it is one, so whoever is not known as a mate waits for a while.

use std::time::Duration;

use dunlin_protocol::training::mates::{Asked, Mates};
use dunlin_swarm::PeerName;
use dunlin_wire::proto::pull_request::What;
use dunlin_wire::train::PieceSender;
use dunlin_wire::{Caller, proto};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Status;
use tracing::warn;

/// A caller that is no mate by then is none: less than what mates have patience for.
const PATIENCE: Duration = Duration::from_secs(3);

/// The peers that this peer gives values to.
pub struct Giving(watch::Sender<Mates>);

impl Giving {
    /// Nobody, until the conductor has named them.
    pub fn new() -> Self {
        Self(watch::Sender::new(Mates::default()))
    }

    /// To these from now on.
    pub fn to(&self, mates: Mates) {
        self.0.send_replace(mates);
    }

    /// Gives `caller` what it asks for if it is a mate, or as soon as it is.
    pub fn give(
        &self,
        caller: &Caller,
        request: proto::PullRequest,
        pieces: PieceSender,
        serve: impl FnOnce(proto::PullRequest, PieceSender) + Send + 'static,
    ) {
        let who = PeerName::from(&*caller.name);
        let asked = match &request.what {
            Some(What::Sums(part) | What::Average(part)) => Asked::Shard(part.shard),
            _ => Asked::Stage,
        };
        if self.0.borrow().may_have(&who, asked) {
            return serve(request, pieces);
        }
        let mut mates = self.0.subscribe();
        tokio::spawn(async move {
            let is_mate = timeout(PATIENCE, mates.wait_for(|mates| mates.may_have(&who, asked))).await;
            if matches!(is_mate, Ok(Ok(_))) {
                return serve(request, pieces);
            }
            let why = format!("the conductor has not placed {who} where it may have that");
            warn!("a pull is refused: {why}");
            // The channel is new, and the caller may have gone.
            let _ = pieces.try_send(Err(Status::permission_denied(why)));
        });
    }
}
