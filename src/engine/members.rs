//! Owns: what a leader does for the other members: how much log it keeps for them, which of them it does not reach back
//! to, and what operators ask of it.
//!
//! What must hold: log that a member may still ask for is kept, up to the bound that was set.

use super::ingest::IngestAgent;
use super::recover::KEPT_MAX;
use crate::consensus::format::{LEARNER, VOTER};
use crate::consensus::message::{Command, Message, Report, Role};
use crate::consensus::{Change, Seat, Transition};
use crate::error::{Error, Result};
use crate::lsn::{NodeId, Position};
use crate::shm::control::Statistic;

/// How often a member hears that the log does not reach back to what it lacks.
const STRANDED_NS: u64 = 1_000_000_000;

impl IngestAgent {
    /// Says which members the log does not reach back to: they are to fetch a copy of the store.
    pub(super) fn say_stranded(&mut self, now: u64) {
        let progress = self.cluster.node.progress();
        let stranded: Vec<NodeId> = progress.iter().filter(|p| p.is_stranded).map(|p| p.node).collect();
        for node in stranded.iter().filter(|n| !self.cluster.stranded.contains(n)) {
            tracing::warn!(
                node = node.0,
                "the log does not reach back to what that member lacks: it is to fetch a copy of the store"
            );
        }
        if !stranded.is_empty() && now.saturating_sub(self.cluster.said_stranded) >= STRANDED_NS {
            self.cluster.said_stranded = now;
            let first = self.cluster.node.frames().first();
            stranded.iter().for_each(|&node| self.cluster.links.tell(&Message::Stranded { node, first }));
        }
        self.cluster.stranded = stranded;
    }

    /// A host that joins or may have forgotten frames asks for a copy of the leader's store, as soon as it knows who leads.
    pub(super) fn say_lacks(&mut self, now: u64) {
        let is_due = self.cluster.node.meta().lacks_copy() && now.saturating_sub(self.cluster.said_stranded) >= STRANDED_NS;
        if let Some(leader) = self.cluster.leader().filter(|_| is_due) {
            self.cluster.said_stranded = now;
            self.cluster.links.tell(&Message::Lacks { leader });
        }
    }

    /// Shows how much of the log other hosts may still ask for, and forgets the rest.
    pub(super) fn show_needed(&mut self) {
        let cluster = &mut self.cluster;
        let end = self.core.writer.chain().position.0;
        let needed = if cluster.node.is_alone() {
            end
        } else {
            let frames = cluster.node.frames();
            let first = cluster.node.needed().max(frames.first());
            let of_others = frames.place(first).map_or(end, |p| p.position.0);
            let most = cluster.options.retain_bytes;
            let leads = cluster.node.state().role == Role::Leader;
            of_others.max(end.saturating_sub(if leads { most } else { most.min(KEPT_MAX) }))
        };
        cluster.covered.set_needed(Position(needed));
        let filed = self.control.statistic(Statistic::CheckpointPosition);
        cluster.node.forget(Position(needed.min(filed)));
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Report> {
        let of = |node, part, address| Change { transition: Transition::Auto, seats: vec![Seat { node, part, address }] };
        let node = &mut self.cluster.node;
        let known =
            node.meta().seats.iter().find(|s| matches!(&command, Command::Promote(n) | Command::Remove(n) if *n == s.node));
        let address = known.map(|s| s.address.clone());
        let missing = |n: NodeId| Error::invalid("node", format!("{n} is no member; `tape cluster status` says who is"));
        match command {
            Command::Status => {}
            Command::Add { node: new, address } => {
                if address.is_empty() || address.len() > crate::consensus::format::ADDRESS_MAX || new == NodeId(0) {
                    return Err(Error::invalid("member", "its number is above 0, and its address host:port"));
                }
                if node.meta().seats.iter().any(|s| s.node == new) {
                    return Err(Error::invalid("member", format!("node {new} is one already")));
                }
                node.change(of(new, LEARNER, address))?;
            }
            Command::Promote(n) if node.progress().iter().any(|p| p.node == n && !p.has_caught_up()) => {
                let reason = "it lacks a second or more of the log, and a majority might have to wait for it. Try again when `tape cluster status` shows less";
                return Err(Error::invalid("promotion", format!("node {n}: {reason}")));
            }
            Command::Promote(n) => node.change(of(n, VOTER, address.ok_or_else(|| missing(n))?))?,
            Command::Remove(n) => node.change(of(n, 0, address.ok_or_else(|| missing(n))?))?,
            Command::Transfer(n) if node.progress().iter().any(|p| p.node == n && p.lacks_copy) => {
                return Err(Error::invalid("transfer", format!("node {n} waits for a copy of this store")));
            }
            Command::Transfer(n) => node.transfer(n)?,
        }
        Ok(self.report())
    }

    pub(super) fn report(&self) -> Report {
        let node = &self.cluster.node;
        Report {
            node: node.meta().node,
            epoch: node.meta().epoch,
            state: node.state(),
            members: node.meta().seats.iter().map(Seat::member).collect(),
            records: [self.control.appended().0, self.control.durable().0, self.control.committed().0],
            progress: node.progress(),
            is_lossy: self.is_lossy,
            lacks_copy: node.meta().lacks_copy(),
            is_mute: node.meta().has_forgotten,
        }
    }
}
