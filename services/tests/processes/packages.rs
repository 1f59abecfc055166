//! What a package holds: units that systemd accepts and finds safe, pages for man, completions, configurations that cannot rot.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tape_services::replication;
use tapestore::lsn::Durability;
use tapestore_engine::{Options, config};

use crate::fixture::Store;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn configuration(name: &str) -> PathBuf {
    root().join("config").join(name)
}

/// All files below `dir`, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else {
            found.push(entry);
        }
    }
    found.sort();
    found
}

fn named(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether `program` can be run; prints why a test is skipped.
fn has(program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: {program} is not installed (Debian: apt-get install {package})");
    }
    found
}

fn storage(path: &Path) -> Options {
    config::storage(path).and_then(Options::check).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn replication(path: &Path) -> replication::Options {
    replication::read_options(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_example_of_a_configuration_is_one_that_its_process_accepts() {
    let examples = files(&configuration("examples"));
    for path in &examples {
        match named(path) {
            "replication.toml" => drop(replication(path)),
            "storage.toml" | "laptop.toml" | "trading-host.toml" => drop(storage(path)),
            other => panic!("{other}: which process reads it?"),
        }
    }
    assert_eq!(examples.len(), 8, "{examples:?}");
    let host = storage(&configuration("examples/trading-host.toml"));
    assert!(host.ingest_core.is_some() && host.sync_core.is_some() && host.ingest_core != host.sync_core);
}

#[test]
fn the_hosts_of_the_example_of_three_agree_and_have_an_address_and_a_certificate_each() {
    let of = |node: u64, file: &str| configuration(&format!("examples/three-hosts/host-{node}/{file}.toml"));
    let first = storage(&of(1, "storage"));
    assert_eq!(first.durability_min, Durability::Quorum);
    let mut listens = BTreeSet::new();
    for node in 1..=3 {
        let (here, text) = (storage(&of(node, "storage")), std::fs::read_to_string(of(node, "storage")).unwrap());
        assert_eq!(here, first, "host {node}");
        let other = replication(&of(node, "replication"));
        assert_eq!(other.store, first.store, "host {node}");
        let tls = other.tls.unwrap();
        assert_eq!((named(&tls.cert), named(&tls.key)), (&*format!("node-{node}.pem"), &*format!("node-{node}.key")));
        // Its address is the one in the member list of the command.
        assert!(text.contains(&format!("--node {node} ")) && text.contains(&format!("{node}={}", other.listen)), "{text}");
        listens.insert(other.listen);
    }
    assert_eq!(listens.len(), 3);
}

#[test]
fn storage_serves_with_the_example_for_a_laptop() {
    let mut store =
        Store::new(&["--config", configuration("examples/laptop.toml").to_str().unwrap(), "--metrics", "127.0.0.1:0"]);
    store.start();
    store.tape_ok(&["publish", "--sim", "--records", "1000"]);
    store.tape_ok(&["status", "--check"]);
    assert!(store.terminate().success());
}

/// The names of all commands of `tape` that its help lists, with those of `cluster` and `inspect`.
fn commands() -> Vec<String> {
    let listed = |arguments: &[&str]| -> Vec<String> {
        let help = Command::new(env!("CARGO_BIN_EXE_tape")).args(arguments).arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let commands = help.split("\nCommands:\n").nth(1).map_or("", |rest| rest.split("\nOptions:").next().unwrap());
        let lines = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
    };
    let mut all = Vec::new();
    for command in listed(&[]) {
        all.extend(listed(&[&command]).iter().filter(|_| command != "sql").map(|inner| format!("{command}-{inner}")));
        all.push(command);
    }
    all
}

#[test]
fn every_command_has_a_page_that_man_renders_without_a_warning_and_each_shell_reads_its_script() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tape")).arg("man").arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let pages: BTreeSet<String> = files(&dir.path().join("man1")).iter().map(|path| named(path).to_owned()).collect();
    let mut wanted: BTreeSet<String> = commands().iter().map(|command| format!("tape-{command}.1")).collect();
    assert!(wanted.len() > 30, "{wanted:?}");
    wanted.extend(["tape.1", "tape-storage.1", "tape-replication.1"].map(str::to_owned));
    assert_eq!(pages, wanted);
    let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
    assert!(page("tape.1").contains("EXIT STATUS") && page("tape.1").contains("tape\\-scan(1)"));
    assert!(page("tape-storage.1").contains("\\-\\-memtable\\-size") && !page("tape-storage.1").contains("with\\-parent"));
    // Options of all commands are on each page.
    assert!(page("tape-inspect-wal.1").contains("\\-\\-store"));
    if has("groff", "groff") {
        for path in files(&dir.path().join("man1")) {
            let output = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{}: {}", path.display(), said(&output));
        }
    }
    for (shell, arguments, script) in
        [("bash", &["-n"][..], "bash/tape"), ("zsh", &["-n"], "zsh/_tape"), ("fish", &["--no-execute"], "fish/tape.fish")]
    {
        let script = dir.path().join(script);
        assert!(std::fs::read_to_string(&script).unwrap().contains("memtable"), "inspect memtable is completed by {shell}");
        if has(shell, shell) {
            let output = Command::new(shell).args(arguments).arg(&script).output().unwrap();
            assert!(output.status.success(), "{shell}: {}", said(&output));
        }
    }
}

const UNITS: [&str; 3] = ["tape-storage.service", "tape-replication.service", "tape-query.service"];

#[test]
fn systemd_accepts_the_units_and_finds_them_safe() {
    if !has("systemd-analyze", "systemd") {
        return;
    }
    let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).output().unwrap();
    for unit in UNITS {
        let path = configuration("systemd").join(unit);
        let path = path.to_str().unwrap();
        // The programs need not be installed here; everything else it says is a mistake in the unit.
        let text = said(&analyze(&["verify", "--man=no", "--recursive-errors=no", path]));
        let wrong: Vec<&str> = text.lines().filter(|line| line.contains(unit) && !line.contains("is not executable")).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        // Below 4 of 10; systemd says OK below 5.
        let rated = analyze(&["security", "--offline=true", "--threshold=40", "--no-pager", path]);
        let text = said(&rated);
        let verdict = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or(&text).to_owned();
        println!("{verdict}");
        assert!(rated.status.success() && verdict.contains("OK"), "{text}");
    }
}

#[test]
fn the_units_keep_shared_memory_the_host_s_and_start_in_order() {
    for unit in UNITS {
        let text = std::fs::read_to_string(configuration("systemd").join(unit)).unwrap();
        let lines: BTreeSet<&str> = text.lines().collect();
        let has = |line: &str| assert!(lines.contains(line), "{unit}: {line}");
        ["Type=notify", "RemoveIPC=no", "User=tapestore", "LimitNOFILE=1048576"].iter().for_each(|line| has(line));
        assert!(text.contains("\nWatchdogSec=") && text.contains("\nRestart="), "{unit}");
        let writable = text.lines().find(|line| line.starts_with("ReadWritePaths=")).unwrap();
        assert!(writable.contains("/dev/shm"), "{unit}: {writable}");
        // systemd gives a StateDirectory to the user of the unit, with all files: of another unit's user it would take a live store.
        let is_storage = unit == "tape-storage.service";
        assert_eq!(lines.contains("StateDirectory=tapestore"), is_storage, "{unit}");
        assert!(
            is_storage || !writable.contains("/var/lib/tapestore") || unit == "tape-replication.service",
            "{unit}: {writable}"
        );
        for hides in ["PrivateIPC=yes", "DynamicUser=yes", "PrivateUsers=yes", "ProcSubset=pid"] {
            assert!(!lines.contains(hides), "{unit}: {hides} separates publishers and readers from storage");
        }
        if unit != "tape-storage.service" {
            let after = text.lines().find(|line| line.starts_with("After=")).unwrap();
            assert!(after.contains("tape-storage.service"), "{unit}: {after}");
        }
    }
    let storage = std::fs::read_to_string(configuration("systemd/tape-storage.service")).unwrap();
    // The run directory has the setgid bit.
    assert!(storage.lines().any(|line| line == "RestrictSUIDSGID=no"));
    // What needs a person is not tried again.
    assert!(storage.lines().any(|line| line == "RestartPreventExitStatus=2 65 66 74 77"));
}

#[test]
fn the_staged_package_has_the_configuration_for_its_store_and_a_compressed_page_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_tape")).parent().unwrap();
    let only = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(programs.join("tape"), only.path().join("tape")).unwrap();
    let output = Command::new("sh").arg(configuration("deb/stage")).arg(only.path()).arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let options = storage(&dir.path().join("etc/storage.toml"));
    assert_eq!(options.store, Path::new("/var/lib/tapestore"));
    assert_eq!(replication(&dir.path().join("etc/replication.toml")).store, options.store);
    // Besides the store, the defaults.
    assert_eq!(Options { store: Options::default().store, ..options }, Options::default().check().unwrap());
    for page in ["tape.1.gz", "tape-cluster-init.1.gz", "tape-storage.1.gz"] {
        assert!(dir.path().join("man1").join(page).exists(), "{page}");
    }
}

/// The files that the package's description names, with where they go.
fn assets() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    assets.iter().map(|asset| (asset[0].as_str().unwrap().to_owned(), asset[1].as_str().unwrap().to_owned())).collect()
}

#[test]
fn the_package_holds_every_unit_and_every_example() {
    let assets = assets();
    let goes = |from: &str, to: &str| assert!(assets.contains(&(from.to_owned(), to.to_owned())), "{from} {to}: {assets:?}");
    for unit in UNITS {
        goes(&format!("../config/systemd/{unit}"), "usr/lib/systemd/system/");
    }
    for (from, _) in assets.iter().filter(|(from, _)| from.starts_with("../config/") && !from.contains('*')) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(from).is_file(), "{from}");
    }
    let examples = configuration("examples");
    let sources: BTreeSet<String> = assets.iter().map(|(from, _)| from.clone()).collect();
    for path in files(&examples) {
        let place = path.parent().unwrap().strip_prefix(&examples).unwrap().join("*.toml");
        assert!(sources.contains(&format!("../config/examples/{}", place.display())), "{}", path.display());
    }
    // Nothing of the package lies in the store: removing the package leaves the store.
    assert!(assets.iter().all(|(_, to)| !to.starts_with("var/")));
}
