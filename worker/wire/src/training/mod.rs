//! What is said on the streams of [`train`](crate::train), between the types of dunlin-protocol and the messages of proto/training.proto.
//!
//! * [`check`] what a message must have, and how much of it
//! * `mates` others, and lists of them · `held` who says hello, and what it holds
//! * `peer` what a peer reports · `orders` what it is told · `trainer` both directions of a trainer
//!
//! What arrives is checked here; behind it types are trusted. Numbers come as they were sent, floats bit for bit.

pub mod check;
mod held;
mod mates;
mod orders;
mod peer;
mod trainer;

use dunlin_protocol::training::{Hello, PeerReport, ToPeer, ToTrainer, TrainerReport};

use crate::proto::training as wire;
use check::{MessageError, need, no_json};
use wire::{to_conductor, to_member};

/// What a peer or a trainer says.
#[derive(Clone, Debug, PartialEq)]
pub enum ToConductor {
    /// Who it is. The first of a stream.
    Hello(Hello),
    /// By a peer.
    Peer(PeerReport),
    /// By a trainer.
    Trainer(TrainerReport),
}

/// What a conductor says.
#[derive(Clone, Debug, PartialEq)]
pub enum ToMember {
    /// To a peer.
    Peer(ToPeer),
    /// To a trainer.
    Trainer(ToTrainer),
}

impl From<Hello> for ToConductor {
    fn from(hello: Hello) -> Self {
        Self::Hello(hello)
    }
}

impl From<PeerReport> for ToConductor {
    fn from(report: PeerReport) -> Self {
        Self::Peer(report)
    }
}

impl From<TrainerReport> for ToConductor {
    fn from(report: TrainerReport) -> Self {
        Self::Trainer(report)
    }
}

impl From<ToPeer> for ToMember {
    fn from(order: ToPeer) -> Self {
        Self::Peer(order)
    }
}

impl From<ToTrainer> for ToMember {
    fn from(order: ToTrainer) -> Self {
        Self::Trainer(order)
    }
}

/// One direction of a stream: what is said, and its message.
pub trait Message: Sized {
    /// The message of proto/training.proto.
    type Wire: prost::Message + Default + 'static;

    /// A sign of life.
    fn alive() -> Self::Wire;

    /// The message of this.
    fn to_wire(self) -> Self::Wire;

    /// What a message says; `None` is a sign of life.
    ///
    /// # Errors
    /// When it says nothing that is known here, lacks what it needs, or has more than it may.
    fn from_wire(message: Self::Wire) -> Result<Option<Self>, MessageError>;
}

impl Message for ToConductor {
    type Wire = wire::ToConductor;

    fn alive() -> wire::ToConductor {
        to_conductor::Body::Alive(wire::Alive {}).into()
    }

    fn to_wire(self) -> wire::ToConductor {
        use to_conductor::Body;
        match self {
            Self::Hello(hello) => Body::Hello(held::hello_to_wire(hello)),
            Self::Peer(report) => Body::Peer(peer::to_wire(report)),
            Self::Trainer(report) => Body::Trainer(trainer::report_to_wire(report)),
        }
        .into()
    }

    fn from_wire(message: wire::ToConductor) -> Result<Option<Self>, MessageError> {
        use to_conductor::Body;
        no_json(&message.json)?;
        Ok(match need(message.body, "to_conductor.body")? {
            Body::Alive(wire::Alive {}) => None,
            Body::Hello(hello) => Some(Self::Hello(held::hello_from_wire(hello)?)),
            Body::Peer(report) => Some(Self::Peer(peer::from_wire(report)?)),
            Body::Trainer(report) => Some(Self::Trainer(trainer::report_from_wire(report)?)),
        })
    }
}

impl Message for ToMember {
    type Wire = wire::ToMember;

    fn alive() -> wire::ToMember {
        to_member::Body::Alive(wire::Alive {}).into()
    }

    fn to_wire(self) -> wire::ToMember {
        use to_member::Body;
        match self {
            Self::Peer(order) => Body::Peer(orders::to_wire(order)),
            Self::Trainer(order) => Body::Trainer(trainer::order_to_wire(order)),
        }
        .into()
    }

    fn from_wire(message: wire::ToMember) -> Result<Option<Self>, MessageError> {
        use to_member::Body;
        no_json(&message.json)?;
        Ok(match need(message.body, "to_member.body")? {
            Body::Alive(wire::Alive {}) => None,
            Body::Peer(order) => Some(Self::Peer(orders::from_wire(order)?)),
            Body::Trainer(order) => Some(Self::Trainer(trainer::order_from_wire(order)?)),
        })
    }
}

impl From<to_conductor::Body> for wire::ToConductor {
    fn from(body: to_conductor::Body) -> Self {
        Self { body: Some(body), ..Self::default() }
    }
}

impl From<to_member::Body> for wire::ToMember {
    fn from(body: to_member::Body) -> Self {
        Self { body: Some(body), ..Self::default() }
    }
}

#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;
