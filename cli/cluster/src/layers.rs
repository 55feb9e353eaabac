//! Layers in words and as a picture. Pure.

use dunlin_swarm::{Layers, layer_set};
use dunlin_terminal::print::{FAINT, GOOD, painted};

/// Widest row of the picture. A larger model has several layers in a place.
const PLACES_MAX: u32 = 64;
/// Places between two numbers of the scale.
const SCALE: usize = 10;

/// `0-9,20`, the last ones included; `none` for none.
#[must_use]
pub fn words(layers: &[Layers], none: &str) -> String {
    let layers = layers.iter().filter(|of| !of.is_empty());
    let shown: Vec<String> = layers
        .map(|of| if of.len() == 1 { of.start.to_string() } else { format!("{}-{}", of.start, of.end - 1) })
        .collect();
    if shown.is_empty() { none.to_owned() } else { shown.join(",") }
}

/// A picture with a column for each layer, or for several where there are many.
#[derive(Clone, Copy, Debug)]
pub struct LayerMap {
    layers: u32,
    each: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Executes,
    Shadows,
    Nothing,
}

impl Does {
    fn drawn(self, count: usize) -> String {
        match self {
            Self::Executes => painted(GOOD, &"█".repeat(count)),
            Self::Shadows => "░".repeat(count),
            Self::Nothing => painted(FAINT, &"·".repeat(count)),
        }
    }
}

impl LayerMap {
    /// Of a model with so many layers.
    #[must_use]
    pub fn of(layers: u32) -> Self {
        Self { layers, each: layers.div_ceil(PLACES_MAX).max(1) }
    }

    /// The number of the first layer of every tenth column.
    #[must_use]
    pub fn scale(self) -> String {
        let places = (0..self.layers.div_ceil(self.each)).step_by(SCALE);
        let scale: String = places.map(|place| format!("{:<SCALE$}", place * self.each)).collect();
        scale.trim_end().to_owned()
    }

    /// The row of a peer.
    #[must_use]
    pub fn row(self, span: Layers, shadows: &[Layers]) -> String {
        let shadows = layer_set(shadows);
        let does = (0..self.layers.div_ceil(self.each)).map(|place| {
            let here = Layers::new(place * self.each, (place + 1) * self.each);
            match () {
                () if span.intersects(here) => Does::Executes,
                () if here.iter().any(|layer| shadows.contains(&layer)) => Does::Shadows,
                () => Does::Nothing,
            }
        });
        let does: Vec<Does> = does.collect();
        does.chunk_by(|a, b| a == b).map(|run| run[0].drawn(run.len())).collect()
    }

    /// What the places mean.
    #[must_use]
    pub fn legend(self) -> String {
        let (executes, shadows) = (Does::Executes.drawn(1), Does::Shadows.drawn(1));
        let scale = if self.each > 1 { format!("   ({} layers a place)", self.each) } else { String::new() };
        format!("{executes} executes   {shadows} keeps ready for others{scale}")
    }
}

#[cfg(test)]
mod tests {
    use dunlin_terminal::print::plain;

    use super::*;

    #[test]
    fn layers_are_told_with_the_last_one_included() {
        let layers = [Layers::new(0, 10), Layers::new(20, 21), Layers::default()];
        assert_eq!((words(&layers, "-").as_str(), words(&[], "-").as_str()), ("0-9,20", "-"));
    }

    #[test]
    fn with_many_layers_a_place_stands_for_several() {
        let map = LayerMap::of(120);
        let row = plain(&map.row(Layers::new(0, 40), &[Layers::new(40, 60)]));
        assert_eq!(row, format!("{}{}{}", "█".repeat(20), "░".repeat(10), "·".repeat(30)));
        assert_eq!(map.scale(), "0         20        40        60        80        100");
        assert!(map.legend().ends_with("(2 layers a place)") && !LayerMap::of(64).legend().contains('('));
        assert_eq!(
            (LayerMap::of(0).row(Layers::default(), &[]), LayerMap::of(0).scale()),
            Default::default()
        );
    }
}
