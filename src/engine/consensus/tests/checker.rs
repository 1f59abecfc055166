//! Owns: the checks that a simulated cluster must pass once nothing goes wrong any more.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::message::State;
use super::super::*;
use super::world::{COARSE, Cluster, DIR, Live, Pace, STORE};
use tapestore::disk::sim::SimDisk;
use tapestore::record::{Trade, split};
use tapestore::wal::{self, Body, Chain, FrameType};

/// Ticks within which the hosts must agree.
const HEALING: u64 = 1_000;
/// Ticks within which nothing may disturb them.
const CALM: u64 = 250;

impl Cluster {
    fn state(&self, n: usize) -> Option<State> {
        self.hosts.get(n)?.live.as_ref().map(|l| l.node.state())
    }

    /// The members as the leader has them; `None` while a change is in progress.
    fn members(&self) -> Option<Vec<MemberEntry>> {
        let meta = self.hosts[self.leader()?].live.as_ref()?.node.meta();
        let settled = meta.members.iter().all(|s| s.roles == format::VOTER || s.roles == format::LEARNER);
        (settled && !meta.auto_leave).then(|| meta.members.clone())
    }

    /// Whether all members have the same frames committed as the leader, and the leader has no others.
    fn agrees(&self) -> bool {
        let Some((leader, members)) = self.leader().zip(self.members()) else { return false };
        let Some(of_leader) = self.state(leader) else { return false };
        let stands = |s: State| (s.term, s.last, s.committed);
        let all = members.iter().all(|m| self.state(m.node.0 as usize - 1).is_some_and(|s| stands(s) == stands(of_leader)));
        all && of_leader.last == of_leader.committed && of_leader.committed > 0
    }

    /// State of each host, with the members and roles that it has.
    fn standing(&self) -> String {
        let host = |n: usize| {
            let members = |l: &Live| l.node.meta().members.iter().map(|s| (s.node.0, s.roles)).collect::<Vec<_>>();
            self.hosts[n].live.as_ref().map(|l| (l.node.state(), members(l), l.node.progress()))
        };
        (0..self.hosts.len()).map(|n| format!("\n{} {:?}", n + 1, host(n))).collect()
    }

    /// Ends all faults and checks that the hosts agree on everything that was acknowledged.
    pub(super) fn check(&mut self) -> std::result::Result<(), String> {
        self.blocked.clear();
        self.script.clear();
        self.pace = Pace { loss: 0, ..COARSE };
        self.hosts.iter_mut().for_each(|h| (h.back_at, h.stalls_until, h.asked) = (0, 0, None));
        let healed = self.now + HEALING / 2;
        while self.now < healed {
            self.replace();
            self.tick();
        }
        self.check_calm()?;
        let deadline = self.now + HEALING;
        while !self.agrees() {
            self.step(false);
            if self.now > deadline {
                return Err(format!("the hosts do not agree: {}", self.standing()));
            }
        }
        self.check_members()?;
        self.check_logs()
    }

    /// Checks that a healthy cluster keeps its leader and acknowledges; removed hosts must not disturb it.
    fn check_calm(&mut self) -> std::result::Result<(), String> {
        let leads = |c: &Cluster| c.leader().and_then(|n| Some((n, c.state(n)?.term)));
        let (before, acked) = (leads(self), self.acked.len());
        for _ in 0..CALM {
            self.tick();
            if leads(self) != before {
                let gone = &self.gone;
                return Err(format!("{before:?} led, then {:?} did; {gone:?} were removed, and nothing went wrong", leads(self)));
            }
        }
        if self.acked.len() < acked + CALM as usize / 2 {
            let acked = self.acked.len() - acked;
            return Err(format!("{acked} records were acknowledged in {CALM} ticks without faults: {}", self.standing()));
        }
        Ok(())
    }

    fn check_members(&self) -> std::result::Result<(), String> {
        let members = self.members().unwrap_or_default();
        for member in &members {
            let host = &self.hosts[member.node.0 as usize - 1];
            let theirs = host.live.as_ref().map(|l| l.node.meta().members.clone()).unwrap_or_default();
            if theirs != members {
                return Err(format!("node {} has the members {theirs:?}, the leader has {members:?}", member.node));
            }
        }
        if members.iter().filter(|s| s.roles == format::VOTER).count() < 2 {
            return Err(format!("too few voters are left: {members:?}"));
        }
        Ok(())
    }

    fn check_logs(&self) -> std::result::Result<(), String> {
        let members = self.members().unwrap_or_default();
        let is_member = |n: usize| members.iter().any(|m| m.node.0 == n as u64 + 1);
        let logs: Vec<_> = self.hosts.iter().map(|h| log_of(&h.disk)).collect();
        let of_members: Vec<_> = (0..logs.len()).filter(|n| is_member(*n)).map(|n| &logs[n]).collect();
        let Some(first) = of_members.first() else { return Err("nobody is a member".to_owned()) };
        if of_members.iter().any(|log| log != first) {
            return Err(format!("logs differ: {:?}", of_members.iter().map(|l| l.len()).collect::<Vec<_>>()));
        }
        for (n, log) in logs.iter().enumerate().filter(|(n, _)| !is_member(*n)) {
            let known = self.state(n).map_or(0, |s| s.committed);
            if log.range(..=known).any(|(index, frame)| first.get(index) != Some(frame)) {
                return Err(format!("host {} is no member, and its committed frames differ from those of the members", n + 1));
            }
        }
        if self.committed.iter().any(|(index, crc)| first.get(index).is_none_or(|f| f.0 != *crc)) {
            return Err("a committed frame is gone".to_owned());
        }
        for (id, index) in &self.acked {
            if !first.get(index).is_some_and(|(_, ids)| ids.contains(id)) {
                return Err(format!("record {id} was acknowledged in frame {index} and is gone"));
            }
        }
        Ok(())
    }
}

/// For each frame of a log: its CRC, which covers all frames before it, and the ids of its records.
fn log_of(disk: &SimDisk) -> BTreeMap<u64, (u32, Vec<u64>)> {
    let mut frames = BTreeMap::new();
    let visit = |frame: &wal::Frame<'_>| {
        let ids = match &frame.body {
            Body::Data(data) => split(data.records).map(|r| r.unwrap().get::<Trade>().unwrap().trade_id).collect(),
            _ => Vec::new(),
        };
        if frame.header.kind() != FrameType::Pad {
            frames.insert(frame.header.index.0, (frame.header.header_crc, ids));
        }
        Ok(())
    };
    let meta = wal::meta::read(disk, Path::new(DIR)).unwrap().unwrap();
    let dir = Path::new(DIR).join(wal::DIR);
    wal::scan(disk, &dir, &meta, Chain::begin(STORE), tapestore::disk::Open::Read, visit).unwrap();
    frames
}
