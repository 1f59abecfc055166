//! `tape doctor`: each fault is provoked, for real wherever a test can, and found by its name with the command that mends it.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rcgen::{CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use serde_json::Value;
use tape_services::doctor::fsync::Cost;
use tape_services::processes::Process;
use tapestore::disk::{Disk, RealDisk};
use tapestore::time::{Clock, HostClock};

use crate::cluster::Hosts;
use crate::fixture::{Store, eventually, role, under};

/// What `tape doctor` found.
struct Found {
    code: i32,
    report: Value,
    stderr: String,
}

impl Found {
    fn of(output: &Output) -> Found {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let report = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{stderr}"));
        Found { code: output.status.code().unwrap(), report, stderr }
    }

    /// Severity, text and command of the finding `name`.
    fn finding(&self, name: &str) -> (&str, &str, &str) {
        let all = self.report["findings"].as_array().unwrap();
        let one = all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name} in {}", self.report));
        let text = |key: &str| one[key].as_str().unwrap_or("");
        (text("severity"), text("found"), text("command"))
    }

    /// Checks that `name` is a problem whose text has `what`, with a command that has `command`, and that the exit code says so.
    fn is_problem(&self, name: &str, what: &str, command: &str) {
        let (severity, found, run) = self.finding(name);
        assert_eq!(severity, "problem", "{name}: {}", self.report);
        assert!(found.contains(what) && run.contains(command), "{name}: {}", self.report);
        assert!(self.code == 6 && self.report["healthy"] == false && self.stderr.contains("problem"), "{}", self.stderr);
    }

    /// Checks that `name` is a warning.
    fn is_warning(&self, name: &str, what: &str, command: &str) {
        let (severity, found, run) = self.finding(name);
        assert_eq!(severity, "warning", "{name}: {}", self.report);
        assert!(found.contains(what) && run.contains(command), "{name}: {}", self.report);
    }

    /// Checks that nothing is wrong with `name`.
    fn is_ok(&self, name: &str) {
        assert_eq!(self.finding(name).0, "ok", "{name}: {}", self.report);
    }
}

fn command(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["doctor", "--json", "--no-measure"]).args(arguments).arg("--store").arg(store);
    command
}

fn doctor(store: &Path, arguments: &[&str]) -> Found {
    Found::of(&command(store, arguments).output().unwrap())
}

/// The same under the shell commands `limits`.
fn limited(limits: &str, store: &Path) -> Found {
    let mut command = under(limits, env!("CARGO_BIN_EXE_tape"));
    Found::of(&command.args(["doctor", "--json", "--no-measure", "--store"]).arg(store).output().unwrap())
}

/// A host with nothing wrong: the files of a system, below a directory.
pub(crate) struct System {
    dir: tempfile::TempDir,
}

impl System {
    pub(crate) fn sound() -> System {
        let this = System { dir: tempfile::tempdir().unwrap() };
        this.put("proc/sys/vm/max_map_count", "1048576");
        this.put("proc/sys/vm/overcommit_memory", "0");
        this.put("proc/meminfo", "MemTotal: 67108864 kB\nCommitLimit: 33554432 kB\nCommitted_AS: 33000000 kB\n");
        this.put("proc/swaps", "Filename Type Size Used Priority\n");
        this.put("proc/self/status", "Name: x\nCpus_allowed_list:\t0-7\n");
        this.put("proc/self/cgroup", "0::/tape.service\n");
        this.mounts("ext4", "rw,noatime");
        this.put("sys/devices/system/cpu/online", "0-7");
        this.put("sys/devices/system/cpu/isolated", "2-3");
        this.put("sys/devices/system/cpu/nohz_full", "2-3");
        this.put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance");
        this.put("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc");
        this.put("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm");
        this.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        this.put("sys/kernel/mm/transparent_hugepage/defrag", "[always] defer madvise never");
        this
    }

    pub(crate) fn root(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// All directories are on a file system of the type `of`, but for shared memory.
    fn mounts(&self, of: &str, options: &str) {
        let text = format!("1 0 8:1 / / {options} - {of} /dev/sda1 rw\n2 1 0:5 / /dev/shm rw,nosuid - tmpfs tmpfs rw\n");
        self.put("proc/self/mountinfo", &text);
    }

    fn doctor(&self, store: &Path, arguments: &[&str]) -> Found {
        doctor(store, &[&["--system-root", self.root()], arguments].concat())
    }
}

/// A directory in which there is no store yet.
fn nothing() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    (dir, store)
}

#[test]
fn a_sound_host_has_no_problem_with_a_served_a_stopped_and_an_absent_store() {
    let system = System::sound();
    let (_dir, absent) = nothing();
    let found = system.doctor(&absent, &[]);
    assert_eq!((found.code, &found.report["problems"]), (0, &Value::from(0)), "{}", found.report);
    assert!(found.finding("owner").1.contains("does not exist yet"));
    let mut store = Store::serve();
    for turn in ["served", "stopped"] {
        let found = system.doctor(&store.path, &[]);
        assert_eq!((found.code, &found.report["problems"]), (0, &Value::from(0)), "{turn}: {}", found.report);
        if turn == "served" {
            let programs = found.finding("releases");
            assert!(
                programs.0 == "ok" && programs.1 == "no process uses the store",
                "its files are not this host's: {programs:?}"
            );
            assert!(store.terminate().success());
        }
    }
    // For people the first line is the result, and what is in order comes last.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tape"));
    command.args(["doctor", "--no-measure", "--system-root", system.root(), "--store"]).arg(&store.path);
    let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(printed.starts_with("OK: 0 problems, ") && printed.lines().last().unwrap().starts_with("ok "), "{printed}");
}

#[test]
fn warnings_count_with_strict_alone() {
    let system = System::sound();
    system.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 100 0 -2\n");
    let (_dir, store) = nothing();
    let found = system.doctor(&store, &[]);
    found.is_warning("swap", "/dev/sda2", "vm.swappiness=1");
    assert_eq!(found.code, 0);
    assert_eq!(system.doctor(&store, &["--strict"]).code, 6);
    system.put("proc/sys/vm/swappiness", "1");
    system.doctor(&store, &[]).is_ok("swap");
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_found_and_storage_refuses_publishers_with_it() {
    let (_dir, store) = nothing();
    limited("ulimit -n 40", &store).is_problem("open-files", "40 at most", "LimitNOFILE");
    limited("ulimit -n 500", &store).is_warning("open-files", "500 at most", "LimitNOFILE");
    limited("ulimit -S -n 40", &store).is_ok("open-files");
    // Of a store that is served, the limit of its process counts, and the number of publishers that fit is right.
    let mut served = Store::limited("ulimit -n 100", &["--memtable-size", "16M", "--segment-size", "1M"]);
    served.start();
    let found = doctor(&served.path, &[]);
    found.is_warning("open-files", "running storage process", "LimitNOFILE");
    let text = found.finding("open-files").1;
    let room: usize = text.rsplit("room for ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    let open = |id| tapestore::Publisher::open(tapestore::publisher::Options::new(&served.path, tapestore::PublisherId(id))).ok();
    let attached: Vec<_> = (1..=24).filter_map(open).collect();
    assert!(room <= attached.len() && attached.len() <= room + 2, "{room} are promised, {} attach", attached.len());
}

#[test]
fn a_limit_of_the_size_of_files_and_of_addresses_is_found() {
    let (_dir, store) = nothing();
    limited("ulimit -f 1024", &store).is_problem("file-size", "at most", "LimitFSIZE");
    limited("ulimit -v 500000", &store).is_problem("address-space", "at most", "LimitAS");
    let found = limited("ulimit -l 0", &store);
    found.is_ok("locked-memory");
}

#[test]
fn a_limit_of_memory_maps_below_the_number_of_files_is_found() {
    let system = System::sound();
    let (dir, store) = nothing();
    system.put("proc/sys/vm/max_map_count", "200");
    system.doctor(&store, &[]).is_problem("memory-maps", "is 200", "sysctl -w vm.max_map_count=1048576");
    system.put("proc/sys/vm/max_map_count", "1000");
    system.doctor(&store, &[]).is_warning("memory-maps", "is 1,000", "sysctl");
    std::fs::create_dir_all(store.join("sst")).unwrap();
    (0..800).for_each(|n| std::fs::write(store.join(format!("sst/trade-{n:012x}.arrow")), "").unwrap());
    system.doctor(&store, &[]).is_problem("memory-maps", "there are 800 SSTables", "sysctl");
    drop(dir);
}

#[test]
fn the_mode_and_the_owners_of_the_store_are_found() {
    let store = Store::serve();
    doctor(&store.path, &[]).is_ok("mode");
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(&store.path, 0o757);
    doctor(&store.path, &[]).is_problem("mode", "mode 0757", "chmod 0750");
    set(&store.path, 0o770);
    doctor(&store.path, &[]).is_warning("mode", "mode 0770", "chmod 0750");
    set(&store.path, 0o750);
    doctor(&store.path, &[]).is_ok("owner");
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: files of another user need root");
    }
    let stray = store.path.join("sst/made-by-another-user");
    std::fs::create_dir_all(stray.parent().unwrap()).unwrap();
    std::fs::write(&stray, "").unwrap();
    std::os::unix::fs::chown(&stray, Some(65534), None).unwrap();
    doctor(&store.path, &[]).is_problem("owner", "made-by-another-user", "chown -R");
    std::fs::remove_file(stray).unwrap();
}

#[test]
fn a_key_that_others_can_read_is_found() {
    let (dir, store) = nothing();
    std::fs::create_dir(&store).unwrap();
    let key = store.join("local.key");
    std::fs::write(&key, "secret").unwrap();
    for (mode, is_problem) in [(0o600, false), (0o640, true), (0o604, true)] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let found = doctor(&store, &[]);
        if is_problem { found.is_problem("local-key", "local.key has mode", "chmod 0600") } else { found.is_ok("local-key") }
    }
    let certs = certificates(dir.path(), -1, 400);
    std::fs::set_permissions(dir.path().join("node-1.key"), PermissionsExt::from_mode(0o644)).unwrap();
    doctor(&store, &certs.each_ref().map(String::as_str)).is_problem("tls-key", "mode 0644", "chmod 0600");
}

/// Makes an authority and a host's certificate that is valid from `from` to `to` days from now, in `dir`; the options with them.
fn certificates(dir: &Path, from: i64, to: i64) -> [String; 6] {
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    for (file, days) in [("ca", (-1, 4000)), ("node-1", (from, to))] {
        let mut params = CertificateParams::new(vec!["node-1.test".to_owned()]).unwrap();
        params.not_before = now + time::Duration::days(days.0);
        params.not_after = now + time::Duration::days(days.1) + time::Duration::hours(1);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(dir.join(format!("{file}.pem")), cert.pem()).unwrap();
        let path = dir.join(format!("{file}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let option = |name: &str| name.to_owned();
    [option("--tls-cert"), path("node-1.pem"), option("--tls-key"), path("node-1.key"), option("--tls-ca"), path("ca.pem")]
}

#[test]
fn a_certificate_that_has_ended_is_near_its_end_or_is_for_another_key_is_found() {
    let (dir, store) = nothing();
    let with = |from, to| {
        let options = certificates(dir.path(), from, to);
        doctor(&store, &options.each_ref().map(String::as_str))
    };
    with(-1, 400).is_ok("certificate");
    with(-1, 400).is_ok("authority");
    with(-1, 400).is_ok("tls-key");
    with(-100, -3).is_problem("certificate", "valid from", "tape cluster certs");
    with(2, 400).is_problem("certificate", "valid from", "date");
    with(-100, 12).is_warning("certificate", "12 days are left", "tape cluster certs");
    // By the configuration file too, and a key of another pair.
    let options = certificates(dir.path(), -1, 400);
    std::fs::copy(dir.path().join("ca.key"), dir.path().join("node-1.key")).unwrap();
    let config = dir.path().join("replication.toml");
    std::fs::write(&config, format!("tls = {{ cert = {:?}, key = {:?}, ca = {:?} }}\n", options[1], options[3], options[5]))
        .unwrap();
    let found = doctor(&store, &["--replication-config", config.to_str().unwrap()]);
    found.is_problem("certificate", "is not for the key", "openssl");
    std::fs::write(&options[1], "nothing").unwrap();
    doctor(&store, &["--replication-config", config.to_str().unwrap()]).is_problem("certificate", "node-1.pem", "");
}

/// Writes a list to `crl.pem` in `dir` that was made and is to be renewed so many hours from now, by the authority there. It revokes
/// `node-1.pem` if `revokes`.
fn revocation_list(dir: &Path, from: i64, to: i64, revokes: bool) {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_nanos(HostClock.wall().0);
    let own = x509_parser::pem::parse_x509_pem(read("node-1.pem").as_bytes()).unwrap().1;
    let serial = own.parse_x509().unwrap().tbs_certificate.serial.to_bytes_be();
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: now + time::Duration::hours(from),
        next_update: now + time::Duration::hours(to) + time::Duration::minutes(1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: revokes.then_some(revoked).into_iter().collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    std::fs::write(dir.join("crl.pem"), list.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
}

#[test]
fn a_revoked_certificate_and_a_revocation_list_that_is_late_or_malformed_are_found() {
    let (dir, store) = nothing();
    let output = Command::new(env!("CARGO_BIN_EXE_tape"))
        .args(["cluster", "certs", "--cluster", "test", "--nodes", "1", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let [cert, key, ca, list] = ["node-1.pem", "node-1.key", "ca.pem", "crl.pem"].map(path);
    let options = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    let listed = [&options[..], &["--tls-crl", &list]].concat();
    doctor(&store, &options).is_ok("revocation-list");
    let with = |from, to, revokes| {
        revocation_list(dir.path(), from, to, revokes);
        doctor(&store, &listed)
    };
    with(-24, 24, false).is_ok("revocation-list");
    with(-24, 24, false).is_ok("certificate");
    with(-80, 20, false).is_ok("revocation-list");
    with(-80, 15, false).is_warning("revocation-list", "15 hours are left", "openssl ca -gencrl");
    with(-80, -15, false).is_warning("revocation-list", "that has passed", "openssl ca -gencrl");
    // One that is late still counts.
    let found = with(-80, -15, true);
    found.is_problem("certificate", "is revoked by", "tape cluster certs");
    found.is_warning("revocation-list", "revokes 1 certificates", "tape cluster certs --revoke");
    std::fs::write(dir.path().join("crl.pem"), "nothing").unwrap();
    let found = doctor(&store, &listed);
    found.is_problem("revocation-list", "crl.pem: the file has no revocation list", "openssl crl");
    found.is_ok("certificate");
}

/// The words of the command of `leftovers` that have `part`.
fn leftovers(found: &Found, part: &str) -> Vec<String> {
    let words = found.finding("leftovers").2.split([' ', ',']);
    words.filter(|word| word.contains(part)).map(str::to_owned).collect()
}

fn remove(words: &[String]) {
    assert!(Command::new("sh").args(["-c", &format!("rm -r {}", words.join(" "))]).status().unwrap().success());
}

#[test]
fn what_a_killed_store_that_has_gone_left_in_shared_memory_is_found_and_the_command_removes_it() {
    // A place of its own: any start of storage frees what is left in the usual one.
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let config = root.path().join("storage.toml");
    std::fs::write(&config, format!("run-root = {:?}\n", root.path())).unwrap();
    let options = ["--config", config.to_str().unwrap()];
    let mut store = Store::new(&[&options[..], &["--memtable-size", "16M", "--segment-size", "1M"]].concat());
    store.start();
    let publisher = store.publisher(1, tapestore::Durability::Os);
    let run_dir = store.run_dir().path().to_path_buf();
    let tag = run_dir.file_name().unwrap().to_str().unwrap().trim_start_matches("tapestore-").to_owned();
    let (_dir, other) = nothing();
    doctor(&other, &options).is_ok("leftovers");
    // Where its run directory is not, its bus segments are in use nevertheless.
    let elsewhere = leftovers(&doctor(&other, &[]), &tag);
    assert_eq!(elsewhere, [""; 0]);
    store.kill();
    drop(publisher);
    assert_eq!(leftovers(&doctor(&other, &[]), &tag).len(), 1, "nobody maps them");
    let dead = eventually("the end of the heartbeat", || {
        let found = doctor(&store.path, &options);
        (found.finding("run-directory").0 == "warning").then_some(found)
    });
    dead.is_warning("run-directory", "storage was killed", "tape-storage --store");
    dead.is_ok("leftovers");
    let hidden = store.path.with_file_name("moved");
    RealDisk.rename(&store.path, &hidden).unwrap();
    let found = doctor(&other, &options);
    found.is_warning("leftovers", "of stores that have gone: 1", "rm -r");
    let words = leftovers(&found, &tag);
    assert!(words.len() == 2 && words[0] == run_dir.to_str().unwrap(), "its bus segments are named too: {words:?}");
    remove(&words);
    assert!(!run_dir.exists());
    doctor(&other, &options).is_ok("leftovers");
    RealDisk.rename(&hidden, &store.path).unwrap();
}

#[test]
fn bus_segments_without_a_run_directory_are_found() {
    let (_dir, store) = nothing();
    let tag = format!("{:024x}", u64::from(std::process::id()) << 8 | 0xab);
    let segment = PathBuf::from(format!("/dev/shm/tape{tag}i7_4711.data"));
    // Names that are not of the bus.
    let others = ["tapexi7_1.data".to_owned(), format!("tape{tag}"), format!("tape{tag}ix_1")];
    let others = others.map(|name| Path::new("/dev/shm").join(name));
    others.iter().chain([&segment]).for_each(|path| std::fs::write(path, [0; 8192]).unwrap());
    let words = leftovers(&doctor(&store, &[]), &tag);
    assert_eq!(words, [format!("/dev/shm/tape{tag}i*")]);
    std::fs::remove_file(&segment).unwrap();
    let left = leftovers(&doctor(&store, &[]), &tag);
    others.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_run_directory_that_another_user_made_is_found() {
    let mut store = Store::serve();
    assert!(store.terminate().success());
    let link = store.path.join("run");
    let own = std::fs::read_link(&link).unwrap();
    doctor(&store.path, &[]).is_ok("run-directory");
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o777)).unwrap();
    doctor(&store.path, &[]).is_problem("run-directory", "was not made by its storage process", "tape-storage --store");
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o700)).unwrap();
    doctor(&store.path, &[]).is_ok("run-directory");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&own, Some(65534), None).unwrap();
        doctor(&store.path, &[]).is_problem("run-directory", "was not made by its storage process", "rm ");
        std::os::unix::fs::chown(&own, Some(0), None).unwrap();
    }
}

/// Runs `tape doctor` on `store` where `mount` is mounted at `at`.
fn mounted(mount: &str, at: &Path, store: &Path, arguments: &[&str]) -> Option<Found> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can mount");
        return None;
    }
    let line = format!("mount {mount} {} || exit 77; exec \"$0\" \"$@\"", at.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &line, env!("CARGO_BIN_EXE_tape"), "doctor", "--json"]);
    let output = command.args(arguments).arg("--store").arg(store).output().unwrap();
    if output.status.code() == Some(77) {
        println!("skipped: nothing can be mounted here");
        return None;
    }
    Some(Found::of(&output))
}

#[test]
fn a_shared_memory_as_small_as_a_container_s_and_a_full_one_are_found() {
    let (_dir, store) = nothing();
    let shm = Path::new("/dev/shm");
    let with = |size: &str| mounted(&format!("-t tmpfs -o size={size} tmpfs"), shm, &store, &["--no-measure"]);
    let Some(found) = with("64m") else { return };
    found.is_warning("shared-memory", "64.00 MiB", "--shm-size");
    let findings = found.report["findings"].as_array().unwrap();
    let shared = findings.iter().find(|finding| finding["name"] == "shared-memory").unwrap();
    assert!(shared["needed"].as_str().unwrap().contains("what a container gets without an option"), "{shared}");
    with("512k").unwrap().is_problem("shared-memory", "512.00 KiB free", "--shm-size");
    with("4g").unwrap().is_ok("shared-memory");
    let read_only = mounted("-t tmpfs -o ro tmpfs", shm, &store, &["--no-measure"]).unwrap();
    read_only.is_problem("shared-memory", "/dev/shm", "remount,rw");
}

#[test]
fn a_store_in_memory_is_found_by_its_file_system_and_by_its_syncs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let output = command(dir.path(), &[]).output().unwrap();
    Found::of(&output).is_problem("file-system", "tmpfs", "another --store");
    let mut measured = Command::new(env!("CARGO_BIN_EXE_tape"));
    let output = measured.args(["doctor", "--json", "--store"]).arg(dir.path()).output().unwrap();
    // The speed of this host's memory decides, so the claim is about what was measured.
    let found = Found::of(&output);
    let is_fast = Cost::measure(dir.path()).unwrap().p50_ns < 2_500;
    if is_fast {
        found.is_problem("fdatasync", "400 writes", "findmnt");
    }
    assert!(found.finding("fdatasync").1.contains("400 writes"), "{}", found.report);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays of the measurement");
}

#[test]
fn file_systems_and_options_that_break_a_promise_are_found() {
    let system = System::sound();
    let (_dir, store) = nothing();
    let with = |of: &str, options: &str| {
        system.mounts(of, options);
        system.doctor(&store, &[])
    };
    with("nfs4", "rw,relatime").is_warning("file-system", "nfs4", "another --store");
    with("fuse.sshfs", "rw,relatime").is_warning("file-system", "fuse.sshfs", "another --store");
    with("overlay", "rw,relatime").is_warning("file-system", "overlay", "docker run -v");
    with("ext4", "rw,relatime,nobarrier").is_problem("mount-options", "nobarrier", "barrier=1");
    with("ext4", "ro,relatime").is_problem("mount-options", "ro", "remount,rw");
    with("xfs", "rw").is_warning("mount-options", "rw", "noatime");
    with("ext4", "rw,noatime,sync").is_warning("mount-options", "sync", "async");
    let found = with("xfs", "rw,relatime");
    found.is_ok("mount-options");
    found.is_ok("file-system");
    // A file system that is really mounted without writing.
    let at = tempfile::tempdir().unwrap();
    if let Some(found) = mounted("-t tmpfs -o ro tmpfs", at.path(), &at.path().join("store"), &["--no-measure"]) {
        found.is_problem("mount-options", "ro", "remount,rw");
        found.is_problem("owner", "may not write", "install -d");
    }
}

#[test]
fn a_disk_with_less_than_what_is_kept_free_and_one_without_inodes_are_found() {
    let (dir, store) = nothing();
    doctor(&store, &[]).is_ok("inodes");
    let config = dir.path().join("storage.toml");
    std::fs::write(&config, "space-min = 1000000000000000\n").unwrap();
    let found = doctor(&store, &["--config", config.to_str().unwrap()]);
    found.is_problem("disk-space", "free of", "--space-min");
    let at = tempfile::tempdir().unwrap();
    if let Some(found) = mounted("-t tmpfs -o size=2g,nr_inodes=50 tmpfs", at.path(), &at.path().join("store"), &["--no-measure"])
    {
        found.is_problem("inodes", "free of 50", "df -i");
    }
}

#[test]
fn cores_that_are_not_there_are_not_isolated_or_are_the_same_are_found() {
    let (dir, store) = nothing();
    let config = dir.path().join("storage.toml");
    let with = |text: &str, system: Option<&System>| {
        std::fs::write(&config, text).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        system.map_or_else(|| doctor(&store, &arguments), |system| system.doctor(&store, &arguments))
    };
    // Of this host: no host has that core.
    with("ingest-core = 60000", None).is_problem("cores", "ingest-core = 60000", "ingest-core");
    let system = System::sound();
    let found = with("ingest-core = 2\nsync-core = 3\nwait = \"busy\"", Some(&system));
    found.is_ok("cores");
    found.is_ok("isolation");
    with("ingest-core = 2\nsync-core = 2", Some(&system)).is_warning("cores", "both 2", "sync-core");
    with("ingest-core = 5\nsync-core = 3", Some(&system)).is_warning("isolation", "isolcpus: 2,3", "isolcpus=5");
    system.put("proc/self/status", "Cpus_allowed_list: 0-1\n");
    with("ingest-core = 2", Some(&system)).is_problem("cores", "2 can be used: 0,1", "AllowedCPUs");
    with("wait = \"busy\"", Some(&system)).is_warning("cores", "2 can be used", "adaptive");
}

#[test]
fn memory_limits_of_a_container_and_of_the_kernel_are_found() {
    let (_dir, store) = nothing();
    let system = System::sound();
    let limit = "sys/fs/cgroup/tape.service/memory.max";
    system.put(limit, "max");
    system.doctor(&store, &[]).is_ok("memory");
    system.put(limit, "268435456");
    system.doctor(&store, &[]).is_problem("memory", "256.00 MiB for this control group", "--memtable-size 32M");
    // A group above the process's own counts too.
    system.put(limit, "max");
    system.put("sys/fs/cgroup/memory.max", "1000000000");
    system.doctor(&store, &[]).is_warning("memory", "control group", "MemoryMax=");
    system.put("sys/fs/cgroup/tape.service/cpu.max", "150000 100000");
    system.doctor(&store, &[]).is_warning("cpu-quota", "1.5 cores", "CPUQuota");
    system.put("proc/sys/vm/overcommit_memory", "2");
    system.doctor(&store, &[]).is_problem("overcommit", "is 2", "vm.overcommit_memory=0");
    // The same limits in the first version of control groups.
    let system = System::sound();
    system.put("proc/self/cgroup", "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n");
    system.put("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "268435456");
    system.put("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "50000");
    system.put("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000");
    let found = system.doctor(&store, &[]);
    found.is_problem("memory", "256.00 MiB", "--memtable-size");
    found.is_warning("cpu-quota", "0.5 cores", "CPUQuota");
}

#[test]
fn a_slow_clock_source_a_saving_governor_and_eager_huge_pages_are_found() {
    let (_dir, store) = nothing();
    let system = System::sound();
    let clock = "sys/devices/system/clocksource/clocksource0";
    system.put(&format!("{clock}/current_clocksource"), "hpet");
    system.put("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave");
    system.put("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never");
    let found = system.doctor(&store, &[]);
    found.is_warning("clock-source", "hpet", "echo tsc > /sys");
    found.is_warning("governor", "performance, powersave", "cpupower");
    found.is_warning("huge-pages", "always", "echo madvise");
    assert_eq!(found.code, 0);
    system.put(&format!("{clock}/available_clocksource"), "hpet acpi_pm");
    system.doctor(&store, &[]).is_warning("clock-source", "hpet", "dmesg");
}

/// The mark of a release in a program.
fn mark(version: &str) -> String {
    format!("tapestore release <{version}>")
}

/// The program tape-storage with the mark of release 9.9.9.
fn of_another_release() -> Vec<u8> {
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_tape-storage")).unwrap();
    let (ours, other) = (mark(env!("CARGO_PKG_VERSION")), mark("9.9.9"));
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, ours.as_bytes()).collect();
    assert!(!places.is_empty() && ours.len() == other.len(), "tape-storage has no mark of its release");
    places.into_iter().for_each(|at| bytes[at..at + other.len()].copy_from_slice(other.as_bytes()));
    bytes
}

/// Starts a storage process for `store` whose program is the file `program`, with the content `bytes`.
fn serve_with(program: &Path, bytes: Vec<u8>, store: &Path, stdin: impl Fn() -> Stdio) -> Process {
    std::fs::write(program, bytes).unwrap();
    std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
    // A process that another test starts just now has the file open for writing for a moment.
    let process = eventually("the start of the program", || {
        let mut command = Command::new(program);
        command.args(["--memtable-size", "16M", "--segment-size", "1M", "--log", "off", "--store"]).arg(store);
        Process::start("storage", command.stdin(stdin())).ok()
    });
    eventually("a store that is served", || {
        tapestore::Reader::open(store).ok().filter(tapestore::Reader::is_storage_alive).map(drop)
    });
    process
}

/// Stops the storage process of `store` and frees its shared memory.
fn stop(mut process: Process, store: &Path) {
    process.stop().unwrap();
    tape_services::processes::free_shared_memory(store);
}

#[test]
fn a_process_whose_program_was_removed_is_found_and_readers_have_the_mark_of_their_release() {
    let (dir, path) = nothing();
    let program = dir.path().join("tape-storage");
    let process = serve_with(&program, std::fs::read(env!("CARGO_BIN_EXE_tape-storage")).unwrap(), &path, Stdio::null);
    let reader = role("holder", &path, &[]);
    let found = eventually("both processes", || {
        let found = doctor(&path, &[]);
        let pids = [process.id(), reader.id()].map(|pid| format!("(process {pid})"));
        pids.iter().all(|pid| found.finding("releases").1.contains(pid)).then_some(found)
    });
    found.is_ok("releases");
    assert!(!found.finding("releases").1.contains("unknown"), "a program that uses the library has its mark: {}", found.report);
    drop(reader);
    std::fs::remove_file(&program).unwrap();
    let expected = format!("tape-storage {} (process {})", env!("CARGO_PKG_VERSION"), process.id());
    doctor(&path, &[]).is_warning("programs", &expected, "kill");
    stop(process, &path);
    doctor(&path, &[]).is_ok("releases");
}

#[test]
fn processes_of_other_releases_are_found_without_running_their_programs() {
    let (dir, path) = nothing();
    let process = serve_with(&dir.path().join("tape-storage"), of_another_release(), &path, Stdio::null);
    doctor(&path, &[]).is_warning("releases", "tape-storage 9.9.9", "one release");
    // A second process with this name that has a file of the store open, and is of this release.
    let other = dir.path().join("other");
    let bytes = std::fs::read(env!("CARGO_BIN_EXE_tape-storage")).unwrap();
    let held = || File::open(path.join("store.meta")).unwrap().into();
    let second = serve_with(&dir.path().join("tape-replication"), bytes, &other, held);
    doctor(&path, &[]).is_problem("releases", "tape-storage is 9.9.9, tape-replication is", "one release");
    stop(second, &other);
    stop(process, &path);
}

#[test]
fn both_processes_of_a_host_of_a_cluster_are_found() {
    let hosts = Hosts::new(false);
    let found = doctor(hosts.store(1), &[]);
    let text = found.finding("releases").1;
    assert!(text.contains("tape-storage") && text.contains("tape-replication"), "{}", found.report);
    assert_eq!(text.matches("(process ").count(), 2, "those of the other hosts use other stores: {text}");
    found.is_ok("releases");
    found.is_ok("local-key");
}

#[test]
fn an_examination_changes_nothing() {
    let mut store = Store::serve();
    store.tape_ok(&["publish", "--sim", "--records", "1000", "--instruments", "2"]);
    assert!(store.terminate().success());
    let list = || {
        let mut all: Vec<(PathBuf, u64, i64)> = Vec::new();
        let mut dirs = vec![store.path.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let found = entry.path().symlink_metadata().unwrap();
                all.push((entry.path(), found.len(), found.mtime_nsec()));
                dirs.extend(found.is_dir().then(|| entry.path()));
            }
        }
        all.sort();
        all
    };
    let before = list();
    let output = store.tape(&["doctor", "--json"]);
    assert!(output.status.code().is_some_and(|code| [0, 6].contains(&code)));
    assert_eq!(list(), before);
}
