//! docs/dependencies.md says why each third-party crate is there, and none is there for nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Names at the beginning of the lines of a section of a manifest.
fn names(manifest: &str, is_wanted: impl Fn(&str) -> bool) -> BTreeSet<&str> {
    let mut wanted = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            wanted = is_wanted(line);
        } else if let Some(end) = line.find(['.', ' ']).filter(|_| wanted && !line.starts_with(['#', ' '])) {
            found.insert(&line[..end]);
        }
    }
    found
}

/// The crates of the first column of the table.
fn documented(page: &str) -> BTreeSet<&str> {
    let rows =
        page.lines().skip_while(|l| !l.starts_with("| crate ")).skip(2).take_while(|l| l.starts_with('|'));
    rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(',').map(str::trim)).collect()
}

#[test]
fn every_crate_has_its_reason_and_its_user() {
    let manifest = read("Cargo.toml");
    let ours = |name: &&str| !name.starts_with("dunlin-");
    let all: BTreeSet<&str> =
        names(&manifest, |section| section == "[workspace.dependencies]").into_iter().filter(ours).collect();
    assert!(all.len() > 20, "{all:?}");
    let page = read("docs/dependencies.md");
    assert_eq!(all, documented(&page), "Cargo.toml, docs/dependencies.md");
    let members: Vec<&str> =
        manifest.lines().filter_map(|l| l.trim().strip_suffix("\",")?.strip_prefix('"')).collect();
    let manifests: Vec<String> = members.iter().map(|member| read(&format!("{member}/Cargo.toml"))).collect();
    let used: BTreeSet<&str> = manifests
        .iter()
        .flat_map(|m| names(m, |section| section.ends_with("dependencies]")))
        .filter(ours)
        .collect();
    assert_eq!(all, used, "Cargo.toml of the workspace, those of its members");
}

/// What Helm waits for in the scenarios is what `make test-kstatus` asks.
#[test]
fn kstatus_is_the_one_that_helm_is_built_with() {
    let version = |path: &str| {
        let modules = read(path);
        let line =
            modules.lines().find(|line| line.trim().starts_with("github.com/fluxcd/cli-utils ")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(version("e2e/kstatus/go.mod"), version("e2e/cluster/kubes/go.mod"));
}
