//! The programs under test.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The tool. Beside it lies the `dunlin-worker` that it starts, which is of another package: cargo builds it with the tests of that.
///
/// # Panics
/// When that is missing, or older than the library that both programs are made from.
pub fn dunlin() -> &'static Path {
    const BUILD: &str =
        "have cargo build it, too: cargo nextest run -p dunlin-worker -p dunlin-cli, or --workspace";
    let dunlin = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let worker = dunlin.with_file_name("dunlin-worker");
    assert!(worker.is_file(), "{} is missing; {BUILD}", worker.display());
    let library = libraries(&dunlin.with_file_name("deps")).into_iter().max_by_key(|path| modified(path));
    let library = library.expect("cargo leaves its libraries in deps");
    assert!(modified(&worker) >= modified(&library), "{} is of an older build; {BUILD}", worker.display());
    dunlin
}

/// Those of the worker, built with one set of features or another.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("libdunlin_worker-") && name.ends_with(".rlib")
    };
    paths.filter(ours).collect()
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}
