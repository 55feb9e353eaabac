//! Processes of a local swarm: which program they run ([`worker`]), who they are to one another ([`trust`]), where they listen ([`ports`]),
//! and how they are started, heard and ended ([`process`]).

pub mod ports;
pub mod process;
pub mod trust;
pub mod worker;
