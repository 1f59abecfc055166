//! Owns: tests of invalid messages of other hosts: frames that do not follow each other, numbers out of bounds. Each is rejected
//! or accepted, and none ends storage.

use super::replicas::{Hosts, eventually, publish};
use super::*;
use crate::consensus::message::{Command, FrameHead, Message, Raft, TERM_MAX};
use tapestore::disk::RealDisk;
use tapestore::lsn::{FrameIndex, InstrumentId, NodeId, Position};
use tapestore::record::Name;
use tapestore::wal::format::{FRAME_MAGIC, FRAME_VERSION, SEGMENT_HEAD_LEN};
use tapestore::wal::{Chain, ControlEntry, FrameType, Header};

const SEGMENT: u64 = wal::format::SEGMENT_SIZE_MIN;
/// Raft's message types.
const APPEND: u8 = 3;
const REQUEST_VOTE: u8 = 5;

/// A frame after `chain`, with the control entries `entries`; a no-op frame if there are none.
fn frame(chain: &Chain, entries: &[ControlEntry]) -> Vec<u64> {
    let mut payload = Vec::new();
    entries.iter().for_each(|f| f.encode(&mut payload));
    let kind = if entries.is_empty() { FrameType::NoOp } else { FrameType::Control };
    let mut header = Header {
        magic: FRAME_MAGIC,
        version: FRAME_VERSION,
        frame_type: kind as u8,
        prev_crc: chain.prev_crc,
        payload_crc: crc32c::crc32c(bytemuck::cast_slice(&payload)),
        len: payload.len() as u32 * 8,
        term: chain.term,
        count: entries.len() as u32,
        index: chain.index,
        first_lsn: chain.lsn,
        position: chain.position,
        ingest_ts: chain.ingest_ts,
        ..bytemuck::Zeroable::zeroed()
    };
    header.seal();
    let mut words: Vec<u64> = bytemuck::cast::<Header, [u64; 8]>(header).to_vec();
    words.extend(payload);
    words.resize(words.len().next_multiple_of(8), 0);
    words
}

fn head(words: &[u64]) -> FrameHead {
    let h = wal::parse(words).unwrap().header;
    let (term, index, position, len) = (u64::from(h.term.0), h.index.0, h.position.0, h.total_len() as u32);
    FrameHead { kind: 0, term, index, position, len, header_crc: h.header_crc }
}

/// The end of the log of the running host with the store `dir`.
fn end_of(dir: &Path) -> Chain {
    let meta = wal::meta::read(&RealDisk, dir).unwrap().unwrap();
    let mut chain = Chain::begin(meta.store_id);
    let visit = |frame: &wal::Frame<'_>| {
        chain.advance(&frame.header, SEGMENT);
        Ok(())
    };
    wal::scan(&RealDisk, &dir.join(wal::DIR), &meta, Chain::begin(meta.store_id), tapestore::disk::Open::Read, visit).unwrap();
    chain
}

#[test]
fn frames_that_do_not_follow_each_other_and_invalid_terms_are_dropped_and_the_host_goes_on() {
    let mut hosts = Hosts::new(3);
    let leader = hosts.leader(0);
    let victim = leader % 3 + 1;
    let mut publisher = hosts.publisher(leader, 1, Durability::Quorum);
    publish(&mut publisher, 0, 100);
    eventually("all records", || (hosts.control(victim).committed() >= Lsn(100)).then_some(()));
    hosts.net.cut_off.lock().unwrap().insert(victim);
    let state = hosts.ask(victim, Command::Status).unwrap().state;
    let from = |kind| Raft { kind, from: NodeId(leader), to: NodeId(victim), term: state.term, ..Raft::default() };
    let chain = end_of(&hosts.store(victim));
    let good = frame(&chain, &[]);
    let mut after = chain;
    after.advance(&wal::parse(&good).unwrap().header, SEGMENT);
    // The second frame names a wrong predecessor, and is valid otherwise.
    let bad = frame(&Chain { prev_crc: after.prev_crc ^ 1, ..after }, &[]);
    let symbol = |id| ControlEntry::Symbol { instrument: InstrumentId(id), name: Name::new(b"AAPL").unwrap() };
    let far = frame(&after, &[symbol(77)]);
    for second in [&bad, &far] {
        let (heads, frames) = (vec![head(&good), head(second)], [bytemuck::cast_slice(&good), bytemuck::cast_slice(second)]);
        let raft = Raft { index: state.last, log_term: state.last_term, heads, frames: frames.concat(), ..from(APPEND) };
        hosts.net.force(NodeId(victim), &Message::Raft(raft));
    }
    for term in [TERM_MAX + 1, 1 << 40, u64::MAX] {
        // As from a host that gets the lead by a transfer.
        let (index, context) = (1 << 40, b"CampaignTransfer".to_vec());
        let vote = Raft { term, index, log_term: state.last_term, context, ..from(REQUEST_VOTE) };
        hosts.net.force(NodeId(victim), &Message::Raft(vote));
        hosts.net.force(NodeId(victim), &Message::Raft(Raft { term, ..from(APPEND) }));
        hosts.net.force(
            NodeId(victim),
            &Message::Reached { node: NodeId(leader), generation: term, last: term, needs_snapshot: false },
        );
    }
    for _ in 0..2 {
        let now = hosts.ask(victim, Command::Status).unwrap();
        assert!(now.state.last == state.last && now.state.term < 1000 && now.generation == 0, "{now:?}");
    }
    // It is a healthy host: without the leader it makes a majority.
    hosts.net.cut_off.lock().unwrap().clear();
    publish(&mut publisher, 100, 200);
    drop(publisher);
    hosts.stop(leader);
    hosts.leader(leader);
    let mut publisher = hosts.publisher(victim, 2, Durability::Quorum);
    publish(&mut publisher, 200, 300);
}

#[test]
fn a_group_of_frames_passes_exactly_if_its_frames_can_be_appended_one_after_another() {
    let (mut passed, mut refused) = (0, 0);
    for seed in 0..60 {
        let run = Run::new(seed);
        let mut rng = SimRng::new(seed);
        let mut store = run.recover().unwrap();
        let (mut chain, mut words) = (*store.state.writer.chain(), Vec::new());
        for _ in 0..=rng.below(8) {
            let attach = |_| ControlEntry::Attach { publisher: PublisherId(1), epoch: Epoch(1), incarnation: 1 };
            let entries: Vec<_> = (0..rng.below(4000)).map(attach).collect();
            let mut named = chain;
            match rng.below(20) {
                0 => named.prev_crc ^= 1,
                1 => named.index = FrameIndex(named.index.0 + 1),
                2 => named.lsn = Lsn(named.lsn.0 + 1),
                3 => named.term.0 = named.term.0.wrapping_sub(1),
                4 => named.position = Position(named.position.0 + 64),
                _ => {}
            }
            let mut next = frame(&named, &entries);
            let (len, end) = (next.len() as u64 * 8, (chain.position.0 / SEGMENT + 1) * SEGMENT);
            if chain.position.0 + len > end {
                named.position = Position(end + SEGMENT_HEAD_LEN);
                next = frame(&named, &entries);
            }
            chain.advance(&wal::parse(&next).unwrap().header, SEGMENT);
            words.push(next);
        }
        let frames: Vec<_> = words.iter().map(|w| (head(w), wal::parse(w).unwrap())).collect();
        let vetted = store.state.vet(&frames.iter().map(|(h, f)| (*h, f)).collect::<Vec<_>>());
        let one_by_one = frames.iter().zip(&words).all(|((_, frame), words)| {
            store.state.writer.ready().unwrap();
            let continues = store.state.writer.check(&frame.header).is_ok();
            if continues {
                let taken = store.state.take(frame, words).unwrap();
                taken.appended.opened.into_iter().for_each(|o| store.syncer.opened(o));
            }
            continues
        });
        assert_eq!(vetted.is_ok(), one_by_one, "seed {seed}: {vetted:?}");
        if one_by_one { passed += 1 } else { refused += 1 }
    }
    assert!(passed > 9 && refused > 9, "{passed} {refused}");
}
