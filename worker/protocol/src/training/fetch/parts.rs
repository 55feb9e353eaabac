//! Parts of a state from several mates: do they say that it is the same?

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::super::ids::Step;
use super::super::message::Mate;
use super::event::FetchId;

/// A part, from when it is asked for.
#[derive(Debug)]
pub(super) struct Part {
    /// The number of the pull.
    pub id: FetchId,
    /// Who gives it.
    pub mate: Mate,
    /// What has come: the step, and what its giver says that all of the state is.
    pub came: Option<(Step, String)>,
}

/// Mates that say something else than most machines do. Peers of one machine have one voice.
pub(super) fn contradicted(parts: &[Part]) -> Vec<(PeerName, String)> {
    let mut said: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let says = |part: &Part| part.came.as_ref().map(|(_, says)| says.clone()).unwrap_or_default();
    for part in parts {
        let machine = if part.mate.host.is_empty() { part.mate.name.as_str() } else { &part.mate.host };
        let Some((_, says)) = &part.came else { continue };
        said.entry(says).or_default().insert(machine);
    }
    let Some(most) = said.values().map(BTreeSet::len).max() else { return Vec::new() };
    let mut winners = said.iter().filter(|(_, machines)| machines.len() == most);
    match (winners.next(), winners.next()) {
        (Some((right, _)), None) => {
            let others = parts.iter().filter(|part| says(part) != **right);
            let what = "its state is not that of most others";
            others.map(|part| (part.mate.name.clone(), what.to_owned())).collect()
        }
        // Who of them is right the conductor knows: it compares what becomes of this.
        _ => {
            let what = "it has another state than a mate";
            parts.iter().take(1).map(|part| (part.mate.name.clone(), what.to_owned())).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(said: &[(&str, &str)]) -> Vec<String> {
        let parts: Vec<Part> = (0..)
            .zip(said)
            .map(|(id, (host, says))| Part {
                id,
                mate: Mate {
                    name: format!("m{id}").as_str().into(),
                    addr: String::new(),
                    host: (*host).to_owned(),
                },
                came: Some((5, (*says).to_owned())),
            })
            .collect();
        contradicted(&parts).into_iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn most_machines_are_right() {
        assert!(wrong(&[("", "x")]).is_empty());
        assert!(wrong(&[("", "x"), ("", "x"), ("", "x")]).is_empty());
        assert_eq!(wrong(&[("", "x"), ("", "y"), ("", "x")]), ["m1"]);
        assert_eq!(
            wrong(&[("n", "y"), ("n", "y"), ("o", "x"), ("p", "x")]),
            ["m0", "m1"],
            "a machine has one voice"
        );
        assert_eq!(
            wrong(&[("", "x"), ("", "y")]),
            ["m0"],
            "one is left out, and the conductor compares what comes of the other"
        );
    }
}
