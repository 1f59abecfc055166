//! Owns: how deep a statement may be nested.
//!
//! Statements are parsed, planned and run by functions that call themselves, and a thread whose stack is used up ends the
//! process. So the depth is estimated from the tokens, before anything is built of them: operators in a row, parentheses,
//! `CASE`, and what makes a chain of tables (`JOIN`, `UNION`, `WITH`).
//!
//! What must hold: a statement of depth `DEPTH_MAX` needs no more than a thread's [`STACK`].

use datafusion::error::{DataFusionError, Result};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::Token;

/// Stack of the threads that answer statements, bytes: a runtime's `thread_stack_size`. Unused pages of it take no memory.
pub const STACK: usize = 32 << 20;
/// Most levels of a statement. Builds without optimisation use up to 60 KB of stack for a level.
pub const DEPTH_MAX: usize = 300;

/// Most calls in the arguments of calls: the planner's work doubles with each.
pub const CALLS_MAX: usize = 10;
/// Words before a parenthesis that begins no call.
const NO_CALLS: [Keyword; 24] = [
    Keyword::IN,
    Keyword::AND,
    Keyword::OR,
    Keyword::NOT,
    Keyword::FROM,
    Keyword::SELECT,
    Keyword::WHERE,
    Keyword::ON,
    Keyword::EXISTS,
    Keyword::ANY,
    Keyword::ALL,
    Keyword::AS,
    Keyword::VALUES,
    Keyword::JOIN,
    Keyword::WHEN,
    Keyword::THEN,
    Keyword::ELSE,
    Keyword::BY,
    Keyword::UNION,
    Keyword::LATERAL,
    Keyword::USING,
    Keyword::OVER,
    Keyword::BETWEEN,
    Keyword::CASE,
];

/// What is between two parentheses, or between `CASE` and `END`.
#[derive(Default)]
struct Level {
    /// Operators since the last comma or clause.
    chain: usize,
    /// Tables that are chained.
    tables: usize,
    /// The deepest so far.
    deepest: usize,
    /// Whether a comma chains tables: after `FROM` and `WITH`.
    is_from: bool,
    is_with: bool,
}

impl Level {
    fn depth(&self) -> usize {
        1 + self.chain + self.tables
    }
}

/// The estimated depth of a statement of `tokens`.
fn depth(tokens: &[Token]) -> usize {
    // The outer levels, the innermost level, the depth of the outer ones, and the greatest depth.
    let (mut outer, mut level, mut above, mut deepest) = (Vec::new(), Level::default(), 0, 0);
    for token in tokens {
        let (mut opens, mut closes) = (false, false);
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => opens = true,
            Token::RParen | Token::RBracket | Token::RBrace => closes = true,
            Token::Comma => {
                level.chain = 0;
                level.tables += usize::from(level.is_from || level.is_with);
            }
            Token::Word(word) => match word.keyword {
                Keyword::CASE => opens = true,
                Keyword::END => closes = true,
                Keyword::WITH => level.is_with = true,
                Keyword::FROM => (level.chain, level.is_from, level.is_with) = (0, true, false),
                Keyword::SELECT => (level.chain, level.is_from, level.is_with) = (0, false, false),
                Keyword::WHERE | Keyword::GROUP | Keyword::HAVING | Keyword::ORDER | Keyword::QUALIFY => {
                    (level.chain, level.is_from) = (0, false);
                }
                Keyword::ON | Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.chain = 0,
                Keyword::JOIN | Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT => level.tables += 1,
                Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::IS | Keyword::LIKE | Keyword::ILIKE | Keyword::COLLATE => {
                    level.chain += 1;
                }
                _ => {}
            },
            Token::Whitespace(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Period
            | Token::SemiColon
            | Token::Placeholder(_)
            | Token::EOF => {}
            _ => level.chain += 1,
        }
        if opens {
            above += level.depth();
            outer.push(std::mem::take(&mut level));
        } else if closes && let Some(parent) = outer.pop() {
            let inner = std::mem::replace(&mut level, parent);
            above -= level.depth();
            let below = inner.deepest.max(inner.depth());
            level.deepest = level.deepest.max(level.depth() + below);
            // A table that is named once may be used by the next one.
            level.tables += if level.is_with { below } else { 0 };
            // What follows may be applied to it: a cast, an index.
            level.chain += usize::from(matches!(token, Token::RBracket));
        }
        level.deepest = level.deepest.max(level.depth());
        deepest = deepest.max(above + level.depth());
    }
    deepest
}

/// The most calls of a statement of `tokens` that lie in the arguments of each other.
fn calls(tokens: &[Token]) -> usize {
    let (mut levels, mut deepest, mut is_name): (Vec<bool>, usize, bool) = (Vec::new(), 0, false);
    for token in tokens {
        match token {
            Token::LParen => {
                levels.push(is_name);
                deepest = deepest.max(levels.iter().filter(|is_call| **is_call).count());
            }
            Token::RParen => {
                levels.pop();
            }
            _ => {}
        }
        is_name = match token {
            Token::Word(word) => word.quote_style.is_some() || !NO_CALLS.contains(&word.keyword),
            Token::Whitespace(_) => is_name,
            _ => false,
        };
    }
    deepest
}

/// Checks that a statement of `tokens` is not nested too deeply.
///
/// # Errors
/// It is.
pub fn check(tokens: &[Token]) -> Result<()> {
    let depth = depth(tokens);
    if depth <= DEPTH_MAX {
        // A statement of parentheses alone would make the count slow; it is too deep.
        let calls = calls(tokens);
        if calls <= CALLS_MAX {
            return Ok(());
        }
        return Err(DataFusionError::Plan(format!(
            "the statement has {calls} calls in the arguments of each other, and {CALLS_MAX} are the most: use a subquery"
        )));
    }
    Err(DataFusionError::Plan(format!(
        "the statement is nested {depth} levels deep, and {DEPTH_MAX} are the most; for many values of one column write \
         column IN (a, b, c), for many statements send each"
    )))
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn of(sql: &str) -> usize {
        depth(&Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().unwrap())
    }

    #[test]
    fn what_lies_side_by_side_is_not_deep() {
        let many = |text: &str| vec![text; 5_000].join(", ");
        for sql in [
            format!("select {} from trade", many("price * size + 1")),
            format!("select * from trade where symbol in ({})", many("'a'")),
            format!("select 1 from trade group by {}", many("(price + 1)")),
            format!("select case {} end from trade", "when price = 1 then 2 ".repeat(5_000)),
            format!("select * from (values {})", many("(1, 2)")),
        ] {
            assert!(of(&sql) < 20, "{} is {} deep", &sql[..40], of(&sql));
        }
    }

    #[test]
    fn calls_in_the_arguments_of_calls_have_a_limit() {
        let check = |sql: &str| check(&Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().unwrap());
        let nested = |n: usize| format!("select {}1{}", "abs(1 + ".repeat(n), ")".repeat(n));
        assert!(check(&nested(10)).is_ok());
        assert!(check(&nested(11)).unwrap_err().to_string().contains("11 calls"));
        assert!(check(&format!("select 1 where {}", "a in (1) and ".repeat(40) + "true")).is_ok());
        assert!(check(&format!("select {}1", "abs(1) + ".repeat(40))).is_ok());
    }

    #[test]
    fn chains_and_nests_are_deep() {
        let n = 500;
        let names: Vec<String> = (1..n).map(|i| format!("a{i} as (select * from a{})", i - 1)).collect();
        for sql in [
            format!("select {}1", "1 + ".repeat(n)),
            format!("select {}1{}", "(".repeat(n), ")".repeat(n)),
            format!("select {}1{}", "abs(".repeat(n), ")".repeat(n)),
            format!("select * from trade where {} true", "price = 7 or ".repeat(n)),
            format!("select {} true", "not ".repeat(n)),
            format!("select lsn{}", "::bigint".repeat(n)),
            format!("select a{}", "[1]".repeat(n)),
            format!("select {} 1 {}", "case when true then ".repeat(n), "end ".repeat(n)),
            format!("select * from trade {}", "join trade using (lsn) ".repeat(n)),
            vec!["select 1"; n].join(" union all "),
            format!("select 1 from {}", vec!["trade"; n].join(", ")),
            format!("with a0 as (select 1), {} select * from a{}", names.join(", "), n - 1),
        ] {
            assert!(of(&sql) >= n && of(&sql) < 10 * n, "{} is {} deep", &sql[..30], of(&sql));
        }
        assert!(of("))))((((") < 10);
    }
}
