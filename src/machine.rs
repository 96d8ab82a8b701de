//! What the machine has, and what the process has used of it.

/// A quarter of the machine's memory, or of what this process is allowed, in bytes.
pub(crate) fn quarter_of_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let allowed = system.cgroup_limits().map(|limits| limits.total_memory).filter(|&n| n > 0);
    system.total_memory().min(allowed.unwrap_or(u64::MAX)) / 4
}

/// The memory that the process has now, in bytes; `None` where the system does not say.
pub(crate) fn memory() -> Option<u64> {
    // Not by way of sysinfo, which would look at every process.
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let resident: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(resident.saturating_mul(PAGE))
}

/// Gives memory that is free back to the system, so that the peaks of stages do not add up: what was freed between things that
/// stay is kept by the allocator of GNU otherwise.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets each piece of memory of some size go back to the system when it is free. The allocator of GNU keeps ever larger ones
/// otherwise, up to 32 MiB, as the matrices of most layers are.
pub fn return_large_pieces() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a setting of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Bytes of a page, nearly everywhere.
const PAGE: u64 = 4096;

/// What the machine's processor is called, with the number of its cores.
pub(crate) fn name() -> String {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing()),
    );
    let brand = system.cpus().first().map(|c| c.brand().trim().to_string()).filter(|b| !b.is_empty());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", brand.unwrap_or_else(|| std::env::consts::ARCH.to_string()))
}

/// The most memory that the process has had at any time, in bytes; `None` where the system does not say.
///
/// Pages of mapped files count as long as they are in memory.
#[cfg(unix)]
pub(crate) fn peak_memory() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is as large as the call expects, and any bytes are valid for it.
    let usage = unsafe { (libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) == 0).then(|| usage.assume_init()) };
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    usage.and_then(|u| u64::try_from(u.ru_maxrss).ok()).map(|n| n * unit)
}

/// The most memory that the process has had at any time, in bytes; `None` where the system does not say.
#[cfg(not(unix))]
pub(crate) fn peak_memory() -> Option<u64> {
    None
}

/// Seconds of processor time that this process has used, all threads together; `None` where the system does not say.
#[cfg(unix)]
pub(crate) fn processor_time() -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the structure that it is given, and to nothing else.
    let is_known = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) == 0 };
    is_known.then(|| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Seconds of processor time that this process has used; `None` where the system does not say.
#[cfg(not(unix))]
pub(crate) fn processor_time() -> Option<f64> {
    None
}

/// What other processes do while something is timed.
pub(crate) struct Others {
    start: std::time::Instant,
    /// Seconds that all cores were busy, and that this process used, at the start.
    busy: Option<[f64; 2]>,
}

impl Others {
    pub(crate) fn watch() -> Self {
        Self { start: std::time::Instant::now(), busy: busy() }
    }

    /// How many cores others have kept busy since, in the mean; `None` where the system does not say.
    pub(crate) fn cores(&self) -> Option<f64> {
        let ([all, own], [all_before, own_before]) = (busy()?, self.busy?);
        let seconds = self.start.elapsed().as_secs_f64();
        Some((((all - all_before) - (own - own_before)) / seconds.max(f64::MIN_POSITIVE)).max(0.0))
    }
}

/// Seconds that all cores were busy, and that this process used.
fn busy() -> Option<[f64; 2]> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests count among users.
    let working = [0, 1, 2, 5, 6, 7].iter().filter_map(|&place| ticks.get(place)).sum::<f64>();
    Some([working / TICKS, processor_time()?])
}

/// Ticks of a second, nearly everywhere.
const TICKS: f64 = 100.0;
