//! `doctor`: why a swarm is not Ready, in one line, then what shows it and what to do.
//!
//! * [`finding`] one thing that is wrong · [`diagnose`](mod@diagnose) all of them, the cause of the others first
//! * rules, each a pure function of the evidence: [`operator`], [`manifest`] what the swarm names and the operator says, [`refused`] pods that are
//!   not taken, [`unplaced`] those that find no node, [`containers`] those that do not run, [`reach`] those that do not reach one another
//! * [`report`] the findings for people

pub mod containers;
pub mod diagnose;
pub mod finding;
pub mod manifest;
pub mod operator;
pub mod reach;
pub mod refused;
pub mod report;
pub mod unplaced;

#[cfg(test)]
mod tests;

pub use diagnose::diagnose;
pub use finding::{Finding, Severity};
pub use report::{DoctorReport, report};
