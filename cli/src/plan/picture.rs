//! A plan for people: layers by peers, then memory, sessions and losses as tables.

use std::fmt::Write as _;

use dunlin_swarm::Layers;

use super::outcome::{Loss, PeerPlan, Plan};
use crate::print::{FAINT, GOOD, STRONG, WARN, painted, table};
use crate::size;

/// Widest row of the picture. A larger model has several layers in a place.
const PLACES_MAX: u32 = 80;
/// Places between two numbers of the scale.
const SCALE: usize = 10;

/// The whole of it.
#[must_use]
pub fn draw(plan: &Plan) -> String {
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
fn map(out: &mut String, plan: &Plan) {
    let each = plan.layers.div_ceil(PLACES_MAX).max(1);
    let places = plan.layers.div_ceil(each);
    let label = |peer: &PeerPlan| format!("{}{}", peer.name, if peer.spot { " spot" } else { "" });
    let width = plan.peers.iter().map(|peer| label(peer).len()).max().unwrap_or(0);
    let scale = (0..places).step_by(SCALE).map(|place| format!("{:<SCALE$}", place * each));
    let scale: String = scale.collect();
    out.push_str(&format!("  {:width$}  {}\n", "", painted(FAINT, scale.trim_end())));
    for peer in &plan.peers {
        let touches = |of: &Layers, place: u32| of.intersects(Layers::new(place * each, (place + 1) * each));
        let places = (0..places).map(|place| match () {
            () if touches(&peer.span, place) => Place::Executes,
            () if peer.shadows.iter().any(|shadow| touches(shadow, place)) => Place::Shadows,
            () => Place::Nothing,
        });
        let places: Vec<Place> = places.collect();
        let runs = places.chunk_by(|a, b| a == b).map(|run| run[0].drawn(run.len()));
        out.push_str(&format!("  {:width$}  {}\n", label(peer), runs.collect::<String>()));
    }
    let legend = format!(
        "{} executes   {} keeps ready for others{}",
        Place::Executes.drawn(1),
        Place::Shadows.drawn(1),
        if each > 1 { format!("   ({each} layers a place)") } else { String::new() }
    );
    out.push_str(&format!("  {:width$}  {legend}\n", ""));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Executes,
    Shadows,
    Nothing,
}

impl Place {
    fn drawn(self, count: usize) -> String {
        match self {
            Self::Executes => painted(GOOD, &"█".repeat(count)),
            Self::Shadows => "░".repeat(count),
            Self::Nothing => painted(FAINT, &"·".repeat(count)),
        }
    }
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
        let names = [peer.name.clone(), words(&[peer.span]), words(&peer.shadows)];
        names.into_iter().chain(bytes.map(size::show)).collect()
    };
    rows(&head, peers.iter().map(row))
}

fn loss(loss: &Loss) -> Vec<String> {
    let happens = match (loss.unheld.is_empty(), loss.taken_over_by.is_empty()) {
        (true, true) => "nothing".to_owned(),
        (true, false) => format!("answers go on at {}", loss.taken_over_by.join(", ")),
        (false, _) => painted(
            WARN,
            &format!(
                "nobody holds layers {}: answers wait until another peer has read them",
                words(&loss.unheld)
            ),
        ),
    };
    vec![loss.peers.join(", "), happens]
}

/// `0-9,20-29`, or `-` for none.
fn words(layers: &[Layers]) -> String {
    let layers = layers.iter().filter(|of| !of.is_empty());
    let shown: Vec<String> = layers
        .map(|of| if of.len() == 1 { of.start.to_string() } else { format!("{}-{}", of.start, of.end - 1) })
        .collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join(",") }
}
