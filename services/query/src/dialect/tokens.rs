//! Owns: the first step: words of time-series SQL, found among the tokens of a statement, become words that the parser has.
//!
//! What must hold: text in quotes and comments is never changed, and nothing else of a statement.

use datafusion::error::Result;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::joins::Pending;
use super::words::{ASOF_JOIN, LATEST_ON, SAMPLE_BY, wrong};
use crate::asof::node::TOLERANCE;
use crate::interval::Interval;

/// The significant tokens: no blanks, no comments.
pub(super) struct Cursor<'t> {
    tokens: &'t [Token],
    /// Places of the significant ones.
    places: Vec<usize>,
    pub(super) at: usize,
}

impl<'t> Cursor<'t> {
    fn new(tokens: &'t [Token]) -> Cursor<'t> {
        let places = (0..tokens.len()).filter(|at| !matches!(tokens.get(*at), Some(Token::Whitespace(_) | Token::EOF)));
        Cursor { tokens, places: places.collect(), at: 0 }
    }

    pub(super) fn peek(&self, ahead: usize) -> Option<&'t Token> {
        self.tokens.get(*self.places.get(self.at + ahead)?)
    }

    pub(super) fn is_word(&self, ahead: usize, word: &str) -> bool {
        matches!(self.peek(ahead), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
    }

    pub(super) fn take_words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(ahead, word)| self.is_word(ahead, word));
        if found {
            self.at += words.len();
        }
        found
    }

    pub(super) fn next(&mut self) -> Option<&'t Token> {
        let token = self.peek(0);
        self.at += 1;
        token
    }

    /// A length of time: `5s`, `'5s'`, `500 ms`.
    pub(super) fn interval(&mut self, after: &str) -> Result<String> {
        let text = match (self.next(), self.peek(0)) {
            (Some(Token::SingleQuotedString(text)), _) => text.clone(),
            (Some(Token::Number(number, _)), Some(Token::Word(unit))) => {
                self.at += 1;
                format!("{number}{}", unit.value)
            }
            (Some(Token::Word(unit)), _) => format!("1{}", unit.value),
            _ => return Err(wrong(format!("{after} needs a length of time, like {after} 1m"))),
        };
        text.parse::<Interval>().map_err(|reason| wrong(format!("{after} {text}: {reason}")))?;
        Ok(text)
    }

    /// The text of the tokens in the parentheses that open here.
    fn parenthesised(&mut self, after: &str) -> Result<String> {
        if self.next() != Some(&Token::LParen) {
            return Err(wrong(format!("{after} needs parentheses, like {after} (PREV)")));
        }
        let (mut depth, mut text) = (1, String::new());
        while let Some(token) = self.next() {
            depth += match token {
                Token::LParen => 1,
                Token::RParen => -1,
                _ => 0,
            };
            if depth == 0 {
                return Ok(text);
            }
            text.push_str(&text_of(token));
        }
        Err(wrong(format!("the parentheses after {after} do not close")))
    }

    fn text(&mut self, after: &str) -> Result<String> {
        match self.next() {
            Some(Token::SingleQuotedString(text)) => Ok(text.clone()),
            _ => Err(wrong(format!("{after} needs a text in quotes"))),
        }
    }
}

/// `token` as it was written, or as it means the same.
fn text_of(token: &Token) -> String {
    match token {
        Token::EscapedStringLiteral(text) => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        token => token.to_string(),
    }
}

/// `text` in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statement of `tokens` without the words of time-series SQL; `None` if it has none of them.
pub(super) fn rewritten(tokens: &[Token]) -> Result<Option<String>> {
    // Instead of the significant tokens from the first to before the second: this text.
    let mut changes: Vec<(usize, usize, String)> = Vec::new();
    let mut cursor = Cursor::new(tokens);
    let mut match_ends: Option<usize> = None;
    let (mut pending, mut depth): (Option<Pending>, usize) = (None, 0);
    // The change that is the match condition of the last as-of join, if it had none.
    let mut as_of: Option<usize> = None;
    while cursor.at < cursor.places.len() {
        let start = cursor.at;
        if let Some(join) = &mut pending {
            if join.note_keys(&cursor, depth) {
                changes.push((start, start + 1, "USING".to_owned()));
            }
            if let Some((place, condition)) = join.end(&mut cursor, depth)? {
                as_of = join.is_as_of().then_some(changes.len());
                changes.push((place, place, condition));
                if cursor.at > start {
                    changes.push((start, cursor.at, String::new()));
                } else {
                    cursor.at += 1;
                }
                pending = None;
                continue;
            }
        }
        if let Some(join) = Pending::begin(&mut cursor, depth) {
            pending.replace(join).map_or(Ok(()), |earlier| earlier.demand_none())?;
            as_of = None;
            changes.push((start, cursor.at, "ASOF".to_owned()));
        } else if cursor.take_words(&["MATCH_CONDITION"]) {
            cursor.parenthesised("MATCH_CONDITION")?;
            match_ends = Some(cursor.at - 1);
            pending = pending.filter(|join| !join.is_as_of());
        } else if (match_ends.is_some() || as_of.is_some()) && cursor.is_word(0, "TOLERANCE") && starts_interval(cursor.peek(1)) {
            cursor.at += 1;
            let interval = cursor.interval("TOLERANCE")?;
            let ns = interval.parse::<Interval>().ok().and_then(Interval::fixed);
            let ns = ns.ok_or_else(|| wrong("a TOLERANCE is a fixed length of time, like 5s"))?;
            if let Some((.., condition)) = as_of.take().and_then(|at| changes.get_mut(at)) {
                *condition = format!(" MATCH_CONDITION ({ASOF_JOIN}('{ns}')) ");
            } else if let Some(end) = match_ends.take() {
                changes.push((end, end, format!(" AND {TOLERANCE}({ns}) ")));
            }
            changes.push((start, cursor.at, String::new()));
        } else if cursor.take_words(&["SAMPLE", "BY"]) {
            let text = sample_by(&mut cursor)?;
            changes.push((start, cursor.at, text));
        } else if cursor.take_words(&["LATEST", "ON"]) {
            let text = latest_on(&mut cursor)?;
            changes.push((start, cursor.at, text));
        } else {
            match cursor.next() {
                Some(Token::LParen) => depth += 1,
                Some(Token::RParen) => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    pending.map_or(Ok(()), |join| join.demand_none())?;
    if changes.is_empty() {
        return Ok(None);
    }
    changes.sort_by_key(|(from, to, _)| (*from, *to));
    let place = |at: usize| cursor.places.get(at).copied().unwrap_or(tokens.len());
    let (mut text, mut done) = (String::new(), 0);
    for (from, to, change) in changes {
        tokens.get(done..place(from)).unwrap_or(&[]).iter().for_each(|token| text.push_str(&text_of(token)));
        text.push_str(&change);
        done = if from == to { place(from) } else { place(to - 1) + 1 };
    }
    tokens.get(done..).unwrap_or(&[]).iter().for_each(|token| text.push_str(&text_of(token)));
    Ok(Some(text))
}

fn starts_interval(token: Option<&Token>) -> bool {
    matches!(token, Some(Token::Number(..) | Token::SingleQuotedString(_)))
}

/// `SAMPLE BY 1m [FILL (...)] [ALIGN TO CALENDAR [TIME ZONE '...'] | ALIGN TO FIRST OBSERVATION]`.
fn sample_by(cursor: &mut Cursor<'_>) -> Result<String> {
    let interval = cursor.interval("SAMPLE BY")?;
    let (mut fill, mut align, mut zone) = (String::new(), "calendar", String::new());
    loop {
        if cursor.take_words(&["FILL"]) {
            fill = cursor.parenthesised("FILL")?;
        } else if cursor.take_words(&["ALIGN", "TO", "CALENDAR"]) {
            if cursor.take_words(&["TIME", "ZONE"]) {
                zone = cursor.text("TIME ZONE")?;
            }
        } else if cursor.take_words(&["ALIGN", "TO", "FIRST", "OBSERVATION"]) {
            align = "first";
        } else {
            break;
        }
    }
    Ok(format!("GROUP BY {SAMPLE_BY}({}, {}, {}, {})", quoted(&interval), quoted(&fill), quoted(align), quoted(&zone)))
}

/// `LATEST ON time PARTITION BY symbol, ...`.
fn latest_on(cursor: &mut Cursor<'_>) -> Result<String> {
    let mut name = |after: &str| -> Result<String> {
        let mut text = String::new();
        loop {
            match cursor.next() {
                Some(Token::Word(word)) => text.push_str(&word.to_string()),
                _ => return Err(wrong(format!("{after} needs a column"))),
            }
            if cursor.peek(0) != Some(&Token::Period) {
                return Ok(text);
            }
            text.push('.');
            cursor.at += 1;
        }
    };
    let mut columns = vec![name("LATEST ON")?];
    if !cursor.take_words(&["PARTITION", "BY"]) {
        return Err(wrong("LATEST ON needs its keys, like LATEST ON time PARTITION BY symbol"));
    }
    let mut name = |after: &str| -> Result<String> {
        match cursor.next() {
            Some(Token::Word(word)) => Ok(word.to_string()),
            _ => Err(wrong(format!("{after} needs a column"))),
        }
    };
    columns.push(name("PARTITION BY")?);
    while cursor.peek(0) == Some(&Token::Comma) {
        cursor.at += 1;
        let Some(Token::Word(word)) = cursor.next() else { return Err(wrong("PARTITION BY needs columns")) };
        columns.push(word.to_string());
    }
    Ok(format!("GROUP BY {LATEST_ON}({})", columns.join(", ")))
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn of(sql: &str) -> String {
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).with_unescape(false).tokenize().unwrap();
        rewritten(&tokens).unwrap().unwrap_or_else(|| sql.to_owned())
    }

    #[test]
    fn words_of_time_series_become_functions_at_their_place() {
        assert_eq!(
            of("select last(price) from trade SAMPLE BY 1m FILL(PREV, 0) ALIGN TO CALENDAR TIME ZONE 'Europe/Paris' order by 1"),
            "select last(price) from trade GROUP BY sample_by('1m', 'PREV,0', 'calendar', 'Europe/Paris') order by 1"
        );
        assert_eq!(
            of("select * from quote where 1 = 1 latest on time partition by symbol, source limit 5"),
            "select * from quote where 1 = 1 GROUP BY latest_on(time, symbol, source) limit 5"
        );
        assert_eq!(
            of("select 1 from a asof join b match_condition (a.time >= b.time) on a.s = b.s tolerance 5s where x"),
            "select 1 from a ASOF join b match_condition (a.time >= b.time AND within_tolerance(5000000000) ) on a.s = b.s  where x"
        );
        assert_eq!(
            of("select 1 from a asof join b on (s) tolerance 5s where x"),
            "select 1 from a ASOF join b  MATCH_CONDITION (asof_join('5000000000')) USING (s)  where x"
        );
        assert_eq!(
            of("select 1 from a asof join b on a.s = b.s asof join c using (s)"),
            "select 1 from a ASOF join b  MATCH_CONDITION (asof_join()) on a.s = b.s ASOF join c  MATCH_CONDITION (asof_join()) using (s)"
        );
        assert_eq!(
            of(
                "select 1 from a window join b on a.s = b.s range between 1 second preceding and current row exclude prevailing where x"
            ),
            "select 1 from a ASOF join b  MATCH_CONDITION (window_join('-1000000000', '0', 'false')) on a.s = b.s  where x"
        );
        assert_eq!(
            of("select 1 from a horizon join b on (a.s = b.s) range from -1s to 1s step 1s as h"),
            "select 1 from a ASOF join b  MATCH_CONDITION (horizon_join('h', '-1000000000', '0', '1000000000')) on (a.s = b.s) "
        );
        assert_eq!(
            of("select 'it''s', \"a\"\"b\", E'\\'' from t sample by 5s"),
            "select 'it''s', \"a\"\"b\", E'\\'' from t GROUP BY sample_by('5s', '', 'calendar', '')"
        );
    }

    #[test]
    fn quotes_and_comments_and_columns_with_such_names_stay() {
        for sql in
            ["select 'SAMPLE BY 1m'", "select 1 -- latest on x\n", "select \"latest\" on_ from t", "select tolerance from t"]
        {
            assert_eq!(of(sql), sql);
        }
    }
}
