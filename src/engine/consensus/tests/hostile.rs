//! Owns: invalid messages of raft. Any message is answered, dropped or rejected: no number in it ends a process, is stored
//! although frames have no room for it, or makes a term fall.

use std::panic::AssertUnwindSafe;

use super::nemesis::Aim;
use super::world::{COARSE, Cluster, Live, Pace};
use crate::consensus::message::{FrameHead, INDEX_MAX, Raft, Role, TERM_MAX};
use tapestore::disk::sim::SimRng;
use tapestore::error::Error;
use tapestore::lsn::NodeId;

/// A number near one of `near`, or an extreme one.
fn number(rng: &mut SimRng, near: &[u64]) -> u64 {
    let edges = [0, 1, 2, TERM_MAX - 1, TERM_MAX, TERM_MAX + 1, 1 << 40, INDEX_MAX, INDEX_MAX + 1, u64::MAX - 1, u64::MAX];
    match rng.below(8) {
        0 => edges[rng.below(edges.len() as u64) as usize],
        _ => (near[rng.below(near.len() as u64) as usize] + rng.below(3)).saturating_sub(1),
    }
}

/// Any message for the host; most are nearly valid.
fn message(rng: &mut SimRng, live: &Live) -> Raft {
    let (state, own) = (live.node.state(), live.node.meta().node);
    let (terms, frames) = ([state.term, state.last_term, 1], [state.last, state.committed, live.node.frames().first()]);
    let any = |rng: &mut SimRng| rng.below(12) == 0;
    let index = number(rng, &frames);
    let mut before = (index, live.node.frames().term_of(index).unwrap_or(1));
    let log_term = if any(rng) { number(rng, &terms) } else { before.1 };
    let mut heads = Vec::new();
    for _ in 0..if rng.below(4) == 0 { rng.below(4) } else { 0 } {
        let next = if any(rng) { number(rng, &frames) } else { before.0.wrapping_add(1) };
        let term = live.node.frames().term_of(next).filter(|_| rng.below(2) == 0).unwrap_or_else(|| number(rng, &terms));
        heads.push(FrameHead { kind: rng.below(3) as u8, term, index: next, position: 4096, len: 64, header_crc: 1 });
        before = (next, term);
    }
    Raft {
        kind: rng.below(22) as u8,
        to: if any(rng) { NodeId(rng.below(5)) } else { own },
        from: NodeId(if any(rng) { number(rng, &[own.0]) } else { own.0 % 3 + 1 + rng.below(2) }),
        term: number(rng, &terms),
        log_term,
        index,
        commit: number(rng, &frames),
        commit_term: number(rng, &terms),
        reject: rng.below(2) == 0,
        reject_hint: number(rng, &frames),
        request_snapshot: if any(rng) { number(rng, &frames) } else { 0 },
        priority: if any(rng) { i64::MIN } else { 0 },
        context: if rng.below(4) == 0 { b"CampaignTransfer".to_vec() } else { Vec::new() },
        heads,
        frames: Vec::new(),
    }
}

#[test]
fn no_message_ends_a_host_or_sets_a_term_that_frames_have_no_room_for() {
    let (mut refused, mut led) = (0u64, 0u64);
    let seeds = std::env::var("TAPE_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let mut cluster = Cluster::new(seed, Aim::Anything, None);
        cluster.pace = Pace { loss: 0, ..COARSE };
        (0..120).for_each(|_| cluster.tick());
        let mut rng = SimRng::new(seed);
        let leader = cluster.leader().unwrap();
        // From here on only the test sends to it.
        let n = if seed % 2 == 0 { leader } else { (leader + 1) % 3 };
        let live = cluster.hosts[n].live.as_mut().unwrap();
        for step in 0..1_000 {
            let raft = message(&mut rng, live);
            let before = live.node.meta().term;
            let stepped = std::panic::catch_unwind(AssertUnwindSafe(|| live.hostile(&raft, step)));
            match stepped {
                Ok(Ok(())) => {}
                Ok(Err(Error::Consensus { .. })) => refused += 1,
                Ok(Err(error)) => panic!("seed {seed}, message {step}: {error}, of {raft:?}"),
                Err(_) => panic!("seed {seed}, message {step}: {raft:?}"),
            }
            let term = live.node.meta().term;
            assert!((before..=TERM_MAX).contains(&term), "seed {seed}: term {term} after {raft:?}");
            led += u64::from(live.node.state().role == Role::Leader);
        }
    }
    assert!(refused > 500 && led > 500, "{refused} refused, {led} while it led");
}
