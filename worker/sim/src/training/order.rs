//! The order in which what machines decide is done. The simulation is there to notice a wrong one; so it can put two things in the other order, and has to fail then.

use std::collections::BTreeSet;

use dunlin_protocol::training::driver::DriverEffect;
use dunlin_protocol::training::fetch::FetchWork;
use dunlin_protocol::training::reduce::ReduceEffect;
use dunlin_protocol::training::serve::{ServeEffect, Wanted};
use dunlin_protocol::training::{Job, PeerReport};

/// Two kinds of effects, in the order in which one decision has them.
pub type Pair = (&'static str, &'static str);

/// What is done with the order of effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// They are done in it.
    #[default]
    Kept,
    /// The same, and the pairs that stand side by side are kept in [`Outcome::pairs`](super::Outcome::pairs).
    Noted,
    /// Where these two stand side by side, the second is done first.
    Swapped(Pair),
}

impl Order {
    /// Puts effects in their order; `noted` gets the pairs.
    pub(super) fn apply<T>(
        self,
        effects: &mut [T],
        kind: impl Fn(&T) -> &'static str,
        noted: &mut BTreeSet<Pair>,
    ) {
        match self {
            Self::Kept => {}
            Self::Noted => {
                let pairs = effects.windows(2).map(|two| (kind(&two[0]), kind(&two[1])));
                noted.extend(pairs.filter(|(first, second)| first != second));
            }
            Self::Swapped((first, second)) => {
                for at in 1..effects.len() {
                    // Before all of the first kind that it follows.
                    let mut place = at;
                    while place > 0 && kind(&effects[place]) == second && kind(&effects[place - 1]) == first {
                        effects.swap(place - 1, place);
                        place -= 1;
                    }
                }
            }
        }
    }
}

/// What a driver wants done.
pub(super) fn of_driver(effect: &DriverEffect) -> &'static str {
    match effect {
        DriverEffect::Tell(PeerReport::Ready { .. }) => "tell Ready",
        DriverEffect::Tell(PeerReport::Claim { .. }) => "tell Claim",
        DriverEffect::Tell(PeerReport::Released { .. }) => "tell Released",
        DriverEffect::Tell(PeerReport::Done { .. }) => "tell Done",
        DriverEffect::Tell(PeerReport::Applied { .. }) => "tell Applied",
        DriverEffect::Tell(_) => "tell",
        DriverEffect::Run(Job::Compute { .. }) => "run Compute",
        DriverEffect::Run(Job::Check) => "run Check",
        DriverEffect::Run(Job::Clear) => "run Clear",
        DriverEffect::Run(Job::Add(_)) => "run Add",
        DriverEffect::Run(Job::Apply { .. }) => "run Apply",
        DriverEffect::Reply(_) => "reply",
        DriverEffect::Refuse(..) => "refuse",
        DriverEffect::Begin(..) => "begin average",
        DriverEffect::CancelAverages => "cancel averages",
        DriverEffect::DropAverages => "drop averages",
        DriverEffect::Take(_) => "take",
        DriverEffect::Discard(_) => "discard",
        DriverEffect::Save { .. } => "save",
        DriverEffect::Serve(ServeEffect::Give(_, Wanted::Sums(..))) => "give sums",
        DriverEffect::Serve(ServeEffect::Give(_, Wanted::Result(..))) => "give result",
        DriverEffect::Serve(ServeEffect::Give(..)) => "give",
        DriverEffect::Serve(ServeEffect::Refuse(..)) => "give nothing",
        DriverEffect::Fetch(_, FetchWork::Where(_)) => "where",
        DriverEffect::Fetch(_, FetchWork::Install(..)) => "install",
        DriverEffect::Fetch(_, FetchWork::Follow(_)) => "follow",
        DriverEffect::Fetch(_, FetchWork::Keep(..)) => "keep",
        DriverEffect::Fetch(..) => "get",
        DriverEffect::DropFetched(_) => "drop fetched",
        DriverEffect::ForgetUpdates(_) => "forget updates",
        DriverEffect::Note(_) => "note",
        DriverEffect::Retire => "retire",
        DriverEffect::End(_) => "end",
    }
}

/// What an average wants done.
pub(super) fn of_average(effect: &ReduceEffect) -> &'static str {
    match effect {
        ReduceEffect::Share => "fix share",
        ReduceEffect::Pull(..) => "pull part",
        ReduceEffect::Read(_) => "read",
        ReduceEffect::Add { .. } => "add",
        ReduceEffect::Combine(_) => "combine",
        ReduceEffect::Place { .. } => "place",
        ReduceEffect::Give(..) => "give chunk",
        ReduceEffect::End(_) => "end of chunks",
        ReduceEffect::Refuse(..) => "refuse chunks",
        ReduceEffect::Done => "average done",
        ReduceEffect::Failed(..) => "average failed",
    }
}
