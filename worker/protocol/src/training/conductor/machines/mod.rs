//! What the conductor keeps, each part of it in the hands of one machine: nobody else can change it, and what there is to know is asked of it.
//!
//! * [`work`] the open steps, who drives and who adds what
//! * [`averages`] of the oldest open step
//! * [`doubts`] about the sums of lost peers
//! * [`gathering`] what is known before there are steps
//! * [`measured`] for the planner · [`usual`] times, to know when to wait no longer
//! * [`membership`] the peers, each a [`peer`], and what each does
//! * [`saving`] which checkpoints there are, and one that is being written
//! * [`trust`] what peers say that their states are, who was expelled
//! * [`verdict`] who is wrong when peers differ

pub mod averages;
pub mod doubts;
pub mod gathering;
pub mod measured;
pub mod membership;
pub mod peer;
pub mod saving;
pub mod trust;
pub mod usual;
pub mod verdict;
pub mod work;
