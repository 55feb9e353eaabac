//! Adapters of a process: names for folders.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{bail, ensure};
use dunlin_model::{Adapter, ModelConfig, ModelError};
use dunlin_swarm::limits::ADAPTER_NAME_BYTES_MAX;

use super::{Problem, problem};

/// Adapters of one model.
const ADAPTERS_MAX: usize = 16;

/// An adapter beside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAdapter {
    /// What clients ask for.
    pub name: Arc<str>,
    /// Its folder, in PEFT's form.
    pub path: PathBuf,
}

impl NamedAdapter {
    /// From `NAME=PATH`.
    ///
    /// # Errors
    /// When it is not that.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.into(), path: path.into() })
            }
            _ => Err("give it as NAME=PATH, neither of them empty".to_owned()),
        }
    }

    /// Reads the weights of the adapter.
    ///
    /// # Errors
    /// A problem the user has to fix.
    pub fn open(&self, config: &ModelConfig) -> Result<Adapter, Problem> {
        Adapter::open(&self.path, config).map_err(|error| self.problem(&error))
    }

    /// Rows that stand before every sequence.
    ///
    /// # Errors
    /// A problem the user has to fix.
    pub fn prompt_rows(&self, config: &ModelConfig) -> Result<usize, Problem> {
        Adapter::prompt_rows_in(&self.path, config).map_err(|error| self.problem(&error))
    }

    /// Memory that it takes, at most.
    ///
    /// # Errors
    /// A problem the user has to fix.
    pub fn bytes(&self) -> Result<u64, Problem> {
        Adapter::bytes_in(&self.path).map_err(|error| self.problem(&error))
    }

    fn problem(&self, error: &ModelError) -> Problem {
        let reason = if error.is_unreachable() { "AdapterUnreachable" } else { "AdapterInvalid" };
        Problem { reason, message: format!("adapter {}: {}", self.name, problem(error).message) }
    }
}

/// Rule: every name means one thing, that of the model included where it is known, and there are not too many.
///
/// # Errors
/// When that is broken.
pub fn check(adapters: &[NamedAdapter], model: Option<&str>) -> anyhow::Result<()> {
    ensure!(
        adapters.len() <= ADAPTERS_MAX,
        "{} adapters are given, at most {ADAPTERS_MAX} can be served",
        adapters.len()
    );
    for (i, NamedAdapter { name, .. }) in adapters.iter().enumerate() {
        ensure!(
            name.len() <= ADAPTER_NAME_BYTES_MAX,
            "an adapter has a name of {} bytes, more than {ADAPTER_NAME_BYTES_MAX}",
            name.len()
        );
        ensure!(model != Some(name), "adapter {name} has the name of the model; give it another one");
        if adapters[..i].iter().any(|other| other.name == *name) {
            bail!("two adapters have the name {name}; give one of them another one");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ADAPTERS_MAX, NamedAdapter, check};

    fn checked(texts: &[String]) -> Result<(), String> {
        let adapters = texts.iter().map(|t| NamedAdapter::parse(t)).collect::<Result<Vec<_>, _>>()?;
        check(&adapters, Some("base")).map_err(|error| error.to_string())
    }

    #[test]
    fn adapters_have_names_of_their_own() {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(checked(&texts(&["a=/x", "b=/x=y"])), Ok(()));
        for (given, why) in [
            (["a", "b=/y"], "NAME=PATH"),
            (["=/x", "b=/y"], "NAME=PATH"),
            (["a=", "b=/y"], "NAME=PATH"),
            (["a=/x", "a=/y"], "two adapters have the name a"),
            (["base=/x", "b=/y"], "the name of the model"),
        ] {
            let error = checked(&texts(&given)).unwrap_err();
            assert!(error.contains(why), "{given:?}: {error}");
        }
        let many: Vec<String> = (0..=ADAPTERS_MAX).map(|i| format!("a{i}=/x")).collect();
        assert_eq!(checked(&many[1..]), Ok(()));
        assert!(checked(&many).unwrap_err().contains("at most 16"));
        assert!(checked(&[format!("{}=/x", "n".repeat(300))]).unwrap_err().contains("300 bytes"));
    }
}
