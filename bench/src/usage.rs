//! What a process has used, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// What `/proc` counts CPU time in: `USER_HZ` is 100 on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, in the kernel and outside.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// The most resident memory it ever had, in bytes.
    pub peak: u64,
}

impl Usage {
    /// What a running process has used.
    pub fn of(pid: u32) -> Self {
        let read = |file| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        Self::parse(&read("stat"), &read("status")).expect("what Linux writes in /proc")
    }

    /// The CPU time of the threads that a process has now, to the nanosecond; `of` counts in hundredths of a second, but
    /// also what ended threads had used.
    pub fn precise_cpu(pid: u32) -> Duration {
        let folder = format!("/proc/{pid}/task");
        let threads = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let used = threads.filter_map(|thread| {
            // A thread may end between the two looks.
            let line = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(used.sum())
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; the state follows it, and user and system time 11 and 12 later.
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut times = after_name.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
        let ticks = times.next()?.ok()? + times.next()?.ok()?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        let cpu = Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND);
        Some(Self { cpu, resident: bytes("VmRSS")?, peak: bytes("VmHWM")? })
    }
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "nothing is counted here up to 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// The kernel's own memory for what this machine does (slab caches: sockets, their buffers, files), in bytes.
pub fn kernel_memory() -> u64 {
    let all = fs::read_to_string("/proc/meminfo").expect("what Linux counts of its memory");
    let slab = all.lines().find_map(|line| line.strip_prefix("Slab:")?.trim().strip_suffix(" kB"));
    slab.and_then(|slab| slab.parse::<u64>().ok()).expect("the size of its slab caches") * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 4 0 1234 0 0";
        let status = "Name:\ta) b\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n";
        let usage = Usage::parse(stat, status).unwrap();
        assert_eq!(usage, Usage { cpu: Duration::from_secs(3), resident: 1 << 20, peak: 2 << 20 });
    }

    #[test]
    fn both_ways_to_count_cpu_time_agree() {
        let pid = std::process::id();
        let before = (Usage::of(pid).cpu, Usage::precise_cpu(pid));
        let mut sum = 0_u64;
        while Usage::precise_cpu(pid) < before.1 + Duration::from_millis(200) {
            sum = (0..100_000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
        }
        assert!(Usage::of(pid).cpu >= before.0 + Duration::from_millis(150), "{sum}");
    }

    #[test]
    fn work_is_counted() {
        let before = Usage::of(std::process::id());
        let mut sum = 0_u64;
        while Usage::of(std::process::id()).cpu == before.cpu {
            sum = (0..100_000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
        }
        assert!(before.peak >= before.resident && before.resident > 0, "{before:?}, {sum}");
    }
}
