//! Who is wrong when peers that should say the same say different things: the majority of machines is believed, since a machine whose memory or processor fails
//! takes all its peers with it.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

/// What one peer says, and the machine it runs on; empty when that is not known, and then it counts as one of its own.
#[derive(Clone, Debug)]
pub struct Statement<T> {
    pub host: String,
    pub says: T,
    /// It has that from others, and has no voice of its own.
    pub copied: bool,
}

/// What to make of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All say the same.
    Agreed,
    /// These differ from what more machines say than say anything else.
    Odd(BTreeSet<PeerName>),
    /// Nobody can tell.
    Tied,
}

/// Judges statements, of which `agree` says whether two are the same.
pub fn judge<T>(statements: &BTreeMap<PeerName, Statement<T>>, agree: impl Fn(&T, &T) -> bool) -> Verdict {
    // Everything that is said, who says it, and on how many machines.
    let mut said: Vec<(&T, BTreeSet<&PeerName>, BTreeSet<&str>)> = Vec::new();
    for (name, Statement { host, says, copied }) in statements {
        let machine = if host.is_empty() { name.as_str() } else { host };
        let voice = (!copied).then_some(machine);
        let same = said.iter_mut().find(|(other, ..)| agree(other, says));
        match same {
            Some((_, names, machines)) => {
                names.insert(name);
                machines.extend(voice);
            }
            None => said.push((says, BTreeSet::from([name]), voice.into_iter().collect())),
        }
    }
    said.sort_by_key(|(.., machines)| std::cmp::Reverse(machines.len()));
    match said.as_slice() {
        [] | [_] => Verdict::Agreed,
        [(.., most), (.., next), ..] if most.len() == next.len() => Verdict::Tied,
        [_, odd @ ..] => {
            Verdict::Odd(odd.iter().flat_map(|(_, names, _)| names.iter().copied().cloned()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Statement, Verdict, judge};

    /// What is made of statements: name, machine, value.
    fn of(statements: &[(&str, &str, u32)]) -> Verdict {
        let all: BTreeMap<_, _> = statements
            .iter()
            .map(|(name, host, says)| {
                let copied = name.starts_with("copy");
                ((*name).into(), Statement { host: (*host).to_owned(), says: *says, copied })
            })
            .collect();
        judge(&all, |a, b| a == b)
    }

    fn odd(names: &[&str]) -> Verdict {
        Verdict::Odd(names.iter().map(|name| (*name).into()).collect())
    }

    #[test]
    fn the_majority_of_machines_is_right_whoever_speaks_first() {
        assert_eq!(of(&[]), Verdict::Agreed);
        assert_eq!(of(&[("a", "", 1)]), Verdict::Agreed);
        assert_eq!(of(&[("a", "", 1), ("b", "", 1)]), Verdict::Agreed);
        for wrong in ["a", "b", "c"] {
            let says = |name| (name, "", u32::from(name == wrong));
            assert_eq!(of(&[says("a"), says("b"), says("c")]), odd(&[wrong]));
        }
        assert_eq!(of(&[("a", "", 1), ("b", "", 2), ("c", "", 3), ("d", "", 3)]), odd(&["a", "b"]));
    }

    #[test]
    fn peers_of_one_machine_have_one_voice() {
        assert_eq!(of(&[("a", "m", 1), ("b", "m", 1), ("c", "n", 2)]), Verdict::Tied);
        assert_eq!(of(&[("a", "m", 1), ("b", "m", 1), ("c", "n", 2), ("d", "o", 2)]), odd(&["a", "b"]));
        // A machine that says both things counts for both.
        assert_eq!(of(&[("a", "m", 1), ("b", "m", 2), ("c", "n", 2)]), odd(&["a"]));
    }

    #[test]
    fn whoever_has_it_from_another_has_no_voice() {
        assert_eq!(of(&[("a", "m", 1), ("b", "n", 2), ("copy of a", "o", 1)]), Verdict::Tied);
        assert_eq!(of(&[("a", "m", 1), ("b", "n", 1), ("copy", "o", 2)]), odd(&["copy"]));
        assert_eq!(of(&[("copy 1", "m", 1), ("copy 2", "n", 1)]), Verdict::Agreed);
        assert_eq!(of(&[("copy 1", "m", 1), ("copy 2", "n", 2), ("copy 3", "o", 2)]), Verdict::Tied);
    }

    #[test]
    fn two_that_differ_cannot_be_told_apart() {
        assert_eq!(of(&[("a", "m", 1), ("b", "n", 2)]), Verdict::Tied);
        assert_eq!(of(&[("a", "", 1), ("b", "", 2), ("c", "", 3)]), Verdict::Tied);
    }
}
