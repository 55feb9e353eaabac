//! Who adds what at one stage in one step.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::ids::Microbatch;
use super::message::Contribution;

/// The keys of one stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    keys: Vec<Key>,
    /// Keys that are done.
    done: usize,
}

/// A key is open, claimed by one peer, or done by one peer.
#[derive(Clone, Debug, Default, PartialEq)]
enum Key {
    #[default]
    Open,
    Claimed {
        by: PeerName,
        since_ms: u64,
        /// Others that want it, should its holder be lost.
        waiting: Vec<PeerName>,
    },
    Done {
        by: PeerName,
        loss: Option<f64>,
    },
}

/// What comes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is the claimer's.
    Granted,
    /// It is done, or does not exist.
    Refused,
    /// Somebody else has it; the answer comes when it is done or lost.
    Waits,
}

/// What the loss of a peer leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Keys that were done and must be done again.
    pub undone: u32,
    /// Keys nobody has now.
    pub open: Vec<Microbatch>,
    /// Keys that go to the first peer that waited.
    pub granted: Vec<(PeerName, Microbatch)>,
}

impl Ledger {
    /// `microbatches` open keys.
    #[must_use]
    pub fn new(microbatches: u32) -> Self {
        Self { keys: vec![Key::Open; microbatches as usize], done: 0 }
    }

    /// The first claimer gets the key; asking again changes nothing.
    pub fn claim(&mut self, microbatch: Microbatch, peer: &PeerName, now_ms: u64) -> Claimed {
        let Some(key) = self.keys.get_mut(microbatch as usize) else { return Claimed::Refused };
        match key {
            Key::Open => {
                *key = Key::Claimed { by: peer.clone(), since_ms: now_ms, waiting: Vec::new() };
                Claimed::Granted
            }
            Key::Claimed { by, .. } if by == peer => Claimed::Granted,
            Key::Claimed { waiting, .. } => {
                if !waiting.contains(peer) {
                    waiting.push(peer.clone());
                }
                Claimed::Waits
            }
            Key::Done { .. } => Claimed::Refused,
        }
    }

    /// A claim is given up. The first that waited has it then.
    pub fn unclaim(&mut self, microbatch: Microbatch, peer: &PeerName, now_ms: u64) -> Option<PeerName> {
        let key = self.keys.get_mut(microbatch as usize)?;
        match key {
            Key::Claimed { by, since_ms, waiting } if by == peer => {
                if waiting.is_empty() {
                    *key = Key::Open;
                    return None;
                }
                *by = waiting.remove(0);
                *since_ms = now_ms;
                Some(by.clone())
            }
            Key::Claimed { waiting, .. } => {
                waiting.retain(|w| w != peer);
                None
            }
            _ => None,
        }
    }

    /// Its holder has added it. Returns who waited for it in vain, or `None` when it is not this peer's.
    pub fn done(&mut self, contribution: &Contribution, peer: &PeerName) -> Option<Vec<PeerName>> {
        let key = self.keys.get_mut(contribution.microbatch as usize)?;
        match key {
            Key::Claimed { by, waiting, .. } if by == peer => {
                let waiting = std::mem::take(waiting);
                *key = Key::Done { by: peer.clone(), loss: contribution.loss };
                self.done += 1;
                Some(waiting)
            }
            _ => None,
        }
    }

    /// Enters what a peer reports to a conductor that has no memory. False when somebody else has it already.
    pub fn restore(&mut self, contribution: &Contribution, peer: &PeerName) -> bool {
        let Some(key) = self.keys.get_mut(contribution.microbatch as usize) else { return false };
        if *key != Key::Open {
            return false;
        }
        *key = Key::Done { by: peer.clone(), loss: contribution.loss };
        self.done += 1;
        true
    }

    /// All that `peer` had is free again.
    pub fn release(&mut self, peer: &PeerName, now_ms: u64) -> Released {
        let mut out = Released::default();
        for (microbatch, key) in (0..).zip(&mut self.keys) {
            match key {
                Key::Done { by, .. } if by == peer => {
                    out.undone += 1;
                    self.done -= 1;
                    out.open.push(microbatch);
                    *key = Key::Open;
                }
                Key::Claimed { by, since_ms, waiting } if by == peer => {
                    if waiting.is_empty() {
                        out.open.push(microbatch);
                        *key = Key::Open;
                    } else {
                        *by = waiting.remove(0);
                        *since_ms = now_ms;
                        out.granted.push((by.clone(), microbatch));
                    }
                }
                Key::Claimed { waiting, .. } => waiting.retain(|w| w != peer),
                _ => {}
            }
        }
        out
    }

    /// These microbatches are open again, if it is `peer` that has done them.
    pub fn release_some(&mut self, peer: &PeerName, microbatches: &[Microbatch]) -> Released {
        let mut out = Released::default();
        for &microbatch in microbatches {
            if let Some(key) = self.keys.get_mut(microbatch as usize)
                && matches!(key, Key::Done { by, .. } if by == peer)
            {
                *key = Key::Open;
                out.open.push(microbatch);
            }
        }
        out.undone = u32::try_from(out.open.len()).unwrap_or(u32::MAX);
        self.done -= out.open.len();
        out
    }

    /// What `from` has done is now `to`'s.
    pub fn transfer(&mut self, from: &PeerName, to: &PeerName) {
        for key in &mut self.keys {
            if let Key::Done { by, .. } = key
                && by == from
            {
                *by = to.clone();
            }
        }
    }

    /// `peer` gets no key that it waits for.
    pub fn refuse_waiting(&mut self, peer: &PeerName) -> Vec<Microbatch> {
        let waited = (0..).zip(&mut self.keys).filter_map(|(microbatch, key)| {
            let Key::Claimed { waiting, .. } = key else { return None };
            let before = waiting.len();
            waiting.retain(|w| w != peer);
            (waiting.len() < before).then_some(microbatch)
        });
        waited.collect()
    }

    /// Is every key done?
    #[must_use]
    pub fn complete(&self) -> bool {
        self.done == self.keys.len()
    }

    /// Since when a peer has this key without having added it.
    #[must_use]
    pub fn claimed_ms(&self, microbatch: Microbatch, peer: &PeerName) -> Option<u64> {
        match self.keys.get(microbatch as usize)? {
            Key::Claimed { by, since_ms, .. } if by == peer => Some(*since_ms),
            _ => None,
        }
    }

    /// Keys that are done.
    #[must_use]
    pub fn count_done(&self) -> u32 {
        u32::try_from(self.done).unwrap_or(u32::MAX)
    }

    /// Is this key done?
    #[must_use]
    pub fn is_done(&self, microbatch: Microbatch) -> bool {
        matches!(self.keys.get(microbatch as usize), Some(Key::Done { .. }))
    }

    /// Has nobody this key?
    #[must_use]
    pub fn is_open(&self, microbatch: Microbatch) -> bool {
        matches!(self.keys.get(microbatch as usize), Some(Key::Open))
    }

    /// Everybody who has done something.
    #[must_use]
    pub fn holders(&self) -> BTreeSet<PeerName> {
        let done = self.keys.iter().filter_map(|key| match key {
            Key::Done { by, .. } => Some(by.clone()),
            _ => None,
        });
        done.collect()
    }

    /// What `peer` has done.
    #[must_use]
    pub fn of(&self, peer: &PeerName) -> Vec<Contribution> {
        let done = (0..).zip(&self.keys).filter_map(|(microbatch, key)| match key {
            Key::Done { by, loss } if by == peer => Some(Contribution { microbatch, loss: *loss }),
            _ => None,
        });
        done.collect()
    }

    /// Has `peer` claims that are not done?
    #[must_use]
    pub fn is_busy(&self, peer: &PeerName) -> bool {
        self.keys.iter().any(|key| matches!(key, Key::Claimed { by, .. } if by == peer))
    }

    /// Holders that keep others waiting for longer than `limit_ms`.
    #[must_use]
    pub fn overdue(&self, now_ms: u64, limit_ms: u64) -> Vec<PeerName> {
        let late = self.keys.iter().filter_map(|key| match key {
            Key::Claimed { by, since_ms, waiting } if !waiting.is_empty() && now_ms > since_ms + limit_ms => {
                Some(by.clone())
            }
            _ => None,
        });
        late.collect()
    }

    /// Losses of all keys added in their order: the same sum whoever computed them.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let losses = self.keys.iter().map(|key| match key {
            Key::Done { loss, .. } => loss.unwrap_or(0.0),
            _ => 0.0,
        });
        losses.sum()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::PeerName;

    use super::{Claimed, Ledger};
    use crate::training::message::Contribution;

    fn peer(name: &str) -> PeerName {
        PeerName::from(name)
    }

    fn contribution(microbatch: u32) -> Contribution {
        Contribution { microbatch, loss: Some(f64::from(microbatch)) }
    }

    #[test]
    fn one_peer_has_a_key_and_the_next_gets_it_when_that_one_is_lost() {
        let (a, b, c) = (peer("a"), peer("b"), peer("c"));
        let mut ledger = Ledger::new(2);
        assert_eq!(ledger.claim(0, &a, 0), Claimed::Granted);
        assert_eq!(ledger.claim(0, &a, 1), Claimed::Granted, "asking again");
        assert_eq!(ledger.claim(0, &b, 2), Claimed::Waits);
        assert_eq!(ledger.done(&contribution(0), &b), None, "it is not b's");
        let released = ledger.release(&a, 3);
        assert_eq!(released.granted, [(b.clone(), 0)]);
        assert_eq!(ledger.claim(0, &c, 4), Claimed::Waits);
        assert_eq!(ledger.done(&contribution(0), &b), Some(vec![c.clone()]));
        assert_eq!(ledger.claim(0, &c, 5), Claimed::Refused);
        assert_eq!(ledger.claim(9, &c, 5), Claimed::Refused, "there is no such key");
        assert!(!ledger.complete());
    }

    #[test]
    fn what_a_lost_peer_had_done_is_open_again() {
        let (a, b) = (peer("a"), peer("b"));
        let mut ledger = Ledger::new(3);
        for microbatch in 0..3 {
            let holder = if microbatch == 1 { &b } else { &a };
            assert_eq!(ledger.claim(microbatch, holder, 0), Claimed::Granted);
            assert!(ledger.done(&contribution(microbatch), holder).is_some());
        }
        assert!(ledger.complete() && ledger.loss() == 3.0);
        let released = ledger.release(&a, 1);
        assert_eq!((released.undone, released.open), (2, vec![0, 2]));
        assert!(ledger.is_done(1) && !ledger.is_done(0));
    }

    #[test]
    fn whoever_waits_no_longer_does_not_inherit() {
        let (a, b) = (peer("a"), peer("b"));
        let mut ledger = Ledger::new(2);
        ledger.claim(0, &a, 0);
        ledger.claim(0, &b, 0);
        assert_eq!(ledger.refuse_waiting(&b), vec![0]);
        assert!(ledger.refuse_waiting(&b).is_empty());
        assert!(ledger.release(&a, 1).granted.is_empty() && ledger.is_open(0));
    }

    #[test]
    fn keys_go_with_the_sums_that_a_leaving_peer_hands_over() {
        let (a, b) = (peer("a"), peer("b"));
        let mut ledger = Ledger::new(1);
        ledger.claim(0, &a, 0);
        assert!(ledger.is_busy(&a));
        ledger.done(&contribution(0), &a);
        ledger.transfer(&a, &b);
        assert_eq!(ledger.of(&b), [contribution(0)]);
        assert!(ledger.release(&a, 1).open.is_empty());
    }

    #[test]
    fn a_holder_is_overdue_only_when_somebody_waits() {
        let (a, b) = (peer("a"), peer("b"));
        let mut ledger = Ledger::new(1);
        ledger.claim(0, &a, 0);
        assert!(ledger.overdue(100, 10).is_empty());
        ledger.claim(0, &b, 0);
        assert_eq!(ledger.overdue(100, 10), [a]);
        assert!(ledger.overdue(10, 10).is_empty());
    }
}
