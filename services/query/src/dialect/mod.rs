//! Owns: the words of time-series SQL that the parser does not have: `SAMPLE BY`, `LATEST ON`, `TOLERANCE`, `WINDOW JOIN`,
//! `HORIZON JOIN`.
//!
//! They are rewritten in two steps. Before the parser, by tokens: `SAMPLE BY 1m FILL (PREV)` becomes `GROUP BY
//! sample_by('1m', 'PREV', ...)`, at the same place in a statement; `LATEST ON time PARTITION BY symbol` becomes `GROUP BY
//! latest_on(time, symbol)`; `TOLERANCE 5s` moves into the match condition; window and horizon joins become as-of joins. After the parser, in its tree: a group by
//! `sample_by` becomes one by the keys and a bucket of the time, `latest_on` becomes a join of the planner of relations.
//!
//! What must hold: text in quotes and comments is never changed. A statement without these words is parsed as it is.

mod joins;
mod tokens;
mod tree;
mod windows;
mod words;

use datafusion::error::Result;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::VisitMut;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

pub use self::tree::{arguments, call, name_of, texts};
pub use self::words::{ASOF_JOIN, FILL, HORIZON_JOIN, LATEST_ON, WINDOW_JOIN};

use self::tree::Expander;
use self::words::wrong;
use crate::asof::node::wrap;
use crate::nesting;

/// Parses `sql`, one statement. `is_aggregate` is true for the names of aggregate functions.
///
/// # Errors
/// It is no statement, or a word of time-series SQL is used wrongly.
pub fn parse(sql: &str, is_aggregate: &dyn Fn(&str) -> bool) -> Result<Statement> {
    let dialect = PostgreSqlDialect {};
    // Quotes within quotes stay doubled: the text is put together again from the tokens.
    let tokens = Tokenizer::new(&dialect, sql).with_unescape(false).tokenize().map_err(|error| wrong(error.to_string()))?;
    nesting::check(&tokens)?;
    let text = tokens::rewritten(&tokens)?;
    let text = text.as_deref().unwrap_or(sql);
    let mut statements = DFParserBuilder::new(text).with_dialect(&dialect).build()?.parse_statements()?;
    let statement = statements.pop_front().ok_or_else(|| wrong("there is no statement"))?;
    if !statements.is_empty() {
        return Err(wrong("these are several statements; send them one by one"));
    }
    expand(statement, is_aggregate)
}

fn expand(statement: Statement, is_aggregate: &dyn Fn(&str) -> bool) -> Result<Statement> {
    match statement {
        Statement::Statement(mut statement) => {
            let mut expander = Expander { is_aggregate, error: None };
            // It never breaks; an error is kept.
            let _continued = statement.visit(&mut expander);
            if let Some(error) = expander.error {
                return Err(error);
            }
            wrap(statement.as_mut());
            Ok(Statement::Statement(statement))
        }
        Statement::Explain(mut explain) => {
            explain.statement = Box::new(expand(*explain.statement, is_aggregate)?);
            Ok(Statement::Explain(explain))
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_used_wrongly_is_an_error_that_shows_how() {
        let error = |sql: &str| parse(sql, &|name| name == "last").unwrap_err().to_string();
        assert!(error("select last(price) from trade sample by").contains("SAMPLE BY 1m"));
        assert!(error("select last(price) from trade sample by 7 parsecs").contains("parsecs"));
        assert!(error("select * from trade sample by 1m").contains("not *"));
        assert!(error("select * from trade latest on time").contains("PARTITION BY"));
        assert!(error("select 1; select 2").contains("one by one"));
    }
}
