//! What layers keep of a sequence: all of it, or what is within a window.
//!
//! Gateways, stages and engines count pages of KV cache by this value, and by what each stage says of its own ([`Paging`]), so that all of them come to the same number.

use std::sync::Arc;

use dunlin_swarm::{Layers, Paging, Position};

use crate::frame::{PAGE_POSITIONS, WINDOW_ROWS};

/// Positions before a window that are kept, too: when a session goes on after a loss, hops begin at what the next one has, and none is further ahead of the
/// next than this.
pub const KEPT_BEHIND: u32 = WINDOW_ROWS;
/// Rows of one sequence in one batch, at most.
pub const BATCH_ROWS: u32 = 128;

const _: () = {
    assert!(Paging::OWN.positions_behind == KEPT_BEHIND + BATCH_ROWS, "a stage says what it keeps");
    assert!(KEPT_BEHIND >= BATCH_ROWS, "a sequence can go on from before its last batch");
};

/// By layer, how many positions its rows see, their own among them; a layer that is not here sees everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows(Arc<[Option<u32>]>);

impl Windows {
    /// From the first layer to the last.
    #[must_use]
    pub fn new(of_layers: impl IntoIterator<Item = Option<u32>>) -> Self {
        let of_layers: Vec<_> = of_layers.into_iter().collect();
        let slides = of_layers.iter().any(Option::is_some);
        if slides { Self(of_layers.into()) } else { Self::default() }
    }

    fn of(&self, layer: u32) -> Option<u32> {
        self.0.get(layer as usize).copied().flatten()
    }

    /// The page with the first position that the row at `position` sees.
    fn first_page(window: u32, position: Position) -> u32 {
        position.saturating_add(1).saturating_sub(window) / PAGE_POSITIONS
    }

    /// Pages, from the first, that `layer` needs no more when its sequence has had `reached` positions.
    #[must_use]
    pub fn behind(&self, layer: u32, reached: Position) -> u32 {
        let window = self.of(layer).map(|window| window.saturating_add(KEPT_BEHIND));
        window.map_or(0, |window| Self::first_page(window, reached))
    }

    /// Can a sequence that has had `reached` positions go on from position `to` in these layers? From the beginning it always can.
    #[must_use]
    pub fn can_cut(&self, layers: Layers, reached: Position, to: Position) -> bool {
        let is_there = |layer| {
            self.of(layer).is_none_or(|window| Self::first_page(window, to) >= self.behind(layer, reached))
        };
        to == 0 || self.0.is_empty() || layers.iter().all(is_there)
    }

    /// Pages that a sequence of `positions` positions takes in these layers, at most.
    #[must_use]
    pub fn pages(&self, layers: Layers, positions: Position) -> u32 {
        self.pages_of(layers, positions, Paging::OWN)
    }

    /// The same on a peer that counts as `paging` says.
    #[must_use]
    pub fn pages_of(&self, layers: Layers, positions: Position, paging: Paging) -> u32 {
        let Paging { page_positions, positions_behind, .. } = paging;
        let all = positions.div_ceil(page_positions);
        if self.0.is_empty() {
            return layers.len() * all;
        }
        // Neither end of what is kept need be that of a page.
        let kept =
            |window: u32| window.saturating_add(positions_behind).div_ceil(page_positions).saturating_add(1);
        layers.iter().map(|layer| self.of(layer).map_or(all, |window| all.min(kept(window)))).sum()
    }
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::Layers;

    use super::{BATCH_ROWS, KEPT_BEHIND, Windows};
    use crate::frame::PAGE_POSITIONS;

    const LAYERS: Layers = Layers { start: 0, end: 3 };

    fn mixed() -> Windows {
        Windows::new([Some(64), None, Some(100)])
    }

    #[test]
    fn without_windows_everything_is_kept() {
        for windows in [Windows::default(), Windows::new([None; 3])] {
            assert_eq!((windows.behind(1, 100_000), windows.pages(LAYERS, 100_000)), (0, 3 * 6250));
            assert!(windows.can_cut(LAYERS, 100_000, 1));
        }
    }

    /// However a sequence grows, a layer has no more pages than it is said to take, and all that rows see.
    #[test]
    fn no_layer_takes_more_than_is_counted_or_keeps_less_than_rows_see() {
        for (layer, window) in [(0, 64), (2, 100)] {
            let own = Layers::new(layer, layer + 1);
            for step in [1, 7, 16, 100, BATCH_ROWS] {
                let mut reached = 0;
                while reached < 3000 {
                    let behind = mixed().behind(layer, reached);
                    assert!(behind * PAGE_POSITIONS <= (reached + 1).saturating_sub(window));
                    reached += step;
                    let held = reached.div_ceil(PAGE_POSITIONS) - behind;
                    assert!(
                        held <= mixed().pages(own, reached),
                        "{held} pages of layer {layer} at {reached}"
                    );
                }
                assert!(mixed().pages(own, reached) < 40);
            }
        }
        assert_eq!(mixed().pages(Layers::new(1, 2), 3200), 200);
    }

    #[test]
    fn a_sequence_is_cut_as_far_as_hops_are_ahead_of_one_another_and_to_nothing() {
        let reached = 2000;
        assert!(mixed().can_cut(LAYERS, reached, reached - KEPT_BEHIND));
        assert!(!mixed().can_cut(LAYERS, reached, reached - KEPT_BEHIND - PAGE_POSITIONS));
        assert!(mixed().can_cut(LAYERS, reached, 0));
        assert!(mixed().can_cut(Layers::new(1, 2), reached, 1), "that layer has everything");
        assert!(mixed().can_cut(LAYERS, 300, 10), "nothing has been given back yet");
    }
}
