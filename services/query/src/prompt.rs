//! Owns: the prompt of `tape sql`: lines of statements, their history, completion, and its own commands.
//!
//! What must hold: Ctrl-C ends a statement and not the prompt; at the prompt it drops the line. An error ends a statement and
//! not the prompt, but a failure of standard output ends both. A statement goes over several lines, until a semicolon.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use tape_services::exit::{Failure, INTERNAL, OUTPUT, Outcome};
use tape_services::grid::Format;
use tape_services::logging::note;

use crate::engine::Engine;
use crate::failure::QueryError;
use crate::session::Session;
use crate::sql::{Printing, answer, split};

/// Lines that the history keeps.
const HISTORY: usize = 10_000;

const COMMANDS: &str = "\
\\d          the tables
\\d NAME     the columns of a table
\\at [WHICH] how far statements read: appended, committed, durable, flushed, lsn 42
\\known [AT] at which record trades are known: now, lsn 42, off
\\timing     print how long each statement takes, or do not
\\?          these commands
\\q          the end, as Ctrl-D
A statement ends with a semicolon. Tab completes tables, columns, functions and symbols. Ctrl-C ends a statement.";

/// Keywords that complete.
pub const KEYWORDS: &str = "SELECT FROM WHERE GROUP BY ORDER LIMIT ASOF JOIN MATCH_CONDITION ON TOLERANCE SAMPLE FILL ALIGN TO \
                            CALENDAR TIME ZONE LATEST PARTITION EXPLAIN ANALYZE AND OR NOT IN LIKE BETWEEN IS NULL AS DESC ASC \
                            DISTINCT HAVING UNION ALL WITH CASE WHEN THEN ELSE END CAST INTERVAL";

/// Words that complete.
struct Words {
    words: Vec<String>,
    symbols: Vec<String>,
}

impl Words {
    fn new(engine: &Engine) -> Result<Words, QueryError> {
        let mut words: Vec<String> = KEYWORDS.split_whitespace().map(str::to_owned).collect();
        words.extend(engine.words()?);
        words.sort();
        words.dedup();
        Ok(Words { words, symbols: engine.symbols()? })
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..at).unwrap_or("");
        // A text that is not closed is a symbol.
        let quote = before.rfind('\'').filter(|_| before.matches('\'').count() % 2 == 1);
        if let Some(quote) = quote {
            let begun = before.get(quote + 1..).unwrap_or("");
            let found = self.symbols.iter().filter(|symbol| symbol.starts_with(begun)).take(100);
            let pair = |symbol: &String| Pair { display: symbol.clone(), replacement: format!("{symbol}'") };
            return Ok((quote + 1, found.map(pair).collect()));
        }
        let start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        let begun = before.get(start..).unwrap_or("").to_lowercase();
        if begun.is_empty() {
            return Ok((start, Vec::new()));
        }
        let found = self.words.iter().filter(|word| word.to_lowercase().starts_with(&begun)).take(100);
        Ok((start, found.map(|word| Pair { display: word.clone(), replacement: word.clone() }).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Borrowed(prompt)
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input().trim();
        let is_whole = text.is_empty() || text.starts_with('\\') || is_ended(text);
        Ok(if is_whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Helper for Words {}

/// Whether `text` ends with the semicolon of a statement.
fn is_ended(text: &str) -> bool {
    // One that is in a text or a comment ends nothing: without it there is as much.
    text.trim_end().strip_suffix(';').is_some_and(|rest| {
        split(text).len() == split(rest).len() && {
            let with_more = format!("{text} x");
            split(&with_more).last() == Some(&"x")
        }
    })
}

/// The file of the history, in the user's directory of states.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let dir = state.or_else(home)?.join("tapestore");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("sql-history"))
}

/// Runs the prompt.
///
/// # Errors
/// The terminal or standard output fails.
pub fn run(session: &mut Session, runtime: &tokio::runtime::Runtime, format: Format) -> Outcome {
    let config = Config::builder().completion_type(CompletionType::List).max_history_size(HISTORY).map_err(terminal)?.build();
    let mut editor = Editor::<Words, FileHistory>::with_config(config).map_err(terminal)?;
    editor.set_helper(Some(Words::new(session.engine())?));
    let history = history_file();
    if let Some(file) = &history {
        // The first time there is none.
        let _is_loaded = editor.load_history(file).is_ok();
    }
    note(format_args!("{}; \\? lists the commands, \\q ends", session.engine().store().display()));
    let mut times = true;
    loop {
        match editor.readline("tape> ") {
            Ok(line) => {
                let text = line.trim();
                if text.is_empty() {
                    continue;
                }
                if editor.add_history_entry(text).is_ok()
                    && let Some(file) = &history
                {
                    // A history that cannot be written is none.
                    let _is_saved = editor.save_history(file).is_ok();
                }
                if let Some(command) = text.strip_prefix('\\') {
                    if !command_of(command, session, runtime, &mut times, format)? {
                        return Ok(());
                    }
                    continue;
                }
                let text = text.to_owned();
                statements(&text, session, runtime, times, format)?;
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(terminal(error)),
        }
    }
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::new(INTERNAL, format!("the terminal cannot be read: {error}"))
}

/// Answers the statements of `text`.
fn statements(text: &str, session: &mut Session, runtime: &tokio::runtime::Runtime, times: bool, format: Format) -> Outcome {
    for statement in split(text) {
        let began = Instant::now();
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = answer(session, (statement, Vec::new()), Printing { format, pages: true }) => ended.map(Some),
                // Nobody else waits for it: an error is that there is no signal.
                _ = tokio::signal::ctrl_c() => Ok(None),
            }
        });
        match ended {
            Ok(Some(rows)) if times => {
                note(format_args!("{rows} rows, {:.3} s", began.elapsed().as_secs_f64()));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                note("interrupted");
                return Ok(());
            }
            // The reader has closed its end, a pager for one: that is no failure.
            Err(failure) if failure.code == 0 && std::io::stdout().is_terminal() => {}
            Err(failure) if failure.code == 0 || failure.code == OUTPUT => return Err(failure),
            Err(failure) => {
                note(format_args!("error: {}", failure.message));
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Runs a command of the prompt; whether the prompt goes on.
fn command_of(
    command: &str,
    session: &mut Session,
    runtime: &tokio::runtime::Runtime,
    times: &mut bool,
    format: Format,
) -> Outcome<bool> {
    let (name, argument) = command.split_once(char::is_whitespace).map_or((command, ""), |(name, rest)| (name, rest.trim()));
    let argument = argument.trim_end_matches(';');
    let quoted = argument.replace('\'', "''");
    match name.trim_end_matches(';') {
        "q" | "quit" => return Ok(false),
        "?" | "h" | "help" => note(COMMANDS),
        "timing" => {
            *times = !*times;
            note(if *times { "timing is on" } else { "timing is off" });
        }
        "d" | "dt" if argument.is_empty() => {
            let sql = "select table_name as \"table\" from information_schema.tables where table_schema = 'public' order by 1";
            statements(sql, session, runtime, false, format)?;
        }
        "d" => {
            let sql = format!(
                "select column_name as \"column\", data_type as type, is_nullable as nullable from information_schema.columns \
                 where table_name = '{quoted}' order by ordinal_position"
            );
            statements(&sql, session, runtime, false, format)?;
        }
        name @ ("at" | "known") => {
            let setting = if name == "at" { name } else { "as_known_at" };
            if argument.is_empty() {
                statements(&format!("show {setting}"), session, runtime, false, format)?;
            } else if let Err(error) = session.set(setting, argument) {
                note(format_args!("error: {error}"));
            }
        }
        other => note(format_args!("there is no command \\{other}; \\? lists them")),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_with_a_semicolon_that_is_not_in_a_text() {
        for (text, ended) in
            [("select 1;", true), ("select 1", false), ("select ';", false), ("select ';';", true), ("select 1; -- ;", false)]
        {
            assert_eq!(is_ended(text), ended, "{text}");
        }
    }

    #[test]
    fn symbols_complete_in_texts_and_words_elsewhere() {
        let words = Words { words: vec!["trade".into(), "trade_id".into()], symbols: vec!["B:BTC".into(), "B:ETH".into()] };
        let history = FileHistory::new();
        let found = |line: &str| {
            let (at, found) = words.complete(line, line.len(), &Context::new(&history)).unwrap();
            (at, found.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(found("select * from tr"), (14, vec!["trade".to_owned(), "trade_id".to_owned()]));
        assert_eq!(found("where symbol = 'B:E"), (16, vec!["B:ETH'".to_owned()]));
        assert_eq!(found("select "), (7, Vec::new()));
    }
}
