//! Owns: `tape cluster scrub`: every host reads all its records, from SSTables and from memory, and their checksums are
//! compared. SSTables differ between hosts, because each flushes when its MemTable is full; records must not.

use std::collections::BTreeMap;
use std::path::Path;

use tapestore_engine::consensus::message::Command;

use super::{Scrub, Target, request};
use crate::exit::{DATA, DIFFERENCE, Failure, Outcome};
use crate::output::Format;
use crate::stdout::say;
use crate::terminal::thousands;

/// Count and checksum of a stripe on one host.
type Has = (u64, u32);

/// Compares the hosts.
///
/// # Errors
/// The hosts differ (exit code 1, with hosts and records), or cannot read their records; a host does not answer.
pub fn run(store: &Path, args: &Scrub, format: Format) -> Outcome {
    let members = request::send(store, &args.target, Command::Status)?.members;
    let mut last = u64::MAX;
    for member in &members {
        let target = Target { at: Some(member.address.clone()), ..args.target.clone() };
        let [_, _, committed] = request::send(store, &target, Command::Status)?.records;
        last = last.min(committed);
    }
    let mut stripes: BTreeMap<(u64, u64), BTreeMap<u64, Has>> = BTreeMap::new();
    let mut unreadable: BTreeMap<u64, String> = BTreeMap::new();
    for member in &members {
        let parts = match request::digests(store, &args.target, &member.address, args.from_lsn, last) {
            Ok(parts) => parts,
            // The other hosts are still compared.
            Err(failure) if failure.code == DATA => {
                unreadable.insert(member.node.0, failure.to_string());
                continue;
            }
            Err(failure) => return Err(failure),
        };
        for part in parts {
            let has = (part.count, part.checksum);
            stripes.entry((part.first, part.last)).or_default().insert(member.node.0, has);
        }
        if !format.json {
            say(format!("node {} has read its records up to {}", member.node, thousands(last)));
        }
    }
    let readable = members.len() - unreadable.len();
    let differing: Vec<_> = stripes.iter().filter(|(_, hosts)| differ(hosts, readable)).collect();
    if format.json {
        let list = differing.iter().map(|((first, last), hosts)| {
            let hosts =
                hosts.iter().map(|(node, (count, sum))| serde_json::json!({ "node": node, "count": count, "checksum": sum }));
            serde_json::json!({ "first": first, "last": last, "hosts": hosts.collect::<Vec<_>>() })
        });
        say(serde_json::json!({
            "hosts": members.len(), "last": last, "differ": list.collect::<Vec<_>>(), "unreadable": unreadable,
        }));
    } else {
        for ((first, last), hosts) in &differing {
            let shown = hosts.iter().map(|(node, (count, sum))| format!("node {node}: {count} records, checksum {sum:08x}"));
            say(format!("records {first} to {last} differ: {}", shown.collect::<Vec<_>>().join("; ")));
        }
    }
    if !format.json {
        unreadable.iter().for_each(|(node, why)| say(format!("node {node} cannot read its records: {why}")));
    }
    if differing.is_empty() && unreadable.is_empty() {
        if !format.json {
            say(format!("equal    {} hosts, records {} to {}", members.len(), args.from_lsn, thousands(last)));
        }
        return Ok(());
    }
    let advice = "on a host that cannot read its records, stop storage and run tape repair; on the host that differs from all \
                  others, stop storage and run tape cluster install-snapshot; if the host leads, run tape cluster transfer first";
    Err(Failure::new(
        DIFFERENCE,
        format!(
            "the hosts differ in {} stripes of records, and {} hosts cannot read their records; {advice}",
            differing.len(),
            unreadable.len()
        ),
    ))
}

fn differ(hosts: &BTreeMap<u64, Has>, count: usize) -> bool {
    let first = hosts.values().next();
    hosts.len() != count || hosts.values().any(|has| Some(has) != first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_differ_if_one_lacks_a_stripe_or_has_another_checksum() {
        let same = BTreeMap::from([(1, (10, 7)), (2, (10, 7)), (3, (10, 7))]);
        assert!(!differ(&same, 3) && differ(&same, 4));
        assert!(differ(&BTreeMap::from([(1, (10, 7)), (2, (10, 8)), (3, (10, 7))]), 3));
    }
}
