//! The text about a swarm. Pure.

use dunlin_swarm::{Layers, layer_set};

use super::view::{Head, MemberView, PeerView, ServingView, TrainingView, View};
use crate::output::{Colour, Output, count, table};

/// Characters of a map of layers; with more layers than that a character stands for several.
const MAP_MAX: u32 = 64;
/// A number above the map for every so many characters.
const RULER: u32 = 10;

/// A swarm in some lines.
#[must_use]
pub fn render(view: &View, output: &Output) -> String {
    match view {
        View::Serving(view) => serving(view, output),
        View::Training(view) => training(view, output),
    }
}

fn headline(head: &Head, output: &Output) -> String {
    let (word, colour) = match (&head.degraded, head.ready) {
        (None, true) => ("Ready", Colour::Green),
        (Some(_), true) => ("Ready, below plan", Colour::Yellow),
        (_, false) => ("not Ready", Colour::Red),
    };
    let why = match &head.degraded {
        Some(missing) if head.ready => missing.clone(),
        _ if head.reason.is_empty() => "no operator has looked at it".to_owned(),
        _ => format!("{}, {}", head.reason, head.message),
    };
    format!(
        "{} in {}: {} ({why})",
        output.paint(Colour::Bold, &head.id),
        head.namespace,
        output.paint(colour, word)
    )
}

fn serving(view: &ServingView, output: &Output) -> String {
    let mut lines = vec![headline(&view.head, output)];
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
            let each = view.layers.div_ceil(MAP_MAX);
            let scale = if each > 1 { format!(", {each} layers a character") } else { String::new() };
            lines.push(output.paint(Colour::Dim, &format!("█ computes  ░ holds for others{scale}")));
        }
    }
    lines.push(String::new());
    let ready = view.gateways.iter().filter(|g| g.ready).count();
    lines.push(format!("{} of {} ready{}", ready, count(view.gateways.len(), "gateway"), url(&view.url)));
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
    lines.extend(view.gateways.iter().filter_map(|g| Some(format!("not asked: {}", g.silent.as_ref()?))));
    lines.join("\n")
}

fn url(url: &str) -> String {
    if url.is_empty() { String::new() } else { format!(" at {url}") }
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
    let head = ["PEER", "NODE", "POOL", "KIND", "STATE", "LAYERS"].map(str::to_owned);
    let [a, b, c, d, e, f] = head;
    let mut rows = vec![[a, b, c, d, e, f, ruler(layers)]];
    for peer in peers {
        rows.push([
            peer.name.clone(),
            or_dash(&peer.node),
            peer.pool.clone(),
            kind(peer.spot).to_owned(),
            peer.state.clone(),
            words(peer.span),
            cells(peer, layers),
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

fn words(layers: Layers) -> String {
    match layers.len() {
        0 => "-".to_owned(),
        1 => layers.start.to_string(),
        _ => format!("{}-{}", layers.start, layers.end - 1),
    }
}

/// The number of the first layer of every tenth character.
fn ruler(layers: u32) -> String {
    let each = layers.div_ceil(MAP_MAX).max(1);
    let mut text = String::new();
    for mark in (0..layers.div_ceil(each)).step_by(RULER as usize) {
        let number = (mark * each).to_string();
        let width = RULER as usize;
        text.push_str(&format!("{number:width$}"));
    }
    text
}

fn cells(peer: &PeerView, layers: u32) -> String {
    let each = layers.div_ceil(MAP_MAX).max(1);
    let shadows = layer_set(&peer.shadows);
    let cell = |i: u32| {
        let covers = Layers::new(i * each, (i + 1) * each);
        if peer.span.intersects(covers) {
            '█'
        } else if covers.iter().any(|layer| shadows.contains(&layer)) {
            '░'
        } else {
            '·'
        }
    };
    (0..layers.div_ceil(each)).map(cell).collect()
}

fn training(view: &TrainingView, output: &Output) -> String {
    let mut lines = vec![headline(&view.head, output)];
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
        lines.extend(view.notes.iter().map(|note| output.paint(Colour::Dim, note)));
    }
    lines.join("\n")
}

fn row([stage, layers]: [String; 2], member: &MemberView) -> [String; 8] {
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
