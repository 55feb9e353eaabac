//! The text about a swarm. Pure.

use std::collections::BTreeSet;

use dunlin_terminal::print::{BAD, FAINT, GOOD, STRONG, WARN, painted, table};
use dunlin_terminal::words::count;

use super::view::{PeerView, RunPodView, ServingView, StatusView, SwarmHeader, TrainingView};
use crate::layers::{LayerMap, words};

/// A swarm in some lines.
#[must_use]
pub fn render(view: &StatusView) -> String {
    let mut text = match view {
        StatusView::Serving(view) => serving(view),
        StatusView::Training(view) => training(view),
    };
    let unread = &view.head().unread;
    if !unread.is_empty() {
        text.push_str("\n\nnot looked at:");
        unread.iter().for_each(|why| text.push_str(&format!("\n    {why}")));
    }
    text
}

fn headline(head: &SwarmHeader) -> String {
    let (word, colour) = match (&head.degraded, head.ready) {
        (None, true) => ("Ready", GOOD),
        (Some(_), true) => ("Ready, below plan", WARN),
        (_, false) => ("not Ready", BAD),
    };
    let why = match &head.degraded {
        Some(missing) if head.ready => missing.clone(),
        _ if head.reason.is_empty() => "no operator has looked at it".to_owned(),
        _ => format!("{}, {}", head.reason, head.message),
    };
    format!("{} in {}: {} ({why})", painted(STRONG, &head.id), head.namespace, painted(colour, word))
}

fn serving(view: &ServingView) -> String {
    let mut lines = vec![headline(&view.head)];
    let layers = if view.layers == 0 {
        "layers not known yet".to_owned()
    } else {
        format!("{} layers, {} held, {} with shadows", view.layers, view.served, view.shadowed)
    };
    lines.push(format!(
        "model {}, plan {}: {layers}",
        if view.model.is_empty() { "-" } else { &view.model },
        view.epoch
    ));
    if !view.peers.is_empty() {
        lines.push(String::new());
        lines.push(map(&view.peers, view.layers));
        if view.layers > 0 {
            lines.push(LayerMap::of(view.layers).legend());
        }
    }
    lines.push(String::new());
    lines.push(gateways(view));
    match view.sessions {
        Some(sessions) => {
            let queued =
                if view.queued > 0 { format!(", {} of them waiting", view.queued) } else { String::new() };
            let speed = view.tokens_per_s.map_or(String::new(), |speed| format!(", {speed:.1} tokens/s"));
            lines.push(format!("{}{queued}{speed}", count(sessions, "session")));
            lines.push(recoveries(view));
        }
        None if view.gateways.is_empty() => {}
        None => {
            lines.push("sessions, tokens/s and recoveries not known: no gateway could be asked".to_owned())
        }
    }
    // Without a right the reason is the same for all.
    let silent: BTreeSet<&String> = view.gateways.iter().filter_map(|g| g.silent.as_ref()).collect();
    lines.extend(silent.iter().map(|why| format!("not asked: {why}")));
    lines.join("\n")
}

fn gateways(view: &ServingView) -> String {
    let url = if view.url.is_empty() { String::new() } else { format!(" at {}", view.url) };
    if !view.pods_known {
        return format!("gateways{url}");
    }
    let ready = view.gateways.iter().filter(|g| g.ready).count();
    format!("{ready} of {} ready{url}", count(view.gateways.len(), "gateway"))
}

fn recoveries(view: &ServingView) -> String {
    let total: u64 = view.recoveries.values().sum();
    if total == 0 {
        return "no recoveries since the gateways started".to_owned();
    }
    let by: Vec<String> =
        view.recoveries.iter().filter(|(_, n)| **n > 0).map(|(why, n)| format!("{n} {why}")).collect();
    let last = view.last_recovery.as_ref().map_or(String::new(), |last| format!("; the last {last}"));
    format!(
        "{} since the gateways started: {}{last}",
        number_of(total, "recovery", "recoveries"),
        by.join(", ")
    )
}

fn number_of(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// Peers and their layers.
fn map(peers: &[PeerView], layers: u32) -> String {
    let map = LayerMap::of(layers);
    let [a, b, c, d, e, f] = ["PEER", "NODE", "POOL", "KIND", "STATE", "LAYERS"].map(str::to_owned);
    let mut rows = vec![[a, b, c, d, e, f, map.scale()]];
    for peer in peers {
        rows.push([
            peer.name.clone(),
            or_dash(&peer.node),
            peer.pool.clone(),
            kind(peer.spot).to_owned(),
            peer.state.clone(),
            words(&[peer.span], "-"),
            map.row(peer.span, &peer.shadows),
        ]);
    }
    table(&rows)
}

fn kind(spot: bool) -> &'static str {
    if spot { "spot" } else { "steady" }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn training(view: &TrainingView) -> String {
    let mut lines = vec![headline(&view.head)];
    let number = |name: &str, value: Option<f64>, places: usize| {
        value.map_or(String::new(), |value| format!(", {name} {value:.places$}"))
    };
    lines.push(format!(
        "step {} of {}{}{}{}",
        view.step,
        view.steps,
        number("loss", view.loss, 4),
        number("validation loss", view.validation_loss, 4),
        number("tokens/s", view.tokens_per_s, 0)
    ));
    lines.push(match &view.checkpoint {
        Some((step, path)) => format!("last checkpoint: step {step}, {path}"),
        None => "no checkpoint yet".to_owned(),
    });
    let [redone, lost, moved] = view.redone_lost_moved;
    lines.push(format!(
        "{} computed again, {} lost without notice, {}",
        number_of(redone, "microbatch", "microbatches"),
        number_of(lost, "peer", "peers"),
        number_of(moved, "move", "moves")
    ));
    lines.push(String::new());
    let mut rows =
        vec![["STAGE", "LAYERS", "PEER", "NODE", "POOL", "KIND", "STATE", "ROWS/S"].map(str::to_owned)];
    for stage in &view.stages {
        let named = |i: usize| {
            if i == 0 { [stage.stage.to_string(), stage.layers.clone()] } else { Default::default() }
        };
        if stage.members.is_empty() {
            let [number, layers] = named(0);
            let peers = count(stage.peers as usize, "peer");
            rows.push([
                number,
                layers,
                peers,
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
        for (i, member) in stage.members.iter().enumerate() {
            rows.push(row(named(i), member));
        }
    }
    rows.extend(view.others.iter().map(|other| row([other.role.clone(), String::new()], other)));
    lines.push(table(&rows));
    lines.extend(view.silent.iter().map(|why| format!("\nnot asked: {why}")));
    if !view.notes.is_empty() {
        lines.push(String::new());
        lines.extend(view.notes.iter().map(|note| painted(FAINT, note)));
    }
    lines.join("\n")
}

fn row([stage, layers]: [String; 2], member: &RunPodView) -> [String; 8] {
    let kind = if member.pool.is_empty() { "-" } else { kind(member.spot) };
    [
        stage,
        layers,
        member.name.clone(),
        or_dash(&member.node),
        or_dash(&member.pool),
        kind.to_owned(),
        member.state.clone(),
        member.rows_per_s.map_or_else(|| "-".to_owned(), |rows| format!("{rows:.1}")),
    ]
}

#[cfg(test)]
mod tests;
