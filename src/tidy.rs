//! Owns: the rules of the sources that no compiler checks: floors, first lines, lengths, ASCII.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each module; a module uses only lower ones. (The lowest floor of the design, `lsn`,
/// `error`, `time`, is three steps.)
const FLOORS: [(&str, u32); 26] = [
    ("lsn", 0),
    ("sabotage", 0),
    ("error", 1),
    ("time", 2),
    ("record", 10),
    ("agent", 10),
    ("disk", 20),
    ("bus", 20),
    ("shm", 20),
    ("wal", 30),
    ("memtable", 30),
    ("sstable", 30),
    ("manifest", 40),
    ("version", 45),
    ("backup", 46),
    ("repair", 47),
    ("compaction", 48),
    ("bars", 50),
    ("book", 50),
    ("consensus", 50),
    ("publisher", 50),
    ("subscriber", 50),
    ("reader", 50),
    ("engine", 60),
    ("config", 70),
    ("tidy", 80),
];

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
        // The derive is a crate of its own: a compiler's plug-in has to be.
        if module == "lib" || module == "tidy" || module == "derive" {
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
fn the_top_level_holds_what_the_design_names_and_nothing_else() {
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
        assert!(
            blocks == 0 || path.ends_with("shm/mod.rs") || path.ends_with("disk/mapped.rs"),
            "{} has {blocks} unsafe blocks",
            path.display()
        );
    }
}
