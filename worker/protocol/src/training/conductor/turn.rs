//! One turn of the conductor: when it is, and what must be done because of it.

use dunlin_swarm::PeerName;

use super::shell::ConductorEffect;
use crate::training::message::{ToPeer, ToTrainer};

/// What one event leads to, in order.
pub(super) struct Turn<'a> {
    pub(super) now_ms: u64,
    out: &'a mut Vec<ConductorEffect>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(now_ms: u64, out: &'a mut Vec<ConductorEffect>) -> Self {
        Self { now_ms, out }
    }

    /// The shell has something to do.
    pub(super) fn push(&mut self, effect: ConductorEffect) {
        self.out.push(effect);
    }

    /// A peer is told something.
    pub(super) fn tell(&mut self, name: &PeerName, message: ToPeer) {
        self.push(ConductorEffect::ToPeer(name.clone(), message));
    }

    /// A trainer is told something.
    pub(super) fn tell_trainer(&mut self, name: &PeerName, message: ToTrainer) {
        self.push(ConductorEffect::ToTrainer(name.clone(), message));
    }

    /// A sentence for people.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.push(ConductorEffect::Note(text.into()));
    }

    /// Its other side must begin anew.
    pub(super) fn drop_stream(&mut self, name: &PeerName) {
        self.push(ConductorEffect::Drop(name.clone()));
    }
}
