//! Owns: the campaign `nth-fault`: a fixed script in which each disk call fails, once and permanently, in each way.
//!
//! What must hold: for every fault, a restart finds all acknowledged records, after a kill and after a power loss; without
//! faults the store works again.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tapestore::disk::sim::{Fault, SimRng};
use tapestore::error::{Error, Result};
use tapestore::record::{Depth10, Record};
use tapestore_engine::state::Readiness;

use crate::powerloss::{Store, Trial};
use crate::report::Report;
use crate::scratch::{Scratch, panic_message, worker_count};
use crate::tally::Counts;

/// The failing call.
#[derive(Clone, Copy, Debug)]
enum Failing {
    /// A call that writes, syncs or changes a directory.
    Call(u64, Fault),
    /// A call that reads.
    Look(u64, ErrorKind, bool),
}

/// The errors: `Other` stands for EIO and EMFILE.
const KINDS: [ErrorKind; 3] = [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::Interrupted];

/// Runs all cases, or a random choice of `n`.
pub fn run(n: u64, seed: u64) -> Report {
    let mut report = Report::new("nth-fault");
    let counts = Counts::default();
    let (calls, looks) = {
        let scratch = Scratch::new();
        let mut trial = begin(seed, &scratch, &counts);
        script(&mut trial).unwrap();
        (trial.disk.calls(), trial.disk.looks())
    };
    let mut cases = cases(calls, looks);
    // The choice depends on the seed: many short runs cover what a long one does.
    let mut rng = SimRng::new(seed);
    (1..cases.len()).rev().for_each(|i| cases.swap(i, rng.below(i as u64 + 1) as usize));
    let chosen: Vec<Failing> = cases.iter().take(n as usize).copied().collect();
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..worker_count() {
            scope.spawn(|| {
                let scratch = Scratch::new();
                while let Some(&failing) = chosen.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    for power in [false, true] {
                        let outcome = catch_unwind(AssertUnwindSafe(|| case(seed, &scratch, &counts, failing, power)));
                        if outcome.is_err() {
                            failures.lock().unwrap().push(format!("{failing:?}, then power loss {power}: {}", panic_message()));
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    (failures.len()..2 * chosen.len()).for_each(|_| report.pass());
    for what in failures {
        report.fail(what, format!("cargo run -p bench --bin faults -- nth-fault --n {n} --seed {seed}"));
    }
    report.note(format!("a script of {calls} writing and {looks} reading calls; {} of {} cases", chosen.len(), cases.len()));
    report
}

fn cases(calls: u64, looks: u64) -> Vec<Failing> {
    let mut cases = Vec::new();
    for call in 1..=calls {
        for kind in KINDS {
            cases.extend([Fault::Once(kind), Fault::Forever(kind)].map(|f| Failing::Call(call, f)));
        }
        let partial = [Fault::Short(ErrorKind::StorageFull), Fault::Short(ErrorKind::Other), Fault::Forget(ErrorKind::Other)];
        cases.extend(partial.map(|f| Failing::Call(call, f)));
    }
    for look in 1..=looks {
        for kind in [ErrorKind::Other, ErrorKind::Interrupted] {
            cases.extend([false, true].map(|forever| Failing::Look(look, kind, forever)));
        }
    }
    cases
}

fn begin<'a>(seed: u64, scratch: &Scratch, counts: &'a Counts) -> Trial<'a> {
    scratch.clear();
    let mut trial = Trial::new(seed, scratch, counts, false);
    // Long records, so that the log rolls.
    (trial.batch, trial.model.recipe.kinds) = (70, vec![Depth10::KIND]);
    trial
}

fn case(seed: u64, scratch: &Scratch, counts: &Counts, failing: Failing, power: bool) {
    let mut trial = begin(seed, scratch, counts);
    match failing {
        Failing::Call(call, fault) => trial.disk.set_fault(call, fault),
        Failing::Look(look, kind, forever) => trial.disk.set_look_fault(look, kind, forever),
    }
    match script(&mut trial) {
        Ok(()) | Err(Error::Io { .. } | Error::Halted { .. }) => {}
        Err(e) => panic!("the fault caused another error: {e}"),
    }
    trial.note_shown();
    trial.disk.clear_faults();
    trial.may_have_lost = power || matches!(failing, Failing::Call(_, Fault::Forget(_)));
    if power {
        trial.power();
    }
    trial.last();
}

/// Attaches, publishes, registers names, syncs, rolls the log, flushes, recycles; stops and starts; the same, ended by a kill.
fn script(trial: &mut Trial<'_>) -> Result<()> {
    for round in 0..2 {
        let mut store = trial.start()?;
        trial.attach(&mut store)?;
        for turn in 0..9 {
            if !trial.can_log(&mut store)? {
                continue;
            }
            if turn == 3 || turn == 6 {
                store.at.state.memtables.seal_soon();
            }
            publish(trial, &mut store, turn)?;
            if turn % 3 == 2 {
                trial.sync(&mut store)?;
                trial.flush(&mut store);
            }
        }
        if round == 0 {
            trial.stop(store)?;
        }
    }
    Ok(())
}

fn publish(trial: &mut Trial<'_>, store: &mut Store, turn: u32) -> Result<()> {
    if turn % 5 == 1 {
        trial.name(store)?;
    }
    if store.at.state.is_ready()? == Readiness::Ready { trial.send(store, 2) } else { Ok(()) }
}
