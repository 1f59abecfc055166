//! Owns: how long a cluster acknowledges nothing after its leader's process is killed, in virtual time and with
//! [`Options::default`]: disks of 1 to 6 ms, hops of 1 to 2 ms, no other faults.

use super::nemesis::Aim;
use super::world::{Cluster, FINE};

const SEEDS: u64 = 60;
const KILLS: u64 = 10;
/// Milliseconds within which a cluster with two healthy hosts must acknowledge something.
const END: u64 = 20_000;

/// Milliseconds from each kill of a leader to the first acknowledgement by another.
fn times(seed: u64) -> Vec<u64> {
    let mut cluster = Cluster::new(seed, Aim::Members, None);
    cluster.pace = FINE;
    for n in 0..3 {
        let phase = cluster.rng.below(FINE.tick);
        cluster.hosts[n].live.as_mut().unwrap().phase = phase;
    }
    let settle = |cluster: &mut Cluster, ms: u64| (0..ms).for_each(|_| cluster.tick());
    let mut times = Vec::new();
    settle(&mut cluster, 2_000);
    for _ in 0..KILLS {
        let wait = cluster.rng.below(500);
        settle(&mut cluster, wait);
        let leader = cluster.leader().unwrap();
        assert_eq!(cluster.last_acked.1, leader, "seed {seed}: it leads and acknowledges");
        let killed = cluster.now;
        cluster.ends(leader, false);
        cluster.hosts[leader].back_at = u64::MAX;
        while cluster.last_acked.1 == leader {
            cluster.tick();
            assert!(cluster.now < killed + END, "seed {seed}: no host acknowledges anything after the kill at {killed} ms");
        }
        times.push(cluster.now - killed);
        cluster.hosts[leader].back_at = cluster.now;
        // Until the restarted host has caught up.
        settle(&mut cluster, 1_000);
        assert!(cluster.hosts.iter().all(|h| h.live.is_some()));
    }
    cluster.check().unwrap();
    times
}

#[test]
fn half_of_600_leader_kills_end_within_400_ms_and_99_percent_within_a_second() {
    let of_half = |from| (from..SEEDS).step_by(2).flat_map(times).collect::<Vec<_>>();
    let mut all = std::thread::scope(|scope| {
        let other = scope.spawn(|| of_half(1));
        let mut all = of_half(0);
        all.extend(other.join().unwrap());
        all
    });
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
    let mean = all.iter().sum::<u64>() / all.len() as u64;
    println!(
        "{} kills of a leader, ms until another host acknowledges: min {}, p50 {}, mean {mean}, p90 {}, p99 {}, max {}",
        all.len(),
        at(0),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert_eq!(all.len() as u64, SEEDS * KILLS);
    assert!(at(50) < 400 && at(99) < 1_000);
}
