//! Owns: the command line of `tape`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tapestore_engine::store_dir;

use crate::exit::Outcome;
use crate::output::Format;
use crate::{
    backup, bars, book, cluster, compact, demo, export, import, inspect, publish, query, repair, replication, status, storage,
    symbols, terminal, verify,
};

/// A shared-memory market-data store: publish, read, follow, inspect.
#[derive(Parser, Debug)]
#[command(name = "tape", version, after_help = EXIT_CODES)]
pub struct Tape {
    #[command(subcommand)]
    command: Command,
    /// Directory of the store [default: tapestore-data; demo: a temporary one]
    #[arg(long, global = true, env = "TAPE_STORE")]
    store: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

const EXIT_CODES: &str = "Exit codes: 0 success, 1 a comparison failed, 2 wrong usage, 3 no such record, 4 interrupted, \
5 records taken for publishing were lost with the process, 6 a store that is served has something wrong with it, 65 malformed or damaged data, \
66 no such file, 69 no storage process serves the store, 74 disk or shared memory failed, 75 try again later, \
77 another user serves the store.";

#[derive(Subcommand, Debug)]
enum Command {
    /// The whole path on a store of its own: publisher, storage and reader processes; compares the ends
    Demo(demo::Args),
    /// Publish a file's records, or the simulated market's, as fast as they came or as it is said
    Publish(publish::Args),
    /// Files into the store: DBN, Parquet, Arrow, CSV, captures
    Import(import::Args),
    /// What the store holds, as Parquet, Arrow, CSV or DBN files
    Export(export::Args),
    /// Follow the newest records
    Tail(query::Tail),
    /// Read all records in LSN order, from any on, through history into what comes
    Follow(query::FollowArgs),
    /// One record by LSN, or the records of an instrument and kind at exactly a time
    Get(query::Get),
    /// The newest record of an instrument and kind, not after a time
    #[command(name = "asof")]
    AsOf(query::AsOf),
    /// The records of an instrument and kind in time order
    Scan(query::Scan),
    /// The records of many instruments and kinds, merged in time order
    Replay(query::Replay),
    /// The records of an instrument and kind with an id: a trade's, an order's
    Find(query::Find),
    /// Bars of an instrument's trades: by time, number, volume or value
    ///
    /// Time bars are whole: that in which --from lies is built from its start, that in which --to lies up to its end.
    /// Bars by number, volume or value begin with the first trade from --from on, and are cut in the order in which
    /// trades are read: by time in history, as they came with --follow.
    Bars(bars::Args),
    /// An order book as it was at a time
    Book(book::Args),
    /// Kinds of records, built in and defined by programs, with their columns
    Kinds,
    /// Instrument names, and their definitions as of a time
    Symbols(symbols::Args),
    /// What is wrong with the store, if anything; what its storage process does: watermarks, counters, history, publishers
    Status(status::Args),
    /// Look into the store's files
    #[command(subcommand)]
    Inspect(Inspect),
    /// Check every byte of the store's files and log, and what is served against them
    Verify,
    /// Merge SSTables: what storage does by itself; by hand for a store that nobody serves
    Compact(compact::Compact),
    /// What has lived long enough by the rules: what would go, or for a store that nobody serves let it go
    Retention(compact::Retention),
    /// A copy of the store, made while it is served, or brought up to date
    Backup(backup::BackupArgs),
    /// The store --store, which must not be there yet, from a backup
    Restore(backup::RestoreArgs),
    /// What is wrong with the store and the one command against it; put files back; end a damaged log
    Repair(repair::Args),
    /// A store on several hosts: found a cluster, see how it stands, change it
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// The storage process; the same as tape-storage
    #[command(hide = true)]
    Storage(storage::Args),
    #[command(hide = true)]
    Replication(replication::Args),
    #[command(hide = true)]
    DemoPublisher(demo::PublisherArgs),
    #[command(hide = true)]
    DemoReader(demo::ReaderArgs),
}

#[derive(Subcommand, Debug)]
enum Inspect {
    /// The log: segments, frames, what is known durable
    Wal(inspect::Wal),
    /// The SSTables: all, or one with its blocks and series
    Sst(inspect::Sst),
    /// The manifest: live files, checkpoint, edits
    Manifest(inspect::ManifestArgs),
    /// The MemTables in shared memory
    Memtable,
}

impl Tape {
    /// Runs the command.
    ///
    /// # Errors
    /// Why it failed, with the exit code.
    pub fn run(self) -> Outcome {
        let format = self.format;
        let store = store_dir(self.store.as_deref());
        match self.command {
            Command::Storage(args) => return storage::run(&storage::Args { store: args.store.clone().or(self.store), ..args }),
            Command::Replication(args) => {
                return replication::run(&replication::Args { store: args.store.clone().or(self.store), ..args });
            }
            Command::DemoPublisher(args) => return demo::publisher(store, &args),
            _ => terminal::log("warn", false),
        }
        match self.command {
            Command::Demo(args) => demo::run(self.store, &args, format),
            Command::Publish(args) => publish::run(store, &args, format),
            Command::Import(args) => import::run(store, &args, format),
            Command::Export(args) => export::run(&store, &args, format),
            Command::Tail(args) => query::tail(&store, &args, format),
            Command::Get(args) => query::get(&store, &args, format),
            Command::AsOf(args) => query::as_of(&store, &args, format),
            Command::Scan(args) => query::scan(&store, &args, format),
            Command::Follow(args) => query::follow(&store, &args, format),
            Command::Bars(args) => bars::run(&store, &args, format),
            Command::Book(args) => book::run(&store, &args, format),
            Command::Find(args) => query::find(&store, &args, format),
            Command::Replay(args) => query::replay(&store, &args, format),
            Command::Kinds => symbols::kinds(&store, format),
            Command::Symbols(args) => symbols::symbols(&store, &args, format),
            Command::Status(args) => status::status(&store, &args, format),
            Command::Inspect(Inspect::Wal(args)) => inspect::inspect_wal(&store, &args, format),
            Command::Inspect(Inspect::Sst(args)) => inspect::inspect_sst(&store, &args, format),
            Command::Inspect(Inspect::Manifest(args)) => inspect::inspect_manifest(&store, &args, format),
            Command::Inspect(Inspect::Memtable) => inspect::inspect_memtable(&store, format),
            Command::Verify => verify::verify(&store, format),
            Command::Compact(args) => compact::compact(&store, &args, format),
            Command::Retention(args) => compact::retention(&store, &args, format),
            Command::Backup(args) => backup::backup(&store, &args, format),
            Command::Restore(args) => backup::restore(&store, &args, format),
            Command::Repair(args) => repair::run(&store, &args, format),
            Command::Cluster(command) => cluster::run(&store, &command, format),
            Command::DemoReader(args) => demo::reader(&store, &args),
            Command::Storage(_) | Command::Replication(_) | Command::DemoPublisher(_) => Ok(()),
        }
    }
}
