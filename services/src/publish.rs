//! Owns: `tape publish`: publishes the records of a file or of the simulated market at a rate.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tapestore::lsn::{Durability, PublisherId};
use tapestore::publisher::{Options, Progress};

use crate::choice;
use crate::exit::{Failure, Outcome, USAGE};
use crate::identity;
use crate::load::{BATCH, Loaded, Loader, end, report_left};
use crate::metrics::Endpoint;
use crate::metrics::publisher::Publishing;
use crate::output::Format;
use crate::source::{Rate, Source};
use crate::terminal;

/// Publishes records.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    who: identity::Who,
    /// Durability required before a record is acknowledged
    #[arg(long, alias = "level", value_parser = choice::durability(), default_value = "fsync")]
    durability: Durability,
    /// Speed: realtime (at the records' own times), a multiple like x2 or x100, or max
    #[arg(long, default_value = "max")]
    rate: Rate,
    /// Most records sent together at rate max
    #[arg(long, default_value_t = BATCH)]
    batch: u32,
    /// Serve metrics for Prometheus at this address while it publishes: host:port or unix:/path [default: not served]
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    metrics: String,
}

/// `tape publish`.
///
/// # Errors
/// The input or storage fails. Earlier records stay, and the message counts them.
pub fn run(store: PathBuf, args: &Args, format: Format) -> Outcome {
    if args.source.from.is_none() && !args.source.sim {
        return Err(Failure::new(USAGE, "give an input: --from FILE or --sim"));
    }
    let options = Options { durability: args.durability, ..Options::new(store, PublisherId(0)) };
    // Before the input, because it registers the user-defined kinds of the store in this process. A signal until then ends
    // the process: no record has been read yet.
    let mut publisher = args.who.open(options)?;
    let stop = terminal::stop_flag()?;
    let is_over = || terminal::is_raised(&stop);
    let mut input = args.source.open(&is_over)?;
    let full: Arc<AtomicU64> = Arc::default();
    let _metrics = Endpoint::of(&args.metrics, || Publishing::new(publisher.monitor(), full.clone()))?;
    let began = Instant::now();
    let mut loader = Loader { rate: args.rate, batch: args.batch, full, ..Loader::new(&mut publisher, &is_over) };
    let loaded = loader.load(input.as_mut());
    report(&loaded, &publisher.progress(), began.elapsed().as_secs_f64(), format);
    end(publisher, &loaded.accounting);
    loaded.outcome
}

fn report(loaded: &Loaded, progress: &Progress, seconds: f64, format: Format) {
    let (done, accounting) = (&loaded.published, &loaded.accounting);
    let (records, level) = (done.checksum.records, accounting.level);
    if format.json {
        let by_kind: serde_json::Map<String, serde_json::Value> = done.by_kind().map(|(s, n)| (s.to_owned(), n.into())).collect();
        let mut object = serde_json::json!({
            "records": records, "is_whole": done.is_whole, "kinds": by_kind, "left": loaded.left, "seconds": seconds,
            "level": level.to_string(), "epoch": progress.epoch.0, "accepted": progress.accepted.0,
            "durable": progress.durable.0, "last_lsn": progress.accepted_lsn.0, "rewinds": progress.rewinds,
            "reattached": progress.reattached,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(accounting.numbers().map(|(name, n)| (name.to_owned(), n.into())));
        }
        out!("{}", object);
        return;
    }
    let by_kind: Vec<String> = done.by_kind().map(|(s, n)| format!("{} {s}", terminal::thousands(n))).collect();
    out!("read {} records ({}) in {seconds:.2} s", terminal::thousands(records), by_kind.join(", "));
    let [stored, in_log, unacknowledged, lost] = accounting.numbers().map(|(_, n)| terminal::thousands(n));
    out!(
        "{stored} stored at level {level}, {in_log} in the log below that level, {unacknowledged} not acknowledged, {lost} lost (epoch {}, last LSN {})",
        progress.epoch,
        progress.accepted_lsn
    );
    report_left(loaded);
}
