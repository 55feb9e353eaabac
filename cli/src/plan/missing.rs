//! What is missing when a model does not fit: the least that would do, in each of the ways in which somebody can help.

use std::fmt;

use dunlin_planner::{Layout, Shortage};
use serde::Serialize;

use super::question::{PlanQuestion, covers};
use crate::size;

/// Steps in which memory is counted.
const STEP: u64 = 1 << 20;
/// More than this is not asked for.
const MORE_MAX: u64 = 64 << 40;
/// Sequences shorter than this are of no use to anybody, and lengths are told in steps of it.
const POSITIONS: u32 = 256;

/// It does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Of the model.
    layers: u32,
    /// Longest sequence.
    positions: u32,
    /// Machines.
    machines: usize,
    /// On all of them.
    memory_bytes: u64,
    /// With so much more on each machine it would fit.
    more_bytes_each: Option<u64>,
    /// On so many machines like the largest it would fit.
    machines_like_the_largest: Option<u32>,
    /// With sequences of up to so many positions it would fit.
    positions_that_fit: Option<u32>,
}

impl Missing {
    /// Looks for it.
    pub(super) fn of(question: &PlanQuestion<'_>) -> anyhow::Result<Self> {
        let most = question.members(0).iter().map(|member| member.room_bytes).max().unwrap_or(0);
        let wanted = question.wanted();
        Ok(Self {
            layers: wanted.layers(),
            positions: question.positions,
            machines: question.machines.len(),
            memory_bytes: question.machines.iter().map(|machine| machine.memory).sum(),
            more_bytes_each: least(|more| Ok(covers(&question.laid(more)?)))?,
            machines_like_the_largest: wanted.peers_with(most),
            positions_that_fit: longest(question.positions, |positions| {
                Ok(covers(&question.with_positions(positions).laid(0)?))
            })?,
        })
    }

    /// The words for shadows that have no room, if there are such.
    pub(super) fn for_shadows(
        question: &PlanQuestion<'_>,
        layout: &Layout,
    ) -> anyhow::Result<Option<String>> {
        let Some(Shortage::Shadows(count)) = &layout.shortage else { return Ok(None) };
        let more = least(|more| Ok(question.laid(more)?.shortage.is_none()))?;
        let remedy = more.map_or_else(String::new, |more| {
            format!(": with {} more on each machine there is", size::show(more))
        });
        Ok(Some(format!("there is no room for {count} shadow layers{remedy}")))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, positions, machines, memory_bytes, .. } = self;
        write!(
            f,
            "{layers} layers, with the KV cache of one sequence of {positions} positions, do not fit into {} on {machines} {}",
            size::show(*memory_bytes),
            if *machines == 1 { "machine" } else { "machines" },
        )?;
        let mut ways = Vec::new();
        ways.extend(self.more_bytes_each.map(|more| format!("with {} more on each", size::show(more))));
        ways.extend(
            self.machines_like_the_largest.map(|count| format!("on {count} machines like the largest")),
        );
        ways.extend(self.positions_that_fit.map(|positions| format!("with --max-seq-len {positions}")));
        match ways.as_slice() {
            [] => f.write_str(": no memory that machines have suffices"),
            ways => write!(f, "; they would {}", ways.join(", or ")),
        }
    }
}

impl std::error::Error for Missing {}

/// The least memory that suffices, in whole [`STEP`]s.
fn least(mut suffices: impl FnMut(u64) -> anyhow::Result<bool>) -> anyhow::Result<Option<u64>> {
    let mut enough = STEP;
    while !suffices(enough)? {
        enough *= 2;
        if enough > MORE_MAX {
            return Ok(None);
        }
    }
    let mut short = enough / 2 / STEP * STEP;
    while enough - short > STEP {
        let middle = (short + (enough - short) / 2) / STEP * STEP;
        if suffices(middle)? { enough = middle } else { short = middle }
    }
    Ok(Some(enough))
}

/// The longest length below `positions` that fits, in whole steps.
fn longest(positions: u32, mut fits: impl FnMut(u32) -> anyhow::Result<bool>) -> anyhow::Result<Option<u32>> {
    let (mut short, mut long) = (0, positions.div_ceil(POSITIONS));
    while long - short > 1 {
        let middle = short + (long - short) / 2;
        if fits(middle * POSITIONS)? { short = middle } else { long = middle }
    }
    Ok((short > 0).then_some(short * POSITIONS))
}

#[cfg(test)]
mod tests {
    use super::{STEP, least, longest};

    #[test]
    fn the_least_that_suffices_is_found_to_the_step() {
        for enough in [1, 2, 3, 1000, 123_457] {
            assert_eq!(least(|more| Ok(more >= enough * STEP)).unwrap(), Some(enough * STEP));
        }
        assert_eq!(least(|_| Ok(false)).unwrap(), None);
    }

    #[test]
    fn the_longest_length_that_fits_is_found_to_the_step() {
        assert_eq!(longest(8192, |positions| Ok(positions <= 3000)).unwrap(), Some(2816));
        assert_eq!(longest(8192, |positions| Ok(positions < 8192)).unwrap(), Some(7936));
        assert_eq!(longest(8192, |positions| Ok(positions < 256)).unwrap(), None);
    }
}
