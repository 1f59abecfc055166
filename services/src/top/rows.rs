//! Owns: the rows of the tables of `tape top`, ordered and filtered.
//!
//! What must hold: a number is ordered as a number, and what is unknown comes last. A filter is a part of any cell, in any case.

use tapestore::shm::control::SlotState;
use tapestore::shm::status::PublisherStatus;

use super::sample::Sample;
use super::screen::Screen;
use super::tables::Table;
use super::units::{bytes, duration};
use crate::cluster;
use crate::terminal::thousands;

/// A cell: its text, and its number if it is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// What orders rows; `None`: the text does.
    pub number: Option<f64>,
}

impl Cell {
    fn text(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), number: None }
    }

    fn count(number: u64) -> Cell {
        Cell { text: thousands(number), number: Some(number as f64) }
    }

    /// A count that may be unknown.
    fn maybe(number: Option<u64>) -> Cell {
        number.map_or_else(|| Cell::text("-"), Cell::count)
    }

    fn rate(rate: Option<f64>) -> Cell {
        rate.map_or_else(|| Cell::text("-"), |rate| Cell { text: thousands(rate.round() as u64), number: Some(rate) })
    }

    fn bytes(count: u64) -> Cell {
        Cell { text: bytes(count), number: Some(count as f64) }
    }

    fn time(ns: u64) -> Cell {
        Cell { text: duration(ns), number: Some(ns as f64) }
    }
}

/// The rows of `table` on `screen`, ordered and filtered.
pub fn of(table: Table, screen: &Screen) -> Vec<Vec<Cell>> {
    let Some(now) = &screen.now else { return Vec::new() };
    let mut rows = match table {
        Table::Publishers => publishers(screen, now),
        Table::Instruments => instruments(screen, now),
        Table::Processes => processes(now),
        Table::Peers => peers(now),
        Table::Kinds => kinds(screen, now),
    };
    let filter = screen.filter.to_lowercase();
    rows.retain(|row| filter.is_empty() || row.iter().any(|cell| cell.text.to_lowercase().contains(&filter)));
    let (column, is_reversed) = screen.order(table);
    // Numbers begin with the greatest, texts with the first, hosts with the lowest.
    let is_rising = (table == Table::Peers) != is_reversed;
    rows.sort_by(|one, other| compare(one.get(column), other.get(column), is_rising, is_reversed));
    rows
}

fn compare(one: Option<&Cell>, other: Option<&Cell>, is_rising: bool, is_reversed: bool) -> std::cmp::Ordering {
    let (Some(one), Some(other)) = (one, other) else { return std::cmp::Ordering::Equal };
    match (one.number, other.number) {
        (Some(one), Some(other)) if is_rising => one.total_cmp(&other),
        (Some(one), Some(other)) => other.total_cmp(&one),
        // What is unknown is last, in any order.
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) if is_reversed => other.text.cmp(&one.text),
        (None, None) => one.text.cmp(&other.text),
    }
}

fn publishers(screen: &Screen, now: &Sample) -> Vec<Vec<Cell>> {
    let before = |of: &PublisherStatus| {
        let before = screen.before.as_ref()?;
        before.status.publishers.iter().find(|one| (one.publisher, one.epoch) == (of.publisher, of.epoch)).map(|one| one.accepted)
    };
    let seconds = screen.seconds();
    let rows = now.status.publishers.iter().map(|of| {
        let rate = before(of).zip(seconds).map(|(before, seconds)| of.accepted.saturating_sub(before) as f64 / seconds);
        let newest = of.newest_record.map(|newest| Cell::time(now.time.0.saturating_sub(newest.0)));
        vec![
            Cell::count(u64::from(of.publisher)),
            of.pid.map_or_else(|| Cell::text("-"), |pid| Cell { text: pid.to_string(), number: Some(f64::from(pid)) }),
            Cell::rate(rate),
            Cell::count(of.accepted),
            Cell::count(of.accepted.saturating_sub(of.durable)),
            Cell::count(of.gaps),
            newest.unwrap_or_else(|| Cell::text("-")),
            Cell::text(of.state.name()),
        ]
    });
    rows.collect()
}

fn instruments(screen: &Screen, now: &Sample) -> Vec<Vec<Cell>> {
    let read = now.instruments.read.max(1) as f64;
    let all = screen.rate(|status| status.watermarks.applied);
    let rows = now.instruments.counts.iter().map(|(name, count)| {
        let share = *count as f64 / read;
        vec![
            Cell::text(name.clone()),
            Cell::rate(all.map(|all| all * share)),
            Cell { text: format!("{:.1} %", share * 100.0), number: Some(share) },
        ]
    });
    rows.collect()
}

fn processes(now: &Sample) -> Vec<Vec<Cell>> {
    let storage = now.status.process.map(|process| process.pid);
    let publishes = |pid: u32| now.status.publishers.iter().any(|one| one.pid == Some(pid) && one.state == SlotState::Attached);
    let rows = now.processes.iter().map(|of| {
        let does = match of.pid {
            pid if storage == Some(u64::from(pid)) => "storage",
            pid if publishes(pid) => "publishes",
            _ => "reads",
        };
        vec![
            Cell { text: of.pid.to_string(), number: Some(f64::from(of.pid)) },
            Cell::text(of.program.clone()),
            Cell::text(does),
            Cell::bytes(of.deleted_bytes),
            Cell::bytes(of.bytes),
            Cell::count(of.files),
        ]
    });
    rows.collect()
}

fn peers(now: &Sample) -> Vec<Vec<Cell>> {
    let Some(report) = now.report.as_ref().filter(|report| report.members.len() > 1) else { return Vec::new() };
    let rows = report.members.iter().map(|member| {
        let progress = report.progress.iter().find(|progress| progress.node == member.node);
        let is_leader = report.state.leader == Some(member.node);
        let state = match progress {
            _ if member.node == report.node => cluster::role(report.state.role),
            _ if is_leader => "leader",
            Some(progress) if progress.needs_snapshot || progress.is_behind_log => "needs snapshot",
            Some(progress) if progress.is_active => "active",
            Some(_) => "out of touch",
            None => "-",
        };
        let lag = progress.filter(|progress| progress.lag_ns < u64::MAX).map(|progress| Cell::time(progress.lag_ns));
        vec![
            Cell::count(member.node.0),
            Cell::text(member.address.clone()),
            Cell::text(if member.is_voter { "yes" } else { "no" }),
            Cell::text(state),
            Cell::maybe(progress.map(|progress| progress.lag_records)),
            progress.map_or_else(|| Cell::text("-"), |progress| Cell::bytes(progress.lag_bytes)),
            lag.unwrap_or_else(|| Cell::text("-")),
        ]
    });
    rows.collect()
}

fn kinds(screen: &Screen, now: &Sample) -> Vec<Vec<Cell>> {
    let rows = now.status.ingest.by_kind.iter().map(|of| {
        let rate =
            screen.rate(|status| status.ingest.by_kind.iter().find(|one| one.kind == of.kind).map_or(0, |one| one.records));
        vec![Cell::text(of.kind), Cell::rate(rate), Cell::count(of.records)]
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_as_numbers_and_what_is_unknown_is_last_in_any_order() {
        let order = |is_rising, is_reversed| {
            let mut cells = vec![Cell::count(9), Cell::text("-"), Cell::count(1000), Cell::count(80)];
            cells.sort_by(|one, other| compare(Some(one), Some(other), is_rising, is_reversed));
            cells.into_iter().map(|cell| cell.text).collect::<Vec<_>>()
        };
        assert_eq!(order(false, false), ["1,000", "80", "9", "-"]);
        assert_eq!(order(true, true), ["9", "80", "1,000", "-"]);
    }
}
