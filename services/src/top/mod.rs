//! Owns: `tape top`: a screen of a store that works: what is wrong, rates, watermarks, latencies, and one table at a time.
//!
//! | file | owns |
//! |---|---|
//! | `sample` | what a moment is made of, and the thread that takes it |
//! | `tables` | the tables and their columns |
//! | `rows` | the rows of each table, their order and filter |
//! | `units` | sizes and times with three digits |
//! | `screen` | the state of the screen: which table, which order, what keys do |
//! | `draw` | how the screen looks |
//!
//! What must hold: the terminal is as before when this ends, also by a signal or a panic. Samples are taken on a thread of their own,
//! so that keys are answered while one takes long. Nothing in the store waits for this program.

pub mod draw;
pub mod rows;
pub mod sample;
pub mod screen;
pub mod tables;
pub mod units;

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, Terminal};
use tapestore::time::parse_duration;

use crate::exit::{Failure, IO, Outcome, USAGE};
use crate::output::Format;
use crate::terminal;

use self::sample::{Sample, Sampler};
use self::screen::{Screen, Step};

/// How often keys and signals are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The shortest interval: a sample reads up to 20,000 records.
const INTERVAL_MIN: u64 = 100_000_000;

/// `tape top`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Interval of samples, like 500ms or 2s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1s")]
    every: u64,
    /// Print one screen of two samples and end: for files and mails
    #[arg(long)]
    once: bool,
    /// With --once: columns and lines of the screen
    #[arg(long, value_name = "COLUMNSxLINES", value_parser = size, default_value = "80x24", requires = "once")]
    size: (u16, u16),
    /// The table to begin with
    #[arg(long, value_enum, default_value = "publishers")]
    table: tables::Table,
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let parsed = text.split_once('x').and_then(|(columns, lines)| Some((columns.parse().ok()?, lines.parse().ok()?)));
    let is_usable = |(columns, lines): &(u16, u16)| (40..=1000).contains(columns) && (10..=1000).contains(lines);
    parsed.filter(is_usable).ok_or_else(|| format!("'{text}' is not a size from 40x10 to 1000x1000, like 80x24"))
}

/// Runs until a key or a signal ends it.
///
/// # Errors
/// Standard output is no terminal, or the terminal cannot be read.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    if args.every < INTERVAL_MIN {
        return Err(Failure::new(USAGE, "--every must be 100ms or more"));
    }
    let every = Duration::from_nanos(args.every);
    if args.once {
        return once(store, args, every, format);
    }
    if format.json {
        return Err(Failure::new(USAGE, "tape top is a screen; for JSON use: tape top --once --json, or tape status --json"));
    }
    if !std::io::stdout().is_terminal() {
        let why = "tape top needs a terminal; for a pipe or a file use: tape top --once, or tape status";
        return Err(Failure::new(USAGE, why));
    }
    let stop = terminal::stop_flag()?;
    let sampler = Sampler::start(store, every)?;
    let mut screen = Screen::new(store, every, args.table);
    // From here on a panic restores the terminal before it is printed.
    let mut on = ratatui::try_init().map_err(|error| Failure::new(IO, format!("cannot set the terminal: {error}")))?;
    let ended = watch(&mut on, &mut screen, &sampler, &stop);
    ratatui::try_restore().map_err(|error| Failure::new(IO, format!("cannot restore the terminal, run: reset: {error}")))?;
    ended
}

fn watch(on: &mut DefaultTerminal, screen: &mut Screen, sampler: &Sampler, stop: &std::sync::atomic::AtomicBool) -> Outcome {
    let failed = |error: std::io::Error| Failure::new(IO, format!("the terminal: {error}"));
    while !terminal::is_raised(stop) {
        while let Some(sample) = sampler.next() {
            screen.add(sample);
        }
        on.draw(|frame| draw::screen(frame, screen)).map_err(failed)?;
        if !event::poll(LOOK).map_err(failed)? {
            continue;
        }
        if let Event::Key(key) = event::read().map_err(failed)?
            && key.kind != KeyEventKind::Release
        {
            match screen.key(key) {
                Step::GoOn => {}
                Step::Quit => return Ok(()),
                Step::Every(every) => sampler.set_interval(every),
            }
        }
    }
    Ok(())
}

/// One screen as text, or the status that it is made of.
fn once(store: &Path, args: &Args, every: Duration, format: Format) -> Outcome {
    let mut screen = Screen::new(store, every, args.table);
    let mut taker = sample::Taker::new(store);
    let first: Sample = taker.take()?;
    screen.add(first);
    std::thread::sleep(every);
    let second = taker.take()?;
    if format.json {
        let json = serde_json::to_string(&second.status).map_err(|error| Failure::new(IO, error.to_string()))?;
        out!("{json}");
        return Ok(());
    }
    screen.add(second);
    let (columns, lines) = args.size;
    let failed = |error: std::convert::Infallible| Failure::new(IO, error.to_string());
    let mut on = Terminal::new(TestBackend::new(columns, lines)).map_err(failed)?;
    on.draw(|frame| draw::screen(frame, &mut screen)).map_err(failed)?;
    let buffer = on.backend().buffer();
    for line in 0..lines {
        let cells = (0..columns).filter_map(|column| buffer.cell((column, line)));
        let text: String = cells.map(ratatui::buffer::Cell::symbol).collect();
        out!("{}", text.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_columns_and_lines_and_anything_else_says_how_to_write_one() {
        assert_eq!(size("80x24"), Ok((80, 24)));
        for wrong in ["", "80", "80x", "x24", "10x5", "80x24x1", "99999x24", "-80x24"] {
            assert!(size(wrong).unwrap_err().contains("like 80x24"), "{wrong}");
        }
    }

    /// Run by the test below, on a terminal.
    #[test]
    #[ignore = "a panic, for the terminal that the test below gives it"]
    fn on_a_terminal_panics() {
        let mut on = ratatui::try_init().unwrap();
        on.draw(|frame| frame.render_widget("a screen", frame.area())).unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_restores_the_terminal_before_it_is_printed() {
        let dir = tempfile::tempdir().unwrap();
        let (this, place) = (std::env::current_exe().unwrap(), dir.path().display());
        let line = format!(
            "stty -g > {place}/before; {} top::tests::on_a_terminal_panics --exact --ignored --nocapture; stty -g > {place}/after",
            this.display()
        );
        let mut command = std::process::Command::new("script");
        let command = command.args(["--quiet", "--command", &line, "/dev/null"]).env("TERM", "xterm");
        let Ok(output) = command.stdin(std::process::Stdio::null()).output() else {
            println!("skipped: the program script (util-linux) is not installed");
            return;
        };
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let (leaves, panics) = (shown.rfind("\u{1b}[?1049l"), shown.find("on purpose"));
        assert!(shown.contains("\u{1b}[?1049h") && leaves.is_some() && leaves < panics, "{shown:?}");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("before"), read("after"));
    }
}
