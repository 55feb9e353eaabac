//! Stages whose peers are all on one machine: its loss would take the stage, and with it everybody back to a checkpoint.

use std::collections::BTreeSet;

use super::{Peer, PipelineView};

/// A swap is worth its time when both live for so many times as long as their fetches take.
const LIFE_PER_FETCH: u64 = 4;

/// Two peers that go to each other's stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Swap {
    /// Leaves the stage that is on one machine.
    pub leaves: usize,
    /// Comes from another machine.
    pub comes: usize,
}

/// The machines of a stage's peers but for one of them; `None` when that of somebody is not known.
fn machines(view: &PipelineView, stage: usize, without: Option<usize>) -> Option<BTreeSet<&str>> {
    let peers = (0..).zip(&view.peers).filter(|(p, peer)| peer.stage == Some(stage) && Some(*p) != without);
    peers.map(|(_, peer)| Some(peer.host.as_str()).filter(|host| !host.is_empty())).collect()
}

/// The swap that brings a second machine to a stage that has several peers and one machine, and takes from no other stage what it gives; of peers
/// that are most alike. `may`: whether a peer may leave its stage now.
pub(super) fn swap(view: &PipelineView, may: &dyn Fn(&Peer) -> bool) -> Option<Swap> {
    let stages = 0..view.stages.len();
    let peers_of = |stage| (0..view.peers.len()).filter(move |&p| view.peers[p].stage == Some(stage));
    let lives = |peer: &Peer, to: usize| {
        peer.doomed_ms.is_none() && peer.life_ms(view.now_ms) / LIFE_PER_FETCH > view.stages[to].fetch_ms
    };
    for stage in stages.clone().filter(|&s| peers_of(s).count() > 1) {
        let Some(here) = machines(view, stage, None).filter(|machines| machines.len() == 1) else { continue };
        let mut best: Option<(f64, Swap)> = None;
        for other in stages.clone().filter(|&s| s != stage && peers_of(s).count() > 1) {
            let Some(there) = machines(view, other, None) else { continue };
            for comes in peers_of(other) {
                let comer = &view.peers[comes];
                if here.contains(comer.host.as_str()) || !lives(comer, stage) || !may(comer) {
                    continue;
                }
                // All that may leave are on one machine.
                let Some(mut after) = machines(view, other, Some(comes)) else { continue };
                after.extend(&here);
                if after.len() < there.len().min(2) {
                    continue;
                }
                for leaves in peers_of(stage) {
                    let leaver = &view.peers[leaves];
                    let differ = (leaver.rows_per_s - comer.rows_per_s).abs();
                    let better = best.is_none_or(|(least, _)| differ < least);
                    if better && lives(leaver, other) && may(leaver) {
                        best = Some((differ, Swap { leaves, comes }));
                    }
                }
            }
        }
        if let Some((_, swap)) = best {
            return Some(swap);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{MoveKind, Peer, PipelineStage, PipelineView, RebalancePolicy, rebalance};

    /// Peers by stage, each by its machine.
    fn view(stages: &[&[&str]]) -> PipelineView {
        let stage = PipelineStage { fetch_ms: 10_000, ..PipelineStage::default() };
        let mut view = PipelineView { stages: vec![stage; stages.len()], ..PipelineView::default() };
        for (stage, hosts) in stages.iter().enumerate() {
            for host in *hosts {
                let name = format!("p{}", view.peers.len()).as_str().into();
                let (host, stage) = ((*host).to_owned(), Some(stage));
                view.peers.push(Peer { name, host, stage, room: 0, ..Peer::default() });
            }
        }
        view
    }

    /// The machines of every stage when the plan has come to pass, if it has swaps.
    fn swapped(mut view: PipelineView) -> Option<Vec<usize>> {
        let plan = rebalance(&view, &RebalancePolicy::default());
        let swaps: Vec<_> = plan.moves.into_iter().filter(|m| m.kind == MoveKind::Swap).collect();
        for swap in &swaps {
            view.peers.iter_mut().find(|p| p.name == swap.peer)?.stage = Some(swap.to);
        }
        let machines = |stage| {
            let of = view.peers.iter().filter(|p| p.stage == Some(stage));
            of.map(|p| p.host.as_str()).collect::<BTreeSet<_>>().len()
        };
        (!swaps.is_empty()).then(|| (0..view.stages.len()).map(machines).collect())
    }

    #[test]
    fn a_stage_on_one_machine_gets_another() {
        assert_eq!(swapped(view(&[&["a", "a"], &["b", "c"]])), Some(vec![2, 2]));
        assert_eq!(swapped(view(&[&["b", "c"], &["a", "a"]])), Some(vec![2, 2]));
        assert_eq!(swapped(view(&[&["a", "a"], &["b", "b"]])), Some(vec![2, 2]));
        // b would leave its stage to a.
        assert_eq!(swapped(view(&[&["a", "a"], &["a", "b"]])), None);
        assert_eq!(swapped(view(&[&["a", "a"], &["a", "b"], &["b", "c"]])), Some(vec![2, 2, 2]));
        assert_eq!(swapped(view(&[&["a", "a", "a"], &["b", "c", "c"]])), Some(vec![2, 2]));
    }

    #[test]
    fn nobody_swaps_for_nothing_or_when_it_cannot_be_known() {
        for stages in [
            [["a", "b"], ["c", "a"]].as_slice(),
            &[["a", "a"], ["a", "a"]],
            &[["", ""], ["", ""]],
            &[["a", "a"], ["b", ""]],
        ] {
            let stages: Vec<&[&str]> = stages.iter().map(<[&str; 2]>::as_slice).collect();
            assert_eq!(swapped(view(&stages)), None, "{stages:?}");
        }
        // One peer is no stage on one machine to be mended: it is to get a second.
        assert_eq!(swapped(view(&[&["a"], &["b", "c"]])), None);
    }

    #[test]
    fn a_swap_waits_until_all_is_quiet_and_is_worth_its_time() {
        let changed = |change: fn(&mut PipelineView)| {
            let mut view = view(&[&["a", "a"], &["b", "c"]]);
            view.now_ms = 100_000;
            change(&mut view);
            swapped(view)
        };
        assert!(changed(|_| {}).is_some());
        assert_eq!(changed(|view| view.averaging = true), None);
        assert_eq!(changed(|view| view.stages[0].fetch_ms = 1_000_000), None);
        assert_eq!(changed(|view| view.peers.push(Peer { name: "free".into(), ..Peer::default() })), None);
        assert_eq!(changed(|view| view.peers.iter_mut().for_each(|p| p.moved_ms = Some(90_000))), None);
        assert_eq!(changed(|view| view.peers.iter_mut().for_each(|p| p.room = 1)), None);
    }
}
