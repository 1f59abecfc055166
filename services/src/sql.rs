//! Owns: `tape sql`: the program `tape-query`, which lies beside this one, as git's commands lie beside git.
//!
//! What must hold: this process becomes that one, so its output, its exit code and its signals are that one's.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::exit::{Failure, NO_INPUT, Outcome};
use crate::grid::Format;

/// The program that answers SQL.
pub const PROGRAM: &str = "tape-query";

/// `tape sql`.
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// As of tape-query sql; see tape sql --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// `tape sql`: returns only if the program cannot be started.
///
/// # Errors
/// The program is not there, or cannot be started.
pub fn run(store: &Path, args: &Args, format: Format) -> Outcome {
    let program = std::env::current_exe().ok().map(|path| path.with_file_name(PROGRAM)).filter(|path| path.exists());
    let Some(program) = program else {
        return Err(Failure::new(
            NO_INPUT,
            "the program tape-query, which answers SQL, is not beside tape; to build it, run: \
             cargo build --release -p tape-query",
        ));
    };
    let mut command = Command::new(&program);
    command.arg("sql").arg("--store").arg(store).args(format.arguments()).args(&args.arguments);
    let error = command.exec();
    Err(Failure::new(NO_INPUT, format!("{} cannot be started: {error}", program.display())))
}
