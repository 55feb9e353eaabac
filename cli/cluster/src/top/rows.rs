//! What is shown of peers, and in which order. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use dunlin_terminal::print::table;
use serde::Serialize;

use crate::args::Sort;
use crate::pages::figures;
use crate::pods::PodFacts;

const MIB: f64 = 1_048_576.0;

/// A peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Pod name.
    pub name: String,
    /// Its swarm.
    pub swarm: String,
    /// Its node.
    pub node: String,
    /// Its probe succeeds.
    pub ready: bool,
    /// Rows a second: of a stage through one layer, of a peer that trains through all of its own.
    pub rows_per_s: Option<f64>,
    /// Rows that wait.
    pub queue: Option<u64>,
    /// Sessions with state there.
    pub sessions: Option<u64>,
    /// Pages of KV cache in use, and in all.
    pub pages: Option<(u64, u64)>,
    /// Memory of weights, in MiB.
    pub weights_mib: Option<u64>,
    /// Memory of journals, in MiB.
    pub journal_mib: Option<u64>,
    /// Why it could not be asked.
    pub silent: Option<String>,
}

/// The peer of `pod`, by its metrics.
#[must_use]
pub fn row(swarm: &str, pod: &PodFacts, metrics: Result<String, String>) -> Row {
    let base = Row {
        name: pod.name.clone(),
        swarm: swarm.to_owned(),
        node: pod.node.clone(),
        ready: pod.ready,
        ..Row::default()
    };
    let figures = match metrics {
        Ok(page) => figures(&page),
        Err(why) => return Row { silent: Some(why), ..base },
    };
    let figure = |name: &str| figures.get(&format!("dunlin_stage_{name}")).copied();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts and sizes")]
    let whole = |name: &str, unit: f64| figure(name).map(|value| (value / unit).round() as u64);
    let pages = whole("total_pages", 1.0).zip(whole("free_pages", 1.0));
    Row {
        rows_per_s: figure("rows_per_second_per_layer"),
        queue: whole("queue_rows", 1.0),
        sessions: whole("sessions", 1.0),
        pages: pages.map(|(total, free)| (total.saturating_sub(free), total)),
        weights_mib: whole("weight_bytes", MIB),
        journal_mib: whole("journal_bytes", MIB),
        ..base
    }
}

/// Puts `rows` in order.
pub fn sort(rows: &mut [Row], by: Sort) {
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let share = |row: &Row| row.pages.map_or(0.0, |(used, total)| used as f64 / total.max(1) as f64);
    match by {
        Sort::Name => {}
        Sort::Sessions => rows.sort_by_key(|row| Reverse(row.sessions)),
        Sort::Memory => {
            rows.sort_by_key(|row| Reverse(row.weights_mib.unwrap_or(0) + row.journal_mib.unwrap_or(0)))
        }
        Sort::Pages => rows.sort_by(|a, b| share(b).total_cmp(&share(a))),
        // Those that say nothing come last.
        Sort::Rows => {
            let speed = |row: &Row| row.rows_per_s.unwrap_or(f64::INFINITY);
            rows.sort_by(|a, b| speed(a).total_cmp(&speed(b)));
        }
    }
}

/// The rows for people.
#[must_use]
pub fn text(rows: &[Row]) -> String {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let mut lines = vec![
        ["PEER", "SWARM", "NODE", "READY", "ROWS/S", "QUEUE", "SESSIONS", "KV PAGES", "WEIGHTS", "JOURNALS"]
            .map(str::to_owned),
    ];
    lines.extend(rows.iter().map(|row| {
        let mib = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value} MiB"));
        [
            row.name.clone(),
            row.swarm.clone(),
            if row.node.is_empty() { "-".to_owned() } else { row.node.clone() },
            if row.ready { "yes" } else { "no" }.to_owned(),
            row.rows_per_s.map_or_else(|| "-".to_owned(), |rows| format!("{rows:.1}")),
            number(row.queue),
            number(row.sessions),
            row.pages.map_or_else(|| "-".to_owned(), |(used, total)| format!("{used}/{total}")),
            mib(row.weights_mib),
            mib(row.journal_mib),
        ]
    }));
    // Without a right the reason is the same for all.
    let silent: BTreeSet<String> =
        rows.iter().filter_map(|row| Some(format!("not asked: {}", row.silent.as_ref()?))).collect();
    std::iter::once(table(&lines)).chain(silent).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, sessions: u32, free: u32, rows: f64) -> Row {
        let page = format!(
            "dunlin_stage_sessions {sessions}\ndunlin_stage_free_pages {free}\ndunlin_stage_total_pages 100\n\
             dunlin_stage_rows_per_second_per_layer {rows}\ndunlin_stage_weight_bytes 52428800\ndunlin_stage_journal_bytes 1048576\n\
             dunlin_stage_queue_rows 2\n# EOF\n"
        );
        let pod = PodFacts { name: name.into(), node: "n1".into(), ready: true, ..PodFacts::default() };
        row("m", &pod, Ok(page))
    }

    #[test]
    fn peers_are_sorted_and_told() {
        let silent = row(
            "m",
            &PodFacts { name: "c".into(), ..PodFacts::default() },
            Err("c has not answered for 5 s".into()),
        );
        let mut rows = vec![silent, peer("a", 1, 90, 900.0), peer("b", 3, 95, 800.0)];
        let mut order = |by| {
            sort(&mut rows, by);
            rows.iter().map(|r| r.name.as_str()).collect::<String>()
        };
        assert_eq!(
            [
                order(Sort::Sessions),
                order(Sort::Rows),
                order(Sort::Pages),
                order(Sort::Memory),
                order(Sort::Name)
            ],
            ["bac", "bac", "abc", "abc", "abc"]
        );
        let expected = "\
PEER  SWARM  NODE  READY  ROWS/S  QUEUE  SESSIONS  KV PAGES  WEIGHTS  JOURNALS
a     m      n1    yes    900.0   2      1         10/100    50 MiB   1 MiB
b     m      n1    yes    800.0   2      3         5/100     50 MiB   1 MiB
c     m      -     no     -       -      -         -         -        -
not asked: c has not answered for 5 s";
        assert_eq!(text(&rows), expected);
    }
}
