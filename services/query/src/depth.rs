//! Owns: how deep a statement may be: how many operators lie in a row, and how many tables and parts are put together.
//!
//! The parser, the planner and the operators go down into a statement by recursion: one that is too deep would end the process,
//! with all its clients. It is counted in tokens, before anything is parsed, and rather too much than too little.
//!
//! What must hold: a statement that passes is answered on threads with a stack of [`STACK`]. Tokio's own 2 MiB are too few.

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::tokenizer::Token;

/// Bytes of the stack of threads that answer statements: `thread_stack_size` of a runtime.
pub const STACK: usize = 32 << 20;
/// Operators in a row.
const OPERATORS_MAX: usize = 100;
/// Tables that are joined, and statements that are put together by UNION and its kind.
const PARTS_MAX: usize = 64;

/// Calls in the arguments of calls: each one more doubles the work of the planner.
const CALLS_MAX: usize = 10;
/// Words that may stand before a parenthesis that begins no call.
const NO_CALLS: [&str; 24] = [
    "IN", "AND", "OR", "NOT", "FROM", "SELECT", "WHERE", "ON", "EXISTS", "ANY", "ALL", "AS", "VALUES", "JOIN", "WHEN", "THEN",
    "ELSE", "BY", "UNION", "LATERAL", "USING", "OVER", "BETWEEN", "CASE",
];

/// What is counted between two parentheses.
#[derive(Clone, Copy, Default)]
struct Level {
    is_call: bool,
    operators: usize,
    is_from: bool,
}

/// Whether `tokens` are not too deep.
///
/// # Errors
/// They are.
pub fn check(tokens: &[Token]) -> Result<()> {
    let (mut levels, mut parts) = (vec![Level::default()], 0usize);
    // The sum of the operators of the levels around.
    let mut around = 0usize;
    let (mut calls, mut is_name) = (0usize, false);
    for token in tokens {
        let was_name = is_name;
        is_name = match token {
            Token::Word(word) => word.quote_style.is_some() || !NO_CALLS.contains(&word.value.to_ascii_uppercase().as_str()),
            Token::Whitespace(_) => is_name,
            _ => false,
        };
        let count = levels.len();
        let Some(level) = levels.last_mut() else { break };
        match token {
            Token::LParen => {
                around += level.operators + 1;
                calls += usize::from(was_name);
                levels.push(Level { is_call: was_name, ..Level::default() });
            }
            Token::RParen if count > 1 => {
                calls -= usize::from(level.is_call);
                levels.pop();
                around -= levels.last().map_or(0, |level| level.operators + 1);
            }
            Token::Comma if level.is_from => parts += 1,
            Token::Comma | Token::SemiColon => level.operators = 0,
            Token::Word(word) if word.quote_style.is_none() => match word.value.to_ascii_uppercase().as_str() {
                "FROM" => *level = Level { operators: 0, is_from: true, is_call: level.is_call },
                "SELECT" | "WHERE" | "GROUP" | "HAVING" | "ORDER" | "LIMIT" | "QUALIFY" | "WINDOW" => {
                    *level = Level { is_call: level.is_call, ..Level::default() };
                }
                "JOIN" | "UNION" | "EXCEPT" | "INTERSECT" => parts += 1,
                "AND" | "OR" | "NOT" | "IS" | "LIKE" | "ILIKE" | "SIMILAR" | "IN" | "BETWEEN" | "COLLATE" | "AT" | "ISNULL"
                | "NOTNULL" | "XOR" | "DIV" | "OVERLAPS" | "ESCAPE" => level.operators += 1,
                _ => {}
            },
            Token::Word(_) | Token::Number(..) | Token::Whitespace(_) | Token::Period | Token::Placeholder(_) | Token::RParen => {
            }
            Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) | Token::EscapedStringLiteral(_) | Token::EOF => {}
            Token::DollarQuotedString(_) | Token::NationalStringLiteral(_) | Token::HexStringLiteral(_) => {}
            _ => level.operators += 1,
        }
        let deep = around + levels.last().map_or(0, |level| level.operators);
        if deep > OPERATORS_MAX || parts > PARTS_MAX || calls > CALLS_MAX {
            return Err(DataFusionError::Plan(format!(
                "the statement is too deep: at most {OPERATORS_MAX} operators in a row, {CALLS_MAX} calls in each \
                 other, and {PARTS_MAX} tables or parts of a UNION; \
                 a long row of ORs may be an IN"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn passes(sql: &str) -> bool {
        check(&Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().unwrap()).is_ok()
    }

    #[test]
    fn rows_of_operators_and_of_tables_have_an_end_and_long_lists_have_none() {
        let many = |part: &str, between: &str, count: usize| vec![part; count].join(between);
        assert!(passes(&format!("select {}", many("1", "+", 100))));
        assert!(!passes(&format!("select {}", many("1", "+", 200))));
        assert!(!passes(&format!("select 1 where {}", many("a = 1", " or ", 200))));
        assert!(!passes(&format!("select {}1{}", many("(1+", "", 60), many(")", "", 60))));
        assert!(!passes(&format!("select 1{}", many("::int", "", 200))));
        assert!(!passes(&format!("select * from {}", many("trade", ", ", 100))));
        assert!(!passes(&many("select 1", " union all ", 100)));
        assert!(passes(&format!("select 1 where a in ({})", many("-1", ", ", 10_000))));
        assert!(passes(&format!("select {} from trade", many("a + b", ", ", 1000))));
        assert!(passes(&format!("select {}1{}", many("abs(", "", 10), many(")", "", 10))));
        assert!(!passes(&format!("select {}1{}", many("abs (1 + ", "", 11), many(")", "", 11))));
        assert!(passes(&vec!["select abs((select 1 from trade where a))"; 60].join(";")));
        assert!(passes("select ')' || 'a', ((1)), (select 2)) from trade"));
    }
}
