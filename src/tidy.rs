//! Owns: the rules of the sources that no compiler checks: floors, first lines, lengths, ASCII, names of log events.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each module; a module uses only lower ones. (The lowest floor of `ARCHITECTURE.md`, `lsn`,
/// `error`, `time`, is three steps.)
const FLOORS: [(&str, u32); 21] = [
    ("lsn", 0),
    ("sabotage", 0),
    ("error", 1),
    ("time", 2),
    ("record", 10),
    ("agent", 10),
    ("pages", 10),
    ("disk", 20),
    ("bus", 20),
    ("shm", 20),
    ("wal", 30),
    ("memtable", 30),
    ("sstable", 30),
    ("manifest", 40),
    ("version", 45),
    ("bars", 50),
    ("book", 50),
    ("publisher", 50),
    ("subscriber", 50),
    ("reader", 50),
    ("tidy", 80),
];

/// The floors of the package `src/engine`, above all of those; every other file of it is the storage process itself.
const ENGINE_FLOORS: [(&str, u32); 4] = [("compaction", 100), ("consensus", 101), ("snapshot", 102), ("repair", 103)];

/// The floor of the storage process's own files.
const ENGINE: u32 = 110;

/// Directories of `src` that are packages of their own.
const PACKAGES: [&str; 4] = ["c", "derive", "engine", "formats"];

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;

/// What the library must not name: it has no async code and no command line.
const BANNED: [&str; 5] = ["tokio::", "tonic::", "clap::", "async fn", "datafusion::"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules that `text` names by `crate::`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    let names = code.flat_map(|l| l.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    names.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '{').collect()).collect()
}

#[test]
fn a_module_uses_only_lower_floors() {
    let floors: BTreeMap<&str, u32> = FLOORS.into();
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut met = std::collections::BTreeSet::new();
    for path in &files {
        let module = path.strip_prefix(&src).unwrap().components().next().unwrap();
        let module = module.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        // Packages of their own: the compiler keeps their floors.
        if PACKAGES.contains(&module.as_str()) || ["lib", "tidy", "examples", "docs"].contains(&module.as_str()) {
            continue;
        }
        let floor = *floors.get(module.as_str()).unwrap_or_else(|| panic!("{module} has no floor"));
        met.insert(module.clone());
        for name in named(&fs::read_to_string(path).unwrap()) {
            assert!(!name.starts_with('{'), "{}: one module a line", path.display());
            // A macro of the crate root has no floor of its own.
            let Some(used) = floors.get(name.as_str()) else { continue };
            assert!(*used < floor || name == module, "{}: {module} (floor {floor}) uses {name} (floor {used})", path.display());
        }
    }
    assert_eq!(met.len() + 1, FLOORS.len(), "a floor is listed for a module that is not there");
}

#[test]
fn a_module_of_the_engine_uses_only_lower_floors() {
    let floors: BTreeMap<&str, u32> = ENGINE_FLOORS.into();
    let src = root().join("src/engine");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for path in &files {
        let module = path.strip_prefix(&src).unwrap().components().next().unwrap();
        let module = module.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let floor = floors.get(module.as_str()).copied().unwrap_or(ENGINE);
        for name in named(&fs::read_to_string(path).unwrap()) {
            let used = floors.get(name.as_str()).copied().unwrap_or(ENGINE);
            let is_own = name == module || used == ENGINE && floor == ENGINE;
            assert!(is_own || used < floor, "{}: {module} (floor {floor}) uses {name} (floor {used})", path.display());
        }
    }
}

/// The code of a file, without comments and without its tests.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What the paths after `root` in `text` begin with, each with the names in braces that it ends with.
fn paths<'a>(text: &'a str, root: &str) -> Vec<(Vec<&'a str>, Vec<&'a str>)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices(root) {
        if text[..at].ends_with(|c: char| is_name(c) || c == ':') {
            continue;
        }
        let (mut rest, mut parts, mut last) = (&text[at + root.len()..], Vec::new(), Vec::new());
        loop {
            if let Some(inner) = rest.strip_prefix('{') {
                let names = inner.split('}').next().unwrap_or("").split(',');
                last = names.map(|n| n.trim().split(|c| !is_name(c)).next().unwrap_or("")).collect();
                break;
            }
            let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
            match after.strip_prefix("::") {
                Some(after) => {
                    parts.push(name);
                    rest = after;
                }
                None => {
                    last.push(name);
                    break;
                }
            }
        }
        found.push((parts, last));
    }
    found
}

/// Whether `text` says what the type `name` is.
fn declares(text: &str, name: &str) -> bool {
    let ends = |at: usize| !text[at..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
    ["struct", "enum"].iter().any(|word| {
        let start = format!("{word} {name}");
        text.match_indices(&start).any(|(at, _)| ends(at + start.len()))
    })
}

/// The files that a file uses, and the types that it has `impl` blocks for, each with whether the file declares the type.
type Uses = (BTreeSet<String>, BTreeSet<(String, bool)>);

/// Which files of `module` each of its files uses, and which types it has `impl` blocks of its own for, with whether it
/// declares them. Files are named by their modules below `src`, `mod.rs` by its directory.
fn uses(src: &Path, module: &Path) -> BTreeMap<String, Uses> {
    let mut files = Vec::new();
    sources(module, &mut files);
    let name_of = |path: &Path| {
        let name = path.strip_prefix(src).unwrap().with_extension("").to_str().unwrap().to_owned();
        name.strip_suffix("/mod").or(name.strip_suffix("/lib")).map_or(name.clone(), str::to_owned)
    };
    let files: BTreeMap<String, String> =
        files.iter().map(|p| (name_of(p), code_of(p))).filter(|(n, _)| !n.contains("/tests")).collect();
    let resolve = |base: &str, parts: &[&str]| {
        let mut at = base.to_owned();
        for part in parts {
            let next = format!("{at}/{part}");
            if !files.contains_key(&next) {
                break;
            }
            at = next;
        }
        at
    };
    let top = name_of(module);
    let within = format!("crate::{top}::");
    let is_package = module.join("lib.rs").exists();
    let crate_root = if is_package { "crate::" } else { within.as_str() };
    let up = |name: &str| name.rsplit_once('/').map_or(top.clone(), |(dir, _)| dir.to_owned());
    let mut all = BTreeMap::new();
    for (name, text) in &files {
        let mut used = BTreeSet::new();
        let roots =
            [("self::", name.clone()), ("super::super::", up(&up(name))), ("super::", up(name)), (crate_root, top.clone())];
        for (root, base) in roots {
            for (parts, last) in paths(text, root) {
                for last in last {
                    used.insert(resolve(&base, &[&parts[..], &[last]].concat()));
                }
            }
        }
        used.remove(name);
        let blocks = text.lines().filter_map(|l| l.strip_prefix("impl ")).filter(|l| !l.contains(" for "));
        let own = blocks.map(|l| l.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(""));
        let own = own.map(|of| (of.to_owned(), declares(text, of))).collect();
        all.insert(name.clone(), (used, own));
    }
    all
}

#[test]
fn files_of_a_module_make_no_circle_and_a_type_has_its_functions_in_one_file() {
    let (src, services) = (root().join("src"), root().join("services"));
    let modules = fs::read_dir(&src).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir() && !p.ends_with("derive"));
    let modules = modules.map(|module| (src.clone(), module)).chain([(services.clone(), services.join("src"))]);
    let (mut circles, mut spread, mut links) = (Vec::new(), Vec::new(), 0);
    for (src, module) in modules {
        let mut all = uses(&src, &module);
        // The session with storage and the peers send to each other, and a served host sends snapshots of itself.
        all.retain(|name, _| !name.starts_with("src/replication"));
        let mut homes: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
        for (name, (used, own)) in &all {
            links += used.len();
            own.iter().for_each(|(of, is_declared)| homes.entry(of).or_default().push((name, *is_declared)));
            // Everything that it uses, however many files on.
            let (mut reached, mut left) = (BTreeSet::new(), used.iter().collect::<Vec<_>>());
            while let Some(next) = left.pop() {
                if reached.insert(next) {
                    left.extend(all.get(next).iter().flat_map(|(used, _)| used));
                }
            }
            if reached.contains(name) {
                circles.push(name.clone());
            }
        }
        let module = module.strip_prefix(&src).unwrap().display();
        // Types of one name that several files declare are as many types.
        let split = homes.iter().filter(|(_, files)| files.len() > 1 && files.iter().any(|(_, is_declared)| !is_declared));
        spread.extend(split.map(|(of, files)| format!("{module}: {of} in {files:?}")));
    }
    assert!(links > 100, "hardly any file uses another: the check does not see them ({links})");
    assert!(circles.is_empty(), "files that use each other, however far around: {circles:?}");
    assert!(spread.is_empty(), "types with functions in several files: {spread:?}");
}

#[test]
fn every_file_says_what_it_owns_in_ascii_and_is_not_long() {
    let mut files = Vec::new();
    for dir in ["src", "services", "bench"] {
        sources(&root().join(dir), &mut files);
    }
    for path in &files {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("//! "), "{} does not say what it owns", path.display());
        // The drawings use box and arrow characters; code does not.
        let odd = text.lines().find(|l| !l.is_ascii() && !l.trim_start().starts_with("//"));
        assert!(odd.is_none(), "{}: {odd:?}", path.display());
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
        let is_test = path.ends_with("tests.rs") || path.components().any(|c| c.as_os_str() == "tests");
        assert!(is_test || code <= LINES_MAX, "{} has {code} lines", path.display());
    }
}

#[test]
fn the_library_has_no_async_code_and_no_command_line() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for path in files.iter().filter(|p| !p.ends_with("tidy.rs")) {
        let text = fs::read_to_string(path).unwrap();
        for banned in BANNED {
            assert!(!text.contains(banned), "{} names {banned}", path.display());
        }
    }
}

#[test]
fn the_top_level_holds_what_it_should_and_nothing_else() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "services",
        "config",
        "bench",
        "README.md",
        "LICENSE",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "target",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "{name} at the top level");
    }
}

#[test]
fn unsafe_stands_in_the_few_files_that_need_it() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for path in files.iter().filter(|p| !p.ends_with("tidy.rs")) {
        let text = fs::read_to_string(path).unwrap();
        let blocks = text.lines().filter(|l| l.contains("unsafe {")).count();
        let allowed = ["src/pages.rs", "shm/mod.rs", "disk/mapped.rs", "disk/unlinked.rs", "c/pointers.rs", "c/borrowing.rs"];
        let is_allowed = allowed.iter().any(|file| path.ends_with(file));
        assert!(blocks == 0 || is_allowed, "{} has {blocks} unsafe blocks", path.display());
    }
}

/// Words that are not used any more, each with what is written instead. A pair is two words.
const RETIRED: [(&str, &str); 35] = [
    ("filed", "flushed"),
    ("filing", "flush"),
    ("filer", "flusher"),
    ("files of history", "SSTables"),
    ("held back", "back-pressure"),
    ("hold back", "back-pressure"),
    ("holds back", "back-pressure"),
    ("tell", "notify"),
    ("tells", "notifies"),
    ("told", "notified"),
    ("hear", "receive"),
    ("hears", "receives"),
    ("heard", "received"),
    ("speaks", "sends"),
    ("spoken", "sent"),
    ("fact", "control entry"),
    ("facts", "control entries"),
    ("evidence", "durable mark"),
    ("lane", "publisher session"),
    ("lanes", "publisher sessions"),
    ("seat", "member"),
    ("seats", "members"),
    ("stranded", "needs a snapshot"),
    ("lacks a copy", "needs a snapshot"),
    ("founding", "initialise a cluster"),
    ("founders", "initial members"),
    ("founded", "initialised"),
    ("let in", "attach"),
    ("lets in", "attaches"),
    ("take in", "accept"),
    ("takes in", "accepts"),
    ("taken in", "accepted"),
    ("took in", "accepted"),
    ("anew", "again"),
    ("torn cut", "truncated"),
];

/// The words of `text` in lower case: `flushedRows` and `flushed_rows` are two.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() || c.is_ascii_uppercase() && was_lower {
            words.push(String::new());
        }
        was_lower = c.is_ascii_lowercase();
        if c.is_ascii_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

#[test]
fn retired_words_are_in_no_name_comment_message_or_page() {
    let mut files = Vec::new();
    for dir in ["src", "services", "bench"] {
        sources(&root().join(dir), &mut files);
    }
    for (dir, ending) in [("", "md"), ("src/docs", "md"), ("bench", "md"), ("config", "toml"), ("services/proto", "proto")] {
        let entries = fs::read_dir(root().join(dir)).unwrap().map(|e| e.unwrap().path());
        files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == ending)));
    }
    let mut found = Vec::new();
    // The change log names old keys and commands beside the new ones.
    for path in files.iter().filter(|p| !p.ends_with("tidy.rs") && !p.ends_with("CHANGELOG.md")) {
        for (n, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
            let text = format!(" {} ", words(line).join(" "));
            let retired = RETIRED.iter().filter(|(old, _)| text.contains(&format!(" {old} ")));
            found.extend(retired.map(|(old, new)| format!("{}:{}: {old} ({new})", path.display(), n + 1)));
        }
    }
    assert!(found.is_empty(), "{} retired words:\n{}", found.len(), found.join("\n"));
}

/// Public items that rustdoc shows: those of modules that are not hidden, without re-exports.
fn public_items() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut modules = Vec::new();
    let mut is_hidden = false;
    for line in lib.lines() {
        if let Some(name) = line.strip_prefix("pub mod ").filter(|_| !is_hidden) {
            modules.push(name.trim_end_matches(';').to_owned());
        }
        is_hidden = line.starts_with("#[");
    }
    let mut files = Vec::new();
    for module in &modules {
        let path = root().join("src").join(module);
        files.push(path.with_extension("rs"));
        if path.is_dir() {
            files.pop();
            sources(&path, &mut files);
        }
    }
    let mut items = Vec::new();
    for path in files.iter().filter(|p| !p.ends_with("tests.rs")) {
        let text = fs::read_to_string(path).unwrap();
        let mut is_hidden = false;
        for line in text.lines().map(str::trim_start) {
            let kinds = ["fn ", "const ", "struct ", "enum ", "trait ", "type ", "static ", "mod "];
            let item = line.strip_prefix("pub ").filter(|rest| kinds.iter().any(|kind| rest.starts_with(kind)));
            if let Some(item) = item.filter(|_| !is_hidden) {
                items.push(format!("{}: {item}", path.strip_prefix(root()).unwrap().display()));
            }
            is_hidden = line.starts_with("#[doc(hidden)]") || is_hidden && (line.starts_with("#[") || line.starts_with("///"));
        }
    }
    items
}

#[test]
fn the_library_has_fewer_than_250_public_items() {
    let items = public_items();
    assert!(items.len() > 100, "the check does not see them: {}", items.len());
    assert!(items.len() < 250, "{} public items:\n{}", items.len(), items.join("\n"));
}

/// The levels of log lines.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The events that `code` logs, each as level and name; `None` for a line without a name.
fn logged(code: &str) -> Vec<(&'static str, Option<&str>)> {
    let mut found = Vec::new();
    let end = |rest: &str| rest.find('"');
    for level in LEVELS {
        for (at, call) in code.match_indices(&format!("{level}!")) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let arguments = code[at + call.len()..].strip_prefix('(').map_or("", str::trim_start);
            let given = arguments.strip_prefix("name: \"").and_then(|rest| rest.get(..end(rest)?));
            found.push((level, given.filter(|_| code[..at].ends_with("tracing::"))));
        }
        // Lines that are made without a macro.
        for (at, given) in code.match_indices(&format!("Level::{}, \"", level.to_uppercase())) {
            let rest = &code[at + given.len()..];
            found.push((level, end(rest).and_then(|end| rest.get(..end))));
        }
    }
    found
}

/// The events of the page, each with its level.
fn documented() -> Vec<(String, String)> {
    let page = fs::read_to_string(root().join("src/docs/events.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    rows.flat_map(|row| {
        assert!(row.len() == 7 && !row[3].is_empty() && !row[4].is_empty(), "not a whole row: {row:?}");
        assert!(!row[5].is_empty() || !["error", "warn"].contains(&row[2]), "nothing says what to do: {row:?}");
        row[1].split(", ").map(|name| (name.trim_matches('`').to_owned(), row[2].to_owned())).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_log_line_has_an_event_of_the_page_and_the_page_has_no_other() {
    let mut files = Vec::new();
    for dir in ["src", "services"] {
        sources(&root().join(dir), &mut files);
    }
    // What libraries log has one name and any level.
    let mut events = BTreeMap::from([("library.event".to_owned(), "any".to_owned())]);
    let mut wrong = Vec::new();
    for path in files.iter().filter(|p| !p.ends_with("tidy.rs")) {
        let code = code_of(path);
        let place = path.strip_prefix(root()).unwrap().display();
        if code.contains("tracing::event!") {
            wrong.push(format!("{place}: tracing::event! has no level of its own in its name"));
        }
        for (level, name) in logged(&code) {
            let is_word = |w: &str| w.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') && !w.is_empty();
            let Some(name) = name.filter(|n| n.split_once('.').is_some_and(|(area, what)| is_word(area) && is_word(what))) else {
                wrong.push(format!("{place}: a line of level {level} is named {name:?}, not like \"area.what_happened\""));
                continue;
            };
            let first = events.entry(name.to_owned()).or_insert(level.to_owned());
            if first != level {
                wrong.push(format!("{place}: {name} has the level {level} here and {first} elsewhere"));
            }
        }
    }
    assert!(events.len() > 190, "the check does not see them: {}", events.len());
    let page = documented();
    let areas: Vec<_> = page.iter().filter_map(|(name, _)| name.split('.').next()).collect();
    if !areas.is_sorted() {
        wrong.push("the areas of the page are not in order".to_owned());
    }
    let listed: BTreeMap<_, _> = page.iter().cloned().collect();
    if listed.len() != page.len() {
        wrong.push("the page has an event twice".to_owned());
    }
    wrong.extend(
        events.iter().filter(|e| listed.get(e.0) != Some(e.1)).map(|(n, l)| format!("not in the page with its level: {n}, {l}")),
    );
    wrong.extend(listed.keys().filter(|n| !events.contains_key(*n)).map(|n| format!("in the page, and nothing logs it: {n}")));
    assert!(wrong.is_empty(), "{} errors of log events:\n{}", wrong.len(), wrong.join("\n"));
}
