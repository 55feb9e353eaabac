//! What the planner says. Pure.

use dunlin_planner::{May, layout, lint};
use dunlin_swarm::{Layers, Topology};
use dunlin_terminal::print::table;
use dunlin_terminal::words::count;
use serde::Serialize;

use super::inputs::{ASSUMED, Inputs};
use crate::layers::words;

/// What a peer without layers has.
const NONE: &str = "nothing";

/// What would be planned now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlanView {
    /// `inferenceswarm/smollm2`.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Number of the plan that is published.
    pub epoch: u64,
    /// Another one would follow it.
    pub changes: bool,
    /// Why the layers are where they are.
    pub reason: String,
    /// What would be done later if nothing comes that is waited for.
    pub later: Option<String>,
    /// What happens with pods, by pool.
    pub pools: Vec<String>,
    /// Peers in the order of their layers.
    pub peers: Vec<PeerChange>,
    /// What is not as it should be with that plan.
    pub findings: Vec<String>,
    /// What could not be asked, and why: peers and gateways are then taken to hold what they were told to.
    pub unread: Vec<String>,
}

/// A peer, before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerChange {
    /// Pod name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Layers that it would compute.
    pub span: Layers,
    /// Layers that it would hold for others.
    pub shadows: Vec<Layers>,
    /// `as it is`, or what changes.
    pub change: String,
}

/// What is planned for the swarm `id`, whose last plan is `before`.
///
/// # Errors
/// When the planner refuses what it is given, in its words.
pub fn view(id: &str, namespace: &str, before: &Topology, inputs: &Inputs) -> Result<PlanView, String> {
    let plan =
        |may: May| layout(&inputs.wanted, &inputs.members, Some(before), may).map_err(|e| e.to_string());
    let now = plan(May::default())?;
    let later = if now.covered && now.spare == 0 {
        None
    } else {
        let later = plan(May { fill_gaps: true, grow: true, rebalance: false })?;
        (later.topology != now.topology).then(|| later.reason.to_string())
    };
    let peer = |name: &str| before.peers.iter().find(|p| p.name.as_str() == name);
    let mut peers: Vec<PeerChange> = now
        .topology
        .peers
        .iter()
        .map(|p| {
            let change = match peer(p.name.as_str()) {
                None => "new".to_owned(),
                Some(old) if old.span != p.span => format!("computes {} now", words(&[old.span], NONE)),
                Some(old) if old.shadows != p.shadows => {
                    format!("holds {} for others now", words(&old.shadows, NONE))
                }
                Some(old) if old.state != p.state => format!("{:?} before", old.state).to_lowercase(),
                Some(_) => "as it is".to_owned(),
            };
            PeerChange {
                name: p.name.to_string(),
                node: p.node.clone(),
                span: p.span,
                shadows: p.shadows.clone(),
                change,
            }
        })
        .collect();
    peers.sort_by_key(|p| (p.span.is_empty(), p.span.start, p.name.clone()));
    let gone = before.peers.iter().filter(|old| now.topology.peer(&old.name).is_none());
    peers.extend(gone.map(|old| PeerChange {
        name: old.name.to_string(),
        node: old.node.clone(),
        change: format!("goes; computed {}", words(&[old.span], NONE)),
        ..PeerChange::default()
    }));
    let findings = lint(&now.topology, &inputs.wanted, &inputs.members);
    let shortage = now.shortage.as_ref().map(ToString::to_string);
    Ok(PlanView {
        id: id.to_owned(),
        namespace: namespace.to_owned(),
        epoch: before.epoch,
        changes: now.topology.epoch != before.epoch,
        reason: now.reason.to_string(),
        later,
        pools: inputs.pools.iter().map(pool).collect(),
        peers,
        findings: shortage.into_iter().chain(findings.iter().map(ToString::to_string)).collect(),
        unread: Vec::new(),
    })
}

fn pool((name, wanted, there, homeless): &(String, u32, usize, usize)) -> String {
    let wanted = *wanted as usize;
    let change = match wanted.cmp(there) {
        std::cmp::Ordering::Greater => format!(", {} to be made", wanted - there),
        std::cmp::Ordering::Less => format!(", {} to go, unless they stand in for others", there - wanted),
        std::cmp::Ordering::Equal => String::new(),
    };
    let homeless = if *homeless > 0 { format!(", {homeless} without a node") } else { String::new() };
    format!("pool {name}: {} wanted, {there} there{change}{homeless}", count(wanted, "peer"))
}

impl PlanView {
    /// The plan for people.
    #[must_use]
    pub fn text(&self) -> String {
        let head = if self.changes {
            format!("plan {} would follow plan {}: {}", self.epoch + 1, self.epoch, self.reason)
        } else {
            format!("plan {} stays: {}", self.epoch, self.reason)
        };
        let mut lines = vec![format!("{} in {}: {head}", self.id, self.namespace)];
        lines.extend(self.later.iter().map(|later| format!("later, if nothing comes: {later}")));
        lines.extend(self.pools.iter().cloned());
        let mut rows = vec![["PEER", "NODE", "LAYERS", "SHADOWS", "CHANGE"].map(str::to_owned)];
        let row = |p: &PeerChange| {
            [
                p.name.clone(),
                p.node.clone(),
                words(&[p.span], NONE),
                words(&p.shadows, NONE),
                p.change.clone(),
            ]
        };
        rows.extend(self.peers.iter().map(row));
        lines.extend([String::new(), table(&rows), String::new()]);
        if self.findings.is_empty() {
            lines.push("nothing is wrong with this plan".to_owned());
        }
        lines.extend(self.findings.iter().map(|finding| format!("! {finding}")));
        lines.push(ASSUMED.to_owned());
        lines.extend(self.unread.iter().map(|why| format!("not asked, and taken as planned: {why}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use dunlin_planner::{LayoutGoal, Member};
    use dunlin_swarm::PeerState;

    use super::*;

    fn member(i: u32, held: Layers) -> Member {
        Member {
            name: format!("m-spot-{i}").into(),
            node: format!("n{i}"),
            pool: "spot".into(),
            state: PeerState::Ready,
            room_bytes: u64::MAX,
            held: vec![held],
            ..Member::default()
        }
    }

    fn planned(members: Vec<Member>, before: &Topology) -> PlanView {
        let wanted = LayoutGoal { layer_bytes: vec![1; 30], peers: 3, shadows: 1, ..LayoutGoal::default() };
        let there = members.len();
        let inputs = Inputs { wanted, members, pools: vec![("spot".into(), 3, there, 0)] };
        view("inferenceswarm/m", "default", before, &inputs).unwrap()
    }

    #[test]
    fn what_is_as_planned_stays_and_a_lost_peer_is_waited_for() {
        let all = Layers::new(0, 30);
        let members: Vec<Member> = (1..=3).map(|i| member(i, all)).collect();
        let wanted = LayoutGoal { layer_bytes: vec![1; 30], peers: 3, shadows: 1, ..LayoutGoal::default() };
        // The first plan gives places, the second forgets what was held before.
        let first = layout(&wanted, &members, None, May::default()).unwrap().topology;
        let before = layout(&wanted, &members, Some(&first), May::default()).unwrap().topology;
        let same = planned(members.clone(), &before);
        assert!(!same.changes && same.later.is_none(), "{same:?}");
        assert!(same.peers.iter().all(|p| p.change == "as it is"), "{same:?}");
        assert_eq!(same.pools, ["pool spot: 3 peers wanted, 3 there"]);

        let lost = planned(members[..2].to_vec(), &before);
        let text = lost.text();
        assert!(text.contains("a lost peer's layers run from shadows until a replacement joins"), "{text}");
        assert!(text.contains("later, if nothing comes: cut anew because no replacement came"), "{text}");
        assert!(text.contains("pool spot: 3 peers wanted, 2 there, 1 to be made"), "{text}");
        assert!(text.contains("m-spot-3  n3    nothing") && text.contains("goes; computed "), "{text}");
        assert!(text.contains("! layers [") && text.contains("run from shadows"), "{text}");
    }
}
