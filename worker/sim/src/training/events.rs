//! What happens, and what is said.

use std::collections::BTreeMap;

use dunlin_protocol::training::fetch::{FetchEvent, FetchId};
use dunlin_protocol::training::reduce::ReduceEvent;
use dunlin_protocol::training::serve::Wanted;
use dunlin_protocol::training::{
    AskId, AverageId, Call, CallId, PeerReport, RequestId, StageId, StageStart, Step, ToPeer, ToTrainer,
    TrainerReport,
};
use dunlin_swarm::PeerName;

use super::averaging::Value;
use super::got::{Part, Update};
use super::numbers::{State, Sums};
use super::scenario::Loss;

/// What travels on a stream to the conductor.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello(dunlin_protocol::training::Hello),
    Peer(PeerReport),
    Trainer(TrainerReport),
}

/// And from it.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Peer(ToPeer),
    Trainer(ToTrainer),
}

/// A call with its tensors.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) trainer: PeerName,
    pub(super) id: CallId,
    pub(super) call: Call,
    pub(super) input: u64,
    pub(super) above: u64,
}

/// What a peer answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Output or input gradient; loss.
    Tensors(u64, Option<f64>),
    Refused,
    Stale,
    Broken,
    /// It cannot be computed.
    Failed(String),
}

/// What a peer gives to another.
pub(super) enum Given {
    /// A piece of a part of an average.
    Values(Vec<Value>),
    /// All sums of a step.
    Sums(Sums),
    /// A part of the state.
    State(Part),
    /// The averages of a step that is past, and their scale.
    Update(Update),
}

pub(super) enum Event {
    Up {
        stream: u64,
        from: PeerName,
        message: Up,
    },
    Down {
        stream: u64,
        to: PeerName,
        message: Down,
    },
    /// The client's end of a stream learns that it is gone; perhaps that it was expelled.
    ClientLearns {
        stream: u64,
        name: PeerName,
        expelled: bool,
    },
    ConductorLearns {
        stream: u64,
        name: PeerName,
    },
    Connect(PeerName),
    Call {
        peer: PeerName,
        asked: Asked,
    },
    HangUp {
        peer: PeerName,
        trainer: PeerName,
        id: CallId,
    },
    Answer {
        from: PeerName,
        trainer: PeerName,
        id: CallId,
        answer: Answer,
    },
    /// The engine is done with the job at hand.
    Engine {
        peer: PeerName,
    },
    /// A peer asks another for something.
    Pull {
        to: PeerName,
        by: PeerName,
        ask: AskId,
        stage: StageId,
        wanted: Wanted,
    },
    /// It gets it, or a part of it.
    Given {
        to: PeerName,
        ask: AskId,
        given: Given,
    },
    /// That was all, or nothing comes.
    PullEnded {
        to: PeerName,
        ask: AskId,
        why: Option<String>,
    },
    /// What an average waits for at a peer.
    Reduce {
        peer: PeerName,
        id: AverageId,
        event: ReduceEvent,
    },
    /// A peer waits for something no longer.
    Wake(PeerName),
    /// What a fetch waits for at a peer.
    Fetch {
        peer: PeerName,
        event: FetchEvent,
    },
    /// First values or a checkpoint are read.
    Loaded {
        peer: PeerName,
        fetch: FetchId,
        load: StageStart,
    },
    Written {
        peer: PeerName,
        step: Step,
        stage: StageId,
        state: State,
        works: bool,
    },
    Sealed {
        life: u64,
        step: Step,
        records: Vec<String>,
    },
    /// It is known which checkpoints are sound.
    Inspected {
        life: u64,
    },
    /// It is known whether the destination takes anything.
    Prepared {
        life: u64,
    },
    /// It is known whether a checkpoint is there.
    Confirmed {
        life: u64,
        step: Step,
    },
    StartConductor,
    Tick,
    Fault,
    Loss(Loss),
    Kill(PeerName),
    /// A peer learns that it will be gone.
    Notice(PeerName),
    Join,
    JoinTrainer,
}

/// Calls by request.
pub(super) type Requests = BTreeMap<RequestId, Asked>;
