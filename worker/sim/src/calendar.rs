//! Virtual time, and what is to happen when.

use std::collections::BTreeMap;

/// Events of a simulation in the order in which they happen: by time, and those of one time in the order in which they were entered. Time passes
/// only when an event is taken, or when somebody says so, and never goes back. All times are in milliseconds since the beginning.
#[derive(Clone, Debug)]
pub struct Calendar<E> {
    now_ms: u64,
    entered: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Default for Calendar<E> {
    /// At time 0, without events.
    fn default() -> Self {
        Self { now_ms: 0, entered: 0, events: BTreeMap::new() }
    }
}

impl<E> Calendar<E> {
    /// The time that it is.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now_ms
    }

    /// `event` happens so many milliseconds from now, after all that happens at that time as far as it is known.
    pub fn at(&mut self, after_ms: u64, event: E) {
        self.entered += 1;
        self.events.insert((self.now_ms + after_ms, self.entered), event);
    }

    /// When the next event happens.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// How many events there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.events.len()
    }

    /// Takes the next event: it is its time now.
    pub fn pop(&mut self) -> Option<E> {
        self.pop_due(u64::MAX)
    }

    /// The same, unless it happens later than `until_ms`.
    pub fn pop_due(&mut self, until_ms: u64) -> Option<E> {
        let next = self.events.first_entry().filter(|next| next.key().0 <= until_ms)?;
        let ((at_ms, _), event) = next.remove_entry();
        self.pass_to(at_ms);
        Some(event)
    }

    /// It is this time now, unless it is later already. Events of before then are late: they happen at the time at which they are taken.
    pub fn pass_to(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::Calendar;

    /// When which event happens.
    fn all(mut calendar: Calendar<&'static str>) -> Vec<(u64, &'static str)> {
        std::iter::from_fn(|| calendar.pop().map(|event| (calendar.now(), event))).collect()
    }

    #[test]
    fn events_happen_by_their_time_and_those_of_one_time_in_the_order_in_which_they_were_entered() {
        let mut calendar = Calendar::default();
        for (after_ms, event) in [(30, "d"), (10, "b"), (30, "e"), (0, "a"), (10, "c")] {
            calendar.at(after_ms, event);
        }
        assert_eq!((calendar.now(), calendar.next_at(), calendar.count()), (0, Some(0), 5));
        assert_eq!(all(calendar), [(0, "a"), (10, "b"), (10, "c"), (30, "d"), (30, "e")]);
    }

    #[test]
    fn what_is_entered_while_an_event_happens_counts_from_its_time() {
        let mut calendar = Calendar::default();
        calendar.at(10, "first");
        calendar.at(15, "third");
        assert_eq!(calendar.pop(), Some("first"));
        calendar.at(5, "fourth");
        calendar.at(0, "second");
        assert_eq!(all(calendar), [(10, "second"), (15, "third"), (15, "fourth")]);
    }

    #[test]
    fn nothing_that_is_not_due_happens_and_no_time_passes_for_it() {
        let mut calendar = Calendar::default();
        calendar.at(10, "a");
        assert_eq!((calendar.pop_due(9), calendar.now(), calendar.next_at()), (None, 0, Some(10)));
        assert_eq!((calendar.pop_due(10), calendar.now(), calendar.next_at()), (Some("a"), 10, None));
        assert_eq!((calendar.pop(), calendar.now()), (None, 10));
    }

    #[test]
    fn time_passes_without_events_and_never_goes_back() {
        let mut calendar = Calendar::default();
        calendar.at(10, "late");
        calendar.pass_to(20);
        calendar.pass_to(15);
        calendar.at(1, "next");
        assert_eq!(all(calendar), [(20, "late"), (21, "next")]);
    }
}
