//! Stories of training swarms: who joins, switches and fetches, and why. `DUNLIN_UPDATE=1 cargo test -p dunlin-planner --test rebalance_golden`
//! writes the files anew; read the difference before you keep it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "the stories are files")]

use std::fmt::Write;
use std::path::Path;

use dunlin_planner::rebalance::{Fetching, Peer, PipelineStage, PipelineView, RebalancePolicy, rebalance};

/// A swarm whose story is written down.
struct Story {
    view: PipelineView,
    policy: RebalancePolicy,
    text: String,
}

impl Story {
    /// `peers` by stage, named a1, a2, b1 and so on.
    fn new(peers: &[usize], room: usize) -> Self {
        let mut view =
            PipelineView { stages: vec![PipelineStage::default(); peers.len()], ..PipelineView::default() };
        for (stage, count) in peers.iter().enumerate() {
            for i in 1..=*count {
                let name = format!("{}{i}", char::from(b'a' + stage as u8)).as_str().into();
                view.peers.push(Peer { name, stage: Some(stage), room, ..Peer::default() });
            }
        }
        Self {
            view,
            policy: RebalancePolicy { shadows: false, ..RebalancePolicy::default() },
            text: String::new(),
        }
    }

    fn peer(&mut self, name: &str) -> &mut Peer {
        self.view.peers.iter_mut().find(|p| p.name.as_str() == name).unwrap()
    }

    fn lose(&mut self, name: &str) {
        self.view.peers.retain(|p| p.name.as_str() != name);
    }

    fn come(&mut self, name: &str, rows_per_s: f64) {
        self.view.peers.push(Peer { name: name.into(), rows_per_s, ..Peer::default() });
    }

    /// Plans at `s` seconds, writes down what is planned, and begins it.
    fn plan(&mut self, s: u64, what: &str) {
        self.view.pass(s * 1000);
        let plan = rebalance(&self.view, &self.policy);
        let (now, after) = (plan.rows_per_s, plan.after_rows_per_s);
        let _ = writeln!(self.text, "== {s} s, {what}: {now:.2} rows/s, after switches {after:.2}");
        for (stage, _) in self.view.stages.iter().enumerate() {
            let of = self.view.peers.iter().filter(|p| p.stage == Some(stage));
            let names: Vec<String> = of
                .map(|p| {
                    let shadows: Vec<String> = p.shadows.iter().map(ToString::to_string).collect();
                    let has =
                        if shadows.is_empty() { String::new() } else { format!("(+{})", shadows.join(",")) };
                    format!("{}{has}", p.name)
                })
                .collect();
            let _ = writeln!(self.text, "   stage {stage}: {}", names.join(" "));
        }
        for step in &plan.moves {
            let _ = writeln!(self.text, "{step}");
        }
        for held in &plan.held {
            let _ = writeln!(self.text, "held: {held}");
        }
        self.text.push('\n');
        self.view.carry_out(&plan);
    }

    fn check(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
        if std::env::var_os("DUNLIN_UPDATE").is_some() {
            std::fs::write(&path, &self.text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(self.text, found, "{}: DUNLIN_UPDATE=1 writes it anew", path.display());
    }
}

#[test]
fn joiners_go_to_the_weakest_stage_and_two_of_them_count_each_other() {
    let mut story = Story::new(&[2, 1, 2], 1);
    story.come("x", 1.0);
    story.come("y", 1.0);
    story.come("z", 3.0);
    story.plan(0, "three come, one three times as fast");
    story.plan(30, "they fetch");
    story.plan(60, "they have joined");
    story.check("rebalance-join");
}

#[test]
fn a_mover_fetches_while_it_serves() {
    let mut story = Story::new(&[3, 3, 3], 1);
    story.lose("c1");
    story.lose("c2");
    story.plan(0, "two of a stage are lost");
    story.plan(60, "the state is there");
    story.plan(70, "in the next step");
    story.check("rebalance-prepared");
}

#[test]
fn a_notice_is_acted_on_before_the_loss() {
    let mut story = Story::new(&[3, 2], 1);
    story.peer("b1").doomed_ms = Some(125_000);
    story.plan(5, "b1 will be gone at 125 s");
    story.plan(65, "the state is there, b1 still serves");
    story.plan(115, "one edge more before the loss");
    story.plan(118, "the last edge before the loss");
    story.plan(128, "b1 is gone");
    story.check("rebalance-notice");
}

#[test]
fn shadows_are_spread_over_all_stages() {
    let mut story = Story::new(&[3, 2, 2, 2], 1);
    story.policy.shadows = true;
    story.plan(0, "nobody has a second state");
    story.plan(60, "all have");
    story.lose("d1");
    story.plan(100, "d1 is lost without notice");
    story.plan(110, "in the next step");
    story.check("rebalance-shadows");
}

#[test]
fn switches_go_along_a_chain() {
    let mut story = Story::new(&[3, 2, 2], 1);
    story.peer("a2").shadows.insert(1);
    story.peer("b2").shadows.insert(2);
    story.lose("c1");
    story.plan(0, "nobody of the rich stage has the poor one's state");
    story.plan(10, "in the next step");
    story.check("rebalance-chain");
}

#[test]
fn memory_for_one_state_makes_moves_cost() {
    let mut story = Story::new(&[3, 1], 0);
    story.view.averaging = true;
    story.plan(0, "an averaging is under way");
    story.view.averaging = false;
    story.plan(5, "it is over");
    story.plan(65, "the mover is there");
    story.come("x", 1.0);
    story.peer("x").doomed_ms = Some(100_000);
    story.plan(70, "somebody comes for half a minute");

    let mut short = Story::new(&[3, 3], 0);
    for name in ["b1", "b2"] {
        short.peer(name).doomed_ms = Some(200_000);
    }
    for name in ["a1", "a2", "a3", "b3"] {
        short.peer(name).expected_life_ms = 70_000;
    }
    short.plan(130, "two will be gone, and the others live for little more than a fetch");
    for name in ["a1", "a2", "a3", "b3"] {
        short.peer(name).expected_life_ms = 700_000;
    }
    short.plan(131, "they live longer");
    let mut early = Story::new(&[3, 3], 0);
    early.peer("b1").doomed_ms = Some(200_000);
    early.plan(10, "one will be gone, but not so soon");
    short.text.push_str(&early.text);
    let mut last = Story::new(&[1, 1, 2], 0);
    last.peer("b1").doomed_ms = Some(1_000);
    last.come("x", 1.0);
    last.peer("x").fetching = Some(Fetching { stage: 0, ready_ms: 60_000 });
    last.plan(0, "a stage's only peer will be gone, while somebody joins another");
    short.text.push_str(&last.text);
    story.text.push_str(&short.text);
    story.check("rebalance-cold");
}

#[test]
fn a_slow_peer_counts_as_what_it_is() {
    let mut story = Story::new(&[3, 3], 1);
    for name in ["b1", "b2", "b3"] {
        story.peer(name).rows_per_s = 1.0 / 3.0;
    }
    story.plan(0, "as many peers, a third of the speed");
    story.plan(60, "the states are there");
    story.check("rebalance-unequal");
}

#[test]
fn a_stage_with_nobody_comes_back_from_a_shadow_though_its_holder_has_just_moved() {
    let mut story = Story::new(&[2, 1], 1);
    story.peer("a1").shadows.insert(1);
    story.peer("a1").moved_ms = Some(0);
    story.lose("b1");
    story.plan(10, "a stage has nobody");
    story.plan(20, "in the next step");
    story.check("rebalance-empty");
}
