//! Processes of a local swarm: which program they run ([`worker`]), who they are to one another ([`trust`]), where they listen ([`ports`]),
//! how they are started, heard and ended ([`process`]), and looked after ([`supervise`](mod@supervise)).

pub mod ports;
pub mod process;
pub mod supervise;
pub mod trust;
pub mod worker;
