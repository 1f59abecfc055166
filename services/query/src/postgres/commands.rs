//! Owns: the statements of PostgreSQL's clients that are no questions about the store: settings, transactions, and how a text of
//! several statements is taken apart.
//!
//! A statement reads one snapshot of its own. Transactions are accepted for the clients that open them, and change nothing.
//!
//! What must hold: a setting that would change what a client reads, and that the server cannot follow, is refused.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use pgwire::error::PgWireResult;

use crate::nesting;
use crate::postgres::codes;

/// The version of PostgreSQL that clients get.
pub(super) const VERSION: &str = "16.6";

/// The settings that clients may ask for, in lower case, and what they are at first.
const SETTINGS: [(&str, &str); 34] = [
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, YMD"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("geqo", "on"),
    ("idle_in_transaction_session_timeout", "0"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "off"),
    ("jit", "off"),
    ("lc_collate", "C"),
    ("lc_messages", "C"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("row_security", "on"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", VERSION),
    ("server_version_num", "160006"),
    ("ssl_renegotiation_limit", "0"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("synchronize_seqscans", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "repeatable read"),
    ("transaction_read_only", "on"),
];

/// The settings of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// All names and values.
    pub(super) fn all(&self) -> Vec<(&'static str, String)> {
        SETTINGS.iter().map(|(name, value)| (*name, self.0.get(name).cloned().unwrap_or_else(|| (*value).to_owned()))).collect()
    }

    /// The value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        self.all().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Sets `name` to `value`; `None` sets it to what it was at first.
    ///
    /// # Errors
    /// There is no such setting, or the server cannot follow it.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> PgWireResult<()> {
        let name = name.to_ascii_lowercase();
        let Some((name, _)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
            return Err(codes::error("42704", format!("there is no setting '{name}'")));
        };
        let Some(value) = value else {
            self.0.remove(name);
            return Ok(());
        };
        if value.len() > 1024 {
            return Err(codes::error("22023", format!("the value of {name} is too long")));
        }
        let lower = value.to_ascii_lowercase();
        let refused = |reason: &str| Err(codes::error("22023", format!("{name} cannot be '{value}': {reason}")));
        match *name {
            "timezone" if !["utc", "etc/utc", "gmt", "zulu", "universal", "uct", "default"].contains(&lower.as_str()) => {
                return refused("all times are UTC");
            }
            "client_encoding" if !["utf8", "utf-8", "unicode", "default"].contains(&lower.as_str()) => {
                return refused("all texts are UTF8");
            }
            "datestyle" if !lower.starts_with("iso") && lower != "default" => return refused("all times are ISO"),
            "intervalstyle" if lower != "postgres" => return refused("there is: postgres"),
            "bytea_output" if lower != "hex" => return refused("there is: hex"),
            "standard_conforming_strings" if !["on", "true", "1"].contains(&lower.as_str()) => return refused("it is on"),
            "server_version" | "server_version_num" | "server_encoding" | "integer_datetimes" | "max_identifier_length" => {
                return refused("it cannot be changed");
            }
            "transaction_read_only" | "default_transaction_read_only" if ["off", "false", "0"].contains(&lower.as_str()) => {
                return Err(codes::error("25006", "statements only read"));
            }
            // What follows from these is the same for every value.
            "timezone" | "client_encoding" | "datestyle" => {}
            _ => {
                self.0.insert(name, value.to_owned());
            }
        }
        Ok(())
    }
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// A transaction begins.
    Begin,
    /// It ends.
    Commit,
    /// It ends, also after an error.
    Rollback,
    /// Sets a setting of PostgreSQL.
    Set {
        /// Its name.
        name: String,
        /// Its value; `None`: what it was at first.
        value: Option<String>,
    },
    /// Sets a setting of the session: a statement for it.
    Session(String),
    /// Asks for a setting.
    Show(String),
    /// Nothing to do; clients get this tag.
    Nothing(&'static str),
    /// It would change something.
    Changes,
    /// It is not supported.
    Absent(&'static str),
}

/// The statements of `sql`, without what separates them.
///
/// # Errors
/// It is no SQL: a quote does not end, for one.
pub(super) fn split(sql: &str) -> PgWireResult<Vec<String>> {
    let mut parts = vec![String::new()];
    for token in tokens(sql)? {
        match token {
            Token::SemiColon => parts.push(String::new()),
            Token::Whitespace(_) if parts.last().is_some_and(String::is_empty) => {}
            token => {
                if let Some(part) = parts.last_mut() {
                    part.push_str(&token.to_string());
                }
            }
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    Ok(parts)
}

/// The tokens of `sql`, as they are written.
pub(super) fn tokens(sql: &str) -> PgWireResult<Vec<Token>> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize();
    let tokens = tokens.map_err(|error| codes::error("42601", error.to_string()))?;
    nesting::check(&tokens).map_err(|error| codes::error("54001", error.strip_backtrace()))?;
    Ok(tokens)
}

/// The command that the statement `sql` is, if it is one.
///
/// # Errors
/// As [`split`].
pub(super) fn command(sql: &str) -> PgWireResult<Option<Command>> {
    let tokens: Vec<Token> = tokens(sql)?.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    let words: Vec<String> = tokens.iter().map(word).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Some(match words.as_slice() {
        ["begin", ..] | ["start", "transaction", ..] => Command::Begin,
        ["commit" | "end", ..] => Command::Commit,
        ["rollback", "to", ..] => Command::Nothing("ROLLBACK"),
        ["rollback" | "abort", ..] => Command::Rollback,
        ["savepoint", ..] => Command::Nothing("SAVEPOINT"),
        ["release", ..] => Command::Nothing("RELEASE"),
        ["set", "session", "characteristics", ..] | ["set", "transaction", ..] => Command::Nothing("SET"),
        ["set", "session" | "local", rest @ ..] | ["set", rest @ ..] => return Ok(set(rest, &tokens)),
        ["reset", "all"] => Command::Nothing("RESET"),
        ["reset", name @ ("at" | "as_known_at")] => first(name),
        ["reset", name] => Command::Set { name: (*name).to_owned(), value: None },
        ["discard", ..] => Command::Nothing("DISCARD ALL"),
        ["deallocate", ..] => Command::Nothing("DEALLOCATE"),
        ["close", ..] => Command::Nothing("CLOSE CURSOR"),
        ["unlisten", ..] => Command::Nothing("UNLISTEN"),
        ["show", "time", "zone"] => Command::Show("timezone".to_owned()),
        ["show", "transaction", "isolation", "level"] => Command::Show("transaction_isolation".to_owned()),
        ["show", name] if SETTINGS.iter().any(|(known, _)| known == name) => Command::Show((*name).to_owned()),
        [
            "insert" | "update" | "delete" | "merge" | "truncate" | "create" | "alter" | "drop" | "comment" | "grant" | "revoke",
            ..,
        ]
        | ["vacuum" | "reindex" | "cluster" | "refresh" | "lock", ..] => Command::Changes,
        ["copy", ..] => Command::Absent("COPY"),
        ["declare" | "fetch" | "move", ..] => Command::Absent("cursors of SQL; a client's portal has a limit of rows instead"),
        ["prepare" | "execute", ..] => Command::Absent("PREPARE of SQL; clients prepare by the protocol"),
        ["listen" | "notify", ..] => Command::Absent("LISTEN"),
        _ => return Ok(None),
    }))
}

fn word(token: &Token) -> String {
    match token {
        Token::Word(word) if word.quote_style.is_none() => word.value.to_ascii_lowercase(),
        Token::Word(word) => word.value.clone(),
        token => token.to_string(),
    }
}

/// Sets a setting of the session to what it was at first.
fn first(name: &str) -> Command {
    Command::Session(format!("SET {name} = '{}'", if name == "at" { "committed" } else { "off" }))
}

/// `name = value`, `name TO value`, `TIME ZONE value`, after `SET`.
fn set(words: &[&str], tokens: &[Token]) -> Option<Command> {
    let value = |from: usize| {
        // Values as they are written, without quotes.
        let tokens = tokens.get(tokens.len() - (words.len() - from)..).unwrap_or(&[]);
        let text = |token: &Token| match token {
            Token::SingleQuotedString(text) => text.replace("''", "'"),
            Token::Word(word) => word.value.clone(),
            token => token.to_string(),
        };
        let value = tokens.iter().map(text).collect::<Vec<_>>().join("").replace(',', ", ");
        (!value.eq_ignore_ascii_case("default")).then_some(value)
    };
    Some(match words {
        ["time", "zone", _, ..] => Command::Set { name: "timezone".to_owned(), value: value(2) },
        ["names", _, ..] => Command::Set { name: "client_encoding".to_owned(), value: value(1) },
        [name @ ("at" | "as_known_at"), "=" | "to", _, ..] => value(2)
            .map_or_else(|| first(name), |value| Command::Session(format!("SET {name} = '{}'", value.replace('\'', "''")))),
        [name, "=" | "to", _, ..] => Command::Set { name: (*name).to_owned(), value: value(2) },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_separate_but_not_in_texts_and_comments() {
        let of = |sql: &str| split(sql).unwrap();
        assert_eq!(of("select 1; select 'a;''b' ;; "), ["select 1", "select 'a;''b' "]);
        assert_eq!(of("select 1 /* don't; */; select \"a;b\""), ["select 1 /* don't; */", "select \"a;b\""]);
        assert_eq!(of(" ; "), [""; 0]);
        assert!(split("select 'a").is_err());
    }

    #[test]
    fn settings_and_transactions_are_commands_and_questions_are_not() {
        let of = |sql: &str| command(sql).unwrap();
        let set = |name: &str, value: &str| Some(Command::Set { name: name.to_owned(), value: Some(value.to_owned()) });
        assert_eq!(of("BEGIN ISOLATION LEVEL REPEATABLE READ"), Some(Command::Begin));
        assert_eq!(of("end"), Some(Command::Commit));
        assert_eq!(of("SET extra_float_digits = 3"), set("extra_float_digits", "3"));
        assert_eq!(of("set session DateStyle to 'ISO'"), set("datestyle", "ISO"));
        assert_eq!(of("SET TIME ZONE 'UTC'"), set("timezone", "UTC"));
        assert_eq!(of("set search_path = public, pg_catalog"), set("search_path", "public, pg_catalog"));
        assert_eq!(of("set at = 'lsn 42'"), Some(Command::Session("SET at = 'lsn 42'".to_owned())));
        assert_eq!(of("set at to appended"), Some(Command::Session("SET at = 'appended'".to_owned())));
        assert_eq!(of("set as_known_at to now"), Some(Command::Session("SET as_known_at = 'now'".to_owned())));
        assert_eq!(of("set as_known_at = 'lsn 7'"), Some(Command::Session("SET as_known_at = 'lsn 7'".to_owned())));
        assert_eq!(of("reset as_known_at"), Some(Command::Session("SET as_known_at = 'off'".to_owned())));
        assert_eq!(of("set at to default"), Some(Command::Session("SET at = 'committed'".to_owned())));
        assert_eq!(of("show TimeZone"), Some(Command::Show("timezone".to_owned())));
        assert_eq!(of("show at"), None);
        assert_eq!(of("select 1"), None);
    }

    #[test]
    fn a_setting_that_cannot_be_followed_is_refused() {
        let mut values = Values::default();
        assert!(values.set("TimeZone", Some("Europe/Paris")).is_err());
        assert!(values.set("client_encoding", Some("LATIN1")).is_err());
        assert!(values.set("no_such", Some("1")).is_err());
        values.set("application_name", Some("desk")).unwrap();
        assert_eq!(values.get("Application_Name").unwrap(), "desk");
        values.set("application_name", None).unwrap();
        assert_eq!(values.get("application_name").unwrap(), "");
    }
}
