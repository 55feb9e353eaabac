//! What a conversation with a worker consists of: orders, the questions that carry them, and somebody who asks; and all of them together.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use dunlin_swarm::Epoch;
use dunlin_wire::{Role, TlsFiles};

use super::report::{WorkerRecord, WorkerReport};
use crate::key::SwarmKey;

/// What a worker should know and do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerOrder {
    /// The topology to obey: its epoch, and it as JSON.
    pub topology: Option<(Epoch, Arc<str>)>,
    /// It should hand over and end.
    pub drain: bool,
    /// A conductor should have a checkpoint written and train no more.
    pub suspend: bool,
}

impl WorkerOrder {
    /// What is left to say to a worker that has taken `known`.
    #[must_use]
    pub fn question(&self, known: &Self) -> WorkerQuestion {
        if self.drain && !known.drain {
            return WorkerQuestion::Drain;
        }
        if self.suspend && !known.suspend {
            return WorkerQuestion::Suspend;
        }
        match &self.topology {
            Some((epoch, topology)) if known.topology != self.topology => {
                WorkerQuestion::Take(*epoch, Arc::clone(topology))
            }
            _ => WorkerQuestion::Status,
        }
    }
}

/// A question to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerQuestion {
    /// How are you?
    Status,
    /// Take this topology of this epoch.
    Take(Epoch, Arc<str>),
    /// Hand over: the pod is about to go.
    Drain,
    /// Have a checkpoint written, then train no more.
    Suspend,
}

/// A worker to talk to.
#[derive(Clone)]
pub struct Target {
    /// Pod name.
    pub name: String,
    /// What it does, which decides how a topology reaches it.
    pub role: Role,
    /// `ip:port` of its gRPC server.
    pub addr: String,
    /// DNS name in its certificate.
    pub server_name: String,
    /// Certificate and key that the operator calls it with.
    pub identity: Arc<TlsFiles>,
}

/// A boxed future of an answer; the error is for the log.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<WorkerReport, String>> + Send + 'a>>;

/// A connection to one worker that mends itself.
pub trait Talk: Send {
    /// Asks once.
    fn ask(&mut self, question: WorkerQuestion) -> Answering<'_>;
}

/// Makes connections.
pub trait Connect: Send + Sync {
    /// A connection to `target`, made when first used.
    ///
    /// # Errors
    /// When certificates or address cannot be used at all.
    fn connect(&self, target: &Target) -> Result<Box<dyn Talk>, String>;
}

/// All conversations of a leader, as far as a pass needs them.
pub trait Conversations: Send + Sync {
    /// Talks to exactly `targets` of `swarm` from now on.
    fn follow(&self, swarm: &SwarmKey, targets: Vec<Target>);

    /// Ends all conversations of `swarm`.
    fn forget(&self, swarm: &SwarmKey);

    /// What is known about the workers of `swarm`, by pod name.
    fn answers(&self, swarm: &SwarmKey) -> BTreeMap<String, WorkerRecord>;

    /// Gives a worker its newest order; nothing happens when it has it already.
    fn order(&self, swarm: &SwarmKey, name: &str, order: WorkerOrder);
}
