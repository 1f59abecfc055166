//! Owns: the campaign `readers`: readers that check every row while storage flushes, compacts, expires records, is killed and
//! stopped; and readers of SSTables with unreadable pages.
//!
//! What must hold: no reader ends by a signal or reads a wrong row; the only errors are storage down and expired records; an
//! unreadable page is a typed error, also if it was readable before.

use std::time::{Duration, Instant};

use tapestore::disk::sim::SimRng;

use crate::report::Report;
use crate::site::{Feed, Plan, Site, Watcher};
use crate::volumes::{self, Volume};

/// Small MemTables, compaction from three runs on, and short retention.
pub(crate) const CHURN: &str = "memtable-size = 16777216\nsegment-size = 1048576\n[compaction]\nruns-max = 2\n\
    [[retention]]\nkind = \"trade\"\nkeep = \"3h\"\n[[retention]]\nkind = \"*\"\nbytes = 8388608\n";

const PLANS: [Plan; 3] = [
    Plan { publisher: 1, level: "fsync", batch: 4, rate: 2_000 },
    Plan { publisher: 2, level: "os", batch: 64, rate: 10_000 },
    Plan { publisher: 3, level: "none", batch: 256, rate: 20_000 },
];
const READERS: u64 = 8;

/// Runs readers for `seconds`, then a few on bad pages.
pub(crate) fn run(seconds: u64, seed: u64) -> Report {
    let mut report = Report::new("readers");
    let mut site = Site::new("readers", seed, CHURN);
    if let Err(what) = churn(&mut site, seconds, seed, &mut report) {
        let again = site.again("readers", seconds, seed);
        report.fail(what, again);
    }
    drop(site);
    match volumes::why_not() {
        Some(why) => report.note(format!("bad pages were not tested: {why}")),
        None => bad_pages(seed, &mut report),
    }
    report
}

fn churn(site: &mut Site, seconds: u64, seed: u64, report: &mut Report) -> Result<(), String> {
    let mut rng = SimRng::new(seed);
    site.start()?;
    let mut feeds: Vec<Feed> = PLANS.iter().map(|p| Feed::start(site, *p, 1)).collect();
    let how = |i| if i < 2 { "follow" } else { "random" };
    let mut watchers: Vec<Watcher> = (0..READERS).map(|i| Watcher::start(site, how(i), i, seed + i)).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut kills, mut stops) = (0, 0);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2_000 + rng.below(4_000)));
        watchers.iter_mut().try_for_each(Watcher::demand_alive)?;
        feeds.iter_mut().try_for_each(Feed::demand_alive)?;
        if rng.below(2) == 0 {
            site.kill();
            kills += 1;
        } else {
            site.stop()?;
            stops += 1;
        }
        std::thread::sleep(Duration::from_millis(rng.below(100)));
        site.start()?;
    }
    feeds.iter_mut().try_for_each(|f| f.finish().map(drop))?;
    for watcher in &mut watchers {
        report.note(watcher.finish()?);
        report.pass();
    }
    let reader = site.reader()?;
    let counted = |which| reader.control().statistic(which);
    use tapestore::shm::control::Statistic;
    report.note(format!(
        "{} records, {} expired, {} files, {kills} kills and {stops} stops of storage",
        reader.control().durable(),
        counted(Statistic::Expired),
        counted(Statistic::Files),
    ));
    if counted(Statistic::Expired) == 0 {
        return Err("nothing expired: retention was not tested".into());
    }
    site.tape(&["verify"])?;
    site.stop()
}

fn bad_pages(seed: u64, report: &mut Report) {
    let bad = ["truncated image", "shut down file system", "truncated image after reading", "files truncated after reading"];
    for (bad, number) in bad.into_iter().zip(0..) {
        let dir = std::env::temp_dir().join(format!("faults-pages-{seed}-{number}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        match bad_page(&dir, number, seed) {
            Ok(output) => {
                report.note(format!("{bad}: {output}"));
                report.pass();
            }
            Err(what) => report.fail(format!("{bad}: {what}"), format!("faults readers --n 1 --seed {seed}")),
        }
        std::fs::remove_dir_all(&dir).ok();
    }
}

/// Truncates the SSTables in `sst`, which a reader maps, if `truncates`, and drops their pages from the page cache.
fn turn_bad(sst: &std::path::Path, truncates: bool) -> Result<(), String> {
    for entry in std::fs::read_dir(sst).map_err(|e| e.to_string())?.flatten() {
        let file = std::fs::File::options().read(true).write(true).open(entry.path()).map_err(|e| e.to_string())?;
        if truncates {
            let len = file.metadata().map_err(|e| e.to_string())?.len();
            file.set_len(len / 2).map_err(|e| e.to_string())?;
        }
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Tests a reader of a killed store, whose MemTables are still readable, while parts of its SSTables are unreadable.
fn bad_page(dir: &std::path::Path, number: u64, seed: u64) -> Result<String, String> {
    let image = dir.join("image");
    let mut volume = Volume::ext4(&dir.join("volume"), &image, 192 << 20)?;
    let mut site = Site::at(dir.to_path_buf(), volume.path.join("store"), crate::site::SMALL);
    site.keep = true;
    site.start()?;
    let mut feed = Feed::start(&site, Plan { publisher: 1, level: "os", batch: 512, rate: 60_000 }, 1);
    let reader = site.reader()?;
    crate::site::eventually("an SSTable", || {
        (reader.control().statistic(tapestore::shm::control::Statistic::Files) > 0).then_some(())
    })?;
    feed.finish()?;
    site.stop()?;
    drop(reader);
    volume.unmount()?;
    volume.mount()?;
    site.start()?;
    site.kill();
    match number {
        0 => volume.spoil()?,
        1 => volume.shutdown()?,
        _ => {}
    }
    let mut watcher = Watcher::start(&site, "bad", 0, seed);
    std::thread::sleep(Duration::from_secs(3));
    if number > 1 {
        watcher.demand_alive()?;
        if number == 2 {
            volume.spoil()?;
        }
        // Pages that the reader maps stay cached: repeat, so that it releases them in between.
        let end = Instant::now() + Duration::from_secs(3);
        let mut truncates = number == 3;
        while Instant::now() < end {
            turn_bad(&site.store.join("sst"), std::mem::take(&mut truncates))?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    watcher.demand_alive()?;
    let output = watcher.finish()?;
    site.free_shared_memory();
    if !output.contains("unreadable") && !output.contains("damaged") {
        return Err(format!("no page was bad: {output}"));
    }
    if number > 1 && output.contains(" 0 rows right") {
        return Err(format!("nothing was read before the pages turned bad: {output}"));
    }
    Ok(output)
}
