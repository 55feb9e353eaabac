//! What `dunlin-worker` says to whom it does not serve.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_dunlin-worker")).args(arguments).output().unwrap();
    assert!(ended.stdout.is_empty());
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

/// Processes in pods run it. What people run by hand is the tool's, whose name the one line tells.
#[test]
fn commands_of_the_tool_are_refused_with_the_name_of_the_tool() {
    for (arguments, there) in [
        (&["local", "--model", "model.gguf"][..], "dunlin local"),
        (&["local-train", "--config", "run.yaml"], "dunlin local-train"),
        (&["replay", "--trace", "trace.csv"], "dunlin replay"),
        (&["random-model", "--out", "model"], "dunlin random-model"),
        (&["--log", "warn", "average-member", "--index", "0"], "dunlin bench average"),
    ] {
        let (code, said) = refused(arguments);
        let name = arguments.iter().find(|a| !["--log", "warn"].contains(a)).unwrap();
        assert_eq!(said, format!("error: dunlin-worker has no `{name}`: run `{there}`\n"));
        assert_eq!(code, Some(2));
    }
    let (code, said) = refused(&["lokal"]);
    assert!(code == Some(2) && said.contains("unrecognized subcommand 'lokal'"), "{said}");
}
