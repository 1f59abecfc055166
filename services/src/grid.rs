//! Owns: what commands print row by row: a table that fits the terminal, JSON lines, CSV.
//!
//! What must hold: nothing is left out silently. Columns that a table has no room for are named on standard error. A table
//! that does not go to a terminal has all columns.

use std::cell::RefCell;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::rc::Rc;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value as Json};

use crate::exit::{Failure, IO, Outcome, USAGE, output};
use crate::logging::note;

/// Output format.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Format {
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print CSV with a header; `tape import` reads it again
    #[arg(long, global = true, conflicts_with = "json")]
    pub csv: bool,
    /// Print these columns, in this order, like lsn,index_time,price
    #[arg(id = "printed_columns", long = "columns", global = true, value_name = "NAMES", value_parser = columns)]
    pub columns: Option<Columns>,
}

impl Format {
    /// The arguments of a command line that give this format.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        arguments.extend(self.json.then(|| "--json".to_owned()));
        arguments.extend(self.csv.then(|| "--csv".to_owned()));
        arguments.extend(self.columns.map(|Columns(names)| format!("--columns={}", names.join(","))));
        arguments
    }
}

/// Names of columns, from the command line: they live as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Columns(&'static [String]);

fn columns(text: &str) -> Result<Columns, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        return Err(format!("'{text}' is not a list of columns like lsn,index_time,price"));
    }
    Ok(Columns(names.leak()))
}

/// Bytes of output written together.
pub const BUFFER: usize = 1 << 16;
/// Rows collected for a table before it is printed, so that the columns fit.
const TABLE_ROWS: usize = 200;
/// Columns between two columns of a table: one space on each side.
const PADDING: usize = 2;

/// The value of one column of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    text: String,
    json: Json,
}

impl Cell {
    /// A text, also in JSON.
    pub fn text(text: impl ToString) -> Cell {
        let text = text.to_string();
        Cell { json: Json::from(text.as_str()), text }
    }

    /// A number.
    pub fn number(number: u64) -> Cell {
        Cell { text: number.to_string(), json: number.into() }
    }

    /// A value with its text in tables and CSV, and its JSON.
    pub fn new(text: impl ToString, json: Json) -> Cell {
        Cell { text: text.to_string(), json }
    }

    /// The value as text: equal for equal values of a column.
    pub fn key(&self) -> &str {
        &self.text
    }

    /// Nothing: empty, and null in JSON.
    pub fn absent() -> Cell {
        Cell { text: String::new(), json: Json::Null }
    }
}

/// A column of a [`Grid`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heading {
    /// Its name: a table's and CSV's header, JSON's key.
    pub name: String,
    /// Whether a table aligns it to the left.
    pub is_left: bool,
    /// Whether a table shows it without `--columns`.
    pub is_shown: bool,
    /// Whether a table that is too wide leaves it out before others.
    pub is_minor: bool,
}

/// A column that a table may have room for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fitted {
    /// Its place in the headings.
    at: usize,
    width: usize,
    /// The lowest rank is left out first.
    rank: u8,
}

impl Heading {
    /// A column that a table shows; the first ones are texts, aligned to the left.
    pub fn new(name: impl Into<String>, is_left: bool) -> Heading {
        Heading { name: name.into(), is_left, is_shown: true, is_minor: false }
    }
}

/// Where a grid goes: rows of each format in turn.
#[derive(Clone)]
struct Out(Rc<RefCell<Box<dyn Write>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// Rows of cells under headings, printed in one format.
pub struct Grid {
    format: Format,
    width: Option<usize>,
    to: Out,
    /// The file that it goes to; `None`: standard output.
    path: Option<PathBuf>,
    out: BufWriter<Out>,
    csv: Option<csv::Writer<Out>>,
    headings: Vec<Heading>,
    /// The places of `--columns` in the headings.
    chosen: Option<Vec<usize>>,
    table: Vec<Vec<Cell>>,
    /// The columns of the table that is being printed: the rows after its first ones have the same.
    fitting: Option<Vec<usize>>,
}

impl Grid {
    /// A grid in `format` on standard output.
    pub fn new(format: Format) -> Grid {
        Grid::through(format, Box::new(std::io::stdout().lock()))
    }

    /// A grid in `format` on standard output, which `out` passes it to.
    pub fn through(format: Format, out: Box<dyn Write>) -> Grid {
        let to = Out(Rc::new(RefCell::new(out)));
        let (out, width) = (BufWriter::with_capacity(BUFFER, to.clone()), terminal_size().map(|(width, _)| width));
        let (headings, table) = (Vec::new(), Vec::new());
        Grid { format, width, to, path: None, out, csv: None, headings, chosen: None, table, fitting: None }
    }

    /// A grid in `format` in the file `path`, which `out` writes.
    pub fn file(format: Format, out: Box<dyn Write>, path: PathBuf) -> Grid {
        Grid { path: Some(path), width: None, ..Grid::through(format, out) }
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        match &self.path {
            Some(path) => Failure::new(IO, format!("cannot write {}: {error}", path.display())),
            None => output(error),
        }
    }

    /// The writer's own error, so that its kind stays: a closed pipe is no failure.
    fn csv_failed(&self, error: csv::Error) -> Failure {
        self.failed(match error.into_kind() {
            csv::ErrorKind::Io(error) => error,
            other => std::io::Error::other(format!("{other:?}")),
        })
    }

    /// The headings of the rows from now on.
    ///
    /// # Errors
    /// `--columns` names one that there is not (exit code 2); the output cannot be written.
    pub fn head(&mut self, headings: Vec<Heading>) -> Outcome {
        if self.headings == headings {
            return Ok(());
        }
        self.flush()?;
        (self.fitting, self.headings) = (None, headings);
        self.chosen = self.format.columns.map(|Columns(names)| self.places(names)).transpose()?;
        if self.format.csv {
            let names: Vec<&str> = self.chosen_or_all().filter_map(|at| Some(self.headings.get(at)?.name.as_str())).collect();
            let mut csv = csv::WriterBuilder::new().buffer_capacity(BUFFER).from_writer(self.to.clone());
            csv.write_record(names).map_err(|error| self.csv_failed(error))?;
            self.csv = Some(csv);
        }
        Ok(())
    }

    fn places(&self, names: &[String]) -> Outcome<Vec<usize>> {
        let place = |name: &String| {
            let all = || self.headings.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join(", ");
            let at = self.headings.iter().position(|heading| heading.name == *name);
            at.ok_or_else(|| {
                Failure::new(USAGE, format!("there is no column '{name}' in these rows; the columns are: {}", all()))
            })
        };
        names.iter().map(place).collect()
    }

    fn chosen_or_all(&self) -> impl Iterator<Item = usize> + use<> {
        let chosen = self.chosen.clone();
        chosen.unwrap_or_else(|| (0..self.headings.len()).collect()).into_iter()
    }

    /// Prints a row: a cell for each heading.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn push(&mut self, cells: Vec<Cell>) -> Outcome {
        assert!(cells.len() == self.headings.len(), "a row has a cell for each heading");
        if self.format.json {
            let mut object = Map::new();
            for at in self.chosen_or_all() {
                if let (Some(heading), Some(cell)) = (self.headings.get(at), cells.get(at)) {
                    object.insert(heading.name.clone(), cell.json.clone());
                }
            }
            return writeln!(self.out, "{}", Json::Object(object)).map_err(|error| self.failed(error));
        }
        let places = self.chosen_or_all();
        if let Some(csv) = &mut self.csv {
            let texts = places.filter_map(|at| cells.get(at)).map(|cell| cell.text.as_str());
            let written = csv.write_record(texts);
            return written.map_err(|error| self.csv_failed(error));
        }
        self.table.push(cells);
        if self.table.len() >= TABLE_ROWS { self.flush_table() } else { Ok(()) }
    }

    /// The columns that a table of the collected rows shows.
    fn fit(&self) -> Vec<usize> {
        if let Some(chosen) = &self.chosen {
            return chosen.clone();
        }
        let cells = |at: usize| self.table.iter().filter_map(move |row| row.get(at)).map(|cell| cell.text.as_str());
        let shown = self.headings.iter().enumerate().filter(|(_, heading)| heading.is_shown);
        let all: Vec<Fitted> = shown
            .map(|(at, heading)| {
                let width = cells(at).map(str::len).max().unwrap_or(0).max(heading.name.len()) + PADDING;
                let is_empty = cells(at).all(|text| text.is_empty() || text == "null");
                Fitted {
                    at,
                    width,
                    rank: if is_empty {
                        0
                    } else if heading.is_minor {
                        1
                    } else {
                        2
                    },
                }
            })
            .collect();
        let Some(room) = self.width else { return all.iter().map(|column| column.at).collect() };
        let fits = |columns: &[Fitted]| columns.iter().map(|column| column.width).sum::<usize>() <= room;
        let mut kept = all.clone();
        while !fits(&kept) && kept.len() > 1 {
            // Columns without a value go first, then minor ones, then the others; of these, those on the right.
            let last = kept.iter().enumerate().min_by_key(|(place, column)| (column.rank, std::cmp::Reverse(*place)));
            if let Some((place, _)) = last {
                kept.remove(place);
            }
        }
        // A column that went before a wider one did may have room now.
        for column in all.iter().filter(|column| column.rank > 0) {
            let mut with = kept.clone();
            with.push(*column);
            if !kept.contains(column) && fits(&with) {
                kept = with;
            }
        }
        kept.sort_unstable_by_key(|column| column.at);
        self.say_left_out(&all, &kept);
        kept.iter().map(|column| column.at).collect()
    }

    fn say_left_out(&self, all: &[Fitted], fitting: &[Fitted]) {
        let left_out = all.iter().filter(|column| !fitting.contains(column));
        let names: Vec<&str> = left_out.filter_map(|column| Some(self.headings.get(column.at)?.name.as_str())).collect();
        if !names.is_empty() {
            note(format_args!(
                "note: {} columns do not fit {} characters: {}; choose with --columns, or print all with --json",
                names.len(),
                self.width.unwrap_or(0),
                names.join(", ")
            ));
        }
    }

    fn flush_table(&mut self) -> Outcome {
        if self.table.is_empty() {
            return Ok(());
        }
        let fitting = match self.fitting.take() {
            Some(fitting) => fitting,
            None => self.fit(),
        };
        let names: Vec<&str> = fitting.iter().filter_map(|at| Some(self.headings.get(*at)?.name.as_str())).collect();
        let mut table = table(&names);
        for row in self.table.drain(..) {
            table.add_row(fitting.iter().filter_map(|at| row.get(*at)).map(|cell| cell.text.as_str()));
        }
        for (column, at) in table.column_iter_mut().zip(&fitting) {
            if self.headings.get(*at).is_some_and(|heading| !heading.is_left) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self.fitting = Some(fitting);
        writeln!(self.out, "{table}").map_err(|error| self.failed(error))
    }

    /// Writes buffered rows.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn flush(&mut self) -> Outcome {
        self.flush_table()?;
        if let Some(csv) = &mut self.csv {
            let flushed = csv.flush();
            flushed.map_err(|error| self.failed(error))?;
        }
        self.out.flush().map_err(|error| self.failed(error))
    }
}

/// Characters in a line of the terminal, and lines; `None` if standard output is none.
pub fn terminal_size() -> Option<(usize, usize)> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    (size.ws_col > 0).then_some((usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// An empty table with this header.
pub fn table<S: AsRef<str>>(header: &[S]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: usize, columns: Option<&str>) -> Grid {
        let format = Format { columns: columns.map(|text| super::columns(text).unwrap()), ..Format::default() };
        let mut grid = Grid { width: Some(width), ..Grid::new(format) };
        grid.head(["time", "void", "price", "size"].map(|name| Heading::new(name, false)).into()).unwrap();
        grid.table.push(vec![Cell::text("0123456789"), Cell::text("null"), Cell::number(7), Cell::number(8)]);
        grid
    }

    #[test]
    fn a_table_leaves_out_empty_columns_first_and_then_those_on_the_right() {
        // 12, 6, 7 and 6 characters.
        for (width, shown) in [(31, vec![0, 1, 2, 3]), (30, vec![0, 2, 3]), (24, vec![0, 2]), (18, vec![0, 3]), (3, vec![0])] {
            let mut grid = grid(width, None);
            assert_eq!(grid.fit(), shown, "{width}");
            grid.table.clear();
        }
    }

    #[test]
    fn minor_columns_are_left_out_before_others() {
        let mut grid = grid(24, None);
        grid.headings[0].is_minor = true;
        assert_eq!(grid.fit(), [2, 3]);
        grid.table.clear();
    }

    #[test]
    fn chosen_columns_are_printed_in_their_order_even_where_they_do_not_fit() {
        let mut grid = grid(5, Some("size, time"));
        assert_eq!(grid.fit(), [3, 0]);
        grid.table.clear();
        let wrong = super::columns("lsn,,price").unwrap_err();
        assert!(wrong.contains("lsn,index_time,price"), "{wrong}");
    }

    #[test]
    fn a_column_that_is_not_there_is_refused_and_the_others_are_named() {
        let format = Format { columns: Some(columns("prize").unwrap()), ..Format::default() };
        let refused = Grid::new(format).head(vec![Heading::new("price", false)]).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (USAGE, "there is no column 'prize' in these rows; the columns are: price")
        );
    }
}
