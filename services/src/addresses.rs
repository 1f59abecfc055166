//! Owns: loopback addresses for processes that listen later: hosts of the demonstration, the tests and the measurements.
//!
//! What must hold: an address is outside the range from which the kernel takes the ports of outgoing connections. Within it a
//! connection may take the port between its choice and the start of the process that listens, or while that process restarts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port that is given.
const LOWEST: u16 = 10_000;
/// Ports below the kernel's range that are enough.
const ENOUGH: u16 = 1_000;
/// What Linux has where nobody changed it.
const KERNELS: RangeInclusive<u16> = 32_768..=60_999;

/// Ports that were given, by this process: each is given once.
static GIVEN: AtomicU16 = AtomicU16::new(0);

/// The ports of outgoing connections.
fn outgoing() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => KERNELS,
    }
}

/// The ports to choose from where outgoing connections have `outgoing`.
fn ports(outgoing: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    if *outgoing.start() >= LOWEST + ENOUGH { LOWEST..=outgoing.start() - 1 } else { outgoing.end().saturating_add(1)..=u16::MAX }
}

/// `count` addresses at which nothing listens.
///
/// # Errors
/// All ports are taken, or no socket can be made.
pub fn unused(count: usize) -> io::Result<Vec<SocketAddr>> {
    let ports = ports(&outgoing());
    let all = u32::from(*ports.end() - *ports.start()) + 1;
    // Programs that start at the same time begin at different ports.
    let first = std::process::id().wrapping_mul(7_919);
    let mut found = Vec::new();
    for _ in 0..all {
        if found.len() == count {
            break;
        }
        let at = first.wrapping_add(u32::from(GIVEN.fetch_add(1, Ordering::Relaxed))) % all;
        let Ok(port) = u16::try_from(u32::from(*ports.start()) + at) else { continue };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(address) {
            Ok(_) => found.push(address),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    if found.len() < count {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("of the ports {ports:?} fewer than {count} are free")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_outside_the_range_of_outgoing_connections() {
        let held = unused(1).unwrap();
        let _listener = TcpListener::bind(held[0]).unwrap();
        let mut all: Vec<_> = (0..20).flat_map(|_| unused(3).unwrap()).collect();
        assert!(all.iter().all(|address| !outgoing().contains(&address.port()) && TcpListener::bind(address).is_ok()));
        assert!(!all.contains(&held[0]));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 60);
    }

    #[test]
    fn ports_are_below_the_range_of_outgoing_connections_or_above_it_where_it_begins_low() {
        assert_eq!(ports(&KERNELS), 10_000..=32_767);
        assert_eq!(ports(&(1_024..=60_999)), 61_000..=65_535);
        assert!(!ports(&(1_024..=65_534)).is_empty());
        assert_eq!(ports(&(1_024..=65_535)), 65_535..=65_535);
    }
}
