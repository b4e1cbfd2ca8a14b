//! What processes used, as the kernel counts it in /proc.

use std::fs;

/// CPU seconds are counted in these on Linux, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system seconds of this process and of the children it has waited for.
pub fn own_cpu_seconds() -> f64 {
    let ticks = stat_ticks("self");
    (ticks[0] + ticks[1] + ticks[2] + ticks[3]) / TICKS_PER_SECOND
}

/// User and system seconds of another process, without its children.
pub fn cpu_seconds(pid: u32) -> f64 {
    let ticks = stat_ticks(&pid.to_string());
    (ticks[0] + ticks[1]) / TICKS_PER_SECOND
}

/// utime, stime, cutime and cstime.
fn stat_ticks(process: &str) -> [f64; 4] {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    // The name before it may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')').expect("stat has a name in parentheses");
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(11).take(4).map(|n| n.parse().expect("a number")).collect();
    ticks.try_into().expect("stat has 17 fields and more")
}

/// Most memory in use at once since the last reset, in bytes.
pub fn rss_peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("kibibytes");
    kib * 1024
}

/// Lets the peak start again from what is in use now.
pub fn reset_rss_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("reset the peak of a process of ours");
}

/// Takes `bytes` of memory from the system now, to be given out by the allocator later: where a virtual machine's host supplies
/// memory on first use, that costs more than what is being measured.
pub fn take_memory(bytes: usize) {
    const PIECE: usize = 16 << 20;
    // One heap that is never given back, also for large pieces (at most 32 MiB).
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, -1)]
    {
        #[expect(unsafe_code, reason = "mallopt(3) has no safe wrapper")]
        // SAFETY: two numbers; the allocator takes the parameters at any time.
        let done = unsafe { libc::mallopt(parameter, value) };
        assert_eq!(done, 1, "mallopt {parameter}");
    }
    let pieces: Vec<Vec<u8>> = (0..bytes / PIECE).map(|_| vec![1; PIECE]).collect();
    drop(std::hint::black_box(pieces));
}
