//! Numbers and times in words.

/// `3 s`, `4 min`, `5 h`, `6 d`.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{} s", seconds.max(0)),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1 peer`, `2 peers`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::{count, span};

    #[test]
    fn times_and_counts_are_told_in_words() {
        assert_eq!(
            [span(-4), span(119), span(120), span(7300), span(200_000)],
            ["0 s", "119 s", "2 min", "2 h", "2 d"]
        );
        assert_eq!([count(1, "peer"), count(0, "peer")], ["1 peer", "0 peers"]);
    }
}
