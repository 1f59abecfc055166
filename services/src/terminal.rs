//! Owns: what all processes share: logging, signals, progress bars, sizes and numbers as text.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tapestore_formats::progress::Progress;
use tracing_subscriber::Layer;
pub use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

use crate::exit::{Failure, Outcome, USAGE};
use crate::log_format::Form;
pub use crate::log_format::{LogFormat, VARIABLE as LOG_FORMAT};
use crate::logging::{self, Direct, Queued};

/// What is logged.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// From this level on, whatever `RUST_LOG` says.
    Given(LevelFilter),
    /// What `RUST_LOG` says; without it, from this level on.
    Default(LevelFilter),
}

impl Wanted {
    /// `given`, or the default.
    pub fn new(given: Option<LevelFilter>, default: LevelFilter) -> Wanted {
        given.map_or(Wanted::Default(default), Wanted::Given)
    }
}

/// Sets the filter of the log lines of this process; `None` before [`log`].
type Change = Box<dyn Fn(Targets) -> bool + Send + Sync>;
static FILTER: OnceLock<Change> = OnceLock::new();
/// Whether a flag or `RUST_LOG` has chosen what is logged: a configuration does not change it then.
static IS_CHOSEN: AtomicBool = AtomicBool::new(false);

/// What a configuration wants to be logged.
#[derive(Debug)]
pub struct Configured(Targets);

impl Configured {
    /// As the key `log` of a configuration says: a level, or levels by part as in `RUST_LOG`; empty: from `default` on.
    ///
    /// # Errors
    /// It is none ([`USAGE`]).
    pub fn new(text: &str, default: LevelFilter) -> Outcome<Configured> {
        // A word alone would be a part, with all its lines.
        let is_level = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
        let filter = match text {
            "" => Targets::new().with_default(default),
            _ => text.parse().ok().filter(|_| text.split(',').all(is_level)).ok_or_else(|| {
                let levels =
                    "error, warn, info, debug, trace or off, or levels by part like info,tape_services::replication=debug";
                Failure::new(USAGE, format!("log = \"{text}\" is none of {levels}"))
            })?,
        };
        Ok(Configured(filter))
    }

    /// Logs so from now on, unless a flag or `RUST_LOG` has chosen something else.
    pub fn apply(self) {
        // Set before any other thread of this process logs: nothing to order.
        if !IS_CHOSEN.load(Ordering::Relaxed)
            && let Some(change) = FILTER.get()
        {
            change(self.0);
        }
    }
}

/// Logs to standard error. A process that `serves` never waits for the log's reader.
pub fn log(wanted: Wanted, format: LogFormat, serves: bool) {
    let form = logging::set_form(Form::new(format));
    let serves = serves && logging::start().is_ok();
    let writer = move || -> Box<dyn std::io::Write> { if serves { Box::new(Queued) } else { Box::new(Direct) } };
    let of_environment = || std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let (filter, is_chosen): (Targets, bool) = match (wanted, of_environment()) {
        (Wanted::Given(level), _) => (Targets::new().with_default(level), true),
        (Wanted::Default(_), Some(filter)) => (filter, true),
        (Wanted::Default(level), None) => (Targets::new().with_default(level), false),
    };
    IS_CHOSEN.store(is_chosen, Ordering::Relaxed);
    let (filter, change) = tracing_subscriber::reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = lines.with_ansi(form == Form::Text && is_coloured()).event_format(form).with_filter(filter);
    let subscriber = tracing_subscriber::registry().with(lines);
    // Only the first logger of a process counts.
    let is_first = tracing::subscriber::set_global_default(subscriber).is_ok();
    if !is_first || FILTER.set(Box::new(move |filter| change.reload(filter).is_ok())).is_err() {
        tracing::debug!(name: "log.already_set_up", "logging was set up before");
    }
}

/// Whether log lines are coloured: on a terminal, unless `NO_COLOR` has a value.
fn is_coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Turns the SIGBUS of an unreadable page of a store into an error of its reader. Every process calls it at its start.
pub fn guard_pages() {
    if let Err(error) = tapestore::guard_pages() {
        logging::note(format_args!("an unreadable page will end this process with SIGBUS: {error}"));
    }
}

/// How much lower the priority of threads is that only watch: where cores are short, those that work go first.
const WATCHES: i32 = 10;

/// Lowers the priority of the calling thread, one that only watches: it serves metrics or sends traces.
pub fn yield_to_work() {
    // Of this thread alone. Nothing is lost if the system refuses it.
    let _is_lower = rustix::process::nice(WATCHES).is_ok();
}

/// A flag that SIGTERM and SIGINT raise. SIGHUP, the end of the terminal, raises it too, unless the process ignores it
/// (`nohup`).
///
/// # Errors
/// The system's, if a handler cannot be set.
pub fn stop_flag() -> Outcome<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, flag.clone())?;
    }
    if !outlives_terminal() {
        signal_hook::flag::register(signal_hook::consts::SIGHUP, flag.clone())?;
    }
    Ok(flag)
}

/// Flags of a process that serves: one that SIGTERM and SIGINT raise, and one that SIGUSR1 raises, which asks for its configuration to be
/// read again. SIGHUP raises the first where the process has a terminal, whose end it is; else the second, as is the custom of daemons.
///
/// # Errors
/// The system's, if a handler cannot be set.
pub fn serving_flags() -> Outcome<(Arc<AtomicBool>, Arc<AtomicBool>)> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    signal_hook::flag::register(SIGUSR1, reload.clone())?;
    if !has_terminal() {
        signal_hook::flag::register(SIGHUP, reload.clone())?;
    } else if !outlives_terminal() {
        signal_hook::flag::register(SIGHUP, stop.clone())?;
    }
    Ok((stop, reload))
}

/// Calls `reload` at each SIGUSR1, and at each SIGHUP of a process without a terminal, for ever. With a terminal SIGHUP is its end, and
/// does what it did before.
pub async fn reloads(mut reload: impl FnMut()) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut asked) = signal(SignalKind::user_defined1()) else { return std::future::pending().await };
    let mut hung_up = if has_terminal() { None } else { signal(SignalKind::hangup()).ok() };
    loop {
        let hung_up = async {
            match &mut hung_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = asked.recv() => {}
            _ = hung_up => {}
        }
        reload();
    }
}

/// Whether this process has a terminal, whose end SIGHUP is.
fn has_terminal() -> bool {
    procfs::process::Process::myself().and_then(|process| process.stat()).is_ok_and(|stat| stat.tty_nr != 0)
}

/// Whether this process ignores SIGHUP.
fn outlives_terminal() -> bool {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.is_ok_and(|status| status.sigign >> (signal_hook::consts::SIGHUP - 1) & 1 == 1)
}

/// Whether `flag` has been raised.
pub fn is_raised(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// A progress bar of `total` (0: unknown) on standard error; hidden if that is no terminal.
pub fn progress(total: u64, bytes: bool, what: &str) -> ProgressBar {
    let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() };
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let template = match (total > 0, bytes) {
        (true, true) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        (true, false) => "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}",
        (false, _) => "{msg} {spinner} {human_pos} {per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// A progress bar that appears with the first progress and is cleared on drop.
pub struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar with the label `what`.
    pub fn new(what: &'static str) -> Bar {
        Bar { what, bar: None }
    }

    /// Shows `to`.
    pub fn set(&mut self, to: Progress) {
        let bar = self.bar.get_or_insert_with(|| progress(to.total, to.is_bytes, self.what));
        bar.set_position(to.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// The answer of a progress callback.
pub fn go_on(goes_on: bool) -> ControlFlow<()> {
    if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// A number of bytes: `4096`, `64K`, `256M`, `2G`; a unit is a power of 1,024.
///
/// # Errors
/// The text with the sizes that are allowed.
pub fn size(text: &str) -> Result<u64, String> {
    let parsed = parse_size::Config::new().with_binary().parse_size(text);
    parsed.map_err(|e| format!("'{text}' is not a size like 4096, 64K, 256M or 2G: {e}"))
}

/// A number with thousands separators.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Nanoseconds in a readable unit.
pub fn duration(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        10_000_000_000..7_200_000_000_000 => format!("{:.1} s", ns as f64 / 1e9),
        7_200_000_000_000..172_800_000_000_000 => format!("{:.1} h", ns as f64 / 3.6e12),
        _ => format!("{:.1} d", ns as f64 / 8.64e13),
    }
}

/// The path of the running program, to start it again.
///
/// # Errors
/// The system's.
pub fn this_program() -> Outcome<std::path::PathBuf> {
    std::env::current_exe().map_err(|e| Failure::new(USAGE, format!("cannot find the running program: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_units_and_overflow_is_refused() {
        assert_eq!((size("4096"), size("64K"), size("256MiB"), size("2G")), (Ok(4096), Ok(65536), Ok(256 << 20), Ok(2 << 30)));
        for bad in ["", "x", "1Q", "-1", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!((thousands(7), thousands(1234), thousands(1_234_567)), ("7".into(), "1,234".into(), "1,234,567".into()));
    }
}
