//! Owns: pages for `man` and scripts that complete commands in shells, made of the command line itself.
//!
//! What must hold: each command that the help lists has a page, in `man1`; the names of files are those that man, bash, zsh and fish
//! look for.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args as _, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::exit::{Failure, IO, Outcome};
use crate::{replication, storage};

/// `tape man`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory to write to; created if it does not exist
    pub dir: PathBuf,
}

/// Where each shell looks for the script of a program; below the directory.
const SHELLS: [(Shell, &str); 3] = [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")];

/// Directory of the pages.
const PAGES: &str = "man1";

/// What each page ends with.
const FILES: &str = r#".SH FILES
.TP
/etc/tapestore/storage.toml, replication.toml, query.toml
Configuration of the services of the Debian package, complete and commented.
.TP
/var/lib/tapestore
Their store.
.TP
/dev/shm/tapestore\-*
Shared memory of stores that are or were served.
.SH ENVIRONMENT
.TP
TAPE_STORE
Store directory, where \-\-store is not given.
.TP
RUST_LOG
What is logged, where \-\-log is not given.
.SH SEE ALSO
"#;

/// The commands that other pages name.
const PROGRAMS: [&str; 4] = ["tape", "tape-query", "tape-replication", "tape-storage"];

/// `tape man`: pages and scripts of `tape`, whose command line is `tape`, of `tape-storage` and `tape-replication`.
///
/// # Errors
/// A file cannot be written.
pub fn run(args: &Args, tape: Command) -> Outcome {
    let service = |name: &'static str, about: &'static str| Command::new(name).version(env!("CARGO_PKG_VERSION")).about(about);
    let storage = service(
        "tape-storage",
        "Serves a market-data store: logs the records of publishers and makes them readable in shared memory",
    );
    let replication = service("tape-replication", "Replicates the log of a store between its hosts");
    write(&args.dir, [tape, storage::Args::augment_args(storage), replication::Args::augment_args(replication)])
}

/// Writes the pages and scripts of `programs` to `dir`.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, programs: impl IntoIterator<Item = Command>) -> Outcome {
    let failed =
        |error: io::Error| Failure::new(IO, format!("cannot write to {}: {error}; name another directory", dir.display()));
    std::fs::create_dir_all(dir.join(PAGES)).map_err(failed)?;
    for program in programs {
        let name = program.get_name().to_owned();
        for (shell, place) in SHELLS {
            let place = dir.join(place);
            std::fs::create_dir_all(&place).map_err(failed)?;
            let file = match shell {
                Shell::Zsh => format!("_{name}"),
                Shell::Fish => format!("{name}.fish"),
                _ => name.clone(),
            };
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut program.clone(), &name, &mut script);
            std::fs::write(place.join(file), script).map_err(failed)?;
        }
        let mut program = program.disable_help_subcommand(true);
        program.build();
        pages(&program, &dir.join(PAGES)).map_err(failed)?;
    }
    Ok(())
}

/// Writes the page of `command` and those of its commands to `dir`.
fn pages(command: &Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let manual = Man::new(command.clone()).source(format!("tapestore {}", env!("CARGO_PKG_VERSION"))).manual("tapestore");
    let mut page = Vec::new();
    manual.render(&mut page)?;
    let text = String::from_utf8_lossy(&page).replace("\n.SH EXTRA\n", "\n.SH \"EXIT STATUS\"\n");
    let others = PROGRAMS.iter().filter(|other| **other != name);
    let others: Vec<String> = others.map(|other| format!("{}(1)", other.replace('-', "\\-"))).collect();
    std::fs::write(dir.join(manual.get_filename()), format!("{text}{FILES}{}\n", others.join(", ")))?;
    command.get_subcommands().filter(|each| !each.is_hide_set()).try_for_each(|each| pages(each, dir))
}
