//! Sizes of memory as people write and read them.

/// Bytes of `8GiB`, `8Gi`, `512M` or `1048576`.
///
/// # Errors
/// When it is no size.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor: u64 = match unit.strip_suffix('B').unwrap_or(unit) {
        "" => 1,
        "K" | "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(format!("`{unit}` is no unit; write it as 8GiB, 512MiB or in bytes")),
    };
    let no_number = || format!("`{text}` is no size; write it as 8GiB, 512MiB or in bytes");
    let bytes = match number.contains('.') {
        false => u128::from(number.parse::<u64>().map_err(|_| no_number())?) * u128::from(factor),
        // Fractions are of people, who do not count bytes.
        true => (number.parse::<f64>().map_err(|_| no_number())? * factor as f64) as u128,
    };
    u64::try_from(bytes).map_err(|_| format!("{text} is more than any machine has"))
}

/// `1.5 GiB`, `300 MiB`; anything below a MiB counts as one.
#[must_use]
pub fn show(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < GIB {
        return format!("{} MiB", bytes.div_ceil(1 << 20));
    }
    let tenths = (u128::from(bytes) * 10 / u128::from(GIB)) as u64;
    match tenths % 10 {
        0 => format!("{} GiB", tenths / 10),
        tenth => format!("{}.{tenth} GiB", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn sizes_are_read_as_people_and_kubernetes_write_them() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8Gi", 8 << 30),
            ("1.5GiB", 3 << 29),
            ("512M", 512_000_000),
            ("512MB", 512_000_000),
            ("300 MiB", 300 << 20),
            ("268435456", 1 << 28),
            ("2Ti", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "8X", "-1", "1e3", "1.2.3G", "99999999Ti"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_one_unit() {
        let shown = [0, 1, 300 << 20, 1 << 30, 3 << 29, 8 << 30, (8 << 30) + (1 << 20)].map(show);
        assert_eq!(shown, ["0 MiB", "1 MiB", "300 MiB", "1 GiB", "1.5 GiB", "8 GiB", "8 GiB"]);
    }
}
