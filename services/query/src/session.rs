//! Owns: what a client says in a row of statements: settings, parameters, and which snapshot each statement reads.
//!
//! `SET at = 'appended' | 'committed' | 'durable' | 'flushed' | 'lsn 42'` chooses how far statements read; `SHOW at` is what it is.
//! `SET as_known_at = 'lsn 42' | 'now' | 'off'` applies the busts and corrections up to a record.
//!
//! What must hold: a setting is of its session alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Set, Statement as Sql, Value};
use tapestore::lsn::Lsn;
use tapestore::reader::At;

use crate::changes::Shape;
use crate::engine::{Answer, Engine, Settings};
use crate::failure::QueryError;
use crate::known::AsKnown;

/// The settings.
pub const SETTINGS: [&str; 2] = ["at", "as_known_at"];

/// A client's statements.
#[derive(Clone, Debug)]
pub struct Session {
    engine: Arc<Engine>,
    settings: Settings,
}

/// What came of a statement.
pub enum Reply {
    /// Rows.
    Rows(Answer),
    /// No rows: the command is done. `SET`, for one.
    Done(&'static str),
}

/// The columns of a statement, and the types of its parameters.
#[derive(Clone, Debug)]
pub struct Described {
    /// The columns of its rows; none if it has no rows.
    pub schema: SchemaRef,
    /// The types of `$1`, `$2` and so on; `None`: any.
    pub parameters: Vec<Option<DataType>>,
}

fn wrong(reason: impl Into<String>) -> QueryError {
    QueryError::Statement { reason: reason.into() }
}

impl Session {
    /// A session with the settings `settings`.
    pub fn new(engine: Arc<Engine>, settings: Settings) -> Session {
        Session { engine, settings }
    }

    /// The store's engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The settings now.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The value of the setting `name`, as `SET` takes it; `None` if there is no such setting.
    pub fn value(&self, name: &str) -> Option<String> {
        match (name, self.settings.until) {
            ("at", Some(lsn)) => Some(format!("lsn {lsn}")),
            ("at", None) => Some(self.settings.at.to_string()),
            ("as_known_at", _) => Some(self.settings.known.to_string()),
            _ => None,
        }
    }

    /// Runs the statement `sql` with `parameters` for `$1`, `$2` and so on.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub async fn run(&mut self, sql: &str, parameters: Vec<ScalarValue>) -> Result<Reply, QueryError> {
        if parameters.is_empty()
            && let Some(answer) = self.engine.again(sql, &self.settings).await?
        {
            return Ok(Reply::Rows(answer));
        }
        let statement = self.engine.parse(sql)?;
        if let Some((name, value)) = assignment(&statement)? {
            self.set(&name, &value)?;
            return Ok(Reply::Done("SET"));
        }
        let value = shown(&statement).and_then(|name| Some((self.value(&name)?, name)));
        if let Some((value, name)) = value {
            drop(statement);
            let sql = format!("select '{value}' as {name}");
            return self.engine.query(&sql, &self.settings).await.map(Reply::Rows);
        }
        self.engine.answer(sql, statement, parameters, &self.settings).await.map(Reply::Rows)
    }

    /// Answers what `change` makes of the plan of `sql`, under `settings`.
    ///
    /// # Errors
    /// As [`Engine::query`], and those of `change`.
    pub async fn answer_as(
        &self,
        sql: &str,
        parameters: Vec<ScalarValue>,
        settings: &Settings,
        change: fn(&LogicalPlan) -> Result<LogicalPlan, DataFusionError>,
    ) -> Result<Answer, QueryError> {
        self.engine.answer_as(self.engine.parse(sql)?, parameters, settings, change).await
    }

    /// Whether `sql` sets a setting, and has no rows.
    ///
    /// # Errors
    /// It is no statement.
    pub fn is_setting(&self, sql: &str) -> Result<bool, QueryError> {
        Ok(assignment(&self.engine.parse(sql)?)?.is_some())
    }

    /// What of the answer of `sql` can change.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub async fn shape(&self, sql: &str) -> Result<Shape, QueryError> {
        let statement = self.engine.parse(sql)?;
        if assignment(&statement)?.is_some() || shown(&statement).is_some() {
            return Err(wrong("only a statement with rows can be followed"));
        }
        let (plan, kinds) = self.engine.plan(statement, &self.settings).await?;
        // A later bust or correction changes any row.
        let is_known = self.settings.known != AsKnown::Off;
        Ok(if is_known { Shape::Any } else { Shape::of(&plan, &kinds) })
    }

    /// The columns and the parameters of `sql`.
    ///
    /// # Errors
    /// As [`Engine::query`].
    pub async fn describe(&self, sql: &str) -> Result<Described, QueryError> {
        if let Some(schema) = self.engine.described(sql, &self.settings)? {
            return Ok(Described { schema, parameters: Vec::new() });
        }
        let statement = self.engine.parse(sql)?;
        if assignment(&statement)?.is_some() {
            return Ok(Described { schema: Arc::new(Schema::empty()), parameters: Vec::new() });
        }
        if let Some(name) = shown(&statement).filter(|name| SETTINGS.contains(&name.as_str())) {
            let field = Field::new(name, DataType::Utf8, false);
            return Ok(Described { schema: Arc::new(Schema::new(vec![field])), parameters: Vec::new() });
        }
        let (schema, types) = self.engine.describe(sql, statement, &self.settings).await?;
        let numbers: BTreeMap<usize, Option<DataType>> = types
            .into_iter()
            .map(|(name, of)| {
                let number = name.trim_start_matches('$').parse::<usize>().ok().filter(|n| (1..=65_535).contains(n));
                number.map(|number| (number, of)).ok_or_else(|| wrong(format!("parameters are $1, $2 and so on, not {name}")))
            })
            .collect::<Result<_, _>>()?;
        let count = numbers.keys().max().copied().unwrap_or(0);
        let parameters = (1..=count).map(|number| numbers.get(&number).cloned().flatten()).collect();
        Ok(Described { schema, parameters })
    }

    /// Sets `name` to `value`.
    ///
    /// # Errors
    /// There is no such setting, or it has no such value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), QueryError> {
        match name {
            "at" => {
                let (at, until) = if let Some(lsn) = value.strip_prefix("lsn ") {
                    let lsn = lsn.trim().parse().map_err(|_| wrong(format!("'{value}' is not like 'lsn 42'")))?;
                    (At::Committed, Some(Lsn(lsn)))
                } else {
                    let at = value.parse().map_err(|_| {
                        wrong(format!("'{value}' is none of: appended, durable, committed, flushed, lsn and a number"))
                    })?;
                    (at, None)
                };
                self.settings = Settings { at, until, after: None, since: None, ..self.settings };
                Ok(())
            }
            "as_known_at" => {
                self.settings.known = value.parse().map_err(|reason: String| wrong(reason))?;
                Ok(())
            }
            _ => Err(wrong(format!(
                "there is no setting '{name}'; there are: at, like SET at = 'appended', and as_known_at, like SET as_known_at = 'now'"
            ))),
        }
    }
}

/// The name and the value that a statement sets.
fn assignment(statement: &Statement) -> Result<Option<(String, String)>, QueryError> {
    let Statement::Statement(statement) = statement else { return Ok(None) };
    let Sql::Set(set) = statement.as_ref() else { return Ok(None) };
    let Set::SingleAssignment { variable, values, .. } = set else {
        return Err(wrong("a setting is set like SET at = 'appended'"));
    };
    let value = match values.as_slice() {
        [Expr::Value(value)] => match &value.value {
            Value::SingleQuotedString(text) => text.clone(),
            other => other.to_string(),
        },
        [Expr::Identifier(name)] => name.value.clone(),
        _ => return Err(wrong("a setting has one value, like SET at = 'appended'")),
    };
    Ok(Some((variable.to_string().to_ascii_lowercase(), value)))
}

/// The setting that a statement shows.
fn shown(statement: &Statement) -> Option<String> {
    let Statement::Statement(statement) = statement else { return None };
    let Sql::ShowVariable { variable } = statement.as_ref() else { return None };
    Some(variable.iter().map(|part| part.value.to_ascii_lowercase()).collect::<Vec<_>>().join("."))
}
