//! When to give up: stages that end one after the other and are of no use in between. Pure.

use std::time::Duration;

/// So many may end in a row.
const IN_A_ROW_MAX: u32 = 20;
/// A stage that was ready for so long was of use.
const OF_USE: Duration = Duration::from_secs(10);

/// Ends of stages since something last worked.
#[derive(Debug, Default)]
pub struct Crashes {
    in_a_row: u32,
    /// Tokens that had been served when it was looked last.
    tokens: u64,
}

impl Crashes {
    /// A stage ended after it had been ready for so long, if it ever was.
    pub fn ended(&mut self, ready_for: Option<Duration>) {
        if ready_for.is_some_and(|time| time >= OF_USE) {
            self.in_a_row = 0;
        }
        self.in_a_row += 1;
    }

    /// The gateway has served so many tokens in all.
    pub fn served(&mut self, tokens: u64) {
        if tokens > self.tokens {
            self.in_a_row = 0;
        }
        self.tokens = tokens;
    }

    /// Too many ended in a row: how many.
    #[must_use]
    pub fn too_many(&self) -> Option<u32> {
        (self.in_a_row > IN_A_ROW_MAX).then_some(self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_in_a_row_count() {
        let mut crashes = Crashes::default();
        let end = |crashes: &mut Crashes, times: u32, ready_for: Option<u64>| {
            (0..times).for_each(|_| crashes.ended(ready_for.map(Duration::from_secs)));
            crashes.too_many()
        };
        assert_eq!(end(&mut crashes, 20, None), None);
        assert_eq!(end(&mut crashes, 1, None), Some(21));
        let mut crashes = Crashes::default();
        assert_eq!(end(&mut crashes, 20, Some(1)), None);
        assert_eq!(end(&mut crashes, 100, Some(11)), None, "each of them was of use");
        assert_eq!(end(&mut crashes, 20, Some(9)), Some(21));
        let mut crashes = Crashes::default();
        for tokens in 1..100 {
            assert_eq!(end(&mut crashes, 1, Some(0)), None);
            crashes.served(tokens);
        }
        crashes.served(99);
        assert_eq!(end(&mut crashes, 21, Some(0)), Some(21), "nothing was served in between");
    }
}
