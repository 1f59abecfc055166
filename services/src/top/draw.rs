//! Owns: how the screen of `tape top` looks, at 80 columns by 24 lines and at more.
//!
//! What must hold: what is wrong is on the first lines and never cut off by what is not. Without colours everything is still to be read.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Row, Table as Grid, Wrap};
use tapestore::shm::histogram::{Distribution, Histogram};
use tapestore::shm::status::{Role, Status};

use super::rows::{self, Cell};
use super::sample::Sample;
use super::screen::Screen;
use super::tables::Table;
use super::units::{bytes, duration};
use crate::terminal::thousands;

/// From this width on two tables are side by side.
const TWO_COLUMNS: u16 = 150;
/// From this height on two tables are one above the other.
const TWO_ROWS: u16 = 40;
/// Lines of the part above the tables.
const HEAD: u16 = 8;
const LATENCIES: u16 = 6;

const HELP: &str = "\
q, Ctrl-C    quit                    ?  this help
1 to 5       a table                 Tab, arrows  the next, the one before
s            order by the next column
r            the other way round     /  filter rows; Enter keeps it, Esc ends it
p, space     pause                   + -  interval
up, down     scroll                  Home  to the top

Rates are of the last interval. Latencies are of the last interval, or, in
brackets, since the start of storage where the interval has none.
visible  -N  N records are in the log and readers do not see them yet
durable  -N  a loss of power can lose N records
pinned       deleted files that a process still maps: it keeps their room";

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// Draws `screen`.
pub fn screen(frame: &mut Frame<'_>, screen: &mut Screen) {
    let area = frame.area();
    let Some(now) = screen.now.clone() else {
        frame.render_widget(Paragraph::new("waiting for the first sample"), area);
        return;
    };
    let problem = now.problem.as_ref().map(|problem| format!("PROBLEM  {problem}"));
    let problem_lines = problem.as_ref().map_or(0, |problem| problem.len().div_ceil(usize::from(area.width.max(1))) + 1) as u16;
    let problem_lines = problem_lines.min(4);
    let heights = [
        Constraint::Length(1),
        Constraint::Length(problem_lines),
        Constraint::Length(HEAD - 1),
        Constraint::Length(LATENCIES),
        Constraint::Min(3),
        Constraint::Length(1),
    ];
    let [title, trouble, head, latencies, tables, foot] = Layout::vertical(heights).areas(area);
    frame.render_widget(Paragraph::new(title_line(screen, &now, area.width)), title);
    let red = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(problem.unwrap_or_default()).style(red).wrap(Wrap { trim: true }), trouble);
    frame.render_widget(Paragraph::new(head_lines(screen, &now)), head);
    frame.render_widget(latency_grid(screen, &now), latencies);
    draw_tables(frame, screen, tables);
    frame.render_widget(Paragraph::new(foot_line(screen)), foot);
    if screen.is_help {
        let lines = HELP.lines().count() as u16 + 2;
        let [_, middle, _] = Layout::vertical([Constraint::Fill(1), Constraint::Length(lines), Constraint::Fill(1)]).areas(area);
        let [_, middle, _] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(78), Constraint::Fill(1)]).areas(middle);
        frame.render_widget(Clear, middle);
        frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" help ")), middle);
    }
}

/// A line of the head: its name, and its parts.
fn line<'l>(name: &'static str, parts: impl IntoIterator<Item = Span<'l>>) -> Line<'l> {
    let mut spans = vec![Span::styled(format!("{name:<9}"), Style::new().add_modifier(Modifier::DIM))];
    for part in parts {
        spans.push(part);
        spans.push(Span::raw("  "));
    }
    Line::from(spans)
}

/// A part that is a warning if `is_bad`.
fn part<'l>(text: String, is_bad: bool) -> Span<'l> {
    let style = if is_bad { Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD) } else { Style::new() };
    Span::styled(text, style)
}

fn title_line<'l>(screen: &Screen, now: &Sample, width: u16) -> Line<'l> {
    let time = now.time.to_string();
    let clock = time.get(11..19).unwrap_or(&time).to_owned();
    let every = duration(screen.every.as_nanos() as u64);
    let right = format!("{clock}  every {every}{}", if screen.is_paused { "  PAUSED" } else { "" });
    let store = format!("tape top  {}", screen.store.display());
    let room = usize::from(width).saturating_sub(right.len() + 1);
    let store: String = store.chars().take(room).collect();
    Line::from(vec![Span::styled(format!("{store:<room$}"), bold()), Span::raw(format!(" {right}"))])
}

fn head_lines<'l>(screen: &Screen, now: &Sample) -> Vec<Line<'l>> {
    let status = &now.status;
    vec![
        line("state", state(now)),
        line("records", records(status)),
        line("rates", rates(screen)),
        line("waits", waits(status)),
        line("memory", memory(now)),
        line("disk", disk(screen, now)),
        line("kept", kept(now)),
    ]
}

fn state<'l>(now: &Sample) -> Vec<Span<'l>> {
    let status = &now.status;
    let health = if status.healthy { "healthy" } else { "not healthy" };
    let mut parts = vec![part(format!("{}, {health}", status.state.name()), !status.healthy)];
    if let Some(process) = status.process {
        let up = duration(now.time.0.saturating_sub(process.started.0));
        parts.push(part(format!("process {}, up {up}", process.pid), false));
    }
    let cluster = status.cluster;
    if now.report.as_ref().is_some_and(|report| report.members.len() == 1) {
        return parts;
    }
    match (cluster.role, cluster.leader) {
        (Role::Alone, _) => {}
        (Role::Leader, _) => parts.push(part(format!("leader of term {}", cluster.term), false)),
        (role, Some(leader)) => parts.push(part(format!("{} of host {leader}, term {}", role.name(), cluster.term), false)),
        (role, None) => parts.push(part(format!("{}, no leader, term {}", role.name(), cluster.term), true)),
    }
    parts
}

fn records<'l>(status: &Status) -> Vec<Span<'l>> {
    let marks = status.watermarks;
    let behind = |lsn: u64| thousands(marks.appended.saturating_sub(lsn));
    vec![
        part(format!("{} appended", thousands(marks.appended)), false),
        part(format!("visible -{}", behind(marks.applied)), false),
        part(format!("durable -{}", behind(marks.durable)), false),
        part(format!("committed -{}", behind(marks.committed)), false),
    ]
}

/// A rate for people; `None` is a dash.
fn per_second(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| thousands(rate.round() as u64))
}

fn rates<'l>(screen: &Screen) -> Vec<Span<'l>> {
    let log = screen.rate(|status| status.log.bytes).map_or_else(|| "-".to_owned(), |rate| bytes(rate as u64));
    let frames = screen.rate(|status| status.log.frames);
    let records = screen.rate(|status| status.ingest.records);
    let each = records.zip(frames).filter(|(_, frames)| *frames > 0.0).map(|(records, frames)| records / frames);
    let each = each.map_or_else(String::new, |each| format!(" of {each:.1}"));
    vec![
        Span::styled(format!("{} records/s", per_second(records)), bold()),
        part(format!("{log}/s"), false),
        part(format!("{} frames/s{each}", per_second(frames)), false),
        part(format!("{} syncs/s", per_second(screen.rate(|status| status.log.syncs))), false),
    ]
}

fn waits<'l>(status: &Status) -> Vec<Span<'l>> {
    let pressure = status.back_pressure;
    let (why, all) = (pressure.why.map_or("no back-pressure", |why| why.name()), duration(pressure.total_ns));
    let ingest = &status.ingest;
    let refused = ingest.malformed + ingest.fenced;
    vec![
        part(format!("{why} ({all} in all)"), pressure.why.is_some()),
        part(format!("{} gaps", thousands(ingest.gaps)), false),
        part(format!("{} refused", thousands(refused)), refused > 0),
        part(format!("{} repeats", thousands(ingest.duplicates)), false),
    ]
}

fn memory<'l>(now: &Sample) -> Vec<Span<'l>> {
    let memory = now.status.memory;
    let used = (memory.active_used_bytes * 100).checked_div(memory.memtable_bytes).unwrap_or(0);
    vec![
        part(format!("{} MemTables of {}, active {used} %", memory.memtables, bytes(memory.memtable_bytes)), false),
        part(format!("{} on disk", memory.spilled), memory.spilled > 0),
        part(format!("{} shared free", bytes(now.shared_free)), false),
    ]
}

fn disk<'l>(screen: &Screen, now: &Sample) -> Vec<Span<'l>> {
    let (history, space) = (now.status.history, now.status.space);
    let rate = |of: fn(&Status) -> u64| screen.rate(of).map_or_else(|| "-".to_owned(), |rate| bytes(rate as u64));
    let merge = if history.is_merging { "merging" } else { "merge" };
    vec![
        part(format!("{} SSTables, {}", thousands(history.files), bytes(history.bytes)), false),
        part(format!("flush {}/s", rate(|status| status.history.flushed_bytes)), history.flush_failures > 0),
        part(format!("{merge} {}/s", rate(|status| status.history.merged_bytes)), history.merge_failures > 0),
        part(format!("{} free", bytes(space.free_bytes)), space.free_bytes < space.kept_free_bytes.saturating_mul(2)),
    ]
}

fn kept<'l>(now: &Sample) -> Vec<Span<'l>> {
    let marks = now.status.watermarks;
    let recover = marks.appended_position.saturating_sub(marks.checkpoint_position);
    let pinned: u64 = now.processes.iter().map(|process| process.deleted_bytes).sum();
    let pinning = now.processes.iter().filter(|process| process.deleted_bytes > 0).count();
    vec![
        part(format!("{} of log to recover", bytes(recover)), false),
        part(format!("{} pinned by {pinning} processes", bytes(pinned)), false),
        part(format!("{} publishers", now.status.publishers.len()), false),
    ]
}

/// What a histogram has of the last interval, or since the start.
fn lately(screen: &Screen, now: &Distribution) -> (Distribution, bool) {
    let before = screen.before.as_ref().and_then(|before| before.status.distributions.of(now.of));
    match before.map(|before| now.since(before)).filter(|lately| lately.count() > 0) {
        Some(lately) => (lately, true),
        None => (now.clone(), false),
    }
}

fn latency_grid<'l>(screen: &Screen, now: &Sample) -> Grid<'l> {
    let shown = [
        (Histogram::PublishToAppend, "publish to append"),
        (Histogram::AppendToVisible, "append to visible"),
        (Histogram::AppendToDurable, "append to durable"),
        (Histogram::DurableToCommitted, "durable to committed"),
        (Histogram::Sync, "sync of the log"),
    ];
    let seconds = screen.seconds();
    let rows = shown.into_iter().filter_map(|(which, name)| {
        let all = now.status.distributions.of(which)?;
        let (of, is_lately) = lately(screen, all);
        let at = |quantile| {
            let text = match of.quantile(quantile) {
                _ if of.count() == 0 => "-".to_owned(),
                Some(ns) => duration(ns),
                None => "> 15 s".to_owned(),
            };
            if is_lately || of.count() == 0 { text } else { format!("({text})") }
        };
        let rate = seconds.filter(|_| is_lately).map_or(0.0, |seconds| of.count() as f64 / seconds);
        let cells = [name.to_owned(), at(0.5), at(0.9), at(0.99), at(0.999), thousands(rate.round() as u64)];
        Some(Row::new(cells.map(|cell| Line::from(cell).alignment(Alignment::Right))))
    });
    let names = ["latency", "p50", "p90", "p99", "p99.9", "measured/s"];
    let head =
        Row::new(names.map(|name| Line::from(name).alignment(Alignment::Right))).style(Style::new().add_modifier(Modifier::DIM));
    let widths = [20, 11, 11, 11, 11, 11].map(Constraint::Length);
    Grid::new(rows, widths).header(head).column_spacing(1)
}

fn draw_tables(frame: &mut Frame<'_>, screen: &mut Screen, area: Rect) {
    let columns = if area.width >= TWO_COLUMNS { 2 } else { 1 };
    let rows = if area.height >= TWO_ROWS - HEAD - LATENCIES { 2 } else { 1 };
    let mut table = screen.table;
    let lines = Layout::vertical(vec![Constraint::Fill(1); rows]).split(area);
    for (at_row, line) in lines.iter().enumerate() {
        for (at_column, place) in Layout::horizontal(vec![Constraint::Fill(1); columns]).split(*line).iter().enumerate() {
            draw_table(frame, screen, table, *place, at_row + at_column == 0);
            table = table.next(1);
        }
    }
}

/// The names of all tables, that of `shown` marked.
fn tabs<'l>(screen: &Screen, shown: Table) -> Line<'l> {
    let mut spans = Vec::new();
    for (at, table) in Table::ALL.iter().enumerate() {
        let style = if *table == shown { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        spans.push(Span::styled(format!(" {} {} ", at + 1, table.name()), style));
    }
    if !screen.filter.is_empty() {
        spans.push(Span::styled(format!(" filter: {} ", screen.filter), bold()));
    }
    Line::from(spans)
}

fn draw_table(frame: &mut Frame<'_>, screen: &mut Screen, table: Table, area: Rect, is_first: bool) {
    let title = if is_first { tabs(screen, table) } else { Line::from(format!(" {} ", table.name())) };
    let block = Block::new().borders(Borders::TOP).title(title);
    let rows = rows::of(table, screen);
    if rows.is_empty() {
        let why = if screen.filter.is_empty() { table.empty().to_owned() } else { "no row has the filter".to_owned() };
        frame.render_widget(Paragraph::new(why).wrap(Wrap { trim: true }).block(block), area);
        return;
    }
    let visible = usize::from(area.height.saturating_sub(2));
    if is_first {
        screen.first_row = screen.first_row.min(rows.len().saturating_sub(visible));
    }
    let first = if is_first { screen.first_row } else { 0 };
    let (order, is_reversed) = screen.order(table);
    let columns = table.columns();
    let aligned =
        |text: String, is_number: bool| Line::from(text).alignment(if is_number { Alignment::Right } else { Alignment::Left });
    let head = columns.iter().enumerate().map(|(at, (name, _, is_number))| {
        let arrow = if is_reversed { "^" } else { "v" };
        aligned(if at == order { format!("{name}{arrow}") } else { (*name).to_owned() }, *is_number)
    });
    let cells = |row: Vec<Cell>| {
        let cells = row.into_iter().zip(columns);
        Row::new(cells.map(|(cell, (_, _, is_number))| aligned(cell.text, *is_number)).collect::<Vec<_>>())
    };
    let widths = columns.iter().map(|(_, width, _)| Constraint::Length(*width));
    let head = Row::new(head.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::DIM));
    let grid = Grid::new(rows.into_iter().skip(first).map(cells), widths).header(head).block(block).column_spacing(1);
    frame.render_widget(grid, area);
}

fn foot_line<'l>(screen: &Screen) -> Line<'l> {
    if screen.is_filtering {
        return Line::styled(format!("filter: {}_   Enter keeps it, Esc ends it", screen.filter), bold());
    }
    let text = "q quit  ? help  p pause  s order  r reverse  / filter  Tab table  + - interval";
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}
