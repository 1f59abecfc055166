//! Owns: the clock: where the kernel reads it, and whether it follows the time of the world.

use std::mem::MaybeUninit;

use super::finding::Finding;
use super::host::Host;
use crate::terminal::duration;

/// Clock sources that a program reads without a system call.
const FAST: [&str; 6] =
    ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "hyperv_clocksource", "riscv_clocksource"];

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    vec![source(host), synchronised(host)]
}

fn source(host: &Host) -> Finding {
    const NAME: &str = "clock-source";
    const DIR: &str = "/sys/devices/system/clocksource/clocksource0";
    let Some(current) = host.system.text(&format!("{DIR}/current_clocksource")) else {
        return Finding::ok(NAME, "the system does not say");
    };
    if FAST.contains(&current.as_str()) {
        return Finding::ok(NAME, current);
    }
    let available = host.system.text(&format!("{DIR}/available_clocksource")).unwrap_or_default();
    let better = available.split_whitespace().find(|one| FAST.contains(one));
    let found = format!("{current}; available: {available}");
    let needed = "tsc or another source that is read without a system call: storage reads the clock for every frame, and each \
                  read takes a microsecond otherwise";
    let command = match better {
        Some(better) => format!("echo {better} > {DIR}/current_clocksource"),
        None => "dmesg | grep -i clocksource, which says why the kernel gave tsc up; tsc=reliable on its command line if the \
                 hardware is sound"
            .to_owned(),
    };
    Finding::warning(NAME, found, needed, command)
}

/// What the kernel says of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kernel {
    is_synchronised: bool,
    /// Most ns by which it may be wrong.
    error_ns: u64,
}

/// Asks the kernel; `None` if it does not answer.
fn kernel() -> Option<Kernel> {
    // SAFETY: `timex` is a struct of integers, for which zeros are valid.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the pointer is to a whole `timex`; with `modes` 0 the kernel only fills it in.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    let is_synchronised = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    let error_ns = u64::try_from(timex.maxerror).ok()?.saturating_mul(1000);
    (state >= 0).then_some(Kernel { is_synchronised, error_ns })
}

/// The daemons that keep a clock right, of those that run.
fn daemons(host: &Host) -> Vec<String> {
    const NAMES: [&str; 6] = ["chronyd", "ntpd", "ntpd-rs", "systemd-timesyn", "ptp4l", "phc2sys"];
    let pids = host.system.names("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let mut found: Vec<String> = pids.filter_map(|pid| host.system.text(&format!("/proc/{pid}/comm"))).collect();
    found.retain(|name| NAMES.contains(&name.as_str()));
    found.sort_unstable();
    found.dedup();
    found
}

fn synchronised(host: &Host) -> Finding {
    const NAME: &str = "clock-sync";
    let Some(kernel) = kernel() else { return Finding::ok(NAME, "the kernel does not say") };
    if kernel.is_synchronised {
        return Finding::ok(NAME, format!("synchronised, at most {} off by the kernel's count", duration(kernel.error_ns)));
    }
    let daemons = daemons(host);
    let (running, command) = match daemons.first() {
        None => ("no daemon that would run here is seen".to_owned(), "apt-get install chrony, or systemctl enable --now chrony"),
        Some(_) => (format!("{} runs", daemons.join(", ")), "chronyc tracking; timedatectl timesync-status"),
    };
    let found = format!("the kernel's clock is not synchronised; {running}");
    let needed = "a clock that follows the world's: records without a time of their own get this host's, retention by age and \
                  certificates depend on it, and hosts are compared by it";
    Finding::warning(NAME, found, needed, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_and_its_clock_is_not_changed() {
        let before = kernel();
        assert!(before.is_some());
        assert_eq!(kernel().map(|k| k.is_synchronised), before.map(|k| k.is_synchronised));
    }
}
