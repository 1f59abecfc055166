//! Owns: the proof of the campaigns: breaks the rules of the store one by one; the campaign that covers the rule must fail.
//!
//! What must hold: the same runs pass without a broken rule; a broken rule is detected by a failed trial, not by a campaign
//! that cannot run.

use std::path::{Path, PathBuf};
use std::process::Command;

use tapestore::sabotage::{Sabotage, VARIABLE};

use crate::report::Report;

/// The campaign that detects a broken rule, and its number of trials.
const TABLE: &[(Sabotage, &str, u64)] = &[
    (Sabotage::SkipLogSync, "powerloss", 100),
    (Sabotage::SkipFileSync, "powerloss", 300),
    (Sabotage::SkipDirSync, "powerloss", 100),
    (Sabotage::SkipEditSync, "powerloss", 300),
    (Sabotage::AckEarly, "powerloss", 100),
    (Sabotage::ForgetPublishers, "powerloss", 100),
    (Sabotage::AcceptTwice, "powerloss", 100),
    (Sabotage::ServeTornTail, "powerloss", 600),
    (Sabotage::RecycleEarly, "powerloss", 300),
    (Sabotage::RetrySync, "powerloss", 600),
    (Sabotage::UnlinkEarly, "powerloss", 600),
    (Sabotage::OverwriteLive, "powerloss", 600),
    (Sabotage::LoseRow, "powerloss", 300),
    (Sabotage::IgnoreFull, "powerloss", 600),
    (Sabotage::SkipFrameCrc, "corrupt", 1000),
    (Sabotage::SkipBlockCrc, "corrupt", 1000),
    (Sabotage::SkipEditCrc, "corrupt", 1000),
    (Sabotage::IgnoreDurableMark, "corrupt", 1000),
];

/// Control runs without a broken rule.
const CONTROLS: &[(&str, u64)] = &[("powerloss", 600), ("nth-fault", 100), ("corrupt", 500)];

/// Builds the programs that can break rules, and runs the table with seeds from `seed` on.
pub fn run(seed: u64) -> Report {
    let mut report = Report::new("sabotage");
    let Some(faults) = build() else {
        report.fail("the programs cannot be built", "cargo build -p bench --bin faults --features sabotage");
        return report;
    };
    for &(campaign, n) in CONTROLS {
        let (code, out) = campaign_with(&faults, campaign, n, seed, None);
        let outcome = if code == Some(0) { Ok(()) } else { Err(format!("fails without a broken rule:\n{out}")) };
        println!("{:<20} {campaign:<12} {}", "(none)", if outcome.is_ok() { "passes" } else { "FAILS" });
        report.add(outcome, format!("{} {campaign} --n {n} --seed {seed}", faults.display()));
    }
    for &(which, campaign, n) in TABLE {
        let (code, out) = campaign_with(&faults, campaign, n, seed, Some(which));
        let caught = code == Some(1) && out.contains("FAILED");
        println!("{:<20} {campaign:<12} {}: {}", which.name(), if caught { "detected" } else { "NOT DETECTED" }, which.what());
        let outcome = if caught { Ok(()) } else { Err(format!("{}: not detected ({code:?})", which.name())) };
        let again = format!("{VARIABLE}={} {} {campaign} --n {n} --seed {seed}", which.name(), faults.display());
        report.add(outcome, again);
    }
    let open: Vec<&str> = Sabotage::ALL.iter().filter(|s| !TABLE.iter().any(|t| t.0 == **s)).map(|s| s.name()).collect();
    if !open.is_empty() {
        report.note(format!("rules without a campaign here: {}", open.join(", ")));
    }
    report
}

fn campaign_with(faults: &Path, campaign: &str, n: u64, seed: u64, which: Option<Sabotage>) -> (Option<i32>, String) {
    let mut command = Command::new(faults);
    command.args([campaign, "--n", &n.to_string(), "--seed", &seed.to_string()]).env_remove(VARIABLE);
    if let Some(which) = which {
        command.env(VARIABLE, which.name());
    }
    let out = command.output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Builds the programs with the feature `sabotage`, copies them to `target/sabotage`, and builds the clean ones again.
/// Unchanged dependencies are built once. Returns the path of the campaigns' program.
fn build() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let aside = root.join("target/sabotage");
    std::fs::create_dir_all(&aside).ok()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the whole workspace: alone a program has dependencies with other features, which would be built for it.
    let made = |features: &[&str]| {
        let mut command = Command::new(&cargo);
        command.current_dir(root).args(["build", "-q", "--workspace"]).args(features);
        command.args(PROGRAMS.iter().flat_map(|program| ["--bin", program]));
        command.status().is_ok_and(|status| status.success())
    };
    let built = made(&["--features", "bench/sabotage,tape-services/sabotage"]);
    let copied = PROGRAMS.iter().all(|program| {
        let to = aside.join(program);
        std::fs::remove_file(&to).ok();
        std::fs::copy(root.join("target/debug").join(program), to).is_ok()
    });
    let clean = made(&[]);
    (built && copied && clean).then(|| aside.join("faults"))
}

/// The programs of a campaign.
const PROGRAMS: [&str; 2] = ["faults", "tape-storage"];
