//! Owns: functions of the values of one row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimestampNanosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;

use crate::asof::node::TOLERANCE;
use crate::fill::zone_of;
use crate::interval::Interval;
use crate::schema::time;

/// All functions.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let two = |name, of| Arc::new(ScalarUDF::from(OfTwo { name, of, signature: numbers() }));
    vec![
        Arc::new(ScalarUDF::from(TimeBucket::new())),
        Arc::new(ScalarUDF::from(InSession::new())),
        two("mid", Two::Mid),
        two("spread", Two::Spread),
        two("imbalance", Two::Imbalance),
        Arc::new(ScalarUDF::from(Within { signature: Signature::exact(vec![DataType::Int64], Volatility::Immutable) })),
    ]
}

fn numbers() -> Signature {
    Signature::exact(vec![DataType::Float64, DataType::Float64], Volatility::Immutable)
}

/// The constant text that argument `at` of `name` is.
fn text(args: &ScalarFunctionArgs, at: usize, name: &str) -> Result<String> {
    match args.args.get(at) {
        Some(ColumnarValue::Scalar(value)) => match value.try_as_str() {
            Some(Some(text)) => Ok(text.to_owned()),
            _ => Err(DataFusionError::Plan(format!("{name} needs a text"))),
        },
        _ => Err(DataFusionError::Plan(format!("{name} needs the same text for all rows"))),
    }
}

fn ns(value: &ColumnarValue, rows: usize) -> Result<PrimitiveArray<TimestampNanosecondType>> {
    let array = value.to_array(rows)?;
    Ok(cast(&array, &time())?.as_primitive::<TimestampNanosecondType>().clone())
}

/// As one value if all arguments were.
fn as_given(args: &ScalarFunctionArgs, result: ArrayRef) -> Result<ColumnarValue> {
    let is_one = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    if is_one && !result.is_empty() {
        return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
    }
    Ok(ColumnarValue::Array(result))
}

/// `time_bucket(length, time [, zone [, origin]])`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
    aliases: Vec<String>,
}

impl TimeBucket {
    fn new() -> TimeBucket {
        let (text, time) = (DataType::Utf8, time());
        let signature = Signature::one_of(
            vec![
                TypeSignature::Exact(vec![text.clone(), time.clone()]),
                TypeSignature::Exact(vec![text.clone(), time.clone(), text.clone()]),
                TypeSignature::Exact(vec![text.clone(), time.clone(), text, time]),
            ],
            Volatility::Immutable,
        );
        TimeBucket { signature, aliases: vec!["xbar".to_owned()] }
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &'static str {
        "time_bucket"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(time())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let interval: Interval = text(&args, 0, "the length of time_bucket")?.parse().map_err(DataFusionError::Plan)?;
        let rows = args.number_rows;
        let Some(times) = args.args.get(1) else { return Err(DataFusionError::Plan("time_bucket needs a time".to_owned())) };
        let times = ns(times, rows)?;
        let zone = if args.args.len() > 2 { text(&args, 2, "the zone of time_bucket")? } else { String::new() };
        let origin = args.args.get(3).map(|origin| ns(origin, 1)).transpose()?;
        let origin = origin.filter(|origin| !origin.is_empty() && origin.is_valid(0)).map(|origin| origin.value(0));
        let bucketed = bucketed(&times, interval, &zone, origin)?;
        as_given(&args, Arc::new(bucketed))
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        // A bucket does not fall where the time rises. The other arguments are constants.
        Ok(inputs.get(1).map_or(SortProperties::Unordered, |time| time.sort_properties))
    }
}

/// The start of the bucket of each of `times`.
fn bucketed(
    times: &PrimitiveArray<TimestampNanosecondType>,
    interval: Interval,
    zone: &str,
    origin: Option<i64>,
) -> Result<PrimitiveArray<TimestampNanosecondType>> {
    if let (None, "", Some(len), false) = (origin, zone, interval.fixed(), matches!(interval, Interval::Weeks(_))) {
        // One division a row, and none while the bucket stays.
        let mut start = i64::MIN;
        let starts = times.values().iter().map(|time| {
            if time.wrapping_sub(start) as u64 >= len as u64 {
                start = time.div_euclid(len).saturating_mul(len);
            }
            start
        });
        return Ok(PrimitiveArray::new(starts.collect::<Vec<i64>>().into(), times.nulls().cloned()));
    }
    let zone = zone_of(zone)?;
    // The last bucket: the next row lies in it, most often.
    let mut last: Option<(i64, i64)> = None;
    let start = |time: i64| -> Option<i64> {
        if let Some(origin) = origin {
            return interval.since(time, origin);
        }
        match last {
            Some((start, end)) if (start..end).contains(&time) => return Some(start),
            _ => {}
        }
        let start = if zone == TimeZone::UTC { interval.bucket(time) } else { interval.bucket_in(time, &zone) }?;
        last = interval.next(start, &zone).map(|end| (start, end));
        Some(start)
    };
    if origin.is_some() && interval.fixed().is_none() {
        return Err(DataFusionError::Plan("buckets from the first row on have a fixed length, like 5s, 1h, 1d".to_owned()));
    }
    let mut start = start;
    Ok(times.iter().map(|time| time.and_then(&mut start)).collect())
}

/// `in_session(time, '09:30-16:00', zone)`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct InSession {
    signature: Signature,
}

impl InSession {
    fn new() -> InSession {
        let (text, time) = (DataType::Utf8, time());
        let signature = Signature::one_of(
            vec![TypeSignature::Exact(vec![time.clone(), text.clone()]), TypeSignature::Exact(vec![time, text.clone(), text])],
            Volatility::Immutable,
        );
        InSession { signature }
    }
}

/// The times of a session's begin and end, in ns since midnight.
fn session(text: &str) -> Result<(i64, i64)> {
    let bad = || DataFusionError::Plan(format!("'{text}' is not a session like '09:30-16:00'"));
    let (from, to) = text.split_once('-').ok_or_else(bad)?;
    let of = |text: &str| -> Result<i64> {
        if text.trim() == "24:00" {
            return Ok(86_400_000_000_000);
        }
        let time: Time = text.trim().parse().map_err(|_| bad())?;
        let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
        Ok(seconds * 1_000_000_000 + i64::from(time.subsec_nanosecond()))
    };
    Ok((of(from)?, of(to)?))
}

impl ScalarUDFImpl for InSession {
    fn name(&self) -> &'static str {
        "in_session"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(times) = args.args.first() else { return Err(DataFusionError::Plan("in_session needs a time".to_owned())) };
        let times = ns(times, args.number_rows)?;
        let (from, to) = session(&text(&args, 1, "the session of in_session")?)?;
        let zone = if args.args.len() > 2 { text(&args, 2, "the zone of in_session")? } else { String::new() };
        let zone = zone_of(&zone)?;
        // The offset of the zone, and until when it is known to hold: an hour, because no zone changes more often.
        let mut known: Option<(i64, i64, i64)> = None;
        let mut inside = |time: i64| -> Option<bool> {
            let hour = time.div_euclid(900_000_000_000);
            let offset = match known {
                Some((at, offset, _)) if at == hour => offset,
                _ => {
                    let moment = Timestamp::from_nanosecond(i128::from(time)).ok()?;
                    let offset = i64::from(zone.to_offset(moment).seconds()) * 1_000_000_000;
                    known = Some((hour, offset, 0));
                    offset
                }
            };
            let clock = (time + offset).rem_euclid(86_400_000_000_000);
            // A session over midnight ends on the next day.
            Some(if from <= to { (from..to).contains(&clock) } else { clock >= from || clock < to })
        };
        let found: BooleanArray = times.iter().map(|time| time.and_then(&mut inside)).collect();
        as_given(&args, Arc::new(found))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Two {
    Mid,
    Spread,
    Imbalance,
}

/// A function of two numbers.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfTwo {
    name: &'static str,
    of: Two,
    signature: Signature,
}

impl ScalarUDFImpl for OfTwo {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [a, b] = arrays.as_slice() else { return Err(DataFusionError::Plan(format!("{} needs two numbers", self.name))) };
        let (a, b) = (a.as_primitive::<Float64Type>(), b.as_primitive::<Float64Type>());
        let of = |a: f64, b: f64| match self.of {
            Two::Mid => decimal((a + b) / 2.0),
            Two::Spread => decimal(b - a),
            Two::Imbalance => (a - b) / (a + b),
        };
        let result: Float64Array = arrow::compute::binary(a, b, of)?;
        as_given(&args, Arc::new(result))
    }
}

/// The decimal number of at most ten places that `value` is but for its rounding: half a unit of a price has ten.
fn decimal(value: f64) -> f64 {
    const PLACES: f64 = 1e10;
    const EXACT: f64 = (1u64 << 53) as f64;
    let scaled = value * PLACES;
    if scaled.abs() < EXACT { scaled.round() / PLACES } else { value }
}

/// Carries the tolerance of an as-of join to its planner; it is never called.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Within {
    signature: Signature,
}

impl ScalarUDFImpl for Within {
    fn name(&self) -> &'static str {
        TOLERANCE
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Plan("TOLERANCE is a part of ASOF JOIN".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_begin_and_an_end_of_the_clock() {
        assert_eq!(session("09:30-16:00").unwrap(), (34_200_000_000_000, 57_600_000_000_000));
        assert_eq!(session("18:00 - 24:00").unwrap().1, 86_400_000_000_000);
        assert!(session("9.30 to 4").is_err());
    }

    #[test]
    fn buckets_are_the_same_whether_they_are_found_quickly_or_one_by_one() {
        let times: Vec<i64> = (0..10_000).map(|i| i * 7_777_777_777 % 1_000_000_000_000_000 - 40_000_000_000_000).collect();
        let times = PrimitiveArray::<TimestampNanosecondType>::from(times);
        for text in ["1s", "7m", "1h", "1d"] {
            let interval: Interval = text.parse().unwrap();
            let quick = bucketed(&times, interval, "", None).unwrap();
            let slow = bucketed(&times, interval, "Etc/UTC", None).unwrap();
            assert_eq!(quick, slow, "{text}");
        }
    }
}
