//! The rules of docs/architecture.md that dependencies show, those of crates and those of files.
//!
//! Pure crates decide; they may not reach a runtime, a socket, Kubernetes, a clock crate or a random source, at any depth. Files of a crate do
//! not import one another in a circle: each can be read, and moved, with what it needs alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod imports;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use imports::{circles, imports};
use workspace::{metadata, sources};

/// Crates that only compute.
const PURE: &[&str] = &["dunlin-swarm", "dunlin-planner", "dunlin-protocol", "dunlin-schedule", "dunlin-sim"];
/// What they must not reach, at any depth.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "kube",
    "kube-client",
    "k8s-openapi",
    "hyper",
    "reqwest",
    "ureq",
    "candle-core",
    "rand",
    "getrandom",
    "axum",
    "libc",
    "memmap2",
    "chrono",
    "time",
    "jiff",
    "rayon",
];
/// (crate, what it must not reach, why)
const FENCES: &[(&str, &[&str], &str)] = &[
    ("dunlin-swarm", &["dunlin-planner", "dunlin-protocol"], "words depend on nothing that uses them"),
    ("dunlin-worker", &["kube", "k8s-openapi"], "workers never talk to the Kubernetes API"),
    (
        "dunlin-worker",
        &["dunlin-sim", "dunlin-cli", "dunlin-kubectl", "dunlin-terminal", "indicatif", "clap_complete"],
        "what people run by hand is the tool's: pods run no simulation, and ask no cluster",
    ),
    ("dunlin-gateway", &["kube", "k8s-openapi"], "gateways never talk to the Kubernetes API"),
    ("dunlin-operator", &["dunlin-kernels", "candle-core", "tokenizers"], "the operator does not compute"),
    ("dunlin-operator", &["dunlin-sim", "dunlin-operator-sim"], "the operator ships no simulation"),
    (
        "dunlin-cli",
        &["dunlin-operator"],
        "replays need no client of Kubernetes: what simulates the operator is apart",
    ),
    (
        "dunlin-kubectl",
        &["dunlin-wire", "dunlin-engine", "dunlin-model", "tonic"],
        "of a cluster the API server alone is asked, and nothing is computed",
    ),
    (
        "dunlin-terminal",
        &["dunlin-swarm", "tokio", "kube"],
        "how results look does not depend on what they are about",
    ),
    ("dunlin-kernels", &["tokio", "tonic", "kube"], "kernels are plain functions"),
    ("dunlin-model", &["tokio", "tonic", "kube"], "models are plain functions"),
    (
        "dunlin-store",
        &["tokio", "tonic", "kube", "dunlin-model"],
        "bytes are fetched by plain functions, whatever they are",
    ),
    ("dunlin-train", &["tokio", "tonic", "kube"], "training's arithmetic and files are plain functions"),
];

/// Circles that are left: files below the `src` of a crate. One that is gone goes from here, and none comes.
const CIRCLES: &[(&str, &[&str])] = &[];

/// Normal (not dev, not build) dependencies of each package, by name.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = node["deps"].as_array().unwrap().iter().filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        });
        let names = normal.map(|dependency| name_of[dependency["pkg"].as_str().unwrap()].to_owned());
        graph.entry(name_of[node["id"].as_str().unwrap()].to_owned()).or_default().extend(names);
    }
    graph
}

/// A path from `from` to `to`, if there is one.
fn path(graph: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut paths = vec![vec![from.to_owned()]];
    while let Some(path) = paths.pop() {
        let here = path.last()?;
        if here == to {
            return Some(path);
        }
        for next in graph.get(here).into_iter().flatten() {
            if seen.insert(next.clone()) {
                paths.push(path.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}

#[test]
fn pure_crates_reach_nothing_impure() {
    let graph = graph();
    for pure in PURE {
        assert!(graph.contains_key(*pure), "{pure} is not in the workspace");
        for impure in IMPURE {
            let found = path(&graph, pure, impure);
            assert!(found.is_none(), "{pure} reaches {impure}: {found:?}");
        }
    }
}

/// Clippy reads the `clippy.toml` beside a crate's manifest: that of `swarm/` bans clocks, files, sockets and threads of the standard library.
#[test]
fn pure_crates_ban_what_the_standard_library_has_of_a_shell() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let folder = |name: &str| {
        let package = packages.iter().find(|package| package["name"] == name).unwrap();
        Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("clippy.toml")
    };
    let banned = fs::read_to_string(folder("dunlin-swarm")).unwrap();
    for needed in ["std::time::Instant", "std::fs::read", "std::net::TcpStream", "std::thread::spawn"] {
        assert!(banned.contains(needed), "{needed} is not banned");
    }
    for pure in PURE {
        let has = fs::read_to_string(folder(pure)).unwrap_or_default();
        assert_eq!(has, banned, "{pure}: clippy.toml is not that of dunlin-swarm");
    }
}

#[test]
fn fences_between_rooms_hold() {
    let graph = graph();
    for (room, forbidden, why) in FENCES {
        assert!(graph.contains_key(*room), "{room} is not in the workspace");
        for package in *forbidden {
            let found = path(&graph, room, package);
            assert!(found.is_none(), "{why}: {found:?}");
        }
    }
}

#[test]
fn the_graph_is_read_right() {
    assert!(path(&graph(), "dunlin-protocol", "dunlin-planner").is_some());
}

#[test]
fn files_import_one_another_in_no_circle() {
    let metadata = metadata();
    let crates =
        metadata["packages"].as_array().unwrap().iter().filter(|package| package["source"].is_null());
    let mut left: BTreeSet<(String, BTreeSet<String>)> = CIRCLES
        .iter()
        .map(|(name, files)| ((*name).to_owned(), files.iter().map(|file| (*file).to_owned()).collect()))
        .collect();
    let mut complaints = Vec::new();
    for package in crates {
        let name = package["name"].as_str().unwrap();
        let source = Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src");
        let imports = imports(&sources(&source));
        assert!(!imports.is_empty(), "{name} has no files");
        for circle in circles(&imports) {
            if left.remove(&(name.to_owned(), circle.clone())) {
                continue;
            }
            complaints.push(format!("files of {name} import one another in a circle: {circle:?}"));
            for file in &circle {
                let others: Vec<&String> = imports[file].intersection(&circle).collect();
                complaints.push(format!("    {file} imports {others:?}"));
            }
        }
    }
    let gone = left.iter().map(|(name, circle)| {
        format!("this circle of {name} is gone, or another one by now: take it out of CIRCLES: {circle:?}")
    });
    complaints.extend(gone);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// What `files`, each a path and a text, import: `file > other`.
fn arrows(files: &[(&str, &str)]) -> Vec<String> {
    let sources = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let imports = imports(&sources);
    imports
        .iter()
        .flat_map(|(file, others)| others.iter().map(move |other| format!("{file} > {other}")))
        .collect()
}

#[test]
fn imports_are_read_right() {
    const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use b::d::E;");
    let of = |text: &str| {
        let others = [
            (
                "b/mod.rs",
                "pub mod d; pub use self::d::{E, X as F}; pub(crate) use crate::c::G; pub use crate::b::H;",
            ),
            ("b/d.rs", ""),
            ("c.rs", "mod f;"),
            ("c/f.rs", ""),
        ];
        arrows(&[&[ROOT, ("a.rs", text)], &others[..]].concat())
    };
    for (text, expected) in [
        ("use crate::b::d::E;", &["b/d.rs"][..]),
        ("use super::b::{self, d::{E, F as I}, *};", &["b/d.rs", "b/mod.rs"]),
        (
            "use crate::{b::d, c};\nfn g() { d::h() + c::f::i::<crate::E>() }",
            &["b/d.rs", "c.rs", "c/f.rs", "lib.rs"],
        ),
        ("use crate::b::E;", &["b/d.rs", "b/mod.rs"]),
        ("fn g() { crate::b::F::new() + crate::b::G::new() + crate::b::H }", &["b/d.rs", "b/mod.rs", "c.rs"]),
        ("fn g(x: crate::b::d::E) { h!(\"{}\", x.c::<super::c::J>()) }", &["b/d.rs", "c.rs"]),
        ("mod inner { use super::super::c; use super::K; }", &["c.rs"]),
        ("fn g() { T::<b::E>::c::f(std::b::d::E) }", &[]),
        ("pub use crate::b::E; pub(crate) use crate::c::f::*; pub(in crate::b) struct T;", &[]),
        ("//! See [`crate::b`].\n/// And crate::c::X.\nconst X: &str = \"crate::b::E\"; // crate::b::E", &[]),
        (
            "#[serde(default = \"crate::b\")] struct S; #[cfg(test)] mod tests { use crate::b::E; } fn g() -> crate::c::X {}",
            &["c.rs"],
        ),
        ("#[cfg(test)]\n#[allow(x)]\nfn g(x: crate::b::E) { y() } fn h(x: crate::c::X) {}", &["c.rs"]),
        ("#[cfg(test)] use crate::b::E; use crate::c::X;", &["c.rs"]),
    ] {
        let expected: Vec<String> = expected.iter().map(|other| format!("a.rs > {other}")).collect();
        assert_eq!(of(text), expected, "{text}");
    }
    // A parent calls its children, and they may import each other; tests count on neither side.
    let family = [
        ("main.rs", "mod a; fn main() { a::b::run() }"),
        ("a.rs", "#[cfg(test)] mod tests; mod b; mod c; fn f() { b::run() }"),
        ("a/b.rs", "use super::c::X; #[cfg(test)] use super::tests::Y;"),
        ("a/c.rs", "fn g() { super::f() }"),
        ("a/tests.rs", "use super::b::Z; mod deep;"),
        ("a/tests/deep.rs", "use crate::a;"),
    ];
    let found = arrows(&family);
    assert_eq!(found, ["a.rs > a/b.rs", "a/b.rs > a/c.rs", "a/c.rs > a.rs", "main.rs > a/b.rs"]);
}

#[test]
fn circles_are_found_whole() {
    let imports = |arrows: &[(&str, &str)]| {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (file, other) in arrows {
            imports.entry((*file).to_owned()).or_default().insert((*other).to_owned());
        }
        circles(&imports)
            .iter()
            .map(|circle| circle.iter().cloned().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(imports(&[("a", "b"), ("b", "c"), ("a", "c")]), [""; 0]);
    assert_eq!(
        imports(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("x", "y"), ("y", "x")]),
        ["a b c", "x y"]
    );
    assert_eq!(imports(&[("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]), ["a b c"]);
}
