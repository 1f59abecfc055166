//! Owns: what the system says of a process: memory, descriptors, threads, processor time.

use std::time::Duration;

use procfs::process::Process;

/// What a process holds. Zeros of a process that has ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Private memory, bytes.
    pub private: u64,
    /// Shared memory, bytes.
    pub shared: u64,
    /// Most memory so far, mapped files among it, bytes.
    pub peak: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

fn process(pid: u32) -> Option<Process> {
    Process::new(i32::try_from(pid).ok()?).ok()
}

/// What the process `pid` holds; `None` if it has ended.
pub fn held(pid: u32) -> Option<Held> {
    let process = process(pid)?;
    let status = process.status().ok()?;
    let bytes = |kib: Option<u64>| kib.unwrap_or(0) << 10;
    Some(Held {
        private: bytes(status.rssanon),
        shared: bytes(status.rssshmem),
        peak: bytes(status.vmhwm),
        threads: status.threads,
        descriptors: process.fd_count().unwrap_or(0) as u64,
    })
}

/// Processor time that the process `pid` has used, its own and the system's for it.
pub fn processor_time(pid: u32) -> Duration {
    let ticks = process(pid).and_then(|p| p.stat().ok()).map_or(0, |stat| stat.utime + stat.stime);
    Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
}
