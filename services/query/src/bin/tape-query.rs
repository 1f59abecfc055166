//! Owns: the program `tape-query`: SQL over a store.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tape_query::{serve, sql};
use tape_services::exit::Outcome;
use tape_services::grid::Format;
use tape_services::{manual, terminal};
use tapestore_engine::store_dir;

/// Batches of a few hundred KiB come and go. The system's allocator gives each back to the kernel from threads other than the first
/// one, and takes zeroed pages for the next: half the time of a window join.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// SQL over a store: its MemTables and its SSTables, in one statement.
#[derive(Parser, Debug)]
#[command(name = "tape-query", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Store directory [env: TAPE_STORE] [default: tapestore-data]
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    /// Log to standard error from this level on: error, warn, info, debug, trace, off
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<terminal::LevelFilter>,
    /// Form of log lines: text, or one object of JSON a line
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = terminal::LOG_FORMAT, default_value_t)]
    log_format: terminal::LogFormat,
    #[command(flatten)]
    format: Format,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve PostgreSQL's protocol, Arrow Flight SQL and the console, until SIGTERM; this is also done without a command
    Serve(serve::Args),
    /// Answer statements of SQL
    Sql(sql::Args),
    /// Write pages for man, and scripts that complete commands
    #[command(hide = true)]
    Man(manual::Args),
}

fn main() -> ExitCode {
    tape_services::limits::raise();
    terminal::guard_pages();
    tape_services::stdout::code(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Outcome {
    let named = arguments.store.or_else(|| std::env::var_os("TAPE_STORE").filter(|v| !v.is_empty()).map(PathBuf::from));
    match arguments.command {
        Some(Command::Sql(args)) => {
            terminal::log(terminal::Wanted::new(arguments.log, terminal::LevelFilter::WARN), arguments.log_format, false);
            sql::run(&store_dir(named.as_deref()), &args, arguments.format)
        }
        Some(Command::Man(args)) => manual::write(&args.dir, [Arguments::command()]),
        other => {
            serve::log(arguments.log, arguments.log_format);
            let args = if let Some(Command::Serve(args)) = other { args } else { serve::Args::default() };
            serve::run(named, &args)
        }
    }
}
