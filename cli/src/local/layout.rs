//! Who executes and who keeps what, on one machine: planned like the operator plans it in a cluster.

use anyhow::bail;
use dunlin_planner::{LayoutGoal, May, Member, layout, lint};
use dunlin_swarm::{Layers, ModelId, PeerState, Topology};
use dunlin_wire::convert::model_sizes;
use dunlin_wire::proto;
use tracing::debug;

/// Replacements come at once, so nobody shares a gap; and processes of one machine are equally fast.
const MAY: May = May { fill_gaps: false, grow: true, rebalance: false };

/// The topology for `stages`, each with its address and what it said last; `previous` while none has read its model.
///
/// # Errors
/// A topology that breaks a rule.
pub fn plan(
    stages: &[(String, &proto::Status)],
    previous: &Topology,
    peers: usize,
    shadows: usize,
) -> anyhow::Result<Topology> {
    let members: Vec<Member> = stages.iter().map(|(addr, status)| member(addr, status)).collect();
    let Some(model) = stages.iter().find_map(|(_, status)| status.model.clone()) else {
        return Ok(previous.clone());
    };
    let wanted = LayoutGoal::of(ModelId::default(), model_sizes(model), peers, shadows);
    // What does not fit into a stage's memory the stage refuses itself, in words for whoever started it.
    let planned = layout(&wanted, &members, Some(previous), MAY)?;
    let findings = lint(&planned.topology, &wanted, &members);
    if let Some(error) = findings.iter().find(|f| f.is_error()) {
        bail!("{error}");
    }
    debug!(reason = %planned.reason, ?findings, "planned");
    Ok(planned.topology)
}

fn member(addr: &str, status: &proto::Status) -> Member {
    let held = status.load.iter().flat_map(|load| &load.held);
    Member {
        name: status.name.as_str().into(),
        addr: addr.to_owned(),
        pool: "local".to_owned(),
        // Processes are lost one by one.
        node: status.name.clone(),
        state: match status.state() {
            proto::State::Ready => PeerState::Ready,
            proto::State::Draining => PeerState::Draining,
            _ => PeerState::Loading,
        },
        room_bytes: if status.room_bytes > 0 { status.room_bytes } else { u64::MAX },
        held: held.map(|l| Layers::new(l.start, l.end)).collect(),
        ..Member::default()
    }
}
