//! The commands of the table, and the stores and hosts that they run on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tapestore::lsn::{Durability, Lsn};

use crate::cluster::{Hosts, publish};
use crate::doctor::System;
use crate::fixture::{PATIENCE, Store, eventually};

/// What a command of the table runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    Served,
    Stopped,
    /// A copy of the stopped store: the command changes it.
    Copy,
    /// A directory that is not there.
    Nothing,
    /// The leader of three hosts, when the third one is this.
    Leader(Third),
    /// The third host, which is stopped.
    Host,
    /// A copy of the third host's store.
    HostCopy,
    /// The same, as a restore from a backup makes it.
    Restored,
}

/// What the third host is in the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Third {
    Absent,
    Learner,
    Voter,
}

/// A command of the table. `DIR` is a directory that is not there, `FILE` a file of trades, `ID` the id of a trade, `BACKUP` a
/// backup; `SYSTEM` the files of a host with nothing wrong; `LEADER` and `THIRD` are hosts, number=host:port; `NODE` is the number of the third host, `OTHER` that of the one
/// that neither leads nor is the third.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) arguments: &'static [&'static str],
    on: On,
    /// What `--csv` needs too: it holds one kind.
    pub(super) one_kind: &'static [&'static str],
    /// The arguments with an instrument that the store does not have.
    pub(super) unknown: &'static [&'static str],
}

const fn case(name: &'static str, arguments: &'static [&'static str]) -> Case {
    Case { name, arguments, on: On::Served, one_kind: &[], unknown: &[] }
}

const fn on(on: On, name: &'static str, arguments: &'static [&'static str]) -> Case {
    Case { on, ..case(name, arguments) }
}

/// A command that takes the name of an instrument.
const fn of(name: &'static str, arguments: &'static [&'static str], unknown: &'static [&'static str]) -> Case {
    Case { unknown, ..case(name, arguments) }
}

/// The same, of records of all kinds.
const fn of_all(name: &'static str, arguments: &'static [&'static str], unknown: &'static [&'static str]) -> Case {
    Case { one_kind: &["--kind", "trade"], ..of(name, arguments, unknown) }
}

pub(super) const CASES: &[Case] = &[
    of("asof", &["asof", "SIM:00000", "trade"], &["asof", "X:NONE", "trade"]),
    of("asof --join", &["asof", "SIM:00000", "--join", "trade", "quote"], &["asof", "X:NONE", "--join", "trade", "quote"]),
    case("backup", &["backup", "DIR"]),
    on(On::Nothing, "bench", &["bench", "--seconds", "1", "--records", "100000"]),
    of("bars", &["bars", "SIM:0000*"], &["bars", "X:*"]),
    of("book", &["book", "SIM:00000"], &["book", "X:NONE"]),
    on(On::Leader(Third::Absent), "cluster add", &["cluster", "add", "THIRD"]),
    on(On::Nothing, "cluster certs", &["cluster", "certs", "--cluster", "c", "--nodes", "1,2,3", "--dir", "DIR"]),
    on(On::Restored, "cluster detach", &["cluster", "detach"]),
    on(On::HostCopy, "cluster force-promote", &["cluster", "force-promote", "--generation", "0", "--the-leader-is-gone"]),
    on(On::Copy, "cluster init", &["cluster", "init", "--cluster", "c", "--node", "1", "--members", "1=127.0.0.1:7600"]),
    on(On::Host, "cluster install-snapshot", &["cluster", "install-snapshot", "--from", "LEADER"]),
    on(On::Leader(Third::Learner), "cluster promote", &["cluster", "promote", "NODE"]),
    on(On::HostCopy, "cluster rejoin", &["cluster", "rejoin", "--generation", "1", "--leader", "LEADER"]),
    on(On::Leader(Third::Voter), "cluster remove", &["cluster", "remove", "NODE"]),
    on(On::Leader(Third::Voter), "cluster scrub", &["cluster", "scrub"]),
    on(On::Leader(Third::Voter), "cluster status", &["cluster", "status"]),
    on(On::Leader(Third::Voter), "cluster transfer", &["cluster", "transfer", "OTHER"]),
    on(On::Leader(Third::Voter), "cluster watch", &["cluster", "watch", "--every-ms", "10", "--count", "3"]),
    case("compact", &["compact"]),
    case("completions", &["completions", "bash"]),
    on(On::Nothing, "demo", &["demo", "--records", "1000", "--rate", "max"]),
    case("doctor", &["doctor", "--no-measure", "--system-root", "SYSTEM"]),
    case("export", &["export", "DIR", "--kind", "trade"]),
    of("find", &["find", "SIM:00000", "trade", "ID"], &["find", "X:NONE", "trade", "1"]),
    case("flush", &["flush"]),
    of_all("follow", &["follow", "--once"], &["follow", "--once", "--instrument", "X:NONE"]),
    of("get", &["get", "1"], &["get", "X:NONE", "trade", "now"]),
    case("import", &["import", "FILE"]),
    case("inspect manifest", &["inspect", "manifest"]),
    case("inspect memtable", &["inspect", "memtable"]),
    case("inspect sst", &["inspect", "sst"]),
    case("inspect wal", &["inspect", "wal"]),
    case("kinds", &["kinds"]),
    of("latest", &["latest", "SIM:*"], &["latest", "X:*"]),
    case("plan", &["plan", "--rate", "1000", "--instruments", "100", "--days", "30"]),
    case("publish", &["publish", "--sim", "--records", "100"]),
    case("reload", &["reload"]),
    on(On::Stopped, "repair", &["repair"]),
    on(On::Host, "repair --from-peer", &["repair", "--from-peer", "LEADER"]),
    of_all("replay", &["replay"], &["replay", "--instrument", "X:NONE"]),
    on(On::Nothing, "restore", &["restore", "BACKUP", "--store", "DIR"]),
    on(On::Copy, "retention", &["retention", "--dry-run", "--kind", "trade", "--keep", "30d"]),
    of("scan", &["scan", "SIM:00000", "trade"], &["scan", "X:NONE", "trade"]),
    case("status", &["status"]),
    of("symbols", &["symbols", "SIM"], &["symbols", "X:NONE"]),
    of_all("tail", &["tail", "-n", "5000", "--limit", "5"], &["tail", "--limit", "5", "--instrument", "X:NONE"]),
    case("top", &["top", "--once", "--every", "100ms"]),
    case("verify", &["verify"]),
];

/// The stores and hosts of the table.
pub(super) struct Stores {
    served: Store,
    stopped: Store,
    cluster: Cluster,
    dir: tempfile::TempDir,
    system: System,
    made: u32,
    /// The id of a trade of the first instrument.
    id: String,
}

impl Stores {
    pub(super) fn new() -> Stores {
        let market = || {
            let store = Store::serve();
            store.tape_ok(&["publish", "--sim", "--records", "5000", "--instruments", "20"]);
            store
        };
        let (served, mut stopped) = (market(), market());
        assert!(stopped.terminate().success());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trades.csv"), served.tape_ok(&["replay", "--kind", "trade", "--csv"])).unwrap();
        served.tape_ok(&["backup", dir.path().join("backup").to_str().unwrap()]);
        let ids = served.tape_ok(&["scan", "SIM:00000", "trade", "-n", "1", "--columns", "trade_id", "--csv"]);
        let id = ids.lines().nth(1).unwrap().to_owned();
        Stores { served, stopped, cluster: Cluster::new(), dir, system: System::sound(), made: 0, id }
    }

    /// The command of `case` with `arguments` and `more`, once everything is as it has to be.
    pub(super) fn command(&mut self, case: &Case, arguments: &[&str], more: &[&str]) -> Command {
        self.made += 1;
        let fresh = self.dir.path().join(format!("fresh-{}", self.made));
        let store = match case.on {
            On::Served => Some(self.served.path.clone()),
            On::Stopped => Some(self.stopped.path.clone()),
            On::Copy => Some(copy(&self.stopped.path, &fresh)),
            On::Nothing => None,
            On::Leader(third) => Some(self.cluster.leader_when(third)),
            On::Host => Some(self.cluster.stopped_third()),
            On::HostCopy | On::Restored => Some(copy(&self.cluster.kept(), &fresh)),
        };
        if case.on == On::Restored {
            std::fs::remove_file(fresh.join("raft.meta")).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
        for argument in arguments.iter().chain(more) {
            match *argument {
                "DIR" => command.arg(&fresh),
                "BACKUP" => command.arg(self.dir.path().join("backup")),
                "SYSTEM" => command.arg(self.system.root()),
                "ID" => command.arg(&self.id),
                "FILE" => command.arg(self.dir.path().join("trades.csv")),
                other => command.arg(self.cluster.named(other)),
            };
        }
        store.map(|store| command.arg("--store").arg(store));
        command.stdin(Stdio::null());
        command
    }

    pub(super) fn run(&mut self, case: &Case, arguments: &[&str], more: &[&str]) -> Output {
        self.command(case, arguments, more).output().unwrap()
    }
}

/// Copies the store `from` to `to`.
fn copy(from: &Path, to: &Path) -> PathBuf {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
    to.to_path_buf()
}

/// Three serving hosts with some records.
struct Cluster {
    hosts: Hosts,
    /// The number of the host whose membership changes.
    third: usize,
}

impl Cluster {
    fn new() -> Cluster {
        let mut hosts = Hosts::new(false);
        let leader = hosts.leader();
        let third = leader % 3 + 1;
        let mut publisher = hosts.publisher(leader, 1);
        publish(&mut publisher, 0..1_000);
        publisher.flush(Durability::Quorum, PATIENCE).unwrap();
        drop(publisher);
        eventually("all records on the third host", || (hosts.committed(third) >= Lsn(1_000)).then_some(()));
        hosts.stop_host(third);
        let this = Cluster { hosts, third };
        copy(this.hosts.store(third), &this.kept());
        this
    }

    /// A copy of the third host's store.
    fn kept(&self) -> PathBuf {
        self.hosts.dir.path().join("kept")
    }

    /// The host that is neither the third nor `leader`; one of the two if the third leads.
    fn other(&self, leader: usize) -> usize {
        (1..=3).find(|n| *n != leader && *n != self.third).unwrap()
    }

    /// What `argument` is for.
    fn named(&self, argument: &str) -> String {
        let host = |n: usize| format!("{n}={}", self.hosts.addresses[n - 1]);
        match argument {
            "LEADER" => host(self.hosts.leader()),
            "THIRD" => host(self.third),
            "NODE" => self.third.to_string(),
            "OTHER" => self.other(self.hosts.leader()).to_string(),
            other => other.to_owned(),
        }
    }

    /// The store of the leader, once the third host is `third`.
    fn leader_when(&mut self, third: Third) -> PathBuf {
        if self.hosts.hosts[self.third - 1].storage.is_none() {
            self.hosts.start(self.third);
        }
        let (hosts, node) = (&self.hosts, self.third.to_string());
        let address = format!("{node}={}", hosts.addresses[self.third - 1]);
        let leader = eventually("the wanted members", || {
            let leader = hosts.leader();
            let status = hosts.status(leader)?;
            let member = status["members"].as_array().unwrap().iter().find(|m| m["node"] == self.third);
            let is = match member {
                None => Third::Absent,
                Some(member) if member["votes"] == true => Third::Voter,
                Some(_) => Third::Learner,
            };
            let other = self.other(leader).to_string();
            let step = match (is, third) {
                _ if leader == self.third => ["transfer", &other],
                _ if is == third => return Some(leader),
                (Third::Absent, _) => ["add", &address],
                (Third::Learner, Third::Voter) => ["promote", &node],
                _ => ["remove", &node],
            };
            // It is looked at again, whether it was done or not.
            drop(hosts.tape(leader, &[&["cluster"][..], &step].concat()));
            None
        });
        // Scrub asks every member.
        if third != Third::Absent {
            let at = &hosts.addresses[self.third - 1];
            let answers = || hosts.tape(leader, &["cluster", "status", "--at", at]).status.success();
            eventually("an answer of the third host", || answers().then_some(()));
        }
        hosts.store(leader).to_path_buf()
    }

    /// The store of the third host, which is a stopped voter.
    fn stopped_third(&mut self) -> PathBuf {
        if self.hosts.hosts[self.third - 1].storage.is_some() {
            self.leader_when(Third::Voter);
            self.hosts.stop_host(self.third);
        }
        self.hosts.store(self.third).to_path_buf()
    }
}
