//! Owns: `?` as a placeholder of parameters.
//!
//! What must hold: a `?` in a text, a name or a comment stays.

use std::borrow::Cow;

use tonic::Status;

use super::status::wrong;

/// Where a character of a statement is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Code,
    /// In a text or a name that ends with this quote.
    Quoted(char),
    Line,
    /// In a comment, so many levels deep.
    Comment(usize),
}

/// `sql` with `$1`, `$2` and so on for each `?`.
///
/// # Errors
/// It has placeholders of both sorts.
pub fn numbered(sql: &str) -> Result<Cow<'_, str>, Status> {
    let (mut place, mut count, mut has_numbers) = (Place::Code, 0, false);
    let mut out = String::with_capacity(sql.len() + 16);
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        let mut takes_next = false;
        match (place, c, next) {
            (Place::Code, '\'' | '"' | '`', _) => place = Place::Quoted(c),
            (Place::Quoted(quote), c, _) if c == quote => place = Place::Code,
            (Place::Code, '-', Some('-')) => place = Place::Line,
            (Place::Line, '\n', _) => place = Place::Code,
            (Place::Code, '/', Some('*')) => (place, takes_next) = (Place::Comment(1), true),
            (Place::Comment(depth), '/', Some('*')) => (place, takes_next) = (Place::Comment(depth + 1), true),
            (Place::Comment(1), '*', Some('/')) => (place, takes_next) = (Place::Code, true),
            (Place::Comment(depth), '*', Some('/')) => (place, takes_next) = (Place::Comment(depth - 1), true),
            (Place::Code, '$', Some('0'..='9')) => has_numbers = true,
            (Place::Code, '?', _) => {
                count += 1;
                out.push('$');
                out.push_str(&count.to_string());
                continue;
            }
            _ => {}
        }
        out.push(c);
        if takes_next && let Some(next) = chars.next() {
            out.push(next);
        }
    }
    match (count, has_numbers) {
        (0, _) => Ok(Cow::Borrowed(sql)),
        (_, false) => Ok(Cow::Owned(out)),
        (_, true) => Err(wrong("the statement has parameters as ? and as $1; use one of them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_become_numbers_but_not_in_texts_names_and_comments() {
        for (sql, expected) in [
            ("select ?, ?", "select $1, $2"),
            ("select '?', \"?\", ? -- ?\n, ? /* ? /* ? */ ? */ + ?", "select '?', \"?\", $1 -- ?\n, $2 /* ? /* ? */ ? */ + $3"),
            ("select 'it''s ?', ?", "select 'it''s ?', $1"),
            ("select $1", "select $1"),
            ("select '? ", "select '? "),
            ("/*?", "/*?"),
            ("", ""),
        ] {
            assert_eq!(numbered(sql).unwrap(), expected);
        }
        assert!(numbered("select ?, $1").is_err());
    }
}
