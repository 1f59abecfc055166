//! Owns: the form of a log line: text for people, text for the journal of systemd, an object of JSON for programs.
//!
//! What must hold: each line has its event's name. An object of JSON is one line and valid, whatever its values are.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write};
use std::panic::PanicHookInfo;

use clap::ValueEnum;
use clap::builder::styling::{AnsiColor, Style};
use serde::{Serialize, Serializer};
use serde_json::{Number, Value};
use tapestore::time::{Clock, HostClock};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// The variable that names the format, for this process and those that it starts.
pub const VARIABLE: &str = "TAPE_LOG_FORMAT";

/// The event of a library that this one uses: it has no name of ours.
const LIBRARY: &str = "library.event";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people; for the journal if standard error is one: with priorities and without times
    #[default]
    Text,
    /// One object of JSON a line
    Json,
}

/// The form of the lines of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Lines with the time, for people.
    #[default]
    Text,
    /// Lines with a priority, for the journal, which notes the time itself.
    Journal,
    /// Objects of JSON.
    Json,
}

/// A line as an object.
#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: &'a str,
    event: &'a str,
    message: &'a str,
    target: &'a str,
    thread: &'a str,
    pid: u32,
    fields: Fields<'a>,
}

/// The fields of a line, in their order.
struct Fields<'a>(&'a [(&'a str, Value)]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// What an event carries.
#[derive(Default)]
struct Carried {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Carried {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Carried {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, i64::try_from(value).map_or_else(|_| value.to_string().into(), Value::from));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, u64::try_from(value).map_or_else(|_| value.to_string().into(), Value::from));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // A value that cannot print itself costs its own text, not the line.
        if write!(text, "{value:?}").is_err() {
            text.push_str("(cannot be printed)");
        }
        self.add(field, text.into());
    }
}

/// The name of the event that `metadata` describes.
fn event_of(metadata: &Metadata<'static>) -> &'static str {
    // Without a name of its own an event is called "event FILE:LINE".
    let is_named = metadata.target().starts_with("tape") && !metadata.name().starts_with("event ");
    if is_named { metadata.name() } else { LIBRARY }
}

/// The priority of sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn colour(level: Level) -> Style {
    let colour = match level {
        Level::ERROR => AnsiColor::Red,
        Level::WARN => AnsiColor::Yellow,
        Level::INFO => AnsiColor::Green,
        Level::DEBUG => AnsiColor::Blue,
        _ => AnsiColor::Magenta,
    };
    colour.on_default()
}

/// Whether standard error is the journal: systemd names it in `JOURNAL_STREAM` as device:inode.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stderr = rustix::fs::fstat(std::io::stderr()).ok();
    named.zip(stderr).is_some_and(|(named, is)| named == format!("{}:{}", is.st_dev, is.st_ino))
}

impl Form {
    /// The form of this process's lines.
    pub fn new(format: LogFormat) -> Form {
        match format {
            LogFormat::Json => Form::Json,
            LogFormat::Text if is_journal() => Form::Journal,
            LogFormat::Text => Form::Text,
        }
    }

    /// The format that [`VARIABLE`] names for the processes that this one starts: they look for themselves where their lines go.
    pub(crate) fn format(self) -> &'static str {
        match self {
            Form::Text | Form::Journal => "text",
            Form::Json => "json",
        }
    }

    /// A line that is no event of `tracing`, with its end.
    pub fn line(self, level: Level, event: &str, message: &str, fields: &[(&str, Value)]) -> String {
        let mut text = String::new();
        let written = if self == Form::Json {
            object(&mut text, level, event, message, env!("CARGO_CRATE_NAME"), fields)
        } else {
            let mut content = message.to_owned();
            fields.iter().for_each(|(name, value)| content.push_str(&format!(" {name}={value}")));
            let mut to = Writer::new(&mut text);
            self.head(&mut to, level, event).and_then(|()| writeln!(to, "{}", self.continued(level, &content)))
        };
        // Memory accepts everything.
        debug_assert!(written.is_ok());
        text
    }

    /// A line of a command to people, with its end.
    pub(crate) fn note(self, text: &str) -> String {
        match self {
            Form::Text => format!("{text}\n"),
            Form::Journal => format!("<{}>{}\n", priority(Level::INFO), self.continued(Level::INFO, text)),
            Form::Json => self.line(Level::INFO, "command.note", text, &[]),
        }
    }

    /// The line of a panic.
    pub(crate) fn panic(self, info: &PanicHookInfo<'_>) -> String {
        let mut fields = Vec::new();
        fields.extend(info.location().map(|at| ("at", Value::from(at.to_string()))));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            fields.push(("backtrace", backtrace.to_string().into()));
        }
        let thread = std::thread::current();
        fields.push(("panicked", thread.name().unwrap_or("unnamed").into()));
        self.line(Level::ERROR, "process.panicked", info.payload_as_str().unwrap_or("a panic without a text"), &fields)
    }

    /// Time or priority, level and event.
    fn head(self, to: &mut Writer<'_>, level: Level, event: &str) -> fmt::Result {
        if self == Form::Journal {
            return write!(to, "<{}>{level} {event}: ", priority(level));
        }
        let of = |style| if to.has_ansi_escapes() { style } else { Style::new() };
        let (dimmed, colour, bold) = (of(Style::new().dimmed()), of(colour(level)), of(Style::new().bold()));
        write!(to, "{dimmed}")?;
        SystemTime.format_time(to)?;
        write!(to, "{dimmed:#} {colour}{level:>5}{colour:#} {bold}{event}{bold:#}: ")
    }

    /// `content`: to the journal each of its lines is one with a priority.
    fn continued(self, level: Level, content: &str) -> String {
        match self {
            Form::Journal => content.replace('\n', &format!("\n<{}>", priority(level))),
            Form::Text | Form::Json => content.to_owned(),
        }
    }
}

/// Writes a line as an object.
fn object(to: &mut dyn Write, level: Level, event: &str, message: &str, target: &str, fields: &[(&str, Value)]) -> fmt::Result {
    let thread = std::thread::current();
    let object = Object {
        time: HostClock.wall().to_string(),
        level: level.as_str(),
        event,
        message,
        target,
        thread: thread.name().unwrap_or("unnamed"),
        pid: std::process::id(),
        fields: Fields(fields),
    };
    writeln!(to, "{}", serde_json::to_string(&object).map_err(|_| fmt::Error)?)
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, of: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let (level, name) = (*metadata.level(), event_of(metadata));
        if *self == Form::Json {
            let mut carried = Carried::default();
            event.record(&mut carried);
            return object(&mut to, level, name, &carried.message, metadata.target(), &carried.fields);
        }
        self.head(&mut to, level, name)?;
        if *self == Form::Text {
            content(of, &mut to, event)?;
            return writeln!(to);
        }
        let mut text = String::new();
        content(of, &mut Writer::new(&mut text), event)?;
        writeln!(to, "{}", self.continued(level, &text))
    }
}

/// Writes the spans that an event is in, its message and its fields.
fn content<S, N>(of: &FmtContext<'_, S, N>, to: &mut Writer<'_>, event: &Event<'_>) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    for span in of.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        to.write_str(span.metadata().name())?;
        if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
            write!(to, "{{{fields}}}")?;
        }
        to.write_str(": ")?;
    }
    of.format_fields(to.by_ref(), event)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// The writes of a logger.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl io::Write for Writes {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Writes {
        type Writer = Writes;

        fn make_writer(&'a self) -> Writes {
            self.clone()
        }
    }

    /// What `logs` writes in the form `form`.
    fn written(form: Form, is_coloured: bool, logs: impl FnOnce()) -> Vec<String> {
        let writes = Writes::default();
        let lines = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(writes.clone()).with_ansi(is_coloured);
        tracing::subscriber::with_default(lines.event_format(form).finish(), logs);
        writes.0.lock().unwrap().clone()
    }

    fn parsed(line: &str) -> Value {
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
        serde_json::from_str(line).unwrap()
    }

    struct Unprintable;

    impl fmt::Display for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            Err(fmt::Error)
        }
    }

    #[test]
    fn an_object_is_one_write_and_has_every_value_whatever_it_is() {
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/data/\xff\n\"x\""));
        let lines = written(Form::Json, false, || {
            let (big, huge) = (u128::MAX, i128::from(i64::MIN) - 1);
            tracing::warn!(
                name: "wal.torn_tail", path = %path.display(), debug = ?path, big, huge, nan = f64::NAN, half = 0.5,
                negative = -1i64, most = u64::MAX, yes = true, small = 7u128, nothing = %Unprintable, text = "a\tb\u{1b}[31m\u{0}",
                "two\n\"lines\" of {}", "text"
            );
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        let object = parsed(&lines[0]);
        assert_eq!((&object["level"], &object["event"]), (&"WARN".into(), &"wal.torn_tail".into()));
        assert_eq!(object["message"], "two\n\"lines\" of text");
        assert_eq!((&object["target"], &object["pid"]), (&module_path!().into(), &std::process::id().into()));
        assert_eq!(object["thread"].as_str(), std::thread::current().name());
        assert!(object["time"].as_str().unwrap().parse::<tapestore::time::Ts>().is_ok(), "{object}");
        let expected = serde_json::json!({
            "path": "/data/\u{fffd}\n\"x\"",
            "debug": format!("{path:?}"),
            "big": u128::MAX.to_string(),
            "huge": (i128::from(i64::MIN) - 1).to_string(),
            "nan": "NaN",
            "half": 0.5,
            "negative": -1,
            "most": u64::MAX,
            "yes": true,
            "small": 7,
            "nothing": "(cannot be printed)",
            "text": "a\tb\u{1b}[31m\u{0}",
        });
        assert_eq!(object["fields"], expected);
    }

    #[test]
    fn every_line_of_a_text_to_the_journal_has_the_priority_of_its_level() {
        let lines = written(Form::Journal, false, || {
            tracing::error!(name: "flush.failed", memtable = 3, "one\ntwo");
            tracing::trace!(name: "disk.unlimited", "unlimited");
        });
        assert_eq!(lines, ["<3>ERROR flush.failed: one\n<3>two memtable=3\n", "<7>TRACE disk.unlimited: unlimited\n"]);
        let priorities = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE].map(priority);
        assert_eq!(priorities, [3, 4, 6, 7, 7]);
        assert_eq!(Form::Journal.note("note: a\nb"), "<6>note: a\n<6>b\n");
    }

    #[test]
    fn a_text_for_people_has_time_level_and_event_and_colours_only_if_they_are_wanted() {
        let log = || {
            let span = tracing::info_span!("request", number = 7);
            span.in_scope(|| tracing::info!(name: "storage.serving", store = "x", "serving"));
        };
        let plain = written(Form::Text, false, log).remove(0);
        let (time, rest) = plain.split_once(' ').unwrap();
        assert!(time.parse::<tapestore::time::Ts>().is_ok(), "{plain}");
        assert_eq!(rest, " INFO storage.serving: request{number=7}: serving store=\"x\"\n");
        let coloured = written(Form::Text, true, log).remove(0);
        assert!(coloured.contains("\u{1b}[32m INFO\u{1b}[0m \u{1b}[1mstorage.serving\u{1b}[0m: "), "{coloured:?}");
    }

    #[test]
    fn events_of_libraries_have_one_name() {
        let lines = written(Form::Json, false, || {
            tracing::warn!(target: "h2::codec", "from elsewhere");
            tracing::warn!(name: "h2.codec", target: "h2::codec", "from elsewhere");
            tracing::warn!("ours, without a name");
        });
        let events: Vec<_> = lines.iter().map(|line| parsed(line)["event"].clone()).collect();
        assert_eq!(events, [LIBRARY; 3]);
        assert_eq!(parsed(&lines[0])["target"], "h2::codec");
    }

    proptest! {
        #[test]
        fn an_object_returns_the_text_that_it_was_made_of(message in ".*", value in any::<String>()) {
            let line = Form::Json.line(Level::INFO, "command.note", &message, &[("value", value.clone().into())]);
            let object = parsed(&line);
            prop_assert_eq!(object["message"].as_str(), Some(message.as_str()));
            prop_assert_eq!(object["fields"]["value"].as_str(), Some(value.as_str()));
        }
    }
}
