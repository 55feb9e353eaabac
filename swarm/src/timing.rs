//! Times that two processes must agree on, each written once.
//!
//! A cloud that takes a machine back tells 30 s before (GCE: 30 s in all). Within them a peer hands over what it has, and is killed only
//! after it has ended by itself.

use std::time::Duration;

/// Between SIGTERM and SIGKILL of a worker's pod: the shortest notice of a cloud.
pub const GRACE: Duration = Duration::from_secs(30);
/// A worker that is to go serves at most so long, until its work is done elsewhere.
pub const DRAIN: Duration = Duration::from_secs(25);
/// What the operator leaves a worker whose machine is taken back: part of the notice has passed when it learns of it.
pub const DRAIN_ON_NOTICE: Duration = Duration::from_secs(15);
/// A stage frees what it keeps for a gateway that it has not heard of for this long. The gateway's number: it says it in its hello, and this is what
/// gateways of this build say, and what a stage takes for those that say nothing.
pub const GATEWAY_LEASE: Duration = Duration::from_secs(10);
/// Shortest and longest lease that a stage gives: long enough to dial again, short enough that a lost gateway does not keep pages for ever.
pub const GATEWAY_LEASE_RANGE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Pause between pings of a link.
pub const PING: Duration = Duration::from_millis(200);
/// A link on which nothing was heard for so long, three pings and a little, is lost.
pub const SILENCE: Duration = Duration::from_millis(650);
/// Pause between signs of life of a stream of training.
pub const TRAINING_PING: Duration = Duration::from_millis(250);
/// A stream of training on which nothing was heard for so long is lost.
pub const TRAINING_SILENCE: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_must_go_has_handed_over_before_it_is_killed() {
        assert!(DRAIN_ON_NOTICE < DRAIN && DRAIN < GRACE);
    }

    #[test]
    fn a_lost_ping_is_not_yet_a_lost_peer() {
        assert!(PING * 3 < SILENCE && TRAINING_PING * 3 < TRAINING_SILENCE);
    }

    #[test]
    fn sessions_outlive_the_links_that_carry_them() {
        assert!(SILENCE * 5 < GATEWAY_LEASE, "a gateway that dials again finds its sessions");
        let (least, most) = GATEWAY_LEASE_RANGE;
        assert!(SILENCE * 3 < least && least <= GATEWAY_LEASE && GATEWAY_LEASE <= most);
    }
}
