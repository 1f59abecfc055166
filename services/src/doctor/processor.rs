//! Owns: the processor: its speed, the cores that threads of storage are pinned to, how much of it a container gets.

use std::collections::BTreeSet;

use tapestore::agent::Wait;

use super::finding::Finding;
use super::host::Host;
use super::memory::groups;

const DIR: &str = "/sys/devices/system/cpu";

/// The findings.
pub fn examine(host: &Host) -> Vec<Finding> {
    vec![governor(host), cores(host), isolation(host), quota(host)]
}

/// The numbers in a list like `0-3,8`.
fn list(text: &str) -> BTreeSet<usize> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse().ok()?)
    });
    // A kernel has fewer than 65,536 cores; a malformed list must not take all memory.
    ranges.flat_map(|range| range.take(1 << 16)).collect()
}

fn text_of(cores: &BTreeSet<usize>) -> String {
    let texts: Vec<String> = cores.iter().map(usize::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(",") }
}

/// The configured cores, each with its option.
fn configured(host: &Host) -> Vec<(&'static str, usize)> {
    let options = &host.options;
    let cores = [("ingest-core", options.ingest_core), ("sync-core", options.sync_core)];
    cores.into_iter().filter_map(|(name, core)| Some((name, core?))).collect()
}

fn governor(host: &Host) -> Finding {
    const NAME: &str = "governor";
    let cores = host
        .system
        .names(DIR)
        .into_iter()
        .filter(|name| name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())));
    let governors: BTreeSet<String> =
        cores.filter_map(|core| host.system.text(&format!("{DIR}/{core}/cpufreq/scaling_governor"))).collect();
    let all = governors.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if governors.is_empty() {
        return Finding::ok(NAME, "the system does not govern the speed of its cores");
    }
    if governors.iter().all(|one| one == "performance") {
        return Finding::ok(NAME, all);
    }
    let needed =
        "performance, where latency counts: a core that was idle is slow for the first microseconds to milliseconds of work";
    Finding::warning(NAME, all, needed, "cpupower frequency-set -g performance")
}

/// The cores that this process may use and that are switched on.
fn usable(host: &Host) -> Option<BTreeSet<usize>> {
    let online = list(&host.system.text(&format!("{DIR}/online"))?);
    let status = host.system.text("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(list);
    Some(match allowed {
        Some(allowed) => online.intersection(&allowed).copied().collect(),
        None => online,
    })
}

fn cores(host: &Host) -> Finding {
    const NAME: &str = "cores";
    let (configured, usable) = (configured(host), usable(host));
    let Some(usable) = usable else { return Finding::ok(NAME, "the system does not say which there are") };
    let there = format!("{} can be used: {}", usable.len(), text_of(&usable));
    if let Some((option, core)) = configured.iter().find(|(_, core)| !usable.contains(core)) {
        let found = format!("{option} = {core} is no core that storage may use; {there}");
        let needed = "a core that is there, is switched on and is in the process's set: storage runs unpinned otherwise";
        return Finding::problem(
            NAME,
            found,
            needed,
            format!("change {option} in the configuration, or taskset -c / AllowedCPUs="),
        );
    }
    if let [(_, ingest), (_, sync)] = configured.as_slice()
        && ingest == sync
    {
        let found = format!("ingest-core and sync-core are both {ingest}");
        let needed = "two cores: the thread that syncs the log waits for the thread that writes it";
        return Finding::warning(NAME, found, needed, "change sync-core in the configuration");
    }
    if host.options.wait == Wait::Busy && usable.len() < 3 {
        let needed =
            "three cores for wait = \"busy\": the ingest thread never gives up its core, and publishers and readers need one";
        return Finding::warning(NAME, there, needed, "set wait = \"adaptive\" in the configuration");
    }
    Finding::ok(NAME, there)
}

fn isolation(host: &Host) -> Finding {
    const NAME: &str = "isolation";
    let configured = configured(host);
    let isolated = list(&host.system.text(&format!("{DIR}/isolated")).unwrap_or_default());
    let without_ticks = list(&host.system.text(&format!("{DIR}/nohz_full")).unwrap_or_default());
    if configured.is_empty() {
        let found = format!("no thread of storage is pinned; isolated cores: {}", text_of(&isolated));
        return Finding::ok(NAME, found);
    }
    let found = format!("isolcpus: {}, nohz_full: {}", text_of(&isolated), text_of(&without_ticks));
    let shared: BTreeSet<usize> = configured
        .iter()
        .map(|(_, core)| *core)
        .filter(|core| !isolated.contains(core) || !without_ticks.contains(core))
        .collect();
    if shared.is_empty() {
        return Finding::ok(NAME, found);
    }
    let shared = text_of(&shared);
    let needed = format!("core {shared} for storage alone: other processes and timer ticks interrupt a pinned thread otherwise");
    let command = format!("add isolcpus={shared} nohz_full={shared} to the kernel's command line and restart the host");
    Finding::warning(NAME, found, needed, command)
}

/// The least number of cores, in thousandths, that a control group of this process allows.
fn group_quota(host: &Host) -> Option<u64> {
    let of = |dir: &str| {
        let (quota, period) = match host.system.text(&format!("{dir}/cpu.max")) {
            Some(text) => {
                let mut words = text.split_whitespace().map(str::to_owned);
                (words.next()?, words.next()?)
            }
            None => {
                (host.system.text(&format!("{dir}/cpu.cfs_quota_us"))?, host.system.text(&format!("{dir}/cpu.cfs_period_us"))?)
            }
        };
        // "max", or -1 in version 1: no limit.
        let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
        quota.saturating_mul(1000).checked_div(period)
    };
    groups(&host.system, "cpu").iter().filter_map(|dir| of(dir)).min()
}

fn quota(host: &Host) -> Finding {
    const NAME: &str = "cpu-quota";
    match group_quota(host) {
        None => Finding::ok(NAME, "no limit of processor time"),
        Some(thousandths) => {
            let found = format!("this control group has {:.1} cores' time", thousandths as f64 / 1000.0);
            let needed = "no limit of processor time: a process that has used its share stands still until the next period, up to \
                          100 ms, with all its threads";
            Finding::warning(NAME, found, needed, "docker run without --cpus but with --cpuset-cpus; CPUQuota= in the unit")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_and_malformed_ones_are_empty() {
        assert_eq!(list("0-2,8\n"), [0, 1, 2, 8].into());
        assert_eq!(list(""), BTreeSet::new());
        assert_eq!(list("x-3,,7-"), BTreeSet::new());
        assert_eq!(list("0-18446744073709551615").len(), 1 << 16);
    }
}
