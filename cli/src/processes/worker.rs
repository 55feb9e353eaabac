//! Where `dunlin-worker` is, the program of every process of a swarm.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::Args;
use thiserror::Error;

/// Its name.
const NAME: &str = "dunlin-worker";

/// Which program the processes of a local swarm run.
#[derive(Args, Clone)]
pub struct WorkerArgs {
    /// The program `dunlin-worker`; without it the one beside this program, or else the first on PATH.
    #[arg(long, value_name = "PATH")]
    pub worker: Option<PathBuf>,
}

/// There is no such program.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotFound {
    /// Where it was said to be.
    #[error("--worker {}: there is no such file", .0.display())]
    Given(PathBuf),
    /// Anywhere.
    #[error(
        "{NAME} was not found, neither as {} nor in a folder of PATH ({path}): put it there, or say where it is with --worker PATH",
        .beside.display()
    )]
    Anywhere {
        /// Beside this program.
        beside: PathBuf,
        /// Folders of PATH.
        path: String,
    },
}

impl WorkerArgs {
    /// The program.
    ///
    /// # Errors
    /// When there is none; the error says where it was looked for.
    pub fn find(&self) -> anyhow::Result<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(search(self.worker.as_deref(), &env::current_exe()?.with_file_name(NAME), &path, Path::is_file)?)
    }
}

fn search(
    given: Option<&Path>,
    beside: &Path,
    path: &OsStr,
    is_file: impl Fn(&Path) -> bool,
) -> Result<PathBuf, NotFound> {
    if let Some(given) = given {
        return if is_file(given) { Ok(given.to_owned()) } else { Err(NotFound::Given(given.to_owned())) };
    }
    let on_path = env::split_paths(path).map(|folder| folder.join(NAME));
    std::iter::once(beside.to_owned()).chain(on_path).find(|program| is_file(program)).ok_or_else(|| {
        NotFound::Anywhere { beside: beside.to_owned(), path: path.to_string_lossy().into_owned() }
    })
}

#[cfg(test)]
mod tests {
    use super::{OsStr, Path, search};

    fn found(given: Option<&str>, files: &[&str]) -> Result<String, String> {
        let is_file = |path: &Path| files.iter().any(|file| Path::new(file) == path);
        let beside = Path::new("/opt/dunlin/dunlin-worker");
        search(given.map(Path::new), beside, OsStr::new("/usr/bin:/bin"), is_file)
            .map(|path| path.display().to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_counts_then_what_lies_beside_then_path() {
        let all =
            ["/mine/worker", "/opt/dunlin/dunlin-worker", "/usr/bin/dunlin-worker", "/bin/dunlin-worker"];
        assert_eq!(found(Some("/mine/worker"), &all).unwrap(), all[0]);
        assert_eq!(found(None, &all).unwrap(), all[1]);
        assert_eq!(found(None, &all[2..]).unwrap(), all[2]);
        assert_eq!(found(None, &all[3..]).unwrap(), all[3]);
    }

    #[test]
    fn an_error_says_where_it_was_looked_for() {
        let error = found(None, &[]).unwrap_err();
        assert_eq!(
            error,
            "dunlin-worker was not found, neither as /opt/dunlin/dunlin-worker nor in a folder of PATH (/usr/bin:/bin): \
             put it there, or say where it is with --worker PATH"
        );
        assert_eq!(
            found(Some("/no"), &["/bin/dunlin-worker"]).unwrap_err(),
            "--worker /no: there is no such file"
        );
    }
}
