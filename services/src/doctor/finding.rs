//! Owns: what the examination of a host says: findings, how bad each is, and how they are printed.
//!
//! What must hold: a problem is something that breaks a promise of the store or stops a process of it; a warning costs time or
//! can become a problem. Each of both says what is needed, why, and the command that mends it.

use serde::Serialize;

/// How bad a finding is; the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something breaks.
    Problem,
    /// Something is slower than it has to be, or can break later.
    Warning,
    /// Nothing is wrong.
    Ok,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a fixed name of the page `capacity`.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is.
    pub found: String,
    /// What is needed, and why; `None` if nothing is wrong.
    pub needed: Option<String>,
    /// The command that mends it; `None` if nothing is wrong.
    pub command: Option<String>,
}

impl Finding {
    /// Nothing is wrong with `name`.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, severity: Severity::Ok, found: found.into(), needed: None, command: None }
    }

    /// `name` costs time, or can become a problem.
    pub fn warning(
        name: &'static str,
        found: impl Into<String>,
        needed: impl Into<String>,
        command: impl Into<String>,
    ) -> Finding {
        let (needed, command) = (Some(needed.into()), Some(command.into()));
        Finding { name, severity: Severity::Warning, found: found.into(), needed, command }
    }

    /// `name` breaks something.
    pub fn problem(
        name: &'static str,
        found: impl Into<String>,
        needed: impl Into<String>,
        command: impl Into<String>,
    ) -> Finding {
        Finding { severity: Severity::Problem, ..Finding::warning(name, found, needed, command) }
    }

    /// Prints it for people.
    pub fn print(&self) {
        let mark = match self.severity {
            Severity::Problem => "PROBLEM",
            Severity::Warning => "WARNING",
            Severity::Ok => return out!("ok       {:<16} {}", self.name, self.found),
        };
        out!("{mark}  {:<16} {}", self.name, self.found);
        if let Some(needed) = &self.needed {
            out!("         needed: {needed}");
        }
        if let Some(command) = &self.command {
            out!("         run:    {command}");
        }
    }
}

/// What an examination found, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The store.
    pub store: String,
    /// Whether there is no problem.
    pub healthy: bool,
    /// Number of problems.
    pub problems: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// All findings, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report on `store` with `findings`.
    pub fn new(store: String, mut findings: Vec<Finding>) -> Report {
        findings.sort_by_key(|finding| finding.severity);
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let (problems, warnings) = (count(Severity::Problem), count(Severity::Warning));
        Report { store, healthy: problems == 0, problems, warnings, findings }
    }

    /// The number of problems and warnings as text.
    pub fn summary(&self) -> String {
        let of = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!("{}, {}", of(self.problems, "problem"), of(self.warnings, "warning"))
    }

    /// Prints it for people.
    pub fn print(&self) {
        let first = if self.healthy { "OK" } else { "PROBLEM" };
        out!("{first}: {} on this host for {}", self.summary(), self.store);
        self.findings.iter().for_each(Finding::print);
    }
}
