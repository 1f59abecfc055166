//! Owns: `tape doctor`: examines this host and the store, and prints what is wrong with the command that mends it.
//!
//! | file | owns |
//! |---|---|
//! | `finding` | what was found, how bad it is, how it is printed |
//! | `host` | what is looked at: the system's files, the store, its options |
//! | `limits`, `memory`, `processor`, `clock` | the host |
//! | `mounts`, `disk`, `fsync` | the disk of the store |
//! | `shared_memory`, `permissions`, `certificates`, `programs` | shared memory, owners and modes, certificates, running programs |
//!
//! What must hold: nothing is changed. The findings are true on a laptop and in a container with default settings: what merely
//! could be better there is a warning, and a problem is what breaks.

pub mod certificates;
pub mod clock;
pub mod disk;
pub mod finding;
pub mod fsync;
pub mod host;
pub mod limits;
pub mod memory;
pub mod mounts;
pub mod permissions;
pub mod processor;
pub mod programs;
pub mod shared_memory;

use std::path::{Path, PathBuf};

use tapestore_engine::Options;

use self::finding::Report;
use self::host::{Host, System};
use crate::exit::{Failure, IO, Outcome, UNHEALTHY};
use crate::output::Format;
use crate::replication::{self, tls};

/// `tape doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Configuration file of tape-storage, for its sizes and cores
    #[arg(long)]
    config: Option<PathBuf>,
    /// Configuration file of tape-replication, for its certificates
    #[arg(long, value_name = "CONFIG")]
    replication_config: Option<PathBuf>,
    #[command(flatten)]
    tls: tls::Flags,
    /// Do not measure what a sync costs, which writes 4 MiB beside the store and syncs them some hundred times
    #[arg(long)]
    no_measure: bool,
    /// Exit with 6 also if there are only warnings
    #[arg(long)]
    strict: bool,
    /// Where the system's files are, for tests
    #[arg(long, hide = true, default_value = "/")]
    system_root: PathBuf,
}

impl Args {
    /// The certificates to examine.
    fn tls(&self) -> Outcome<Option<tls::Files>> {
        if let Some(files) = self.tls.files() {
            return Ok(Some(files));
        }
        let Some(path) = &self.replication_config else { return Ok(None) };
        Ok(replication::read_options(path)?.tls)
    }

    fn host(&self, store: &Path) -> Outcome<Host> {
        let options = match &self.config {
            Some(path) => tapestore_engine::config::storage(path)?,
            None => Options::default(),
        };
        let store = tapestore::disk::absolute(store)?;
        Ok(Host::new(System::new(&self.system_root), Options { store, ..options }, self.tls()?)?)
    }
}

/// Examines this host for the store `store`.
///
/// # Errors
/// [`UNHEALTHY`] if there is a problem; a configuration file is absent or invalid.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let host = args.host(store)?;
    let areas = [
        limits::examine(&host),
        memory::examine(&host),
        processor::examine(&host),
        clock::examine(&host),
        shared_memory::examine(&host),
        disk::examine(&host, !args.no_measure),
        permissions::examine(&host),
        certificates::examine(&host),
        programs::examine(&host),
    ];
    let report = Report::new(store.display().to_string(), areas.into_iter().flatten().collect());
    if format.json {
        let json = serde_json::to_string(&report).map_err(|error| Failure::new(IO, error.to_string()))?;
        out!("{json}");
    } else {
        report.print();
    }
    if report.problems > 0 || args.strict && report.warnings > 0 {
        let message = format!("{}; each is printed with the command that mends it", report.summary());
        return Err(Failure::new(UNHEALTHY, message));
    }
    Ok(())
}
