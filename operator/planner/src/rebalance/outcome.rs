//! What becomes of a view when everybody does what the plan says: for simulations and tests.

use super::{Fetching, MoveKind, PipelineView, RebalancePlan};

impl PipelineView {
    /// Begins everything that `plan` says. Peers that are no longer there do nothing.
    pub fn carry_out(&mut self, plan: &RebalancePlan) {
        for step in &plan.moves {
            let Some(fetch_ms) = self.stages.get(step.to).map(|s| s.fetch_ms) else { continue };
            let Some(peer) = self.peers.iter_mut().find(|p| p.name == step.peer) else { continue };
            let fetching = Some(Fetching { stage: step.to, ready_ms: self.now_ms + fetch_ms });
            match step.kind {
                MoveKind::Join => peer.fetching = fetching,
                MoveKind::Switch => {
                    peer.shadows.remove(&step.to);
                    peer.shadows.extend(peer.stage.replace(step.to));
                    peer.moved_ms = Some(self.now_ms);
                }
                MoveKind::Fetch { drop } => {
                    if let Some(old) = drop {
                        peer.shadows.remove(&old);
                    }
                    peer.fetching = fetching;
                }
                MoveKind::Cold | MoveKind::Swap => {
                    peer.stage = None;
                    peer.fetching = fetching;
                    peer.moved_ms = Some(self.now_ms);
                }
            }
        }
    }

    /// Lets time pass: what is fetched by then is there, whoever is doomed by then is gone.
    pub fn pass(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.peers.retain(|p| p.doomed_ms.is_none_or(|at| at > now_ms));
        for peer in &mut self.peers {
            let Some(fetched) = peer.fetching.filter(|f| f.ready_ms <= now_ms) else { continue };
            peer.fetching = None;
            if peer.stage.is_none() {
                peer.stage = Some(fetched.stage);
            } else {
                peer.shadows.insert(fetched.stage);
            }
        }
    }

    /// When the next fetch will be complete.
    #[must_use]
    pub fn next_ready_ms(&self) -> Option<u64> {
        self.peers.iter().filter_map(|p| p.fetching.map(|f| f.ready_ms)).min()
    }
}
