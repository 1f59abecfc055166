//! Owns: the guess of the built-in kind that a misspelt name means.

use super::SCHEMAS;

/// The built-in kind whose name differs from `text` by one letter, capitals, separators or a plural; `None` if `text` is a
/// built-in kind's name, or no name is near.
#[doc(hidden)]
pub fn near_kind(text: &str) -> Option<&'static str> {
    if SCHEMAS.iter().any(|s| s.name == text) {
        return None;
    }
    let of = |s: &str| s.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<String>();
    let meant = of(text);
    let singular = meant.strip_suffix("es").or(meant.strip_suffix('s')).unwrap_or(&meant);
    let names = || SCHEMAS.iter().map(|s| s.name);
    let same = names().find(|name| [&meant, singular].contains(&of(name).as_str()) || of(name) == meant.trim_end_matches('s'));
    same.or_else(|| names().find(|name| name.len() > 3 && is_one_step(&meant, &of(name))))
}

/// Whether `a` becomes `b` by one inserted, removed or replaced letter, or by two swapped ones.
fn is_one_step(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (a.get(head..).unwrap_or(&[]), b.get(head..).unwrap_or(&[]));
    match (a, b) {
        ([], [_]) | ([_], []) => true,
        ([_, x @ ..], [_, y @ ..]) if x == y => true,
        ([_, x @ ..], y) | (y, [_, x @ ..]) if x == y => true,
        ([p, q, x @ ..], [r, s, y @ ..]) => p == s && q == r && x == y,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_built_in_kind_is_recognised_and_another_name_is_not() {
        for (text, kind) in [
            ("quotes", "quote"),
            ("Quote", "quote"),
            ("qoute", "quote"),
            ("quot", "quote"),
            ("trades", "trade"),
            ("tradee", "trade"),
            ("depth-10", "depth10"),
            ("bar_1s", "bar-1s"),
            ("statuses", "status"),
            ("busts", "bust"),
        ] {
            assert_eq!(near_kind(text), Some(kind), "{text}");
        }
        for text in ["quote", "trade", "bar-1s", "status", "signal", "orders", "my-features", "", "s", "*"] {
            assert_eq!(near_kind(text), None, "{text}");
        }
    }
}
