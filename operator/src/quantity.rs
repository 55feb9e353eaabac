//! Kubernetes quantities as numbers.

/// `512Mi`, `1.5G`, `1e9` or `200m` in thousandths; `None` for anything else. Never negative.
#[must_use]
pub fn millis(text: &str) -> Option<u64> {
    const UNITS: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)))
        .unwrap_or((text, 1.0));
    let value = number.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0)? * unit * 1000.0;
    // Exact up to 2^53 thousandths, that is 9 TB; the API bounds what may be written.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let millis = value.round().min(9e18) as u64;
    Some(millis)
}

/// A quantity of bytes.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    millis(text).map(|m| m / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("512Mi", Some(512 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("2G", Some(2_000_000_000)),
            ("1e3", Some(1000)),
            ("2E3", Some(2000)),
            ("3Pi", Some(3 << 50)),
            ("512", Some(512)),
            ("1500m", Some(1)),
            ("0", Some(0)),
            ("-1", None),
            ("a lot", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert_eq!(millis("200m"), Some(200));
        assert_eq!(millis("2"), Some(2000));
    }
}
