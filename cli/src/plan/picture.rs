//! A plan for people: layers by peers, then memory, sessions and losses as tables.

use std::fmt::Write as _;

use dunlin_kubectl::layers::{LayerMap, words};
use dunlin_terminal::print::{FAINT, STRONG, WARN, painted, table};

use super::outcome::{Consequence, PeerPlan, PlanOutcome};
use crate::size;

/// The whole of it.
#[must_use]
pub fn draw(plan: &PlanOutcome) -> String {
    let mut out = format!(
        "{} layers on {} {}, sequences of up to {} positions\n\n",
        plan.layers,
        plan.peers.len(),
        if plan.peers.len() == 1 { "machine" } else { "machines" },
        plan.positions
    );
    map(&mut out, plan);
    section(&mut out, "Memory", memory(&plan.peers));
    let sessions = plan.sessions.iter().map(|of| {
        let room = if of.sessions == 0 { painted(WARN, "0") } else { of.sessions.to_string() };
        vec![of.positions.to_string(), room, of.bound_by.clone()]
    });
    section(&mut out, "Sessions at once", rows(&["POSITIONS", "SESSIONS", "LEAST ROOM AT"], sessions));
    section(&mut out, "Losses", rows(&["LOST", "WHAT HAPPENS"], plan.losses.iter().map(loss)));
    // Writing to a String cannot fail.
    let _ = write!(out, "\n{}\n  {}", painted(STRONG, "Why"), plan.reason);
    for finding in &plan.findings {
        let _ = write!(out, "\n  {}", painted(WARN, finding));
    }
    out
}

fn section(out: &mut String, head: &str, rows: Vec<Vec<String>>) {
    out.push_str(&format!("\n{}\n", painted(STRONG, head)));
    for line in table(&rows).lines() {
        out.push_str(&format!("  {line}\n"));
    }
}

fn rows(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let head = head.iter().map(|word| painted(FAINT, word)).collect();
    std::iter::once(head).chain(rows).collect()
}

/// A row for each peer: what it executes, what it keeps ready.
fn map(out: &mut String, plan: &PlanOutcome) {
    let map = LayerMap::of(plan.layers);
    let label = |peer: &PeerPlan| format!("{}{}", peer.name, if peer.spot { " spot" } else { "" });
    let width = plan.peers.iter().map(|peer| label(peer).len()).max().unwrap_or(0);
    out.push_str(&format!("  {:width$}  {}\n", "", painted(FAINT, &map.scale())));
    for peer in &plan.peers {
        out.push_str(&format!("  {:width$}  {}\n", label(peer), map.row(peer.span, &peer.shadows)));
    }
    out.push_str(&format!("  {:width$}  {}\n", "", map.legend()));
}

fn memory(peers: &[PeerPlan]) -> Vec<Vec<String>> {
    let head = [
        "PEER",
        "LAYERS",
        "SHADOWS",
        "ALL",
        "WEIGHTS",
        "SHADOWS",
        "KV CACHE",
        "JOURNALS",
        "PROCESS, BUFFERS",
    ];
    let row = |peer: &PeerPlan| {
        let bytes = [
            peer.memory_bytes,
            peer.weight_bytes,
            peer.shadow_bytes,
            peer.kv_bytes,
            peer.journal_bytes,
            peer.other_bytes,
        ];
        let names = [peer.name.clone(), words(&[peer.span], "-"), words(&peer.shadows, "-")];
        names.into_iter().chain(bytes.map(size::show)).collect()
    };
    rows(&head, peers.iter().map(row))
}

fn loss(loss: &Consequence) -> Vec<String> {
    let happens = match (loss.unheld.is_empty(), loss.taken_over_by.is_empty()) {
        (true, true) => "nothing".to_owned(),
        (true, false) => format!("answers go on at {}", loss.taken_over_by.join(", ")),
        (false, _) => painted(
            WARN,
            &format!(
                "nobody holds layers {}: answers wait until another peer has read them",
                words(&loss.unheld, "-")
            ),
        ),
    };
    vec![loss.peers.join(", "), happens]
}
