//! What peers hold and say before the run goes on, when nobody serves yet.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Membership;
use crate::training::conductor::machines::peer::Place;
use crate::training::ids::MicrobatchClaim;
use crate::training::message::{Held, PeerReport};

/// Claims that a peer can have made before the run goes on; more than calls can wait at one.
const CLAIMS_MAX: usize = 1024;

impl Membership {
    /// What peers say while what they hold is being gathered belongs to what they hold. Is there more to do with it?
    pub fn hear_gathering(&mut self, name: &PeerName, report: &PeerReport) -> bool {
        let Some(peer) = self.peers.get_mut(name) else { return false };
        match (report, &mut peer.held) {
            (PeerReport::Claim { step, microbatch, attempt }, _) if peer.claims.len() < CLAIMS_MAX => {
                peer.claims.insert((*step, *microbatch, *attempt));
            }
            (PeerReport::Released { step, microbatch }, _) => {
                peer.claims.retain(|(s, m, _)| (s, m) != (step, microbatch));
            }
            (PeerReport::Done { step, contribution, .. }, Some(held)) => {
                held.add(*step, contribution.clone())
            }
            (PeerReport::Applied { step, scale, state }, Some(held)) if *step == held.step + 1 => {
                held.applied(*step, *scale, state.clone());
                peer.step = *step;
            }
            (PeerReport::Ready { stage, step, state }, None) if peer.place == Place::Idle => {
                let (stage, step, state) = (*stage, *step, state.clone());
                // It was on its way while nobody was there to know from whom.
                peer.held = Some(Held { stage, step, state, copied: true, ..Held::default() });
                peer.step = step;
            }
            (
                PeerReport::Ready { .. }
                | PeerReport::FetchFailed { .. }
                | PeerReport::Leaving { .. }
                | PeerReport::Corrupt { .. },
                _,
            ) => {
                return true;
            }
            _ => {}
        }
        false
    }

    /// Claims that were made before the run went on.
    pub fn take_claims(&mut self) -> Vec<(PeerName, BTreeSet<MicrobatchClaim>)> {
        self.peers.iter_mut().map(|(name, p)| (name.clone(), std::mem::take(&mut p.claims))).collect()
    }

    /// A peer has begun with a state that was not its own: what it asked and got before counts no longer.
    pub fn begin(&mut self, name: &PeerName) {
        self.with(name, |peer| {
            peer.claims.clear();
            peer.wrong_states = 0;
        });
    }

    /// What peers hold is of no use, and where they were about to go neither.
    pub fn forget_held(&mut self) {
        self.changed = true;
        for peer in self.peers.values_mut() {
            peer.held = None;
            peer.claims.clear();
            peer.moving = None;
        }
    }

    /// Nobody does anything but those that may go.
    pub fn all_idle(&mut self) {
        for peer in self.peers.values_mut().filter(|p| p.place != Place::Retired) {
            peer.place = Place::Idle;
        }
    }
}
