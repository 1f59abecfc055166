//! Owns: what replication says: this host in its cluster, the other hosts as the leader sees them, what it has carried, when its
//! certificates end and when its revocation list is out of date.
//!
//! What must hold: the state comes from storage, which is asked once a second on the threads of replication; a scrape asks nobody.
//! Every metric is in `docs/metrics.md`; a test holds both against each other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tapestore::time::NANOS_PER_SECOND;
use tapestore_engine::consensus::message::{Command, Progress, Report, Role};
use tokio::sync::watch;

use super::Source;
use super::words::{Of, Words};
use crate::replication::session::{Links, StorageInfo};
use crate::replication::tls::Files;
use crate::replication::{Counters, crl};

/// How often storage is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Keeps the newest report of storage, for ever; `None` while storage does not answer.
pub async fn ask(storage: watch::Receiver<Option<StorageInfo>>, reports: watch::Sender<Option<Report>>) {
    loop {
        let link = storage.borrow().as_ref().map(|storage| storage.link.clone());
        let report = match link {
            Some(link) => link.ask(Command::Status).await.ok(),
            None => None,
        };
        reports.send_replace(report);
        tokio::time::sleep(EVERY).await;
    }
}

/// The replication process of a store.
pub struct Replication {
    /// What it has carried.
    pub counters: Arc<Counters>,
    /// The newest report of storage.
    pub reports: watch::Receiver<Option<Report>>,
    /// The queues for the other hosts.
    pub links: watch::Receiver<Links>,
    /// Its certificates.
    pub tls: Option<Files>,
    /// Storage, while it is connected.
    pub storage: watch::Receiver<Option<StorageInfo>>,
}

impl Source for Replication {
    fn metrics(&self) -> Box<dyn Collector> {
        Box::new(Metrics {
            counters: self.counters.clone(),
            is_connected: self.storage.borrow().is_some(),
            report: self.reports.borrow().clone(),
            links: self.links.borrow().clone(),
            ends: self.tls.as_ref().map(ends).unwrap_or_default(),
            next_update: self.tls.as_ref().and_then(|files| crl::next_update(files.crl.as_ref()?)),
        })
    }

    /// It has no state: while it answers, it works.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// It is ready while storage is connected.
    fn readiness(&self) -> Result<(), String> {
        match self.storage.borrow().is_some() {
            true => Ok(()),
            false => Err("storage is not connected: start tape-storage on this store".to_owned()),
        }
    }
}

/// When the certificates end, seconds since 1970; those that cannot be read are left out.
fn ends(files: &Files) -> Vec<(String, u64)> {
    let all = [("cert", &files.cert), ("ca", &files.ca)];
    all.iter().filter_map(|(name, path)| Some(((*name).to_owned(), Files::end(path)?))).collect()
}

struct Metrics {
    counters: Arc<Counters>,
    is_connected: bool,
    report: Option<Report>,
    links: Links,
    ends: Vec<(String, u64)>,
    next_update: Option<u64>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut to = Words(encoder);
        to.info("build", "The program.", &[("version", env!("CARGO_PKG_VERSION")), ("process", "replication")])?;
        to.gauge("replication_storage_connected", "1 while storage is connected.", u64::from(self.is_connected))?;
        carried(&mut to, &self.counters)?;
        queues(&mut to, &self.links)?;
        if let Some(report) = &self.report {
            host(&mut to, report)?;
            peers(&mut to, report)?;
        }
        if let Some(at) = self.next_update {
            let help = "When the first revocation list is past its next update, since 1970.";
            to.time("replication_crl_next_update_timestamp", help, at.saturating_mul(NANOS_PER_SECOND))?;
        }
        let ends = self.ends.iter().map(|(file, at)| (file.clone(), at.saturating_mul(NANOS_PER_SECOND)));
        to.gauges(Of::Time, ("replication_certificate_end_timestamp", "When a certificate ends, since 1970."), "file", ends)
    }
}

fn carried(to: &mut Words<'_>, counters: &Counters) -> fmt::Result {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let ways = |sent: &AtomicU64, received: &AtomicU64| [("sent".to_owned(), of(sent)), ("received".to_owned(), of(received))];
    let messages = ways(&counters.sent, &counters.received);
    to.counters(Of::Count, ("replication_messages", "Messages between this host and others."), "direction", messages)?;
    let bytes = ways(&counters.sent_bytes, &counters.received_bytes);
    to.counters(Of::Bytes, ("replication_frames", "Bytes of frames between this host and others."), "direction", bytes)?;
    let snapshots = ways(&counters.snapshots_sent, &counters.snapshots_fetched);
    to.counters(
        Of::Count,
        ("replication_snapshots", "Snapshots of a store between this host and others."),
        "direction",
        snapshots,
    )?;
    let bytes = ways(&counters.snapshot_bytes_sent, &counters.snapshot_bytes_fetched);
    to.counters(Of::Bytes, ("replication_snapshots", "Bytes of these."), "direction", bytes)?;
    to.counter("replication_connects", "Connections to other hosts.", of(&counters.connects))?;
    to.counter("replication_dropped_messages", "Messages dropped: not connected, or a full queue.", of(&counters.dropped))?;
    to.counter("replication_stale_frames", "Frames that the log no longer had.", of(&counters.stale_frames))?;
    to.counter("replication_refused_messages", "Messages of other hosts that were refused.", of(&counters.refused))?;
    to.counter("replication_elections", "Terms that began.", of(&counters.elections))?;
    to.counter("replication_leader_changes", "Times that another host became leader.", of(&counters.leader_changes))
}

fn queues(to: &mut Words<'_>, links: &Links) -> fmt::Result {
    let of = |number: fn(&crate::replication::peer::Outbox) -> u64| {
        links.iter().map(move |(node, link)| (node.0.to_string(), number(link)))
    };
    let connected = of(|link| u64::from(link.is_connected()));
    to.gauges(Of::Count, ("replication_peer_connected", "1 while the host is connected."), "peer", connected)?;
    let frames = of(|link| link.queued().0);
    to.gauges(Of::Bytes, ("replication_peer_queued", "Bytes of frames queued for the host."), "peer", frames)?;
    let forwarded = of(|link| link.queued().1);
    to.gauges(Of::Bytes, ("replication_peer_forwarded_queued", "Bytes of batches queued for the host."), "peer", forwarded)
}

fn host(to: &mut Words<'_>, report: &Report) -> fmt::Result {
    let roles = [Role::Leader, Role::Follower, Role::Candidate, Role::Learner];
    let roles = roles.map(|role| (crate::cluster::role(role), role == report.state.role));
    to.one_of("replication_role", "Role of this host.", "role", roles)?;
    to.gauge("replication_node", "Number of this host.", report.node.0)?;
    to.gauge("replication_leader", "Number of the leader; 0: none.", report.state.leader.map_or(0, |leader| leader.0))?;
    to.gauge("replication_term", "The term: it rises with each election.", report.state.term)?;
    to.gauge("replication_generation", "Forced promotions so far.", report.generation)?;
    let voters = report.members.iter().filter(|member| member.is_voter).count();
    to.gauge("replication_members", "Members of the cluster.", report.members.len() as u64)?;
    to.gauge("replication_voters", "Of these, with a vote.", voters as u64)?;
    to.gauge(
        "replication_needs_snapshot",
        "1 if this host needs a snapshot of the leader's store.",
        u64::from(report.needs_snapshot),
    )?;
    to.gauge("replication_without_vote", "1 if this host does not vote until it has one.", u64::from(report.is_mute))
}

/// The other hosts, if this one leads.
fn peers(to: &mut Words<'_>, report: &Report) -> fmt::Result {
    let of = |number: fn(&Progress) -> u64| report.progress.iter().map(move |peer| (peer.node.0.to_string(), number(peer)));
    let active = of(|peer| u64::from(peer.is_active));
    to.gauges(
        Of::Count,
        ("replication_peer_active", "1 if this leader has received something from the host lately."),
        "peer",
        active,
    )?;
    to.gauges(
        Of::Count,
        ("replication_peer_lag_records", "Records that the host is behind."),
        "peer",
        of(|peer| peer.lag_records),
    )?;
    to.gauges(Of::Bytes, ("replication_peer_lag", "Bytes of log that the host is behind."), "peer", of(|peer| peer.lag_bytes))?;
    let times = report.progress.iter().filter(|peer| peer.lag_ns < u64::MAX);
    let times = times.map(|peer| (peer.node.0.to_string(), peer.lag_ns));
    to.gauges(Of::Time, ("replication_peer_lag", "Between this leader's newest frame and the host's."), "peer", times)?;
    let waits = of(|peer| u64::from(peer.needs_snapshot || peer.is_behind_log));
    to.gauges(Of::Count, ("replication_peer_needs_snapshot", "1 if the host needs a snapshot of this store."), "peer", waits)
}
