//! Owns: time. [`Ts`] is a moment in nanoseconds since the epoch, UTC; [`Clock`] is the one source of
//! the current time, so a simulation can supply its own.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Nanoseconds since 1970-01-01T00:00:00Z. The maximum is null.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bytemuck::Pod,
    bytemuck::Zeroable,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[repr(transparent)]
pub struct Ts(pub u64);

impl Ts {
    /// The null time.
    pub const NULL: Ts = Ts(u64::MAX);

    /// Whether this is the null time.
    pub const fn is_null(self) -> bool {
        self.0 == u64::MAX
    }
}

impl fmt::Display for Ts {
    /// RFC 3339 with all nine digits of the second; `null` for [`Ts::NULL`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() {
            return f.write_str("null");
        }
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => write!(f, "{t:.9}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl FromStr for Ts {
    type Err = Error;

    /// Nanoseconds as an integer, RFC 3339 with an offset, or `null`.
    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::invalid("time", format!("'{text}' is neither nanoseconds since 1970 nor like 2024-08-08T23:54:15.5Z"));
        if text == "null" {
            return Ok(Ts::NULL);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Ts).map_err(|_| invalid());
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| invalid())?;
        u64::try_from(time.as_nanosecond()).map(Ts).map_err(|_| invalid())
    }
}

/// The end of a wait of `limit` from now. One that the clock cannot hold ends in a hundred years.
pub(crate) fn deadline(limit: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
    Instant::now() + limit.min(LONGEST)
}

/// Parses a duration like `250ms`, `90s`, `15m`, `36h` or `30d` into nanoseconds; a day has 24 hours.
///
/// # Errors
/// [`Error::Invalid`] if `text` is none, has months or years, or is too long for 64 bits.
#[doc(hidden)]
pub fn parse_duration(text: &str) -> Result<u64> {
    let length = || {
        let span: jiff::Span = text.parse().ok()?;
        // Weeks and days have a length; months and years have none, and are refused.
        let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?;
        u64::try_from(length.as_nanos()).ok()
    };
    length().ok_or_else(|| Error::invalid("duration", format!("'{text}' is not like 250ms, 90s, 15m, 36h or 30d")))
}

/// Parses a time as people write it: what [`Ts`] parses; a date or a date and time, in UTC or in the zone behind it, as in
/// `2024-08-08`, `2024-08-08 23:55` and `2024-08-08 09:30[America/New_York]`; `now`, which is the time `now`, and `now-5m`.
///
/// # Errors
/// [`Error::Invalid`] if `text` is none of these, or its zone is unknown or has no such time or two of them.
#[doc(hidden)]
pub fn parse_time(text: &str, now: Ts) -> Result<Ts> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let invalid = || {
        let forms = "2024-08-08, 2024-08-08 23:55, 2024-08-08 09:30[America/New_York], 2024-08-08T23:54:15.5Z, now, now-5m";
        Error::invalid("time", format!("'{text}' is neither like {forms} nor nanoseconds since 1970"))
    };
    if let Some(rest) = text.strip_prefix("now") {
        return match rest.split_at_checked(1) {
            None => Ok(now),
            Some(("-", span)) => now.0.checked_sub(parse_duration(span)?).map(Ts).ok_or_else(invalid),
            Some(("+", span)) => now.0.checked_add(parse_duration(span)?).map(Ts).ok_or_else(invalid),
            Some(_) => Err(invalid()),
        };
    }
    let (date, zone) = match text.split_once('[') {
        Some((date, zone)) => (date.trim_end(), zone.strip_suffix(']').ok_or_else(invalid)?),
        None => (text, "UTC"),
    };
    // An offset where none is due is not left out.
    let is_plain = date.bytes().all(|b| b.is_ascii_digit() || b"-:. T".contains(&b)) && date.matches('-').count() == 2;
    let date: jiff::civil::DateTime = date.parse().ok().filter(|_| is_plain).ok_or_else(invalid)?;
    let zone = jiff::tz::TimeZone::get(zone).map_err(|_| Error::invalid("time zone", format!("'{zone}' is unknown")))?;
    let time = zone.to_ambiguous_timestamp(date).unambiguous().map_err(|_| {
        let why = format!("'{text}' is skipped or repeated when the clocks change there; give it with an offset or in UTC");
        Error::invalid("time", why)
    })?;
    u64::try_from(time.as_nanosecond()).map(Ts).map_err(|_| invalid())
}

/// The source of the current time.
pub trait Clock: Send + Sync {
    /// Wall-clock time; may jump.
    fn wall(&self) -> Ts;
    /// Nanoseconds of a clock that never falls and is shared by all processes of the host.
    fn monotonic(&self) -> u64;
}

/// The host's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

fn read(id: rustix::time::ClockId) -> u64 {
    let t = rustix::time::clock_gettime(id);
    u64::try_from(t.tv_sec).unwrap_or(0) * NANOS_PER_SECOND + u64::try_from(t.tv_nsec).unwrap_or(0)
}

impl Clock for HostClock {
    fn wall(&self) -> Ts {
        Ts(read(rustix::time::ClockId::Realtime))
    }

    fn monotonic(&self) -> u64 {
        read(rustix::time::ClockId::Monotonic)
    }
}

/// A clock that moves only by its methods; for simulation.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct SimClock {
    now: Arc<AtomicU64>,
    /// Offset of the wall clock, modulo 2^64.
    skew: Arc<AtomicU64>,
}

impl SimClock {
    /// A clock at `start`.
    pub fn new(start: Ts) -> Self {
        SimClock { now: Arc::new(AtomicU64::new(start.0)), skew: Arc::default() }
    }

    /// Advances the clock by `nanos`.
    #[doc(hidden)]
    pub fn advance(&self, nanos: u64) {
        // A single number that orders nothing else: relaxed.
        self.now.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Moves the wall clock by `nanos`, forward or back.
    #[doc(hidden)]
    pub fn jump(&self, nanos: i64) {
        // As above.
        self.skew.fetch_add(nanos.cast_unsigned(), Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall(&self) -> Ts {
        Ts(self.monotonic().wrapping_add(self.skew.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_of_any_length_has_an_end() {
        assert!(deadline(Duration::MAX) > Instant::now() + Duration::from_secs(86_400));
        assert!(deadline(Duration::ZERO) <= Instant::now());
    }

    #[test]
    fn a_time_prints_and_parses_to_the_same_nanosecond() {
        for ns in [0, 1, 1_723_161_255_030_314_667, 253_402_207_200_000_000] {
            let text = Ts(ns).to_string();
            assert_eq!(text.parse::<Ts>().unwrap(), Ts(ns), "{text}");
        }
        assert_eq!(Ts(1_723_161_255_030_314_667).to_string(), "2024-08-08T23:54:15.030314667Z");
        assert_eq!("null".parse::<Ts>().unwrap(), Ts::NULL);
        assert!("yesterday".parse::<Ts>().is_err());
        assert!("99999999999999999999999".parse::<Ts>().is_err());
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!((parse_duration("90s").unwrap(), parse_duration("2d").unwrap()), (90_000_000_000, 172_800_000_000_000));
        assert_eq!((parse_duration("250ms").unwrap(), parse_duration("1h30m").unwrap()), (250_000_000, 5_400_000_000_000));
        for bad in ["", "d", "30", "-1d", "9999999999999d", "1\u{b5}", "1mo", "2y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_is_parsed_as_people_write_it_or_refused() {
        let now = Ts(1_700_000_000_000_000_000);
        for (text, rfc) in [
            ("2024-08-08", "2024-08-08T00:00:00Z"),
            ("2024-08-08 23:55", "2024-08-08T23:55:00Z"),
            ("2024-08-08T23:55:01.25", "2024-08-08T23:55:01.25Z"),
            ("2024-08-08 09:30[America/New_York]", "2024-08-08T13:30:00Z"),
            ("2024-01-08 09:30 [America/New_York]", "2024-01-08T14:30:00Z"),
            ("2024-08-08[Asia/Tokyo]", "2024-08-07T15:00:00Z"),
            ("2024-08-08 09:30-04:00", "2024-08-08T13:30:00Z"),
            ("1723161255500000000", "2024-08-08T23:54:15.5Z"),
        ] {
            assert_eq!(parse_time(text, now).unwrap(), rfc.parse().unwrap(), "{text}");
        }
        assert_eq!(parse_time("now", now).unwrap(), now);
        assert_eq!(parse_time("now-5m", now).unwrap(), Ts(now.0 - 300_000_000_000));
        assert_eq!(parse_time("now+1h30m", now).unwrap(), Ts(now.0 + 5_400_000_000_000));
        let refused = [
            "",
            "yesterday",
            "2024-08-32",
            "2024-08-08-04:00",
            "now5m",
            "now-5",
            "now-90000d",
            "2024-08-08[Nowhere/None]",
            "2024-08-08[UTC",
            "1969-12-31",
            // Skipped, and repeated.
            "2024-03-10 02:30[America/New_York]",
            "2024-11-03 01:30[America/New_York]",
        ];
        for text in refused {
            assert!(parse_time(text, now).is_err(), "{text}");
        }
    }
}
