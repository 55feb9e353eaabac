//! dunlin-operator: observe, plan, apply.
#![allow(dead_code)]

mod apply;
mod config;
mod error;
mod health;
mod labels;
mod lease;
mod metrics;
mod observe;
mod spot;
mod telemetry;
#[cfg(test)]
mod testing;

fn main() {}
