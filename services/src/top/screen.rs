//! Owns: the state of the screen of `tape top`: two samples, the table that is shown, its order and filter, and what keys do.
//!
//! What must hold: while it is paused, samples are dropped and the screen stays. A rate is the difference of two samples over the time
//! between them; where a counter fell, because storage was started again, there is none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tapestore::shm::status::Status;

use super::sample::Sample;
use super::tables::Table;

/// The intervals that `+` and `-` go through.
const INTERVALS: [Duration; 6] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// The longest filter.
const FILTER_MAX: usize = 64;

/// The screen.
#[derive(Debug)]
pub struct Screen {
    /// The store.
    pub store: PathBuf,
    /// The interval of samples.
    pub every: Duration,
    /// The table that is shown.
    pub table: Table,
    /// The column that orders each table, and whether the greatest is last.
    orders: [(usize, bool); Table::ALL.len()],
    /// The filter of rows; empty: none.
    pub filter: String,
    /// Whether keys go into the filter.
    pub is_filtering: bool,
    /// Whether the screen stays as it is.
    pub is_paused: bool,
    /// Whether the help is shown.
    pub is_help: bool,
    /// The first row of the table that is shown.
    pub first_row: usize,
    /// The newest sample.
    pub now: Option<Sample>,
    /// The one before it.
    pub before: Option<Sample>,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that others have to do.
    GoOn,
    /// The end.
    Quit,
    /// Another interval of samples.
    Every(Duration),
}

impl Screen {
    /// A screen of `store` without a sample yet.
    pub fn new(store: &Path, every: Duration, table: Table) -> Screen {
        Screen {
            store: store.to_path_buf(),
            every,
            table,
            orders: Table::ALL.map(|table| (table.first_order(), false)),
            filter: String::new(),
            is_filtering: false,
            is_paused: false,
            is_help: false,
            first_row: 0,
            now: None,
            before: None,
        }
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: Sample) {
        if !self.is_paused {
            self.before = self.now.replace(sample);
        }
    }

    /// The order of `table`: its column, and whether the greatest is last.
    pub fn order(&self, table: Table) -> (usize, bool) {
        self.orders.get(table as usize).copied().unwrap_or_default()
    }

    /// Seconds between the two samples.
    pub fn seconds(&self) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        Some(now.at.saturating_duration_since(before.at).as_secs_f64()).filter(|seconds| *seconds > 0.0)
    }

    /// How much `of` has risen a second between the two samples; `None` if that is unknown.
    pub fn rate(&self, of: impl Fn(&Status) -> u64) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        let more = of(&now.status).checked_sub(of(&before.status))?;
        self.seconds().map(|seconds| more as f64 / seconds)
    }

    /// Does what `key` asks for.
    pub fn key(&mut self, key: KeyEvent) -> Step {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Step::Quit;
        }
        if self.is_filtering {
            self.edit(key.code);
            return Step::GoOn;
        }
        if self.is_help {
            self.is_help = false;
            return if key.code == KeyCode::Char('q') { Step::Quit } else { Step::GoOn };
        }
        match key.code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.is_help = true,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_filtering = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.next_order(),
            KeyCode::Char('r') => self.reverse(),
            KeyCode::Char('+') => return self.interval(1),
            KeyCode::Char('-') => return self.interval(-1),
            KeyCode::Tab | KeyCode::Right => self.show(self.table.next(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.table.next(Table::ALL.len() - 1)),
            KeyCode::Down | KeyCode::Char('j') => self.first_row = self.first_row.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.first_row = self.first_row.saturating_sub(1),
            KeyCode::PageDown => self.first_row = self.first_row.saturating_add(10),
            KeyCode::PageUp => self.first_row = self.first_row.saturating_sub(10),
            KeyCode::Home => self.first_row = 0,
            KeyCode::Char(digit) => {
                let at = digit.to_digit(10).and_then(|at| (at as usize).checked_sub(1));
                if let Some(table) = at.and_then(|at| Table::ALL.get(at)) {
                    self.show(*table);
                }
            }
            _ => {}
        }
        Step::GoOn
    }

    fn edit(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_filtering = false,
            KeyCode::Esc => {
                self.is_filtering = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.len() < FILTER_MAX => self.filter.push(letter),
            _ => {}
        }
        self.first_row = 0;
    }

    fn show(&mut self, table: Table) {
        self.table = table;
        self.first_row = 0;
    }

    fn next_order(&mut self) {
        let columns = self.table.columns().len();
        if let Some((column, _)) = self.orders.get_mut(self.table as usize) {
            *column = (*column + 1) % columns.max(1);
        }
    }

    fn reverse(&mut self) {
        if let Some((_, is_rising)) = self.orders.get_mut(self.table as usize) {
            *is_rising = !*is_rising;
        }
    }

    /// The interval that is `by` steps longer.
    fn interval(&mut self, by: isize) -> Step {
        let at = INTERVALS.iter().position(|interval| *interval >= self.every).unwrap_or(INTERVALS.len() - 1);
        let next = at.saturating_add_signed(by).min(INTERVALS.len() - 1);
        self.every = INTERVALS.get(next).copied().unwrap_or(self.every);
        Step::Every(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(screen: &mut Screen, code: KeyCode) -> Step {
        screen.key(KeyEvent::from(code))
    }

    #[test]
    fn keys_choose_the_table_its_order_and_its_filter() {
        let mut screen = Screen::new(Path::new("s"), Duration::from_secs(1), Table::Publishers);
        press(&mut screen, KeyCode::Tab);
        assert_eq!(screen.table, Table::Instruments);
        press(&mut screen, KeyCode::BackTab);
        press(&mut screen, KeyCode::BackTab);
        assert_eq!(screen.table, Table::ALL[Table::ALL.len() - 1]);
        press(&mut screen, KeyCode::Char('2'));
        assert_eq!(screen.table, Table::Instruments);
        press(&mut screen, KeyCode::Char('9'));
        assert_eq!(screen.table, Table::Instruments, "there is no ninth");
        let (column, is_rising) = screen.order(Table::Instruments);
        press(&mut screen, KeyCode::Char('s'));
        press(&mut screen, KeyCode::Char('r'));
        assert_eq!(screen.order(Table::Instruments), ((column + 1) % Table::Instruments.columns().len(), !is_rising));
        assert_eq!(screen.order(Table::Publishers), (Table::Publishers.first_order(), false), "that of others stays");
        for letter in "/aq".chars() {
            assert_eq!(press(&mut screen, KeyCode::Char(letter)), Step::GoOn, "q is a letter of the filter");
        }
        assert_eq!((screen.filter.as_str(), screen.is_filtering), ("aq", true));
        press(&mut screen, KeyCode::Backspace);
        press(&mut screen, KeyCode::Enter);
        assert_eq!((screen.filter.as_str(), screen.is_filtering), ("a", false));
        press(&mut screen, KeyCode::Esc);
        assert_eq!(screen.filter, "");
    }

    #[test]
    fn the_interval_changes_in_steps_and_control_c_ends() {
        let mut screen = Screen::new(Path::new("s"), Duration::from_secs(1), Table::Publishers);
        assert_eq!(press(&mut screen, KeyCode::Char('+')), Step::Every(Duration::from_secs(2)));
        for _ in 0..9 {
            press(&mut screen, KeyCode::Char('-'));
        }
        assert_eq!(screen.every, INTERVALS[0]);
        press(&mut screen, KeyCode::Char('?'));
        assert!(screen.is_help);
        press(&mut screen, KeyCode::Char('x'));
        assert!(!screen.is_help, "any key closes the help");
        press(&mut screen, KeyCode::Char('/'));
        assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Step::Quit);
        assert_eq!(press(&mut Screen::new(Path::new("s"), INTERVALS[0], Table::Peers), KeyCode::Char('q')), Step::Quit);
    }
}
