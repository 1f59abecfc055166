//! Owns: the campaign `steady`: the private memory of one storage process, publishers and a reader over the frames of the
//! log, without a restart.
//!
//! What must hold: private memory is flat: no process retains memory of a handled frame.

use std::time::{Duration, Instant};

use tapestore::shm::control::{Control, Statistic};

use crate::report::Report;
use crate::site::{Feed, Plan, SMALL, Site, Watcher};

/// Allowed growth of the least private memory from the second to the last quarter, KiB.
const MORE_KIB: u64 = 1024;
/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Private memory of process `pid` in KiB, without mapped files and shared memory.
fn private(pid: u32) -> Result<u64, String> {
    bench::process::held(pid).map(|held| held.private >> 10).ok_or_else(|| format!("process {pid} has ended"))
}

/// Runs for `thousands` * 1,000 frames.
pub(crate) fn run(thousands: u64, seed: u64) -> Report {
    let mut report = Report::new("steady");
    let mut site = Site::new("steady", seed, SMALL);
    if let Err(what) = live(&mut site, thousands * 1_000, seed, &mut report) {
        let again = site.again("steady", thousands, seed);
        report.fail(what, again);
    }
    report
}

fn live(site: &mut Site, frames: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    site.start()?;
    let plan = |publisher, level| Plan { publisher, level, batch: 1, rate: 20_000 };
    let plans = [plan(1, "os"), plan(2, "os"), plan(3, "fsync")];
    let mut feeds: Vec<Feed> = plans.into_iter().map(|plan| Feed::start(site, plan, 1)).collect();
    let mut watcher = Watcher::start(site, "follow", 0, seed);
    let control = Control::open(&site.run_dir()?.control()).map_err(|e| e.to_string())?;
    let storage = site.pid();
    let who = [("storage", storage), ("a publisher at os", feeds[0].child.id()), ("a publisher at fsync", feeds[2].child.id())];
    let who: Vec<(&str, u32)> = who.into_iter().chain([("a reader", watcher.pid())]).collect();
    let mut samples: Vec<Vec<u64>> = Vec::new();
    let (began, first) = (Instant::now(), control.statistic(Statistic::Frames));
    let done = || control.statistic(Statistic::Frames) - first;
    while done() < frames {
        if began.elapsed() > PATIENCE {
            return Err(format!("{} of {frames} frames in {PATIENCE:?}", done()));
        }
        std::thread::sleep(Duration::from_millis(200));
        let now: Vec<u64> = who.iter().map(|(_, pid)| private(*pid)).collect::<Result<_, _>>()?;
        // A merge holds blocks of its inputs: its memory is bounded by the size of a block, and returned at its end.
        if control.statistic(Statistic::Merging) == 0 {
            samples.push(now);
        }
        feeds.iter_mut().try_for_each(Feed::demand_alive)?;
        watcher.demand_alive()?;
        report.pass();
    }
    report.note(format!("{} frames in {} s", done(), began.elapsed().as_secs()));
    let quarter = samples.len() / 4;
    if quarter < 5 {
        return Err(format!("{} samples without a merge: too few to compare", samples.len()));
    }
    // Flushes and merges use memory temporarily; a leak raises the minimum.
    let least = |some: &[Vec<u64>], i: usize| some.iter().map(|s| s[i]).min().unwrap_or(0);
    let mut grown = Vec::new();
    for (i, (name, _)) in who.iter().enumerate() {
        let (early, late) = (least(&samples[quarter..2 * quarter], i), least(&samples[3 * quarter..], i));
        report.note(format!("{name}: at least {early} KiB in the second quarter, {late} in the last"));
        if late > early + MORE_KIB {
            grown.push(format!("{name}: {early} to {late} KiB"));
        }
    }
    if !grown.is_empty() {
        return Err(format!("private memory grows: {}", grown.join("; ")));
    }
    feeds.iter_mut().try_for_each(|f| f.finish().map(drop))?;
    report.note(watcher.finish()?);
    site.stop()
}
