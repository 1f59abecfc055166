//! Owns: `tape sql`: statements from the command line, a file or standard input, answered in this process.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use datafusion::common::ScalarValue;
use tape_services::exit::{DATA, Failure, INTERNAL, INTERRUPTED, LATER, NO_INPUT, Outcome, USAGE};
use tape_services::grid::{Format, Grid};
use tape_services::logging::note;
use tape_services::{stdout, terminal};
use tapestore::reader::At;

use crate::engine::{Answer, Engine, Options, Settings};
use crate::failure::QueryError;
use crate::known::AsKnown;
use crate::nesting::STACK;
use crate::out::Target;
use crate::pager::Paged;
use crate::progress::Watch;
use crate::session::{Reply, Session};
use crate::{follow, parameters, print, prompt, updates};

/// How often an answer that goes to a file looks whether it is interrupted.
const STOP_EVERY: Duration = Duration::from_millis(50);

/// `tape sql`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Answer these statements, and end; several are separated by semicolons
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    command: Option<String>,
    /// Answer the statements of a file, and end; - is standard input
    #[arg(short = 'f', long = "file", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// The value of $1 in the statements; again for $2 and so on
    #[arg(short = 'p', long = "parameter", value_name = "VALUE", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// Write the rows of one statement to this file: *.parquet, *.arrow, *.csv or *.json
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    out: Option<PathBuf>,
    /// Replace the file of --out if it is there
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Keep the answer current: print rows that are new, each with the LSN it is as of, until interrupted
    #[arg(long, requires = "command")]
    follow: bool,
    /// How often --follow looks for new records, like 100ms
    #[arg(long, default_value = "500ms", value_parser = updates::every, requires = "follow")]
    every: Duration,
    /// Which records: committed, durable, appended, flushed
    #[arg(long, default_value = "committed")]
    at: At,
    /// Trades as known at a record, like 'lsn 42', or now: apply the busts and corrections stored up to it
    #[arg(long, value_name = "LSN", default_value = "off", hide_default_value = true)]
    as_known_at: AsKnown,
    /// Memory of a statement, like 1GiB
    #[arg(long, default_value = "1GiB", value_parser = bytes)]
    memory: u64,
    /// The longest time of a statement, seconds
    #[arg(long, default_value_t = 300)]
    time: u64,
    /// Threads of a statement [default: one for each core]
    #[arg(long)]
    threads: Option<usize>,
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|error| format!("'{text}' is not a size like 1GiB: {error}"))
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Failure {
        let message = error.to_string();
        match error {
            QueryError::Store(error) => error.into(),
            QueryError::Statement { .. } => Failure::new(USAGE, message),
            QueryError::Memory { .. } | QueryError::TooLong { .. } => Failure::new(LATER, message),
            QueryError::Internal { .. } => Failure::new(INTERNAL, message),
        }
    }
}

/// `tape sql`.
///
/// # Errors
/// The store cannot be read, a statement is wrong, or the output cannot be written.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let is_prompt = args.command.is_none() && args.file.is_none() && std::io::stdin().is_terminal();
    let text = match (&args.command, &args.file) {
        (Some(text), _) => text.clone(),
        (None, _) if is_prompt => String::new(),
        (None, file) => read(file.as_deref())?,
    };
    let defaults = Options::default();
    let options = Options {
        memory: usize::try_from(args.memory).unwrap_or(usize::MAX),
        time: Duration::from_secs(args.time),
        threads: args.threads.unwrap_or(defaults.threads).max(1),
        files: true,
        ..defaults
    };
    let engine = Engine::open(store, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.threads.unwrap_or_else(|| Options::default().threads))
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(INTERNAL, format!("threads cannot be started: {error}")))?;
    let settings = Settings { at: args.at, known: args.as_known_at, ..Settings::default() };
    engine.note_at_rest(&settings)?;
    let mut session = Session::new(Arc::new(engine), settings);
    let statements = split(&text);
    if is_prompt {
        if args.out.is_some() || !args.parameters.is_empty() {
            return Err(Failure::new(USAGE, "--out and -p are for statements of -c, -f or standard input"));
        }
        return prompt::run(&mut session, &runtime, format);
    }
    let target = args.out.as_deref().map(|path| Target::new(path, args.overwrite, format)).transpose()?;
    runtime.block_on(async {
        let values = parameters::bound(&session, &statements, &args.parameters).await?;
        match (statements.as_slice(), values.as_slice(), &target) {
            ([statement], [values], None) if args.follow => {
                follow::follow(session, (statement, values), args.every, format).await
            }
            _ if args.follow => Err(Failure::new(USAGE, "--follow keeps the answer of one statement current")),
            (_, _, Some(target)) => save(&mut session, statements.iter().copied().zip(values).collect(), target).await,
            _ => {
                for (statement, values) in statements.iter().zip(values) {
                    answer(&mut session, (statement, values), Printing { format, pages: false }).await?;
                }
                Ok(())
            }
        }
    })
}

fn read(file: Option<&Path>) -> Outcome<String> {
    match file {
        Some(path) if path != Path::new("-") => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(NO_INPUT, format!("the statements of {} cannot be read: {error}", path.display()))),
        _ => std::io::read_to_string(std::io::stdin())
            .map_err(|error| Failure::new(DATA, format!("standard input is no text: {error}"))),
    }
}

/// How rows are printed.
#[derive(Clone, Copy, Debug)]
pub struct Printing {
    /// The format.
    pub format: Format,
    /// Whether an answer that is higher than the terminal goes through a pager.
    pub pages: bool,
}

/// Prints the answer of a statement with the values of its parameters; returns its number of rows.
///
/// # Errors
/// The statement is wrong, the store cannot be read, or the output cannot be written.
pub async fn answer(
    session: &mut Session,
    (statement, values): (&str, Vec<ScalarValue>),
    Printing { format, pages }: Printing,
) -> Outcome<usize> {
    let mut watch = Watch::begin();
    let mut answer = match session.run(statement, values).await? {
        Reply::Rows(answer) => answer,
        Reply::Done(_) => return Ok(0),
    };
    let mut grid = match Paged::new().filter(|_| pages) {
        Some(paged) => Grid::through(format, Box::new(paged)),
        None => Grid::new(format),
    };
    grid.head(print::headings(&answer.schema))?;
    let mut rows = 0;
    while let Some(batch) = watch.next(&mut answer).await? {
        watch.rows_come();
        rows += batch.num_rows();
        print::print(&mut grid, &batch)?;
    }
    watch.rows_come();
    grid.flush()?;
    if rows == 0 {
        note(format_args!("note: no rows"));
    }
    Ok(rows)
}

/// Writes the rows of the one statement that has rows to the file of `target`, unless it is interrupted.
async fn save(session: &mut Session, statements: Vec<(&str, Vec<ScalarValue>)>, target: &Target) -> Outcome {
    let stop = terminal::stop_flag()?;
    let with_rows = statements.iter().map(|(statement, _)| session.is_setting(statement));
    let with_rows = with_rows.filter(|is_setting| !is_setting.as_ref().is_ok_and(|is| *is)).count();
    if with_rows != 1 {
        return Err(Failure::new(USAGE, format!("--out takes the rows of one statement, not of {with_rows}")));
    }
    let stopped = async {
        while !terminal::is_raised(&stop) {
            tokio::time::sleep(STOP_EVERY).await;
        }
    };
    let saved = async {
        for (statement, values) in statements {
            if let Reply::Rows(answer) = session.run(statement, values).await? {
                rows_to(answer, target, &stop).await?;
            }
        }
        Ok::<(), Failure>(())
    };
    tokio::select! {
        biased;
        () = stopped => Err(interrupted(target)),
        saved = saved => saved,
    }
}

async fn rows_to(mut answer: Answer, target: &Target, stop: &AtomicBool) -> Outcome {
    let mut watch = Watch::begin();
    let mut file = target.create(&answer.schema)?;
    let mut rows = 0u64;
    while let Some(batch) = watch.next(&mut answer).await? {
        rows += batch.num_rows() as u64;
        file.write(&batch)?;
        if terminal::is_raised(stop) {
            return Err(interrupted(target));
        }
    }
    let bytes = file.finish()?;
    drop(watch);
    stdout::say(format_args!(
        "{}: {} rows, {} bytes",
        target.path().display(),
        terminal::thousands(rows),
        terminal::thousands(bytes)
    ));
    Ok(())
}

fn interrupted(target: &Target) -> Failure {
    Failure::new(INTERRUPTED, format!("interrupted: {} was not written", target.path().display()))
}

/// The statements of `text`, which semicolons separate.
pub fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quote) = (Vec::new(), 0, None);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, '-') if chars.peek().is_some_and(|(_, next)| *next == '-') => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
            }
            (None, ';') => {
                parts.push(text.get(start..at).unwrap_or(""));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or(""));
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_separate_statements_but_not_in_texts_and_comments() {
        assert_eq!(split("select 1; select ';' ;\n"), ["select 1", "select ';'"]);
        assert_eq!(split("select 1 -- one; two\n; select \"a;b\""), ["select 1 -- one; two", "select \"a;b\""]);
        assert_eq!(split(" ;; "), [""; 0]);
    }
}
