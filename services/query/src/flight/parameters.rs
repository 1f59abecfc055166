//! Owns: the parameters that a client binds, from rows of Arrow to values of a statement.
//!
//! What must hold: a value is converted to the type that a parameter has in its statement if that changes no value; else it
//! stays as it is, and the statement compares it as it compares columns.

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use futures::{StreamExt, TryStreamExt};
use tonic::Status;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::server::PeekableFlightDataStream;

use super::status::{status, wrong};

/// The type of a parameter for clients: symbols are sent as texts, and what may be of any type too.
pub fn type_for_clients(of: Option<&DataType>) -> DataType {
    match of {
        Some(DataType::Dictionary(_, value)) => value.as_ref().clone(),
        Some(DataType::Null) | None => DataType::Utf8,
        Some(of) => of.clone(),
    }
}

/// Whether a value of type `from` has the same meaning as one of type `to`, or none.
fn is_exact(from: &DataType, to: &DataType) -> bool {
    let is_text = |of: &DataType| matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    (from.is_integer() && (to.is_integer() || to.is_floating()))
        || (from.is_floating() && to.is_floating())
        || (from.is_temporal() && to.is_temporal())
        || is_text(from)
        || from == &DataType::Null
}

fn value(value: ScalarValue, of: Option<&DataType>) -> Result<ScalarValue, Status> {
    let Some(of) = of else { return Ok(value) };
    let of = type_for_clients(Some(of));
    let from = value.data_type();
    if from == of || !is_exact(&from, &of) {
        return Ok(value);
    }
    value.cast_to(&of).map_err(status)
}

/// The values of the one row of `batch` for parameters of `types`.
///
/// # Errors
/// It has not one row, or a value for each parameter, or a value is beyond the type of its parameter.
pub fn values(batch: &RecordBatch, types: &[Option<DataType>]) -> Result<Vec<ScalarValue>, Status> {
    if batch.num_rows() != 1 {
        return Err(wrong(format!("{} rows of parameters are bound; a statement takes one row", batch.num_rows())));
    }
    if batch.num_columns() != types.len() {
        return Err(wrong(format!("{} parameters are bound; the statement has {}", batch.num_columns(), types.len())));
    }
    batch
        .columns()
        .iter()
        .zip(types)
        .map(|(column, of)| value(ScalarValue::try_from_array(column, 0).map_err(status)?, of.as_ref()))
        .collect()
}

/// The one batch that a client sends.
///
/// # Errors
/// It sends none, several, or what is none.
pub async fn batch(stream: PeekableFlightDataStream) -> Result<RecordBatch, Status> {
    let data = stream.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut all = Vec::new();
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| match error {
            FlightError::Tonic(status) => *status,
            error => wrong(format!("the parameters cannot be read: {error}")),
        })?;
        if batch.num_rows() > 0 {
            all.push(batch);
        }
        if all.len() > 1 {
            return Err(wrong("several batches of parameters are bound; a statement takes one row"));
        }
    }
    all.pop().ok_or_else(|| wrong("no row of parameters is bound"))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn a_value_is_converted_only_if_it_keeps_its_meaning() {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        let micros = ScalarValue::TimestampMicrosecond(Some(7), Some("UTC".into()));
        assert_eq!(value(micros, Some(&time)).unwrap(), ScalarValue::TimestampNanosecond(Some(7_000), None));
        assert_eq!(value(ScalarValue::from(7i64), Some(&DataType::UInt64)).unwrap(), ScalarValue::from(7u64));
        assert_eq!(value(ScalarValue::from(1.5), Some(&DataType::UInt64)).unwrap(), ScalarValue::from(1.5));
        assert!(value(ScalarValue::from(-7i64), Some(&DataType::UInt64)).is_err());
        let symbol = DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
        assert_eq!(value(ScalarValue::from("B:BTC"), Some(&symbol)).unwrap(), ScalarValue::from("B:BTC"));
    }
}
