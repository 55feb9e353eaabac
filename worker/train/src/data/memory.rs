//! Memory that is free here: tokens are held in it, and data that does not end must not take all of it.

use std::fs;

/// What the system and the control group of this process leave, in bytes; all that can be counted when neither says.
pub(super) fn available() -> u64 {
    let number = |text: String| text.trim().parse::<u64>().ok();
    let group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok().and_then(number);
    let of_group = group("memory.max").map(|max| max.saturating_sub(group("memory.current").unwrap_or(0)));
    let of_system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_system(&text));
    of_group.unwrap_or(u64::MAX).min(of_system.unwrap_or(u64::MAX))
}

fn of_system(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       24689404 kB\nMemAvailable:   19000000 kB\n";
        assert_eq!(super::of_system(text), Some(19_000_000 * 1024));
        assert_eq!(super::of_system("MemTotal: 1 kB\n"), None);
        assert!(super::available() > 1 << 20);
    }
}
