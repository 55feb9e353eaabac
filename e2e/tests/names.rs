//! One name of a public type means one thing in the workspace, so that a search for it finds that.
//!
//! Counted are types that are public beyond their file's parent (`pub`, not `pub(super)`) in what ships: not in tests, and not in the simulation and
//! the end-to-end tests, which have a double of much.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use workspace::{metadata, sources};

/// Crates that have doubles of what others have.
const DOUBLES: &[&str] = &["dunlin-sim", "dunlin-operator-sim", "dunlin-e2e"];

/// Names that still mean several things, and the files that define them below the folders of their crates. One that is resolved goes from here, and
/// none comes.
const SEVERAL: &[(&str, &[&str])] = &[];

/// Names of public types that `text` defines outside of its tests.
fn defined(text: &str) -> BTreeSet<String> {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    shipped
        .lines()
        .filter_map(|line| {
            let (kind, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
            let is_type = matches!(kind, "struct" | "enum" | "trait" | "type" | "union");
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            is_type.then(|| rest[..end].to_owned())
        })
        .collect()
}

#[test]
fn a_name_of_a_public_type_means_one_thing() {
    let metadata = metadata();
    let root = Path::new(metadata["workspace_root"].as_str().unwrap());
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap().iter().filter(|p| p["source"].is_null()) {
        if DOUBLES.contains(&package["name"].as_str().unwrap()) {
            continue;
        }
        let source = Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src");
        for (file, text) in sources(&source) {
            let is_test = file.split(['/', '.', '_']).any(|part| part == "tests" || part == "testing");
            let place = source.parent().unwrap().strip_prefix(root).unwrap().join(&file);
            for name in defined(&text).into_iter().filter(|_| !is_test) {
                files.entry(name).or_default().insert(place.to_str().unwrap().to_owned());
            }
        }
    }
    assert!(files.len() > 300, "only {} types were found", files.len());
    let found: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| (name.as_str(), places.iter().map(String::as_str).collect()))
        .collect();
    let known: BTreeMap<&str, BTreeSet<&str>> =
        SEVERAL.iter().map(|(name, places)| (*name, places.iter().copied().collect())).collect();
    let new = found.iter().filter(|(name, places)| known.get(*name) != Some(places));
    let new =
        new.map(|(name, places)| format!("`{name}` means something in each of {places:?}: rename it in one"));
    let gone = known.keys().filter(|name| !found.contains_key(*name));
    let gone = gone.map(|name| format!("`{name}` means one thing now: take it out of SEVERAL"));
    let complaints: Vec<String> = new.chain(gone).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn definitions_are_read_right() {
    let text = "pub struct A<T>(T);\npub(super) struct B;\nstruct C;\npub enum D {\n    E,\n}\npub type F = u8;\npub fn g() {}\n\
                #[cfg(test)]\nmod tests {\npub struct H;\n}\n";
    assert_eq!(defined(text), BTreeSet::from(["A", "D", "F"].map(str::to_owned)));
}
