//! Owns: what has lived long enough: rules, and which files of a version they drop.
//!
//! What must hold: age is counted from the newest record, and from when records last came or what the host's clock
//! says if that is earlier; while the clock has jumped nothing goes by its age; a file goes only when all its rows
//! are too old, or when its kind has more bytes than it may have, the oldest windows first.

use std::collections::BTreeMap;

use super::newest;
use tapestore::error::{Error, Result};
use tapestore::lsn::InstrumentId;
use tapestore::manifest::State;
use tapestore::record::{Kind, Name, near_kind, schema, schemas_named};
use tapestore::sstable::FileMeta;
use tapestore::time::{Ts, parse_duration};

/// How long records are kept. The first rule that names a kind counts for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rule {
    /// The kind's name; `*` is every kind.
    pub kind: String,
    /// Instruments, by a pattern of their names with `*`: their records go when files are merged. Without it the
    /// rule is for the whole kind, and whole files go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruments: Option<String>,
    /// The age up to which they are kept, like `30d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Bytes that the kind's files may have together; above that the oldest go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Rules that have been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Checked>,
    /// What the host's clock says; without it, what records say is believed.
    wall: Option<Ts>,
    /// Whether nothing goes by its age.
    holds: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Checked {
    kind: Option<String>,
    instruments: Option<String>,
    keep: Option<u64>,
    bytes: Option<u64>,
}

/// A file that is to go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The file.
    pub file: FileMeta,
    /// Whether it is too old; else its kind has too many bytes.
    pub by_age: bool,
}

/// Rows of instruments that go when files are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// By instrument: rows before this go.
    pub before: BTreeMap<InstrumentId, Ts>,
}

impl Rules {
    /// Checks `rules`.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the rule.
    pub fn new(rules: &[Rule]) -> Result<Rules> {
        let mut checked = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            let bad = |why: &str| Error::invalid("retention", format!("rule {} (kind '{}') {why}", i + 1, rule.kind));
            if rule.kind.is_empty() {
                return Err(bad("names no kind; '*' is every kind"));
            }
            // A kind of a program may be called so; then its number says that it is meant.
            if let (Some(meant), true) = (near_kind(&rule.kind), schemas_named(&rule.kind).is_empty()) {
                return Err(bad(&format!(
                    "names no kind of this program: did you mean '{meant}'? A kind that a program defines under that name is named with its number, as in '{}-8001'",
                    rule.kind
                )));
            }
            if rule.keep.is_none() && rule.bytes.is_none() {
                return Err(bad("says neither 'keep' nor 'bytes'"));
            }
            if rule.instruments.is_some() && (rule.bytes.is_some() || rule.keep.is_none()) {
                return Err(bad("names instruments: it needs 'keep', and 'bytes' is of a whole kind"));
            }
            let keep = match &rule.keep {
                Some(text) => Some(parse_duration(text).map_err(|e| bad(&e.to_string()))?),
                None => None,
            };
            checked.push(Checked {
                kind: (rule.kind != "*").then(|| rule.kind.clone()),
                instruments: rule.instruments.clone(),
                keep,
                bytes: rule.bytes,
            });
        }
        Ok(Rules { rules: checked, ..Rules::default() })
    }

    /// The kinds that rules name and this process has never met: their rules let nothing go before a program defines them.
    pub fn unmet(&self) -> impl Iterator<Item = &str> {
        let names = self.rules.iter().filter_map(|rule| rule.kind.as_deref());
        names.filter(|name| schemas_named(name).is_empty())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether something goes by its age, which is counted from the newest record.
    pub fn is_by_age(&self) -> bool {
        self.rules.iter().any(|r| r.keep.is_some())
    }

    /// The same rules at the moment `wall` of the host's clock: nothing is older than it is by that.
    #[must_use]
    pub fn at(&self, wall: Ts) -> Rules {
        Rules { wall: Some(wall), ..self.clone() }
    }

    /// The same rules, by which nothing goes by its age: the host's clock has jumped.
    #[must_use]
    pub fn held(&self) -> Rules {
        Rules { holds: true, ..self.clone() }
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Checked> {
        let name = schema(kind).map(|s| s.name);
        let is_meant = move |wanted: &str| {
            name.is_some_and(|name| name == wanted || kind.is_user() && wanted == format!("{name}-{:04x}", kind.0))
        };
        self.rules.iter().filter(move |rule| match &rule.kind {
            Some(wanted) => is_meant(wanted),
            // What says which trades count, what is missing and what names mean is kept unless it is named.
            None => !matches!(name, None | Some("bust" | "correct" | "gap" | "definition" | "mapping")),
        })
    }

    /// The files of `state` that are to go, the oldest first.
    pub fn drops(&self, state: &State) -> Vec<Drop> {
        let now = self.reference(state);
        let mut kinds: BTreeMap<Kind, Vec<FileMeta>> = BTreeMap::new();
        state.files.values().for_each(|f| kinds.entry(f.kind).or_default().push(*f));
        let mut drops = Vec::new();
        for (kind, mut files) in kinds {
            let Some(rule) = self.of(kind).find(|r| r.instruments.is_none()) else { continue };
            files.sort_unstable_by_key(|f| (f.window.last(), f.time.1, f.id));
            let mut left: u64 = files.iter().map(|f| f.len).sum();
            for file in files {
                let by_age = !self.holds && rule.keep.is_some_and(|keep| file.time.1.0 < now.0.saturating_sub(keep));
                if by_age || rule.bytes.is_some_and(|max| left > max) {
                    left -= file.len;
                    drops.push(Drop { file, by_age });
                }
            }
        }
        drops
    }

    /// The moment from which age is counted: of the newest record, but not ahead of when records came, nor of the
    /// host's clock.
    fn reference(&self, state: &State) -> Ts {
        newest(state).min(self.wall.unwrap_or(Ts(u64::MAX)))
    }

    /// The rows of `kind` that go when its files are merged; `names` are the instruments', by id from 1.
    pub fn cut(&self, kind: Kind, state: &State, names: &[Name]) -> Cut {
        let now = self.reference(state);
        let mut cut = Cut::default();
        for rule in self.of(kind).filter(|_| !self.holds) {
            let (Some(pattern), Some(keep)) = (&rule.instruments, rule.keep) else { continue };
            let before = Ts(now.0.saturating_sub(keep));
            for (id, _) in (1u32..).zip(names).filter(|(_, name)| matches(pattern, name.as_str())) {
                cut.before.entry(InstrumentId(id)).or_insert(before);
            }
        }
        cut
    }
}

/// Whether `name` is like `pattern`, in which `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        match name.find(part) {
            Some(at) => name = name.get(at + part.len()..).unwrap_or(""),
            None => return false,
        }
    }
    true
}
