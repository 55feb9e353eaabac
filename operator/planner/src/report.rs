//! A plan for people: a table of peers, short enough for a status.

use std::fmt::Write;

use dunlin_swarm::{Layers, TopologyPeer, layer_set};

use crate::cut::unusual;
use crate::layout::Layout;
use crate::member::Member;
use crate::wanted::LayoutGoal;

/// Longest report, in characters.
pub const REPORT_MAX: usize = 1024;
/// Peers of unusual speed that are named.
const UNUSUAL_MAX: usize = 4;

/// One line about the whole, then a table of the peers in the order of the pipeline, as many as fit into [`REPORT_MAX`] characters.
#[must_use]
pub fn report(layout: &Layout, wanted: &LayoutGoal, members: &[Member]) -> String {
    let mut peers: Vec<&TopologyPeer> = layout.topology.peers.iter().collect();
    peers.sort_by_key(|p| (p.span.is_empty(), p.span.start, &p.name));
    let stages = peers.iter().filter(|p| !p.span.is_empty()).count();
    let mut out = format!("{stages} peers execute {} layers; {}", layout.topology.layers, layout.reason);
    if layout.covered && !layout.settled {
        out.push_str("; layers are being loaded");
    }
    let by_name = |peer: &TopologyPeer| members.iter().find(|m| m.name == peer.name);
    let unusual = unusual(members);
    if !unusual.is_empty() {
        let mut words: Vec<String> = unusual
            .iter()
            .take(UNUSUAL_MAX)
            .map(|(name, percent)| format!("{name} at {percent} %"))
            .collect();
        if unusual.len() > UNUSUAL_MAX {
            words.push(format!("{} more", unusual.len() - UNUSUAL_MAX));
        }
        // Writing to a String cannot fail.
        let _ = write!(out, "; not of the usual speed: {}", words.join(", "));
    }
    let mut rows = vec![["PEER", "ZONE", "LAYERS", "SHADOWS", "MIB"].map(str::to_owned)];
    for peer in peers {
        let need = wanted.need(peer.span, &layer_set(&peer.shadows));
        let room = by_name(peer).map(|m| m.room_bytes).filter(|room| *room < u64::MAX);
        let zone = if peer.zone.is_empty() { "-" } else { peer.zone.as_str() };
        rows.push([
            peer.name.to_string(),
            zone.to_owned(),
            words(&[peer.span]),
            words(&peer.shadows),
            format!("{}/{}", need >> 20, room.map_or("-".to_owned(), |room| (room >> 20).to_string())),
        ]);
    }
    let widths: Vec<usize> =
        (0..4).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::from("\n");
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        line.push_str(&row[4]);
        let rest = format!("\nand {} more", rows.len() - i);
        let last = i + 1 == rows.len();
        let room = REPORT_MAX.saturating_sub(out.chars().count() + if last { 0 } else { rest.len() });
        if line.chars().count() > room {
            out.push_str(&rest);
            break;
        }
        out.push_str(&line);
    }
    out.chars().take(REPORT_MAX).collect()
}

/// `0-9,20-29`, or `-` for none.
fn words(layers: &[Layers]) -> String {
    let shown: Vec<String> = layers
        .iter()
        .filter(|l| !l.is_empty())
        .map(|l| if l.len() == 1 { l.start.to_string() } else { format!("{}-{}", l.start, l.end - 1) })
        .collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_swarm::Topology;

    #[test]
    fn a_large_swarm_is_cut_off_with_the_number_of_the_rest() {
        let peers: Vec<TopologyPeer> = (0..500)
            .map(|i| TopologyPeer {
                name: format!("smollm2-spot-{i:05}").into(),
                span: Layers::new(i, i + 1),
                ..TopologyPeer::default()
            })
            .collect();
        let topology = Topology { epoch: 1, layers: 500, peers, ..Topology::default() };
        let layout = Layout { topology, ..Layout::default() };
        let text = report(&layout, &LayoutGoal::default(), &[]);
        assert!(text.chars().count() <= REPORT_MAX, "{}", text.len());
        let rows = text.lines().filter(|l| l.starts_with("smollm2")).count();
        assert!(text.ends_with(&format!("\nand {} more", 500 - rows)), "{text}");
    }
}
