//! Owns: [`Session`], the trading hours of a venue in its time zone, and the lookup of a moment in them.
//!
//! What must hold: sessions do not overlap; every moment is in one session or between two.

use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::error::{Error, Result};
use crate::time::Ts;

/// The trading hours of a venue, in its time zone. The zone rules are compiled into this program: the host's are
/// not read.
#[derive(Clone, Debug)]
pub struct Session {
    /// The zone.
    pub zone: TimeZone,
    /// Local start. A time that the clocks skip is the moment of the skip; of a repeated time, the first counts.
    pub start: civil::Time,
    /// Local end, excluded, resolved in the same way. If it is not after the start, it is on the next day.
    pub end: civil::Time,
}

impl Session {
    /// The session of `hours` (`09:30-16:00`) in `zone` (`America/New_York`).
    ///
    /// # Errors
    /// [`Error::Invalid`] if either is malformed or the zone is unknown.
    pub fn parse(hours: &str, zone: &str) -> Result<Session> {
        let time = |text: &str| -> Option<civil::Time> { text.parse().ok() };
        let pair = hours.split_once('-').and_then(|(start, end)| Some((time(start)?, time(end)?)));
        let (start, end) = pair.ok_or_else(|| Error::invalid("session", format!("'{hours}' is not like 09:30-16:00")))?;
        let zone = TimeZone::get(zone)
            .map_err(|_| Error::invalid("zone", format!("'{zone}' is not the name of a zone like America/New_York")))?;
        Ok(Session { zone, start, end })
    }

    /// The first moment at which the local clock shows `local` or later.
    fn moment(&self, local: civil::DateTime) -> Option<i128> {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        let is_skipped = matches!(ambiguous.offset(), AmbiguousOffset::Gap { .. });
        let moment = ambiguous.compatible().ok()?;
        if is_skipped {
            // `moment` is as long after the skip as `local` is after the start of the skipped span.
            let after = moment.checked_add(jiff::SignedDuration::from_nanos(1)).ok()?;
            if let Some(skip) = self.zone.preceding(after).next() {
                return Some(skip.timestamp().as_nanosecond());
            }
        }
        Some(moment.as_nanosecond())
    }

    /// The session that starts on `date`, if it has one.
    fn of(&self, date: civil::Date) -> Option<Stretch> {
        let last = if self.end > self.start { date } else { date.tomorrow().ok()? };
        let (start, end) = (self.moment(date.to_datetime(self.start))?, self.moment(last.to_datetime(self.end))?);
        (start < end).then_some(Stretch { start, end, is_open: true })
    }

    /// The session that contains `time`, or the gap between two sessions that does.
    pub(super) fn stretch(&self, time: Ts) -> Option<Stretch> {
        let t = i128::from(time.0);
        let date = self.zone.to_datetime(jiff::Timestamp::from_nanosecond(t).ok()?).date();
        let mut between = Stretch { start: i128::MIN, end: i128::MAX, is_open: false };
        for date in [date.yesterday().ok(), Some(date), date.tomorrow().ok()].into_iter().flatten() {
            match self.of(date) {
                Some(session) if session.holds(time) => return Some(session),
                Some(session) if session.end <= t => between.start = between.start.max(session.end),
                Some(session) => between.end = between.end.min(session.start),
                None => {}
            }
        }
        // If an adjacent day has no session, the gap's end there is unknown.
        let start = if between.start == i128::MIN { t } else { between.start };
        let end = if between.end == i128::MAX { t + 1 } else { between.end };
        let gap = Stretch { start, end, is_open: false };
        debug_assert!(gap.holds(time), "every moment is in one session or between two");
        Some(gap)
    }
}

/// A session, or the gap between two; ns since 1970. A session may start before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: i128,
    pub(super) end: i128,
    pub(super) is_open: bool,
}

impl Stretch {
    pub(super) fn holds(&self, time: Ts) -> bool {
        (self.start..self.end).contains(&i128::from(time.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::NANOS_PER_SECOND;

    #[test]
    fn a_skipped_start_is_the_skip_and_a_repeated_start_is_the_first() {
        let at = |hours, date: [i16; 3]| {
            let session = Session::parse(hours, "America/New_York").unwrap();
            let of = session.of(civil::date(date[0], date[1] as i8, date[2] as i8));
            of.map(|s| [Ts(s.start as u64).to_string(), Ts(s.end as u64).to_string()].map(|t| t[..16].to_owned()))
        };
        assert_eq!(at("02:30-04:00", [2024, 3, 10]), Some(["2024-03-10T07:00", "2024-03-10T08:00"].map(str::to_owned)));
        assert_eq!(at("02:10-02:50", [2024, 3, 10]), None, "there is no such hour");
        assert_eq!(at("01:30-02:00", [2024, 11, 3]), Some(["2024-11-03T05:30", "2024-11-03T07:00"].map(str::to_owned)));
    }

    proptest! {
        #[test]
        fn every_moment_is_in_one_session_or_between_two(
            t in 0u64..4_000_000_000, start in 0i32..86_400, end in 0i32..86_400,
            zone in prop::sample::select(vec!["America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Tokyo", "UTC"]),
        ) {
            let time = |s: i32| civil::time((s / 3600) as i8, (s / 60 % 60) as i8, (s % 60) as i8, 0);
            let session = Session { zone: TimeZone::get(zone).unwrap(), start: time(start), end: time(end) };
            let t = Ts(t * NANOS_PER_SECOND);
            let stretch = session.stretch(t).unwrap();
            prop_assert!(stretch.holds(t));
            let last = Ts(u64::try_from(stretch.end - 1).unwrap());
            prop_assert_eq!(session.stretch(last).unwrap().is_open, stretch.is_open);
            prop_assert_eq!(session.stretch(last).unwrap().end, stretch.end);
            if let Ok(first) = u64::try_from(stretch.start) {
                let first = session.stretch(Ts(first)).unwrap();
                prop_assert_eq!((first.start, first.is_open), (stretch.start, stretch.is_open));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            drop(Session::parse(&text, &text));
        }
    }
}
