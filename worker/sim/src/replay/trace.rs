//! Traces of spot groups: `milliseconds,add|remove,node`, one event a line, in order of time.

use std::collections::BTreeSet;

use thiserror::Error;

/// Most events of one trace.
pub const EVENTS_MAX: usize = 1_000_000;

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is there from now on.
    Add,
    /// It is gone, never to come back under this life; the name may be used again.
    Remove,
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Since the start of the recording.
    pub at_ms: u64,
    /// What happened.
    pub verb: Verb,
    /// Name of the node.
    pub node: String,
}

/// Why a text is no trace. Lines count from 1.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TraceError {
    /// Not three fields.
    #[error("line {line}: `{text}` is not `milliseconds,add|remove,node`")]
    Fields {
        /// Number of the line.
        line: usize,
        /// What is there.
        text: String,
    },
    /// No number.
    #[error("line {line}: `{text}` is not a time in whole milliseconds")]
    Time {
        /// Number of the line.
        line: usize,
        /// What is there.
        text: String,
    },
    /// Neither `add` nor `remove`.
    #[error("line {line}: `{text}` is neither `add` nor `remove`")]
    Verb {
        /// Number of the line.
        line: usize,
        /// What is there.
        text: String,
    },
    /// No name.
    #[error("line {line}: the node has no name")]
    Unnamed {
        /// Number of the line.
        line: usize,
    },
    /// Earlier than the line before.
    #[error("line {line}: time goes back from {before_ms} to {at_ms} ms; sort the trace by time")]
    Back {
        /// Number of the line.
        line: usize,
        /// Time of the line before.
        before_ms: u64,
        /// Time of this line.
        at_ms: u64,
    },
    /// Added twice without a removal.
    #[error("line {line}: `{node}` is added, and is there already")]
    There {
        /// Number of the line.
        line: usize,
        /// Name of the node.
        node: String,
    },
    /// Removed without an addition.
    #[error("line {line}: `{node}` is removed, and is not there")]
    NotThere {
        /// Number of the line.
        line: usize,
        /// Name of the node.
        node: String,
    },
    /// Nothing lasts in it.
    #[error("the trace covers no time: it needs at least two different times")]
    Empty,
    /// Larger than anything recorded.
    #[error("more than {EVENTS_MAX} events")]
    Long,
}

/// Reads a trace; empty lines and lines that start with `#` do not count.
///
/// # Errors
///
/// The first line that is none or contradicts those before it.
pub fn parse(text: &str) -> Result<Vec<Event>, TraceError> {
    let mut events: Vec<Event> = Vec::new();
    let mut there: BTreeSet<String> = BTreeSet::new();
    for (i, row) in text.lines().enumerate() {
        let (line, row) = (i + 1, row.trim());
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = row.split(',').map(str::trim).collect();
        let [at, verb, node] = fields[..] else {
            return Err(TraceError::Fields { line, text: row.to_owned() });
        };
        let at_ms = at.parse().map_err(|_| TraceError::Time { line, text: at.to_owned() })?;
        let node = node.to_owned();
        if node.is_empty() {
            return Err(TraceError::Unnamed { line });
        }
        if let Some(before_ms) = events.last().map(|e| e.at_ms).filter(|before| *before > at_ms) {
            return Err(TraceError::Back { line, before_ms, at_ms });
        }
        let verb = match verb {
            "add" if !there.insert(node.clone()) => return Err(TraceError::There { line, node }),
            "add" => Verb::Add,
            "remove" if !there.remove(&node) => return Err(TraceError::NotThere { line, node }),
            "remove" => Verb::Remove,
            other => return Err(TraceError::Verb { line, text: other.to_owned() }),
        };
        events.push(Event { at_ms, verb, node });
        if events.len() > EVENTS_MAX {
            return Err(TraceError::Long);
        }
    }
    match (events.first(), events.last()) {
        (Some(first), Some(last)) if first.at_ms < last.at_ms => Ok(events),
        _ => Err(TraceError::Empty),
    }
}

/// One life of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Name of the node.
    pub node: String,
    /// From when on it is there.
    pub from_ms: u64,
    /// From when on it is gone; `None` if the recording ends before.
    pub until_ms: Option<u64>,
}

/// The lives in a trace, in the order in which they begin.
#[must_use]
pub fn lives(events: &[Event]) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for event in events {
        match event.verb {
            Verb::Add => {
                lives.push(Life { node: event.node.clone(), from_ms: event.at_ms, until_ms: None });
            }
            Verb::Remove => {
                let open = lives.iter_mut().rev().find(|l| l.node == event.node && l.until_ms.is_none());
                if let Some(life) = open {
                    life.until_ms = Some(event.at_ms);
                }
            }
        }
    }
    lives
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn lives_are_read_and_a_name_may_come_back() {
        let events = parse("# ms,verb,node\n0,add,a\n\n5,add,b\n5,remove,a\n9, add, a\n").unwrap();
        let lives = lives(&events);
        let of: Vec<_> = lives.iter().map(|l| (l.node.as_str(), l.from_ms, l.until_ms)).collect();
        assert_eq!(of, [("a", 0, Some(5)), ("b", 5, None), ("a", 9, None)]);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let says = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(says("0,add,a\n1,stop,a"), "line 2: `stop` is neither `add` nor `remove`");
        assert_eq!(says("0,add,a\n1,add,a"), "line 2: `a` is added, and is there already");
        assert_eq!(says("0,remove,a"), "line 1: `a` is removed, and is not there");
        assert_eq!(says("5,add,a\n4,add,b"), "line 2: time goes back from 5 to 4 ms; sort the trace by time");
        assert_eq!(says("-1,add,a"), "line 1: `-1` is not a time in whole milliseconds");
        assert_eq!(says("0;add;a"), "line 1: `0;add;a` is not `milliseconds,add|remove,node`");
        assert_eq!(says("0,add,"), "line 1: the node has no name");
        assert_eq!(parse("0,add,a"), Err(TraceError::Empty));
        assert_eq!(parse(""), Err(TraceError::Empty));
    }
}
