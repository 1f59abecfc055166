//! Owns: what the system says of this process, under the names that Prometheus' own client libraries use.

use std::fmt;

use procfs::process::Process as Of;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::words::Words;

/// This process as of a moment; `None` where the system does not say.
#[derive(Clone, Copy, Debug)]
pub struct Process(Option<Numbers>);

#[derive(Clone, Copy, Debug)]
struct Numbers {
    cpu_ns: u64,
    resident: u64,
    mapped: u64,
    threads: u64,
    open_files: Option<u64>,
    open_files_max: Option<u64>,
    started_ns: Option<u64>,
}

impl Process {
    /// As of now.
    pub fn now() -> Process {
        Process(Of::myself().ok().and_then(|of| Numbers::of(&of)))
    }
}

impl Numbers {
    fn of(of: &Of) -> Option<Numbers> {
        let stat = of.stat().ok()?;
        let tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
        let soft = |limits: procfs::process::Limits| match limits.max_open_files.soft_limit {
            procfs::process::LimitValue::Value(most) => most,
            procfs::process::LimitValue::Unlimited => u64::MAX,
        };
        Some(Numbers {
            cpu_ns: (stat.utime + stat.stime) * tick,
            resident: stat.rss * procfs::page_size(),
            mapped: stat.vsize,
            threads: stat.num_threads.unsigned_abs(),
            open_files: of.fd_count().ok().map(|count| count as u64),
            open_files_max: of.limits().ok().map(soft),
            started_ns: procfs::boot_time_secs().ok().map(|booted| booted * 1_000_000_000 + stat.starttime * tick),
        })
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(of) = self.0 else { return Ok(()) };
        let mut to = Words(encoder);
        to.time_counter("process_cpu", "Processor time of this process.", of.cpu_ns)?;
        to.bytes("process_resident_memory", "Memory that it has, with the pages of files that it maps.", of.resident)?;
        to.bytes("process_virtual_memory", "Addresses that it has mapped.", of.mapped)?;
        to.gauge("process_threads", "Its threads.", of.threads)?;
        if let Some(count) = of.open_files {
            to.gauge("process_open_fds", "Its open files.", count)?;
        }
        if let Some(most) = of.open_files_max {
            to.gauge("process_max_fds", "The most files that it may open.", most)?;
        }
        of.started_ns.map_or(Ok(()), |started| to.time("process_start_time", "When it was started, since 1970.", started))
    }
}
