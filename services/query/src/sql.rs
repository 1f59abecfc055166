//! Owns: `tape sql`: statements from the command line, a file or standard input, answered in this process.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tape_services::exit::{DATA, Failure, INTERNAL, LATER, NO_INPUT, Outcome, USAGE};
use tape_services::grid::{Format, Grid};
use tape_services::logging::note;
use tape_services::waiting::Waiting;
use tapestore::reader::At;

use crate::engine::{Engine, Options, Settings};
use crate::failure::QueryError;
use crate::nesting::STACK;
use crate::session::{Reply, Session};
use crate::{follow, print, prompt, updates};

/// `tape sql`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Answer these statements, and end; several are separated by semicolons
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    command: Option<String>,
    /// Answer the statements of a file, and end; - is standard input
    #[arg(short = 'f', long = "file", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// Keep the answer current: print rows that are new, each with the LSN it is as of, until interrupted
    #[arg(long, requires = "command")]
    follow: bool,
    /// How often --follow looks for new records, like 100ms
    #[arg(long, default_value = "500ms", value_parser = updates::every, requires = "follow")]
    every: Duration,
    /// Which records: committed, durable, appended, flushed
    #[arg(long, default_value = "committed")]
    at: At,
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
    let settings = Settings { at: args.at, ..Settings::default() };
    engine.note_at_rest(&settings)?;
    let mut session = Session::new(Arc::new(engine), settings);
    if is_prompt {
        return prompt::run(&mut session, &runtime, format);
    }
    if args.follow {
        let [statement] = *split(&text).as_slice() else {
            return Err(Failure::new(USAGE, "--follow keeps the answer of one statement current"));
        };
        return runtime.block_on(follow::follow(session, statement, args.every, format));
    }
    runtime.block_on(statements(&mut session, &text, format))
}

fn read(file: Option<&Path>) -> Outcome<String> {
    match file {
        Some(path) if path != Path::new("-") => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(NO_INPUT, format!("the statements of {} cannot be read: {error}", path.display()))),
        _ => std::io::read_to_string(std::io::stdin())
            .map_err(|error| Failure::new(DATA, format!("standard input is no text: {error}"))),
    }
}

async fn statements(session: &mut Session, text: &str, format: Format) -> Outcome {
    for statement in split(text) {
        answer(session, statement, format).await?;
    }
    Ok(())
}

/// Prints the answer of `statement`; returns its number of rows, `None` if it has none.
///
/// # Errors
/// The statement is wrong, the store cannot be read, or the output cannot be written.
pub async fn answer(session: &mut Session, statement: &str, format: Format) -> Outcome<Option<usize>> {
    let _waiting = Waiting::new("the answer");
    let mut answer = match session.run(statement, Vec::new()).await? {
        Reply::Rows(answer) => answer,
        Reply::Done(_) => return Ok(Some(0)),
    };
    let mut grid = Grid::new(format);
    grid.head(print::headings(&answer.schema))?;
    let mut rows = 0;
    while let Some(batch) = answer.rows.next().await {
        let batch = batch.map_err(QueryError::from)?;
        rows += batch.num_rows();
        print::print(&mut grid, &batch)?;
    }
    grid.flush()?;
    if rows == 0 {
        note(format_args!("note: no rows"));
    }
    Ok(Some(rows))
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
