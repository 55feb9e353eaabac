//! The machines of a plan.

use crate::size;

/// Most machines of a plan.
pub(super) const MACHINES_MAX: usize = 256;

/// A machine that holds one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Of its peer.
    pub name: String,
    /// What the peer may use, in bytes.
    pub memory: u64,
    /// It may vanish at any moment.
    pub spot: bool,
}

/// Equal machines: `8GiB`, or `3x8GiB` for three of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Equal {
    count: usize,
    memory: u64,
}

impl Equal {
    /// From the words of the command line.
    ///
    /// # Errors
    /// When they are no size.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (count, memory) = match text.split_once('x') {
            None => (1, text),
            Some((count, memory)) => {
                (count.parse().map_err(|_| format!("`{count}` is no number of machines"))?, memory)
            }
        };
        if count == 0 || count > MACHINES_MAX {
            return Err(format!("{count} machines; give 1 to {MACHINES_MAX}"));
        }
        Ok(Self { count, memory: size::parse(memory)? })
    }
}

/// Which machines may vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// Every one.
    All,
    /// The one of this number, from 1.
    Number(usize),
}

impl Spot {
    /// From the words of the command line.
    ///
    /// # Errors
    /// When it is neither `all` nor a number.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number
                .parse()
                .ok()
                .filter(|number| *number > 0)
                .map(Self::Number)
                .ok_or_else(|| format!("`{number}` is neither `all` nor the number of a machine, from 1")),
        }
    }
}

/// The machines by name, in the order in which they were given.
///
/// # Errors
/// When there are too many, or a spot machine is none of them.
pub fn machines(groups: &[Equal], spot: &[Spot]) -> Result<Vec<Machine>, String> {
    let memory: Vec<u64> =
        groups.iter().flat_map(|group| std::iter::repeat_n(group.memory, group.count)).collect();
    let count = memory.len();
    if count > MACHINES_MAX {
        return Err(format!("{count} machines are too many for a plan; give at most {MACHINES_MAX}"));
    }
    for which in spot {
        if let Spot::Number(number) = which
            && *number > count
        {
            return Err(format!("--spot {number}: there are {count} machines"));
        }
    }
    // The planner takes peers in the order of their names.
    let width = count.to_string().len();
    let machine = |(at, memory): (usize, u64)| Machine {
        name: format!("peer-{:0width$}", at + 1),
        memory,
        spot: spot.iter().any(|which| [Spot::All, Spot::Number(at + 1)].contains(which)),
    };
    Ok(memory.into_iter().enumerate().map(machine).collect())
}

#[cfg(test)]
mod tests {
    use super::{Equal, Spot, machines};

    fn read(memory: &[&str], spot: &[&str]) -> Result<Vec<String>, String> {
        let groups = memory.iter().map(|text| Equal::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let spot = spot.iter().map(|text| Spot::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let shown = machines(&groups, &spot)?.into_iter();
        Ok(shown.map(|m| format!("{} {}{}", m.name, m.memory, if m.spot { " spot" } else { "" })).collect())
    }

    #[test]
    fn equal_machines_are_written_once() {
        assert_eq!(read(&["2x8", "4"], &["1"]).unwrap(), ["peer-1 8 spot", "peer-2 8", "peer-3 4"]);
        let ten = read(&["10x1"], &["all"]).unwrap();
        assert_eq!((ten[0].as_str(), ten[9].as_str()), ("peer-01 1 spot", "peer-10 1 spot"));
    }

    #[test]
    fn senseless_machines_are_refused() {
        for (memory, spot, why) in [
            ("0x8", "all", "give 1 to 256"),
            ("1000x8", "all", "give 1 to 256"),
            ("axb", "all", "no number of machines"),
            ("8", "0", "neither `all` nor the number"),
            ("8", "some", "neither `all` nor the number"),
            ("2x8", "3", "--spot 3: there are 2 machines"),
        ] {
            let error = read(&[memory], &[spot]).unwrap_err();
            assert!(error.contains(why), "{memory} {spot}: {error}");
        }
        assert!(read(&["200x8", "200x8"], &[]).unwrap_err().contains("too many"));
    }
}
