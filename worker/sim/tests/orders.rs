//! The simulation notices another order of what peers do.
//!
//! Every two effects that a decision has side by side are in one of two lists. In the one, the order matters: a seed fails when the second is done first. In the
//! other it does not, and the list says why.

use std::collections::BTreeSet;

use dunlin_sim::training::{Order, Outcome, Pair, Scenario, run};

/// Seeds of each kind that show which pairs there are.
const SHOWN: u64 = 120;
/// One of so many fails in a wrong order, most of the first few.
const SEEDS: u64 = 150;

/// Pairs whose order matters.
const MATTERS: &[Pair] = &[
    // A chunk is the sum of all members before it is a result.
    ("add", "combine"),
    // A piece is used before the next of the same stream takes its place.
    ("add", "read"),
    ("place", "read"),
    // All of an average is in its place before anybody makes an update of it.
    ("place", "average done"),
    // An average has begun before others get their part of it.
    ("begin average", "give result"),
    // A stream ends behind what it carries.
    ("give chunk", "end of chunks"),
    // Claims that come before a peer is ready do not count, and are not made again.
    ("tell Ready", "tell Claim"),
];

/// Pairs whose order does not matter, and why.
const FREE: &[(&str, &[Pair])] = &[
    (
        "a claim is kept until the step that it is of begins, whether or not the conductor has heard of the update before it",
        &[("tell Claim", "tell Applied")],
    ),
    (
        "one is a job of the engine, what it works on is fixed by jobs before it, and nobody hears of the other until both are done",
        &[
            ("cancel averages", "run Apply"),
            ("cancel averages", "run Clear"),
            ("cancel averages", "run Compute"),
            ("drop fetched", "run Compute"),
            ("refuse", "run Clear"),
            ("refuse", "run Compute"),
            ("reply", "run Compute"),
            ("run Check", "cancel averages"),
            ("run Clear", "drop averages"),
            ("run Clear", "refuse"),
            ("run Clear", "tell Ready"),
            ("tell", "run Compute"),
            ("tell Applied", "run Clear"),
            ("tell Applied", "run Compute"),
            ("tell Claim", "run Compute"),
            ("tell Ready", "run Compute"),
        ],
    ),
    (
        "both are jobs of the engine, and neither changes what the other looks at",
        &[("begin average", "give sums"), ("run Check", "run Clear")],
    ),
    (
        "they go to different peers, trainers or streams, which do not hear of each other's before both are on their way",
        &[
            ("begin average", "give nothing"),
            ("end of chunks", "average done"),
            ("end of chunks", "give chunk"),
            ("get", "tell Ready"),
            ("give nothing", "get"),
            ("give nothing", "give result"),
            ("give nothing", "give sums"),
            ("give nothing", "tell"),
            ("give nothing", "where"),
            ("give result", "give sums"),
            ("give sums", "give result"),
            ("refuse", "tell Applied"),
            ("refuse", "tell Claim"),
            ("refuse chunks", "average failed"),
            ("reply", "tell Claim"),
            ("tell Done", "reply"),
            ("tell Released", "refuse"),
        ],
    ),
    (
        "one is of a stream that the other knows nothing of",
        &[("give chunk", "add"), ("pull part", "add"), ("read", "add")],
    ),
    (
        "what is dropped is of no use to the other, and takes memory a little longer",
        &[
            ("drop averages", "drop fetched"),
            ("drop averages", "forget updates"),
            ("drop averages", "get"),
            ("drop averages", "give nothing"),
            ("drop averages", "note"),
            ("drop averages", "tell"),
            ("drop averages", "where"),
            ("drop fetched", "begin average"),
            ("drop fetched", "drop averages"),
            ("drop fetched", "forget updates"),
            ("drop fetched", "get"),
            ("drop fetched", "note"),
            ("drop fetched", "tell"),
            ("forget updates", "get"),
            ("forget updates", "tell"),
            ("forget updates", "tell Ready"),
            ("note", "get"),
            ("refuse", "cancel averages"),
            ("refuse", "drop averages"),
            ("reply", "cancel averages"),
            ("tell", "drop fetched"),
        ],
    ),
];

fn run_in(order: Order, wrong: bool, seed: u64) -> Outcome {
    let scenario = if wrong { Scenario::wrong(seed) } else { Scenario::from_seed(seed) };
    run(&Scenario { order, ..scenario })
}

#[test]
fn another_order_fails_a_seed() {
    for pair in MATTERS {
        let fails = |seed| !run_in(Order::Swapped(*pair), seed % 2 == 1, seed).violations.is_empty();
        assert!((0..SEEDS).any(fails), "nobody notices that of {pair:?} the second is done first");
    }
}

#[test]
fn somebody_has_looked_at_every_pair() {
    let free = FREE.iter().flat_map(|(_, pairs)| pairs.iter());
    let known: BTreeSet<Pair> = MATTERS.iter().chain(free).copied().collect();
    let shown = (0..SHOWN).flat_map(|seed| [false, true].map(|wrong| (wrong, seed)));
    let pairs: BTreeSet<Pair> =
        shown.flat_map(|(wrong, seed)| run_in(Order::Noted, wrong, seed).pairs).collect();
    let new: Vec<&Pair> = pairs.difference(&known).collect();
    assert!(
        new.is_empty(),
        "does their order matter? See docs/contributing.md, \"Try another order\": {new:#?}"
    );
}
