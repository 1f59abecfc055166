//! Measures what one command does, for its line of the table.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Output;

use serde_json::{Map, Value};

use super::commands::{Case, Stores};

/// The options that choose a format; none is a table.
const FORMATS: [&[&str]; 3] = [&[], &["--json"], &["--csv"]];

pub(super) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The objects of `out`, one a line; none if a line is no object.
fn objects(out: &str) -> Vec<Map<String, Value>> {
    let objects: Result<_, _> = out.lines().map(serde_json::from_str).collect();
    objects.unwrap_or_default()
}

/// Whether each of `objects`, and there is one, has the keys `names` and no other.
fn have(objects: &[Map<String, Value>], names: &[&str]) -> bool {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    let has = |object: &Map<String, Value>| object.keys().map(String::as_str).collect::<BTreeSet<_>>() == names;
    !objects.is_empty() && objects.iter().all(has)
}

/// Names of columns in a line of a table or of CSV.
fn header(out: &str, csv: bool) -> Vec<&str> {
    let line = out.lines().next().unwrap_or("");
    if csv { line.split(',').collect() } else { line.split_whitespace().collect() }
}

/// What is measured of `case`; what breaks a rule is added to `wrong`.
pub(super) struct Measure<'a> {
    pub(super) stores: &'a mut Stores,
    pub(super) case: &'a Case,
    pub(super) wrong: &'a mut Vec<String>,
}

impl Measure<'_> {
    fn demand(&mut self, is: bool, what: &str, output: &Output) {
        if !is {
            let (name, head) = (self.case.name, text(&output.stdout).chars().take(200).collect::<String>());
            self.wrong.push(format!("tape {name} {what}: exit code {}: {}{head}", code(output), text(&output.stderr)));
        }
    }

    fn run(&mut self, more: &[&[&str]]) -> Output {
        self.stores.run(self.case, self.case.arguments, &more.concat())
    }

    /// The line of the table.
    pub(super) fn line(&mut self) -> String {
        let name = self.case.name;
        let plain = self.run(&[]);
        self.demand(code(&plain) == 0 && !plain.stdout.is_empty(), "", &plain);
        let json = self.run(&[&["--json"], self.case.one_kind]);
        let printed = objects(&text(&json.stdout));
        let has_no_effect = printed.is_empty() && json.stdout == plain.stdout;
        // Of nothing there is no line, and a note.
        let is_said = json.stdout.is_empty() && text(&json.stderr).starts_with("note: there is no ");
        self.demand(code(&json) == 0 && (is_said || has_no_effect || !printed.is_empty()), "--json", &json);
        let csv = self.run(&[&["--csv"], self.case.one_kind]);
        self.demand([0, 2].contains(&code(&csv)), "--csv", &csv);
        let csv_text = text(&csv.stdout);
        let names = header(&csv_text, true);
        // Rows are the same in each format.
        let is_rows = code(&csv) == 0 && have(&printed, &names) && csv_text.lines().count() == printed.len() + 1;
        let names =
            if is_rows { names } else { printed.first().map_or_else(|| vec!["lsn"], |o| o.keys().map(String::as_str).collect()) };
        let columns = self.columns(&[names[names.len() - 1], names[0]]);
        let prints = match (is_rows, objects(&text(&plain.stdout)).is_empty()) {
            (true, true) => "rows",
            (true, false) => "rows, as JSON",
            (false, _) => "report",
        };
        let json = if has_no_effect { "no effect" } else { "yes" };
        let csv = if code(&csv) == 0 { "yes" } else { "refused: 2" };
        let (unknown, full, closed) = (self.unknown(), self.full(), self.closed());
        format!("| `tape {name}` | {prints} | {json} | {csv} | {columns} | {unknown} | {full} | {closed} |")
    }

    /// `--columns` with `names`, not in the order that the columns have: a command takes it in every format, or in none.
    fn columns(&mut self, names: &[&str]) -> &'static str {
        let option = ["--columns", &names.join(",")];
        let outputs = FORMATS.map(|format| (format, self.run(&[format, &option, self.case.one_kind])));
        let is_refused = outputs.iter().all(|(_, output)| code(output) == 2 && output.stdout.is_empty());
        for (format, output) in outputs {
            let out = text(&output.stdout);
            let has_them = have(&objects(&out), names) || format != ["--json"] && header(&out, format == ["--csv"]) == names;
            let what = [format, &option].concat().join(" ");
            self.demand(is_refused || code(&output) == 0 && has_them, &what, &output);
        }
        let absent = self.run(&[&["--columns", "no-such-column"]]);
        self.demand(code(&absent) == 2 && absent.stdout.is_empty(), "--columns no-such-column", &absent);
        if is_refused { "refused: 2" } else { "yes" }
    }

    fn unknown(&mut self) -> String {
        if self.case.unknown.is_empty() {
            return "-".to_owned();
        }
        let output = self.stores.run(self.case, self.case.unknown, &[]);
        self.demand(code(&output) == 3 && output.stdout.is_empty(), "of an instrument that is not there", &output);
        code(&output).to_string()
    }

    fn full(&mut self) -> i32 {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = self.stores.command(self.case, self.case.arguments, &[]).stdout(full).output().unwrap();
        self.demand(code(&output) == 73, "> /dev/full", &output);
        code(&output)
    }

    fn closed(&mut self) -> i32 {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = self.stores.command(self.case, self.case.arguments, &[]).stdout(writer).output().unwrap();
        self.demand(code(&output) == 0 && !text(&output.stderr).contains("panicked"), "into a closed pipe", &output);
        code(&output)
    }
}
