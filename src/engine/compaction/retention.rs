//! Owns: retention: the rules, and the files of a version that they drop.
//!
//! What must hold: age is counted from the newest record, but not from later than the last ingest time or the host's clock.
//! After a jump of the clock nothing expires by age. A file is dropped only when all its rows have expired, or when its kind
//! has more bytes than its limit, the oldest windows first.

use std::collections::BTreeMap;

use super::newest;
use tapestore::error::{Error, Result};
use tapestore::lsn::InstrumentId;
use tapestore::manifest::State;
use tapestore::record::{Kind, Name, near_kind, schema, schemas_named};
use tapestore::sstable::FileMeta;
use tapestore::time::{Ts, parse_duration};

/// The kinds that `*` does not cover: corrections, gaps and names are kept unless a rule names their kind.
pub(super) const KEPT: [&str; 5] = ["bust", "correct", "gap", "definition", "mapping"];

/// Retention of a kind. Of the rules without `instruments` the first that names the kind applies. Rules with `instruments` apply
/// in addition; of these the first that matches an instrument.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Rule {
    /// Name of the kind; `*` is every kind except bust, correct, gap, definition and mapping.
    pub kind: String,
    /// Instruments, by a pattern of their names with `*`: their rows expire at a merge. Without it the rule is for the whole
    /// kind, and whole files are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruments: Option<String>,
    /// The age up to which records are kept, like `30d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Bytes that the files of the kind may have together; above that the oldest are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Checked rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Checked>,
    /// Time of the host's clock; without it, the records' times alone count.
    wall: Option<Ts>,
    /// Whether nothing expires by age.
    holds: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Checked {
    kind: Option<String>,
    instruments: Option<String>,
    keep: Option<u64>,
    bytes: Option<u64>,
}

/// A file to drop, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The file.
    pub file: FileMeta,
    /// Whether it is too old; else its kind has too many bytes.
    pub by_age: bool,
}

/// Expired rows, which merges leave out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cutoff {
    /// For each instrument: rows before this have expired.
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
                return Err(bad("names no kind; name one, or '*' for every kind"));
            }
            // A program may define a kind with a name close to a known one; its number then makes it unambiguous.
            if let (Some(meant), true) = (near_kind(&rule.kind), schemas_named(&rule.kind).is_empty()) {
                return Err(bad(&format!(
                    "names no kind of this program: did you mean '{meant}'? Name a kind that another program defines with its \
                     number, as in '{}-8001'",
                    rule.kind
                )));
            }
            if rule.keep.is_none() && rule.bytes.is_none() {
                return Err(bad("has neither 'keep' nor 'bytes'; give one"));
            }
            if rule.instruments.is_some() && (rule.bytes.is_some() || rule.keep.is_none()) {
                return Err(bad("names instruments: give 'keep', and no 'bytes', which limits a whole kind"));
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

    /// The kinds that the rules name and that this process does not know: nothing expires by these rules until a program defines
    /// them.
    pub fn unmet(&self) -> impl Iterator<Item = &str> {
        let names = self.rules.iter().filter_map(|rule| rule.kind.as_deref());
        names.filter(|name| schemas_named(name).is_empty())
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule is for some instruments of a kind.
    pub fn has_instruments(&self) -> bool {
        self.rules.iter().any(|rule| rule.instruments.is_some())
    }

    /// Whether any rule drops by age.
    pub fn is_by_age(&self) -> bool {
        self.rules.iter().any(|r| r.keep.is_some())
    }

    /// The same rules with `wall` as the host's clock: no age is counted from later than that.
    #[must_use]
    pub fn at(&self, wall: Ts) -> Rules {
        Rules { wall: Some(wall), ..self.clone() }
    }

    /// The same rules with expiry by age suspended, because the host's clock has jumped.
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
            None => name.is_some_and(|name| !KEPT.contains(&name)),
        })
    }

    /// The files of `state` to drop, the oldest first.
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

    /// The time from which age is counted: of the newest record, but not later than the last ingest time or the host's clock.
    fn reference(&self, state: &State) -> Ts {
        newest(state).min(self.wall.unwrap_or(Ts(u64::MAX)))
    }

    /// The rows of `kind` that merges leave out; `names` are the instruments' names, by id from 1.
    pub fn cut(&self, kind: Kind, state: &State, names: &[Name]) -> Cutoff {
        let now = self.reference(state);
        let mut cut = Cutoff::default();
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

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
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
