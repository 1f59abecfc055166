//! Owns: the command line of `tape`.

use std::io::Write;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use tapestore_engine::store_dir;

use crate::exit::{Failure, Outcome, USAGE, output};
use crate::output::Format;
use crate::{
    backup, bars, bench, book, cluster, compact, demo, doctor, export, flush, follow, import, inspect, manual, plan, publish,
    query, reload, repair, replication, sql, status, storage, symbols, terminal, top, verify,
};

/// A market-data store in shared memory: publish, read, follow, inspect, operate.
#[derive(Parser, Debug)]
#[command(name = "tape", version, after_help = EXIT_CODES)]
pub struct Tape {
    #[command(subcommand)]
    command: Command,
    /// Store directory [env: TAPE_STORE] [default: tapestore-data; demo: a temporary one, whatever TAPE_STORE names]
    #[arg(long, global = true)]
    store: Option<PathBuf>,
    /// Log to standard error from this level on: error, warn, info, debug, trace, off; the variable RUST_LOG can name modules
    /// too, like warn,tapestore=debug [default: RUST_LOG, or warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<terminal::LevelFilter>,
    /// Form of log lines: text, or one object of JSON a line
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = terminal::LOG_FORMAT, default_value_t)]
    log_format: terminal::LogFormat,
    #[command(flatten)]
    format: Format,
}

const EXIT_CODES: &str = "Exit codes: 0 success, 1 a comparison failed, 2 wrong usage, 3 no such record, 4 interrupted, \
5 records are not stored at their durability level, 6 storage serves the store with a problem, or this host has one, 65 malformed or damaged data, \
66 no such file or an unreadable one, 69 no storage process serves the store, 70 internal error, 73 standard output cannot be written, 74 disk or shared memory failed, \
75 try again later, 77 another user serves the store.";

#[derive(Subcommand, Debug)]
enum Command {
    /// Run storage, a publisher and a reader on a temporary store and compare their records
    Demo(demo::Args),
    /// Publish the records of a file or of the simulated market
    Publish(publish::Args),
    /// Import files: DBN, Parquet, Arrow, CSV, captures
    Import(import::Args),
    /// Export records to Parquet, Arrow, CSV or DBN files
    Export(export::Args),
    /// Print the newest records, then each new one
    Tail(follow::Tail),
    /// Read all records in LSN order: first the stored ones, then new ones as they arrive
    Follow(follow::FollowArgs),
    /// Print one record by LSN, or the records of an instrument and kind at exactly one time
    Get(query::Get),
    /// Print the newest record of an instrument and kind that is not after a time
    #[command(name = "asof")]
    AsOf(query::AsOf),
    /// Print the newest record of each instrument, or of those whose names match a pattern
    Latest(query::Latest),
    /// Print the records of an instrument and kind in time order
    Scan(query::Scan),
    /// Print the records of many instruments and kinds, merged in time order
    Replay(query::Replay),
    /// Find records of an instrument and kind by an id of the venue, such as a trade id or an order id
    Find(query::Find),
    /// Build bars from an instrument's trades: by time, number of trades, volume or value
    ///
    /// Time bars are complete: a bar that --from or --to lies in is built from its start to its end. Bars by number, volume
    /// or value begin with the first trade from --from on. They close in the order in which trades are read: by time in
    /// history, by arrival with --follow.
    Bars(bars::Args),
    /// Answer questions in SQL over live records and history
    Sql(sql::Args),
    /// Rebuild an order book as of a time
    Book(book::Args),
    /// List the kinds of records, built-in and user-defined, with their columns
    Kinds,
    /// List instruments; with --at, their definitions at a time
    Symbols(symbols::Args),
    /// Print the problems of a store, then watermarks, counters, SSTables and publishers
    Status(status::Args),
    /// Measure a store on this machine, beside what the machine can do: two minutes
    Bench(bench::Args),
    /// Watch a store on a screen: rates, watermarks, latencies, publishers, instruments, processes, hosts
    Top(top::Args),
    /// Examine this host and the store: limits, memory, clock, disk, permissions, certificates, running programs
    ///
    /// Problems come first, then warnings, each with the command that mends it, then what is in order. Nothing is changed. Exits
    /// with 0 if there is no problem, 6 if there is one; with --strict, 6 if there is a warning too.
    Doctor(doctor::Args),
    /// Compute what a load needs of disk, memory, limits and network, beside what this host has
    Plan(plan::Args),
    /// Look into the files of a store
    #[command(subcommand)]
    Inspect(Inspect),
    /// Check every byte of the SSTables, the manifest and the log, and compare shared memory with the log
    Verify,
    /// Flush the records in MemTables to SSTables now, and wait until they hold every committed record
    Flush,
    /// Wait until storage has merged all SSTables that are due; of a stopped store, do these merges
    Compact(compact::Compact),
    /// Apply retention rules to a stopped store; with --dry-run, print the files that they would remove
    Retention(compact::Retention),
    /// Make the running storage process read its configuration again: retention and compaction change without a restart
    Reload,
    /// Make or update a backup of a served or stopped store
    Backup(backup::BackupArgs),
    /// Make the store --store, which must be absent or empty, from a backup
    Restore(backup::RestoreArgs),
    /// Examine a stopped store and print the command that repairs it; replace damaged SSTables; truncate a damaged log
    Repair(repair::Args),
    /// Run a store on several hosts: initialise a cluster, print its status, change its members
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Print a script that completes the commands and options of tape in a shell: bash, zsh, fish, elvish or powershell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run the storage process; the same as tape-storage
    #[command(hide = true)]
    Storage(storage::Args),
    #[command(hide = true)]
    Replication(replication::Args),
    /// Write pages for man, and scripts that complete commands, of tape, tape-storage and tape-replication
    #[command(hide = true)]
    Man(manual::Args),
    #[command(hide = true)]
    DemoPublisher(demo::PublisherArgs),
    #[command(hide = true)]
    DemoReader(demo::ReaderArgs),
}

#[derive(Subcommand, Debug)]
enum Inspect {
    /// Print the log after the checkpoint: segments, frames, the durable mark
    Wal(inspect::Wal),
    /// The SSTables: all, or one with its blocks and series
    Sst(inspect::Sst),
    /// The manifest: live files, checkpoint, edits
    Manifest(inspect::ManifestArgs),
    /// The MemTables in shared memory
    Memtable,
}

impl Command {
    /// Whether its output is rows, which CSV can hold.
    fn prints_rows(&self) -> bool {
        matches!(
            self,
            Command::Tail(_)
                | Command::Follow(_)
                | Command::Get(_)
                | Command::AsOf(_)
                | Command::Latest(_)
                | Command::Scan(_)
                | Command::Replay(_)
                | Command::Find(_)
                | Command::Bars(_)
                | Command::Symbols(_)
                | Command::Sql(_)
        )
    }
}

/// `tape completions`.
fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Tape::command(), "tape", &mut script);
    std::io::stdout().write_all(&script).map_err(output)
}

impl Tape {
    /// Runs the command.
    ///
    /// # Errors
    /// Why it failed, with the exit code.
    pub fn run(self) -> Outcome {
        let format = self.format;
        let named = self.store.clone().or_else(|| std::env::var_os("TAPE_STORE").filter(|v| !v.is_empty()).map(PathBuf::from));
        let store = store_dir(named.as_deref());
        match self.command {
            Command::Storage(args) => return storage::run(&storage::Args { store: args.store.clone().or(named), ..args }),
            Command::Replication(args) => {
                return replication::run(&replication::Args { store: args.store.clone().or(named), ..args });
            }
            Command::DemoPublisher(args) => return demo::publisher(store, &args, self.log_format),
            _ => terminal::log(terminal::Wanted::new(self.log, terminal::LevelFilter::WARN), self.log_format, false),
        }
        let names = "tail, follow, get, asof, latest, scan, replay, find, bars, symbols and sql";
        if format.csv && !self.command.prints_rows() && !matches!(self.command, Command::Export(_)) {
            return Err(Failure::new(USAGE, format!("--csv is for commands that print rows: {names}; and for export")));
        }
        if format.columns.is_some() && !self.command.prints_rows() {
            return Err(Failure::new(USAGE, format!("--columns is for commands that print rows: {names}")));
        }
        match self.command {
            Command::Demo(args) => match args.cluster {
                Some(hosts) => cluster::demo::run(&args, hosts, format),
                None => demo::run(self.store, &args, format),
            },
            Command::Publish(args) => publish::run(store, &args, format),
            Command::Import(args) => import::run(store, &args, format),
            Command::Export(args) => export::run(&store, &args, format),
            Command::Tail(args) => follow::tail(&store, &args, format),
            Command::Get(args) => query::get(&store, &args, format),
            Command::AsOf(args) => query::as_of(&store, &args, format),
            Command::Latest(args) => query::latest(&store, &args, format),
            Command::Scan(args) => query::scan(&store, &args, format),
            Command::Follow(args) => follow::follow(&store, &args, format),
            Command::Bars(args) => bars::run(&store, &args, format),
            Command::Book(args) => book::run(&store, &args, format),
            Command::Sql(args) => sql::run(&store, &args, format),
            Command::Find(args) => query::find(&store, &args, format),
            Command::Replay(args) => query::replay(&store, &args, format),
            Command::Kinds => symbols::kinds(&store, format),
            Command::Symbols(args) => symbols::symbols(&store, &args, format),
            Command::Status(args) => status::status(&store, &args, format),
            Command::Top(args) => top::run(&store, &args, format),
            Command::Bench(args) => bench::run(&store, &args, format),
            Command::Plan(args) => plan::run(&store, &args, format),
            Command::Doctor(args) => doctor::run(&store, &args, format),
            Command::Inspect(Inspect::Wal(args)) => inspect::inspect_wal(&store, &args, format),
            Command::Inspect(Inspect::Sst(args)) => inspect::inspect_sst(&store, &args, format),
            Command::Inspect(Inspect::Manifest(args)) => inspect::inspect_manifest(&store, &args, format),
            Command::Inspect(Inspect::Memtable) => inspect::inspect_memtable(&store, format),
            Command::Verify => verify::verify(&store, format),
            Command::Flush => flush::run(&store, format),
            Command::Reload => reload::run(&store, format),
            Command::Compact(args) => compact::compact(&store, &args, format),
            Command::Retention(args) => compact::retention(&store, &args, format),
            Command::Backup(args) => backup::backup(&store, &args, format),
            Command::Restore(args) => backup::restore(&store, &args, format),
            Command::Repair(args) => repair::run(&store, &args, format),
            Command::Completions { shell } => completions(shell),
            Command::Man(args) => manual::run(&args, Tape::command()),
            Command::Cluster(command) => cluster::run(&store, &command, format),
            Command::DemoReader(args) => demo::reader(&store, &args),
            Command::Storage(_) | Command::Replication(_) | Command::DemoPublisher(_) => Ok(()),
        }
    }
}
