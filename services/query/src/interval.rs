//! Owns: lengths of time as people write them, and the bucket of such a length in which a moment lies.
//!
//! | unit | length |
//! |---|---|
//! | `n` `ns`, `U` `us`, `T` `ms`, `s`, `m`, `h` | fixed |
//! | `d`, `w`, `M`, `y` | of a calendar: a day may have 23 or 25 hours where a time zone changes its clocks |
//!
//! What must hold: a moment lies in its bucket: the bucket's start is not after it, and the next bucket's start is after it.
//! Buckets of a calendar begin at midnight of their zone, weeks on Monday.

use std::str::FromStr;

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

const SECOND: i64 = 1_000_000_000;

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interval {
    /// Nanoseconds.
    Fixed(i64),
    /// Days of a calendar.
    Days(i64),
    /// Weeks.
    Weeks(i64),
    /// Months.
    Months(i64),
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Interval, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let bad = || format!("'{text}' is not a length of time like 500ms, 5s, 1m, 1h, 1d, 1w, 1M, 1y");
        let count: i64 = if number.is_empty() { 1 } else { number.parse().map_err(|_| bad())? };
        if count == 0 {
            return Err(format!("'{text}' is no time at all"));
        }
        let fixed = |unit: i64| count.checked_mul(unit).map(Interval::Fixed).ok_or_else(bad);
        // The case of a short unit counts: 1m is a minute, 1M a month.
        let unit = unit.trim();
        let unit = if unit.len() > 2 { unit.to_lowercase() } else { unit.to_owned() };
        match unit.as_str() {
            "n" | "ns" | "nanosecond" | "nanoseconds" => fixed(1),
            "U" | "us" | "\u{b5}s" | "microsecond" | "microseconds" => fixed(1000),
            "T" | "ms" | "millisecond" | "milliseconds" => fixed(1_000_000),
            "s" | "sec" | "second" | "seconds" => fixed(SECOND),
            "m" | "min" | "minute" | "minutes" => fixed(60 * SECOND),
            "h" | "hour" | "hours" => fixed(3600 * SECOND),
            "d" | "day" | "days" => Ok(Interval::Days(count)),
            "w" | "week" | "weeks" => Ok(Interval::Weeks(count)),
            "M" | "mo" | "month" | "months" => Ok(Interval::Months(count)),
            "y" | "year" | "years" => count.checked_mul(12).map(Interval::Months).ok_or_else(bad),
            _ => Err(bad()),
        }
    }
}

impl Interval {
    /// Its nanoseconds, if it is fixed; a day has 24 hours.
    pub fn fixed(self) -> Option<i64> {
        match self {
            Interval::Fixed(ns) => Some(ns),
            Interval::Days(days) => days.checked_mul(86_400 * SECOND),
            Interval::Weeks(weeks) => weeks.checked_mul(7 * 86_400 * SECOND),
            Interval::Months(_) => None,
        }
    }

    /// The start of the bucket of `ns` whose first one begins at `origin`.
    pub fn since(self, ns: i64, origin: i64) -> Option<i64> {
        let len = self.fixed()?;
        origin.checked_add(ns.checked_sub(origin)?.div_euclid(len).checked_mul(len)?)
    }

    /// The start of the bucket of `ns` in UTC.
    pub fn bucket(self, ns: i64) -> Option<i64> {
        match self {
            // The epoch was a Thursday; weeks begin on Monday.
            Interval::Weeks(_) => self.since(ns, -3 * 86_400 * SECOND),
            Interval::Fixed(_) | Interval::Days(_) => self.since(ns, 0),
            Interval::Months(months) => {
                let date = Timestamp::from_nanosecond(i128::from(ns)).ok()?.to_zoned(TimeZone::UTC).date();
                ns_of(&TimeZone::UTC, month_of(date, months)?)
            }
        }
    }

    /// The start of the bucket of `ns` by the clocks of `zone`.
    pub fn bucket_in(self, ns: i64, zone: &TimeZone) -> Option<i64> {
        let moment = Timestamp::from_nanosecond(i128::from(ns)).ok()?;
        let local = moment.to_zoned(zone.clone());
        let date = local.date();
        match self {
            Interval::Fixed(len) => {
                // By the clock of the zone, with its offset at this moment: hours that occur twice stay two buckets.
                let offset = i64::from(local.offset().seconds()) * SECOND;
                let start = (ns + offset).div_euclid(len) * len - offset;
                let then = zone.to_offset(Timestamp::from_nanosecond(i128::from(start)).ok()?);
                if then.seconds() == local.offset().seconds() {
                    return Some(start);
                }
                // The clocks were changed within the bucket: it begins at the same time of the clock, before the change.
                let civil = DateTime::from(date).checked_add(SignedDuration::from_nanos(
                    (ns + offset).div_euclid(len) * len - (ns + offset).div_euclid(86_400 * SECOND) * 86_400 * SECOND,
                ));
                let start = zone.to_zoned(civil.ok()?).ok()?.timestamp().as_nanosecond();
                i64::try_from(start).ok().map(|start| start.min(ns))
            }
            Interval::Days(days) => {
                let number = i64::from(date.since(Date::constant(1970, 1, 1)).ok()?.get_days());
                let start = number.div_euclid(days) * days;
                ns_of(zone, Date::constant(1970, 1, 1).checked_add(jiff::Span::new().try_days(start).ok()?).ok()?)
            }
            Interval::Weeks(weeks) => {
                let monday = Date::constant(1969, 12, 29);
                debug_assert!(monday.weekday() == Weekday::Monday);
                let number = i64::from(date.since(monday).ok()?.get_days());
                let start = number.div_euclid(weeks * 7) * weeks * 7;
                ns_of(zone, monday.checked_add(jiff::Span::new().try_days(start).ok()?).ok()?)
            }
            Interval::Months(months) => ns_of(zone, month_of(date, months)?),
        }
    }

    /// The start of the bucket after the one that begins at `start`.
    pub fn next(self, start: i64, zone: &TimeZone) -> Option<i64> {
        let of_calendar = |span: jiff::Span| {
            let local = Timestamp::from_nanosecond(i128::from(start)).ok()?.to_zoned(zone.clone());
            ns_of(zone, local.date().checked_add(span).ok()?)
        };
        match self {
            Interval::Fixed(len) => {
                let next = start.checked_add(len)?;
                // Where the clocks change, the next bucket begins at the time that its rows have.
                let bucket = self.bucket_in(next, zone)?;
                Some(if bucket > start { bucket } else { next })
            }
            Interval::Days(days) => of_calendar(jiff::Span::new().try_days(days).ok()?),
            Interval::Weeks(weeks) => of_calendar(jiff::Span::new().try_weeks(weeks).ok()?),
            Interval::Months(months) => of_calendar(jiff::Span::new().try_months(months).ok()?),
        }
    }
}

/// The first day of the bucket of `months` months in which `date` lies, counted from January 1970.
fn month_of(date: Date, months: i64) -> Option<Date> {
    let number = (i64::from(date.year()) - 1970) * 12 + i64::from(date.month()) - 1;
    let start = number.div_euclid(months) * months;
    let (year, month) = (start.div_euclid(12) + 1970, start.rem_euclid(12) + 1);
    Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, 1).ok()
}

/// The start of `date` in `zone`.
fn ns_of(zone: &TimeZone, date: Date) -> Option<i64> {
    i64::try_from(zone.to_zoned(date.into()).ok()?.timestamp().as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> i64 {
        i64::try_from(text.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
    }

    fn bucket(interval: &str, time: &str, zone: &str) -> String {
        let start = interval.parse::<Interval>().unwrap().bucket_in(ns(time), &TimeZone::get(zone).unwrap()).unwrap();
        Timestamp::from_nanosecond(i128::from(start)).unwrap().to_string()
    }

    #[test]
    fn days_of_a_zone_begin_at_its_midnight_also_when_clocks_change() {
        let zone = "America/New_York";
        // 2024-03-10 had 23 hours, 2024-11-03 25.
        assert_eq!(bucket("1d", "2024-03-10T04:59:00Z", zone), "2024-03-09T05:00:00Z");
        assert_eq!(bucket("1d", "2024-03-10T05:00:00Z", zone), "2024-03-10T05:00:00Z");
        assert_eq!(bucket("1d", "2024-03-11T03:59:59Z", zone), "2024-03-10T05:00:00Z");
        assert_eq!(bucket("1d", "2024-03-11T04:00:00Z", zone), "2024-03-11T04:00:00Z");
        assert_eq!(bucket("1d", "2024-11-04T04:59:59Z", zone), "2024-11-03T04:00:00Z");
        assert_eq!(bucket("1w", "2024-08-08T12:00:00Z", zone), "2024-08-05T04:00:00Z");
        assert_eq!(bucket("1M", "2024-02-29T12:00:00Z", zone), "2024-02-01T05:00:00Z");
        assert_eq!(bucket("1y", "2024-02-29T12:00:00Z", zone), "2024-01-01T05:00:00Z");
    }

    #[test]
    fn an_hour_that_occurs_twice_is_two_buckets() {
        let zone = "America/New_York";
        assert_eq!(bucket("1h", "2024-11-03T05:30:00Z", zone), "2024-11-03T05:00:00Z");
        assert_eq!(bucket("1h", "2024-11-03T06:30:00Z", zone), "2024-11-03T06:00:00Z");
    }

    #[test]
    fn a_moment_lies_in_its_bucket_and_buckets_follow_each_other() {
        for zone in ["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Europe/London"] {
            let zone = TimeZone::get(zone).unwrap();
            for interval in ["1s", "7m", "1h", "4h", "6h", "1d", "3d", "1w", "1M", "1y"] {
                let interval: Interval = interval.parse().unwrap();
                let mut time = ns("2024-01-01T00:00:00Z");
                while time < ns("2025-01-02T00:00:00Z") {
                    let start = interval.bucket_in(time, &zone).unwrap();
                    assert!(start <= time, "{interval:?} {time}");
                    assert_eq!(interval.bucket_in(start, &zone), Some(start), "{interval:?} {time} {zone:?}");
                    let next = interval.next(start, &zone).unwrap();
                    assert!(next > start, "{interval:?} {start}");
                    time += 5 * 3600 * SECOND + 1_234_567_891;
                }
            }
        }
    }

    #[test]
    fn in_utc_both_ways_agree() {
        for interval in ["1n", "250ms", "5s", "1m", "15m", "4h", "1d", "2d", "1w", "1M", "5M", "1y"] {
            let interval: Interval = interval.parse().unwrap();
            for time in [0, 1, 86_399_999_999_999, 1_723_161_600_123_456_789, -1] {
                assert_eq!(interval.bucket(time), interval.bucket_in(time, &TimeZone::UTC), "{interval:?} {time}");
            }
        }
        assert!("0s".parse::<Interval>().is_err() && "5 parsecs".parse::<Interval>().is_err());
        assert_eq!("m".parse(), Ok(Interval::Fixed(60 * SECOND)));
    }
}
