//! How much memory this process may use: what it was told, at most what its control group and the machine have.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// The least of `given`, the limits of the control groups this process is in, and the memory of the machine.
#[must_use]
pub fn limit(given: Option<u64>) -> u64 {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = files(&groups).into_iter().filter_map(|file| number(&read_to_string(file).ok()?));
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    given.into_iter().chain(of_groups).chain(machine).min().unwrap_or(u64::MAX)
}

/// Gives back to the system what the allocator keeps of what was freed.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim(3) takes a number and may be called at any time.
        #[allow(unsafe_code, reason = "std knows nothing of the allocator's reserves")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Files with limits of the groups that `/proc/self/cgroup` names, each with those around it. In a container the path may be one of the
/// machine, which is not to be seen there; the group at the root is the container's then.
fn files(groups: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => (Path::new("/sys/fs/cgroup"), "memory.max"),
            of if of.split(',').any(|c| c == "memory") => {
                (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        out.extend(path.ancestors().map(|group| root.join(group).join(name)));
    }
    out
}

/// A limit; none when it says `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::{Path, files, limit, number, total};

    #[test]
    fn every_group_around_a_process_limits_it() {
        let found = files("0::/kubepods/pod1/c\n");
        let expected = [
            "/sys/fs/cgroup/kubepods/pod1/c/memory.max",
            "/sys/fs/cgroup/kubepods/pod1/memory.max",
            "/sys/fs/cgroup/kubepods/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(found, expected.map(Path::new));
        let found = files("12:cpu,cpuacct:/a\n7:memory:/a\n0::/\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(found, expected.map(Path::new));
        assert_eq!((number("max\n"), number("314572800\n")), (None, Some(314_572_800)));
        assert_eq!(total("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), Some(24_576_000 * 1024));
    }

    #[test]
    fn what_is_given_counts_when_it_is_less_than_there_is() {
        let all = limit(None);
        assert!(all < u64::MAX);
        assert_eq!(limit(Some(4096)), 4096);
        assert_eq!(limit(Some(u64::MAX)), all);
    }
}
