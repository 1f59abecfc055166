//! Owns: the first step for joins by time: `WINDOW JOIN ... RANGE BETWEEN` and `HORIZON JOIN ... RANGE FROM | LIST` become as-of
//! joins whose match condition is a call that says which join it is. So does an `ASOF JOIN` without a match condition, which is by
//! the columns `time`. `ON (symbol)` becomes `USING (symbol)`.
//!
//! What must hold: only the words after the join's keys are taken, at the same depth of parentheses: a `RANGE` of a window
//! function stays.

use datafusion::error::Result;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::tokens::{Cursor, quoted};
use super::words::{ASOF_JOIN, HORIZON_JOIN, WINDOW_JOIN, wrong};
use crate::interval::Interval;

/// The most offsets of a horizon join: each is a join of its own.
const OFFSETS_MAX: usize = 256;
const WINDOW_EXAMPLE: &str = "write a WINDOW JOIN b ON a.symbol = b.symbol RANGE BETWEEN 1s PRECEDING AND 1s FOLLOWING";
const HORIZON_EXAMPLE: &str =
    "write a HORIZON JOIN b ON a.symbol = b.symbol RANGE FROM -5s TO 5s STEP 1s AS h, or LIST (0s, 1s, 5s) AS h";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    AsOf,
    Window,
    Horizon,
}

/// A join whose window or offsets have not been read yet, or whose match condition.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    of: Which,
    /// Where its match condition goes: before `ON` or `USING`.
    on: Option<usize>,
    depth: usize,
}

impl Pending {
    /// The join that begins at the cursor, which is moved behind its first word; that word is replaced.
    pub(super) fn begin(cursor: &mut Cursor<'_>, depth: usize) -> Option<Pending> {
        let words = [("ASOF", Which::AsOf), ("WINDOW", Which::Window), ("HORIZON", Which::Horizon)];
        let (_, of) = words.into_iter().find(|(word, _)| cursor.is_word(0, word) && cursor.is_word(1, "JOIN"))?;
        cursor.at += 1;
        Some(Pending { of, on: None, depth })
    }

    /// Notes where the keys begin, if they do at the cursor. Returns whether they are `ON (symbol)`, whose first word becomes `USING`.
    pub(super) fn note_keys(&mut self, cursor: &Cursor<'_>, depth: usize) -> bool {
        let is_on = cursor.is_word(0, "ON");
        if depth != self.depth || self.on.is_some() || !(is_on || cursor.is_word(0, "USING")) {
            return false;
        }
        self.on = Some(cursor.at);
        let mut ahead = 2;
        let is_name = |ahead| matches!(cursor.peek(ahead), Some(Token::Word(_)));
        while is_name(ahead) && cursor.peek(ahead + 1) == Some(&Token::Comma) {
            ahead += 2;
        }
        is_on && cursor.peek(1) == Some(&Token::LParen) && is_name(ahead) && cursor.peek(ahead + 1) == Some(&Token::RParen)
    }

    /// What the match condition is, if it is known at the cursor: where it goes, and its text.
    pub(super) fn end(&self, cursor: &mut Cursor<'_>, depth: usize) -> Result<Option<(usize, String)>> {
        let start = cursor.at;
        if depth != self.depth {
            return Ok(None);
        }
        let text = match self.of {
            Which::AsOf if self.on == Some(cursor.at) => Some(format!("{ASOF_JOIN}()")),
            Which::Window if cursor.take_words(&["RANGE", "BETWEEN"]) => Some(window(cursor)?),
            Which::Horizon if cursor.take_words(&["RANGE", "FROM"]) => Some(range(cursor)?),
            Which::Horizon if cursor.is_word(0, "LIST") && cursor.peek(1) == Some(&Token::LParen) => {
                cursor.at += 2;
                Some(list(cursor)?)
            }
            _ => None,
        };
        Ok(text.map(|text| (self.on.unwrap_or(start), format!(" MATCH_CONDITION ({text}) "))))
    }

    /// Whether it waits for a match condition of its own.
    pub(super) fn is_as_of(&self) -> bool {
        self.of == Which::AsOf
    }

    /// Refuses a join that has no window or offsets.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn demand_none(&self) -> Result<()> {
        match self.of {
            Which::AsOf => Ok(()),
            Which::Window => Err(wrong(format!("a WINDOW JOIN needs its window: {WINDOW_EXAMPLE}"))),
            Which::Horizon => Err(wrong(format!("a HORIZON JOIN needs its offsets: {HORIZON_EXAMPLE}"))),
        }
    }
}

/// A length of time at the cursor, ns, with a sign.
fn offset(cursor: &mut Cursor<'_>, example: &str) -> Result<i64> {
    let is_negative = cursor.peek(0) == Some(&Token::Minus);
    cursor.at += usize::from(is_negative);
    let is_zero = matches!(cursor.peek(0), Some(Token::Number(number, _)) if number == "0")
        && !matches!(cursor.peek(1), Some(Token::Word(unit)) if format!("0{}", unit.value).parse::<Interval>().is_ok());
    if is_zero {
        cursor.at += 1;
        return Ok(0);
    }
    let text = cursor.interval("a join by time")?;
    let ns = text.parse::<Interval>().ok().and_then(Interval::fixed);
    let ns = ns.ok_or_else(|| wrong(format!("{text} is no fixed length of time: {example}")))?;
    Ok(if is_negative { -ns } else { ns })
}

/// `1s PRECEDING`, `1s FOLLOWING`, `CURRENT ROW`, `UNBOUNDED PRECEDING`, `UNBOUNDED FOLLOWING`: ns from the left row's time.
fn edge(cursor: &mut Cursor<'_>) -> Result<i64> {
    if cursor.take_words(&["CURRENT", "ROW"]) {
        return Ok(0);
    }
    let ns = if cursor.take_words(&["UNBOUNDED"]) { i64::MAX } else { offset(cursor, WINDOW_EXAMPLE)? };
    if cursor.take_words(&["PRECEDING"]) {
        Ok(-ns)
    } else if cursor.take_words(&["FOLLOWING"]) {
        Ok(ns)
    } else {
        Err(wrong(format!("a length of time is PRECEDING or FOLLOWING: {WINDOW_EXAMPLE}")))
    }
}

/// `1s PRECEDING AND 1s FOLLOWING [INCLUDE PREVAILING | EXCLUDE PREVAILING]`.
fn window(cursor: &mut Cursor<'_>) -> Result<String> {
    let start = edge(cursor)?;
    if !cursor.take_words(&["AND"]) {
        return Err(wrong(format!("a window has two ends: {WINDOW_EXAMPLE}")));
    }
    let end = edge(cursor)?;
    if start > end {
        return Err(wrong(format!("the window ends before it starts: {WINDOW_EXAMPLE}")));
    }
    let prevailing = !cursor.take_words(&["EXCLUDE", "PREVAILING"]);
    cursor.take_words(&["INCLUDE", "PREVAILING"]);
    Ok(format!("{WINDOW_JOIN}('{start}', '{end}', '{prevailing}')"))
}

/// `-5s TO 5s STEP 1s AS h`.
fn range(cursor: &mut Cursor<'_>) -> Result<String> {
    let from = offset(cursor, HORIZON_EXAMPLE)?;
    let to = if cursor.take_words(&["TO"]) { Some(offset(cursor, HORIZON_EXAMPLE)?) } else { None };
    let step = if cursor.take_words(&["STEP"]) { Some(offset(cursor, HORIZON_EXAMPLE)?) } else { None };
    let (Some(to), Some(step)) = (to, step.filter(|step| *step > 0)) else {
        return Err(wrong(format!("a range of offsets has an end and a step above zero: {HORIZON_EXAMPLE}")));
    };
    let count = i128::from(to) - i128::from(from);
    if count < 0 || count / i128::from(step) >= OFFSETS_MAX as i128 {
        return Err(wrong(format!("a HORIZON JOIN has 1 to {OFFSETS_MAX} offsets: {HORIZON_EXAMPLE}")));
    }
    let offsets: Vec<i64> = (from..=to).step_by(usize::try_from(step).unwrap_or(usize::MAX)).collect();
    horizon(cursor, &offsets)
}

/// `0s, 1s, 5s) AS h`.
fn list(cursor: &mut Cursor<'_>) -> Result<String> {
    let mut offsets = Vec::new();
    loop {
        offsets.push(offset(cursor, HORIZON_EXAMPLE)?);
        match cursor.next() {
            Some(Token::Comma) if offsets.len() < OFFSETS_MAX => {}
            Some(Token::RParen) => return horizon(cursor, &offsets),
            _ => return Err(wrong(format!("a HORIZON JOIN has 1 to {OFFSETS_MAX} offsets: {HORIZON_EXAMPLE}"))),
        }
    }
}

fn horizon(cursor: &mut Cursor<'_>, offsets: &[i64]) -> Result<String> {
    let alias = match (cursor.take_words(&["AS"]), cursor.next()) {
        (true, Some(Token::Word(word))) => word.value.clone(),
        _ => return Err(wrong(format!("the offsets of a HORIZON JOIN need a name: {HORIZON_EXAMPLE}"))),
    };
    let offsets: Vec<String> = offsets.iter().map(|ns| format!("'{ns}'")).collect();
    Ok(format!("{HORIZON_JOIN}({}, {})", quoted(&alias), offsets.join(", ")))
}
