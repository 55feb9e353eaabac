//! What is to be laid out over which machines, and the planner's answer.

use dunlin_engine::memory::{MemoryBudget, Needs};
use dunlin_planner::{Layout, LayoutGoal, May, Member, Shortage, layout};
use dunlin_swarm::{ModelId, PeerState};
use dunlin_wire::convert::model_sizes;
use dunlin_worker::stage::model_facts;

use super::machines::Machine;

/// What is to be laid out.
#[derive(Clone)]
pub struct PlanQuestion<'a> {
    /// What the model takes, with the longest sequence.
    pub needs: Needs,
    /// That sequence, in positions.
    pub positions: u32,
    /// Width of a row.
    pub hidden: usize,
    /// Over these.
    pub machines: &'a [Machine],
    /// Other peers that keep each layer ready.
    pub shadows: usize,
}

impl PlanQuestion<'_> {
    /// The same with sequences of up to so many positions.
    pub fn with_positions(&self, positions: u32) -> Self {
        Self { needs: self.needs.with_positions(positions), positions, ..self.clone() }
    }

    /// As the planner is asked.
    pub fn wanted(&self) -> LayoutGoal {
        let sizes = model_sizes(model_facts(&self.needs, self.hidden, self.positions));
        LayoutGoal::of(ModelId::default(), sizes, self.machines.len(), self.shadows)
    }

    /// The machines as peers, each with so many bytes more.
    pub fn members(&self, more: u64) -> Vec<Member> {
        let member = |machine: &Machine| Member {
            name: machine.name.as_str().into(),
            pool: "machines".to_owned(),
            node: machine.name.clone(),
            spot: machine.spot,
            state: PeerState::Ready,
            room_bytes: MemoryBudget::new(machine.memory.saturating_add(more), self.needs.clone()).room(),
            ..Member::default()
        };
        self.machines.iter().map(member).collect()
    }

    /// The planner's answer, with so many bytes more on each machine. Nobody held anything before, so each may be given layers.
    ///
    /// # Errors
    /// A plan that breaks a rule, which would be a bug.
    pub fn laid(&self, more: u64) -> anyhow::Result<Layout> {
        let may = May { fill_gaps: false, grow: true, rebalance: false };
        Ok(layout(&self.wanted(), &self.members(more), None, may)?)
    }
}

/// All layers have a peer that has room for them.
pub fn covers(layout: &Layout) -> bool {
    layout.covered && !matches!(layout.shortage, Some(Shortage::Span { .. }))
}
