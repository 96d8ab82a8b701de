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
