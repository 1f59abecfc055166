//! Owns: `tape demo --cluster`: the processes of three or more hosts on loopback addresses, a publisher on one of them, and a
//! kill of the leader.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tapestore::disk::RealDisk;
use tapestore::lsn::{Durability, Lsn, NodeId, PublisherId};
use tapestore::publisher::{Options, Publisher};
use tapestore::reader::{Reader, Tally};
use tapestore::time::{Clock, HostClock};
use tapestore_engine::cluster_admin::{NewCluster, initialise};
use tapestore_engine::consensus::message::{Command, Member, Report};

use super::{Target, request};
use crate::addresses;
use crate::demo::{Args, check_stop, own, stored, unless_interrupted};
use crate::exit::{DIFFERENCE, Failure, Outcome, USAGE};
use crate::load::Loader;
use crate::output::Format;
use crate::processes::{self, PATIENCE, Process, Served};
use crate::source::Rate;
use crate::stdout::say;
use crate::terminal::{duration, is_raised, stop_flag, thousands};

const PUBLISHER: PublisherId = PublisherId(1);

/// A host: its store with storage, and its replication process.
struct Host {
    served: Served,
    replication: Option<Process>,
}

impl Host {
    fn start(&mut self) -> Outcome {
        let memtable = ["storage", "--with-parent", "--memtable-size", "256M"];
        let store = self.served.store.clone();
        self.served.start(&mut own("error", &memtable, &store)?)?;
        let replication = Process::start("replication", &mut own("error", &["replication", "--with-parent"], &store)?)?;
        self.replication = Some(replication);
        Ok(())
    }

    /// Kills both processes with SIGKILL.
    fn kill(&mut self) {
        self.served.kill();
        self.replication = None;
    }

    fn stop(&mut self) -> Outcome {
        self.replication.as_mut().map_or(Ok(()), Process::stop)?;
        Ok(self.served.stop()?)
    }

    fn ask(&self, command: Command) -> Outcome<Report> {
        request::send(&self.served.store, &Target::default(), command)
    }

    /// Whether it says that nothing keeps it from voting.
    fn votes(&self) -> bool {
        self.ask(Command::Status).is_ok_and(|report| report.waits.is_empty())
    }

    fn reader(&self) -> Outcome<Reader> {
        Ok(Reader::open(&self.served.store)?)
    }
}

/// The results of the publisher and of the takeover.
struct Seen {
    published: Tally,
    takeover: Duration,
    lost: usize,
    reattached: u64,
}

/// Runs the demonstration with `count` hosts.
///
/// # Errors
/// A host lacks an acknowledged record or has another one (exit code 1); a process cannot run.
pub fn run(args: &Args, count: u64, format: Format) -> Outcome {
    let stop = &*stop_flag()?;
    unless_interrupted(run_until(stop, args, count, format), stop)
}

/// Waits until `ready` returns a value, or the demo is interrupted.
fn eventually<T>(stop: &AtomicBool, what: &str, mut ready: impl FnMut() -> Option<T>) -> Outcome<T> {
    let found = processes::eventually(what, || match check_stop(stop) {
        Ok(()) => ready().map(Ok),
        Err(interrupted) => Some(Err(interrupted)),
    });
    found?
}

fn run_until(stop: &AtomicBool, args: &Args, count: u64, format: Format) -> Outcome {
    if !(3..=7).contains(&count) {
        return Err(Failure::new(USAGE, "--cluster takes 3 to 7 hosts: with fewer the kill of one stops the others"));
    }
    let report = |text: String| {
        if !format.json {
            say(text);
        }
    };
    let dir = tempfile::Builder::new().prefix("tape-demo-").tempdir()?;
    let mut hosts = make(dir.path(), count)?;
    hosts.iter_mut().try_for_each(Host::start)?;
    // Until the others have met a host, it does not vote: with fewer voters no other host could lead after the kill.
    eventually(stop, "a vote of every host", || hosts.iter().all(Host::votes).then_some(()))?;
    let leader = eventually(stop, "a leader", || leader_of(&hosts, None))?;
    report(format!("hosts    {count}, each a storage and a replication process; node {} leads", leader + 1));
    let at = (leader + 1) % hosts.len();
    report(format!("publish  on node {}, which forwards to the leader; acknowledged at quorum", at + 1));
    let seen = publish(stop, args, &mut hosts, at, &report)?;
    eventually(stop, "the commit of all records on all hosts", || {
        let level = |h: &Host| h.reader().is_ok_and(|r| r.control().committed() >= Lsn(seen.published.count));
        hosts.iter().all(level).then_some(())
    })?;
    for host in &mut hosts {
        host.stop()?;
    }
    let mut equal = seen.lost == 0;
    for (n, host) in (1..).zip(&hosts) {
        let tally = stored(&host.served.store)?;
        equal &= (tally.count, tally.checksum) == (seen.published.count, seen.published.checksum);
        report(format!("node {n}   {:>12} records, checksum {:08x}", thousands(tally.count), tally.checksum));
    }
    if format.json {
        say(serde_json::json!({
            "hosts": count, "published": seen.published.count, "equal": equal, "lost": seen.lost,
            "takeover_ms": seen.takeover.as_secs_f64() * 1e3, "reattached": seen.reattached,
        }));
    }
    report(format!(
        "acknowledged {} records, checksum {:08x}; {} lost; the publisher reattached {} times",
        thousands(seen.published.count),
        seen.published.checksum,
        seen.lost,
        seen.reattached
    ));
    report(format!("equal    {}", if equal { "yes: every host has all acknowledged records, once, in order" } else { "NO" }));
    if equal { Ok(()) } else { Err(Failure::new(DIFFERENCE, "the records of the hosts are not the acknowledged ones")) }
}

/// Initialises a cluster of `count` hosts in `dir`.
fn make(dir: &Path, count: u64) -> Outcome<Vec<Host>> {
    let addresses = addresses::unused(usize::try_from(count).unwrap_or(usize::MAX))?;
    let member = |(n, a): (u64, &std::net::SocketAddr)| Member { node: NodeId(n), address: a.to_string(), is_voter: true };
    let members: Vec<Member> = (1..).zip(&addresses).map(member).collect();
    let mut hosts = Vec::new();
    for n in 1..=count {
        let store = dir.join(format!("node-{n}"));
        let new_cluster = NewCluster {
            cluster: dir.to_string_lossy().into_owned(),
            node: NodeId(n),
            members: members.clone(),
            segment_size: 64 << 20,
            joins: false,
            generation: 0,
        };
        initialise(&RealDisk, &store, &new_cluster, HostClock.wall())?;
        hosts.push(Host { served: Served::new(store), replication: None });
    }
    Ok(hosts)
}

/// Publishes on host `at`, and kills the leader after a third of the records.
fn publish(stop: &AtomicBool, args: &Args, hosts: &mut [Host], at: usize, report: &dyn Fn(String)) -> Outcome<Seen> {
    let source = args.source.clone();
    let store = hosts.get(at).map(|h| h.served.store.clone()).unwrap_or_default();
    let options = Options { durability: Durability::Quorum, open_timeout: PATIENCE, ..Options::new(&store, PUBLISHER) };
    let mut publisher = Publisher::open(options)?;
    let rate = args.rate.unwrap_or(Rate::Times(1.0));
    let total = args.source.records.max(1);
    let mut tally = Tally::default();
    let count = std::sync::atomic::AtomicU64::new(0);
    let order = std::sync::atomic::Ordering::Relaxed;
    let takeover = std::thread::scope(|scope| -> Outcome<Duration> {
        let tally = &mut tally;
        let (publisher, sent) = (&mut publisher, &count);
        let sender = scope.spawn(move || -> Outcome {
            let is_stopped = || is_raised(stop);
            let mut input = source.open(&is_stopped)?;
            let mut loader = Loader { rate, timed: true, ..Loader::new(publisher, &is_stopped) };
            let (_, outcome) = loader.publish(input.as_mut(), &mut |n, _, words| {
                tally.add(Lsn(n + 1), words);
                sent.store(n + 1, order);
            });
            outcome.map(drop)
        });
        while count.load(order) < total / 3 && !sender.is_finished() {
            check_stop(stop)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let leader = leader_other_than(stop, hosts, at)?;
        let began = Instant::now();
        hosts.get_mut(leader).into_iter().for_each(Host::kill);
        report(format!("killed   node {}, the leader, after {} records", leader + 1, thousands(count.load(order))));
        let next = eventually(stop, "the election of another leader", || leader_of(hosts, Some(leader)))?;
        let elected = began.elapsed();
        let reader = Reader::open(&store)?;
        let before = reader.control().committed();
        // On a slow machine everything may be published and committed before the kill.
        let is_over = || sender.is_finished() && before.0 >= count.load(order);
        eventually(stop, "a commit of the new leader", || (reader.control().committed() > before || is_over()).then_some(()))?;
        let takeover = began.elapsed();
        report(format!(
            "takeover node {} leads after {}; its first commit after {}",
            next + 1,
            duration(elected.as_nanos() as u64),
            duration(takeover.as_nanos() as u64)
        ));
        if let Some(host) = hosts.get_mut(leader) {
            host.start()?;
            report(format!("restart  node {}", leader + 1));
        }
        let ended = sender.join().map_err(|_| Failure::new(DIFFERENCE, "the publisher panicked"))?;
        ended.map(|()| takeover)
    })?;
    check_stop(stop)?;
    publisher.flush(Durability::Quorum, PATIENCE)?;
    let progress = publisher.progress();
    let lost = publisher.take_lost().len();
    Ok(Seen { published: tally, takeover, lost, reattached: progress.reattached })
}

/// The leader, which is not host `at`: a slow machine may have elected another host meanwhile, and if that is `at`, it is asked
/// to hand over.
fn leader_other_than(stop: &AtomicBool, hosts: &[Host], at: usize) -> Outcome<usize> {
    let next = (at + 1) % hosts.len().max(1);
    eventually(stop, "a leader on another host than the publisher's", || {
        let leader = leader_of(hosts, None)?;
        if leader == at {
            // If it cannot hand over yet, it is asked again.
            hosts.get(at)?.ask(Command::Transfer(NodeId(next as u64 + 1))).ok();
        }
        (leader != at).then_some(leader)
    })
}

/// The host that reports itself as leader, other than `not`.
fn leader_of(hosts: &[Host], not: Option<usize>) -> Option<usize> {
    let leads = |h: &Host| h.served.is_started() && h.reader().is_ok_and(|r| r.control().role().0 == 1);
    hosts.iter().enumerate().find(|(n, h)| Some(*n) != not && leads(h)).map(|(n, _)| n)
}
