//! Dependencies match `.deny.toml`: versions without known faults, allowed licences and sources. The one ignored advisory
//! cannot be reached from the network.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "an unexpected value fails a test by a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn table(name: &str) -> toml::Table {
    std::fs::read_to_string(root().join(name)).unwrap().parse().unwrap()
}

fn texts(value: &toml::Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// Name, version and source of each package in `Cargo.lock`.
fn locked() -> Vec<(String, String, Option<String>)> {
    let text = |p: &toml::Value, key: &str| p.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let lock = table("Cargo.lock");
    let packages = lock["package"].as_array().unwrap().iter();
    packages.map(|p| (text(p, "name").unwrap(), text(p, "version").unwrap(), text(p, "source"))).collect()
}

/// The numbers of `version`, without build metadata and pre-release.
fn numbers(version: &str) -> Vec<u64> {
    version.split(['+', '-']).next().unwrap().split('.').map(|n| n.parse().unwrap()).collect()
}

#[test]
fn no_version_with_a_known_fault_is_locked() {
    let deny = table(".deny.toml");
    let bans = deny["bans"]["deny"].as_array().unwrap();
    assert!(bans.len() >= 17, "too few banned versions: {}", bans.len());
    for ban in bans {
        let (spec, why) = (ban["crate"].as_str().unwrap(), ban["reason"].as_str().unwrap());
        let (name, least) = spec.split_once(":<").map_or((spec, None), |(name, least)| (name, Some(least)));
        for (_, version, _) in locked().iter().filter(|p| p.0 == name) {
            let is_sound = least.is_some_and(|least| numbers(version) >= numbers(least));
            assert!(is_sound, "{name} {version} is locked, but {spec} is banned: {why}");
        }
    }
}

#[test]
fn every_package_comes_from_an_allowed_registry() {
    let deny = table(".deny.toml");
    let allowed = texts(&deny["sources"]["allow-registry"]);
    for (name, version, source) in locked() {
        let Some(source) = source else {
            assert_eq!(version, "0.1.0", "{name} is a package of this repository");
            continue;
        };
        let registry = source.strip_prefix("registry+");
        assert!(registry.is_some_and(|r| allowed.iter().any(|a| a == r)), "{name} {version} comes from {source}");
    }
}

/// Whether `allowed` satisfies the licence expression of a package. `AND` binds before `OR`; `/` is `OR`.
fn is_allowed(licence: &str, allowed: &[String]) -> bool {
    let spaced = licence.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let is_allowed = either(&tokens, &mut at, allowed);
    assert_eq!(at, tokens.len(), "{licence}");
    is_allowed
}

fn either(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut is_one = both(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        is_one |= both(tokens, at, allowed);
    }
    is_one
}

fn both(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut are_all = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        are_all &= one(tokens, at, allowed);
    }
    are_all
}

fn one(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    if tokens.get(*at) == Some(&"(") {
        *at += 1;
        let is_one = either(tokens, at, allowed);
        assert_eq!(tokens.get(*at), Some(&")"));
        *at += 1;
        return is_one;
    }
    let mut name = (*tokens.get(*at).unwrap()).to_owned();
    *at += 1;
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).unwrap());
        *at += 2;
    }
    allowed.contains(&name)
}

#[test]
fn every_licence_is_allowed() {
    let allowed = texts(&table(".deny.toml")["licenses"]["allow"]);
    let simple = ["MIT".to_owned(), "ISC".to_owned()];
    for (licence, is_fine) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("MIT AND ISC OR GPL-3.0", true),
        ("MIT WITH something", false),
    ] {
        assert_eq!(is_allowed(licence, &simple), is_fine, "{licence}");
    }
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(host).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence, &allowed), "{name} is under {licence}");
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// RUSTSEC-2024-0437. The raft crate parses the contents of proposed entries. Another version of the crate needs another
/// review.
#[test]
fn nothing_here_parses_with_protobuf_2() {
    let of = |name: &str| locked().into_iter().filter(|p| p.0 == name).map(|p| p.1).collect::<Vec<_>>();
    assert_eq!((of("raft"), of("protobuf")), (vec!["0.7.0".to_owned()], vec!["2.28.0".to_owned()]));
    let ignored = table(".deny.toml")["advisories"]["ignore"].as_array().unwrap().clone();
    let ids: Vec<_> = ignored.iter().map(|i| i["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["RUSTSEC-2024-0437"], "another ignored advisory needs a reason and a test");
    let mut files = Vec::new();
    for dir in ["src", "services/src"] {
        sources(&root().join(dir), &mut files);
    }
    assert!(files.len() > 100);
    let parsers = ["protobuf::", "parse_from_bytes", "parse_from_reader", "merge_from", "CodedInputStream", "set_data("];
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let found = parsers.iter().find(|p| text.contains(**p));
        assert_eq!(found, None, "{} may pass bytes to a parser of protobuf 2", path.display());
    }
}
