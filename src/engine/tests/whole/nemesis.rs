//! Owns: the faults of a simulated world, and the actions of its operators and publishers.

use super::client::Client;
use super::world::{STREAMS, Stream, Verdict, World};
use crate::consensus::format::{LEARNER, VOTER};
use crate::consensus::message::{Command, Message};
use tapestore::lsn::NodeId;

/// What a seed aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// Any fault, with three hosts.
    Anything,
    /// A leader is blocked in one stream, and not in another.
    Streams,
    /// Members come and go, checkpoints are made right after that, and the log is not retained.
    Members,
    /// A cluster of one.
    Alone,
    /// No faults, but log segments are prepared late.
    SlowLog,
    /// No faults, but forwarded messages are lost.
    Lossy,
}

/// A planned fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Kill(usize, bool),
}

impl World {
    /// Makes the faults of this step.
    pub(super) fn nemesis(&mut self) -> Verdict {
        while let Some((_, Act::Kill(n, power))) = self.script.pop_front_if(|s| s.0 <= self.now) {
            if self.machines[n].live.is_some() {
                let back = 1 + self.rng.below(40);
                self.kill(n, power, back);
            }
        }
        self.publishers();
        if self.rng.below(80) == 0 {
            let n = self.rng.below(self.machines.len() as u64) as usize;
            if let Some(live) = self.machines[n].live.as_mut() {
                live.host.state().memtables.seal_soon();
            }
        }
        match self.aim {
            Aim::SlowLog | Aim::Lossy => {}
            Aim::Alone => self.one(),
            Aim::Anything => self.anything(),
            Aim::Streams => {
                self.anything();
                self.streams();
            }
            Aim::Members => {
                self.anything();
                self.operator()?;
            }
        }
        Ok(())
    }

    /// Kills processes of publishers, some of them before they are attached; they return on the same host or another.
    fn publishers(&mut self) {
        for at in 0..self.clients.len() {
            let odds = if self.clients[at].waits_since().is_some() { 60 } else { 500 };
            if self.rng.below(odds) > 0 {
                continue;
            }
            let count = self.machines.len() as u64;
            let to = if self.rng.below(3) == 0 { self.rng.below(count) as usize } else { self.clients[at].host };
            let rests = self.rng.below(30);
            let client: &mut Client = &mut self.clients[at];
            if let Some((_, _)) = client.connection()
                && let Some(live) = self.machines[client.host].live.as_mut()
            {
                client.hang_up(live);
            }
            client.die(to, self.now, rests);
            self.claims.tally.up("publishers killed");
        }
    }

    fn one(&mut self) {
        match self.rng.below(600) {
            0 => self.kill(0, false, 5),
            1 => self.kill(0, true, 5),
            2 => self.machines[0].stalls_until = self.now + 80,
            _ => {}
        }
    }

    fn anything(&mut self) {
        let n = self.rng.below(self.machines.len() as u64) as usize;
        let back = 5 + self.rng.below(120);
        match self.rng.below(900) {
            0 | 1 if self.machines[n].live.is_some() => self.kill(n, false, back),
            2 if self.machines[n].live.is_some() => self.kill(n, true, back),
            3 => {
                self.claims.tally.up("pauses");
                self.machines[n].paused_until = self.now + self.rng.below(160);
            }
            4 | 5 => self.isolate(n),
            6 => {
                self.claims.tally.up("stalls");
                self.machines[n].stalls_until = self.now + 80;
            }
            7 | 8 => {
                let to = NodeId(1 + self.rng.below(self.machines.len() as u64));
                if let Some(live) = self.machines[n].live.as_mut().filter(|l| l.host.node().leads().is_some()) {
                    // The command may be refused.
                    if live.message(2, false, Message::Command { id: 1, command: Command::Transfer(to) }).is_ok() {
                        self.claims.tally.up("transfers");
                    }
                }
            }
            9 | 10 => {
                self.claims.tally.up("replications killed");
                let back = 1 + self.rng.below(40);
                self.restart_replication(n, back);
                if let Some(live) = self.machines[n].live.as_mut() {
                    assert!(live.host.replication_gone().is_ok(), "its end writes nothing");
                }
            }
            _ => {}
        }
    }

    /// Isolates host `n`, in one direction or both.
    fn isolate(&mut self, n: usize) {
        self.claims.tally.up("partitions");
        let (until, both) = (self.now + 20 + self.rng.below(300), self.rng.below(2) == 0);
        for other in (0..self.machines.len()).filter(|m| *m != n) {
            for stream in STREAMS {
                self.blocked.insert((n, other, stream), until);
                if both {
                    self.blocked.insert((other, n, stream), until);
                }
            }
        }
    }

    /// Blocks the leader's log messages to the others while its other messages arrive, or blocks relayed messages.
    fn streams(&mut self) {
        if self.rng.below(150) > 0 {
            return;
        }
        let Some(leader) = self.leader() else { return };
        self.claims.tally.up("streams blocked");
        let until = self.now + 40 + self.rng.below(300);
        let blocked: &[Stream] = if self.rng.below(4) == 0 { &[Stream::Relay] } else { &[Stream::Append] };
        for other in (0..self.machines.len()).filter(|m| *m != leader) {
            for stream in blocked {
                self.blocked.insert((leader, other, *stream), until);
            }
        }
        if self.rng.below(2) == 0 {
            // Then kills it, before its frames are on another host.
            let at = self.now + 10 + self.rng.below(30);
            self.script.push_back((at, Act::Kill(leader, false)));
            self.script.make_contiguous().sort_by_key(|s| s.0);
        }
    }

    /// Changes the members, as an operator; seals MemTables, so that a checkpoint comes right after.
    fn operator(&mut self) -> Verdict {
        if self.rng.below(120) > 0 {
            return Ok(());
        }
        let Some(leader) = self.leader() else { return Ok(()) };
        let members = self.members(leader);
        let learner = members.iter().find(|s| s.roles == LEARNER).map(|s| s.node);
        let voters: Vec<NodeId> = members.iter().filter(|s| s.roles == VOTER).map(|s| s.node).collect();
        let other = voters.iter().copied().filter(|v| v.0 != leader as u64 + 1).collect::<Vec<_>>();
        let (what, command) = match self.rng.below(3) {
            0 if self.machines.len() < 5 && members.len() < 5 => {
                let n = self.machines.len();
                let members = self.members_with(n, &members);
                self.add_machine(n, &members, true);
                let address = format!("127.0.0.{}:1", n + 1);
                ("additions", Command::Add { node: NodeId(n as u64 + 1), address })
            }
            1 if learner.is_some() => ("promotions", Command::Promote { node: learner.unwrap_or_default(), force: false }),
            2 if voters.len() > 3 => {
                ("removals", Command::Remove { node: other[self.rng.below(other.len() as u64) as usize], force: false })
            }
            _ => return Ok(()),
        };
        self.claims.tally.up(what);
        let Some(live) = self.machines[leader].live.as_mut() else { return Ok(()) };
        live.message(2, false, Message::Command { id: 1, command }).map_err(|e| e.to_string())?;
        self.claims.tally.up("changes asked");
        // A checkpoint right after it.
        for n in 0..self.machines.len() {
            if self.rng.below(2) == 0
                && let Some(live) = self.machines[n].live.as_mut()
            {
                live.host.state().memtables.seal_soon();
            }
        }
        Ok(())
    }

    /// Kills hosts right after a checkpoint, now and then.
    pub(super) fn after_flush(&mut self, before: &[u64]) {
        if self.aim != Aim::Members {
            return;
        }
        for (n, before) in before.iter().enumerate() {
            let flushed = self.machines[n].live.as_ref().is_some_and(|l| l.flushes > *before);
            if flushed && self.rng.below(3) == 0 {
                let back = 1 + self.rng.below(20);
                let power = self.rng.below(2) == 0;
                self.kill(n, power, back);
                self.claims.tally.up("kills after a checkpoint");
            }
        }
    }
}
