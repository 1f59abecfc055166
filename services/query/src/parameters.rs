//! Owns: the values that `tape sql -p` gives for `$1`, `$2` and so on.
//!
//! What must hold: a value has the type that its statement needs, or is refused; one of any type is a text. No value is given
//! in vain.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use tape_services::exit::{Failure, Outcome, USAGE};

use crate::session::Session;

/// The values of the parameters of each of `statements`, which `texts` are.
///
/// # Errors
/// A statement is wrong, or has more parameters than there are values; a value is not of its type; no statement needs it.
pub async fn bound(session: &Session, statements: &[&str], texts: &[String]) -> Outcome<Vec<Vec<ScalarValue>>> {
    let mut all = Vec::with_capacity(statements.len());
    let mut most = 0;
    for statement in statements {
        let types = match texts {
            [] => Vec::new(),
            _ => session.describe(statement).await?.parameters,
        };
        if types.len() > texts.len() {
            let reason = format!("a statement has {} parameters, and -p gives {} values", types.len(), texts.len());
            return Err(Failure::new(USAGE, reason));
        }
        most = most.max(types.len());
        let values = types.iter().zip(texts).zip(1..).map(|((of, text), number)| value(number, of.as_ref(), text));
        all.push(values.collect::<Outcome<_>>()?);
    }
    if most < texts.len() {
        let reason = format!("-p gives {} values, and no statement has a parameter ${}", texts.len(), most + 1);
        return Err(Failure::new(USAGE, reason));
    }
    Ok(all)
}

/// `text` as a value of type `of`.
fn value(number: usize, of: Option<&DataType>, text: &str) -> Outcome<ScalarValue> {
    let of = match of {
        Some(DataType::Dictionary(_, values)) => values.as_ref(),
        Some(DataType::Null) | None => &DataType::Utf8,
        Some(of) => of,
    };
    ScalarValue::from(text).cast_to(of).map_err(|_| {
        Failure::new(USAGE, format!("'{text}', the value of ${number}, is no {of}, which the statement needs there"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_type_that_the_statement_needs_or_is_refused() {
        let of = |of: Option<DataType>, text: &str| value(1, of.as_ref(), text);
        assert_eq!(of(None, "7").unwrap(), ScalarValue::from("7"));
        assert_eq!(of(Some(DataType::UInt64), "7").unwrap(), ScalarValue::from(7u64));
        assert_eq!(of(Some(DataType::Float64), "-1.5").unwrap(), ScalarValue::from(-1.5));
        assert_eq!(of(Some(crate::schema::symbol()), "B:BTC").unwrap(), ScalarValue::from("B:BTC"));
        let time = of(Some(crate::schema::time()), "2024-08-08").unwrap();
        assert_eq!(time, ScalarValue::TimestampNanosecond(Some(1_723_075_200_000_000_000), None));
        for (of_it, text) in [(DataType::UInt64, "-7"), (DataType::Int64, "x"), (crate::schema::time(), "yesterday")] {
            let refused = of(Some(of_it), text).unwrap_err();
            assert!(refused.code == USAGE && refused.message.contains("$1") && refused.message.contains(text), "{refused}");
        }
    }
}
