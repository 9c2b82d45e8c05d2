//! How requests stand against their due dates: what is open, late or about to be, how long the others took, and what the next run
//! of a schedule comes too late for. Pure: facts and a time go in.

use jiff::{SignedDuration, Timestamp};

/// The dates of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dates {
    pub received: Timestamp,
    /// `None`: no regime was named for it.
    pub due: Option<Timestamp>,
    /// When nothing was left to do; `None`: it is open.
    pub done: Option<Timestamp>,
    /// It was done once and came back: its dates are those of the return, and say nothing of how long requests take.
    pub is_return: bool,
}

/// Where all requests stand at one time. Times in days, with fractions.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub open: u64,
    pub done: u64,
    /// Open and past their due date.
    pub overdue: u64,
    /// Open, not overdue, and due within the days that were asked for.
    pub due_soon: u64,
    /// Open and of no regime.
    pub without_due_date: u64,
    /// Done, but after their due date.
    pub done_late: u64,
    /// Age of the oldest that is open.
    pub oldest_open_days: Option<f64>,
    pub days_to_done: Option<DaysToDone>,
}

/// How long the requests that are done took; percentiles by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DaysToDone {
    pub p50: f64,
    pub p95: f64,
    pub max: f64,
}

const DAY_SECONDS: f64 = 86_400.0;

fn days(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() / DAY_SECONDS
}

/// Whole days from one time to another, rounded down: 0 until a day is over, negative when `to` is past.
pub fn whole_days(from: Timestamp, to: Timestamp) -> i64 {
    days(from, to).floor() as i64
}

/// A due date is the last second of a day, and a day ends with the end of that.
fn is_past(due: Timestamp, at: Timestamp) -> bool {
    at.as_second() > due.as_second()
}

impl Dates {
    pub fn is_open(&self) -> bool {
        self.done.is_none()
    }

    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.is_open() && self.due.is_some_and(|due| is_past(due, now))
    }

    /// Whether a run at that time would come too late for it.
    pub fn is_missed_by(&self, run: Timestamp) -> bool {
        self.is_open() && self.due.is_some_and(|due| is_past(due, run))
    }
}

/// Counts everything at `now`; due soon is what is due within `soon_days`.
pub fn standing(requests: &[Dates], now: Timestamp, soon_days: u32) -> Standing {
    let soon = SignedDuration::from_hours(24 * i64::from(soon_days));
    let count = |is: &dyn Fn(&Dates) -> bool| requests.iter().filter(|dates| is(dates)).count() as u64;
    let is_soon = |dates: &Dates| dates.due.is_some_and(|due| !is_past(due, now) && due.duration_since(now) <= soon);
    let open = || requests.iter().filter(|dates| dates.is_open());
    let first_times = || requests.iter().filter(|dates| !dates.is_return);
    let is_late = |dates: &&Dates| matches!((dates.due, dates.done), (Some(due), Some(done)) if is_past(due, done));
    let taken: Vec<f64> = first_times().filter_map(|dates| Some(days(dates.received, dates.done?).max(0.0))).collect();
    Standing {
        open: count(&Dates::is_open),
        done: count(&|dates| !dates.is_open()),
        overdue: count(&|dates| dates.is_overdue(now)),
        due_soon: count(&|dates| dates.is_open() && is_soon(dates)),
        without_due_date: count(&|dates| dates.is_open() && dates.due.is_none()),
        done_late: first_times().filter(is_late).count() as u64,
        oldest_open_days: open().map(|dates| days(dates.received, now).max(0.0)).reduce(f64::max),
        days_to_done: days_to_done(taken),
    }
}

fn days_to_done(mut taken: Vec<f64>) -> Option<DaysToDone> {
    taken.sort_by(f64::total_cmp);
    let rank = |percent: usize| taken.get((taken.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some(DaysToDone { p50: rank(50)?, p95: rank(95)?, max: *taken.last()? })
}

/// When the next run of a schedule is: the first one after `now` at whole steps from the last; `now` when there was none or one is
/// due at once.
pub fn next_run(last: Option<Timestamp>, every: SignedDuration, now: Timestamp) -> Timestamp {
    match last.and_then(|last| last.checked_add(every).ok()) {
        Some(next) => next.max(now),
        None => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-{text}Z").parse().unwrap()
    }

    fn dates(received: &str, due: Option<&str>, done: Option<&str>) -> Dates {
        Dates { received: at(received), due: due.map(at), done: done.map(at), is_return: false }
    }

    #[test]
    fn every_request_is_counted_where_it_stands() {
        let requests = [
            dates("01-01T00:00:00", Some("02-15T23:59:59"), None),
            dates("03-01T00:00:00", Some("04-15T23:59:59"), None),
            dates("02-20T00:00:00", Some("03-12T23:59:59"), None),
            dates("03-05T00:00:00", None, None),
            dates("01-01T00:00:00", Some("02-15T23:59:59"), Some("01-03T12:00:00")),
            dates("01-01T00:00:00", Some("02-15T23:59:59"), Some("02-16T00:00:00")),
        ];
        // One that came back tells nothing of how long requests take.
        let back = Dates { is_return: true, ..dates("01-01T00:00:00", Some("02-15T23:59:59"), Some("03-01T00:00:00")) };
        let requests = [&requests[..], &[back]].concat();
        let now = at("03-10T00:00:00");
        let standing = standing(&requests, now, 7);
        assert_eq!(
            standing,
            Standing {
                open: 4,
                done: 3,
                overdue: 1,
                due_soon: 1,
                without_due_date: 1,
                done_late: 1,
                oldest_open_days: Some(68.0),
                days_to_done: Some(DaysToDone { p50: 2.5, p95: 46.0, max: 46.0 }),
            }
        );
    }

    #[test]
    fn nothing_is_late_on_its_last_day() {
        let one = dates("01-01T00:00:00", Some("02-15T23:59:59"), None);
        assert!(!one.is_overdue(at("02-15T23:59:59")));
        assert!(one.is_overdue(at("02-16T00:00:00")));
        for (now, days) in [("02-13T23:59:58", 2), ("02-14T00:00:00", 1), ("02-15T12:00:00", 0), ("02-16T12:00:00", -1)]
        {
            assert_eq!(one.due.map(|due| whole_days(at(now), due)), Some(days), "{now}");
        }
        let empty = standing(&[], at("01-01T00:00:00"), 7);
        assert_eq!((empty.open, empty.oldest_open_days, empty.days_to_done), (0, None, None));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        for (count, p50, p95) in [(1, 1.0, 1.0), (2, 1.0, 2.0), (20, 10.0, 19.0), (100, 50.0, 95.0), (101, 51.0, 96.0)]
        {
            let taken = (1..=count).rev().map(f64::from).collect();
            assert_eq!(days_to_done(taken), Some(DaysToDone { p50, p95, max: f64::from(count) }), "{count}");
        }
    }

    #[test]
    fn the_next_run_of_a_schedule_misses_what_is_due_before_it() {
        let weekly = SignedDuration::from_hours(24 * 7);
        let now = at("03-10T00:00:00");
        assert_eq!(next_run(Some(at("03-08T02:00:00")), weekly, now), at("03-15T02:00:00"));
        assert_eq!(next_run(Some(at("02-01T02:00:00")), weekly, now), now);
        assert_eq!(next_run(None, weekly, now), now);
        let run = at("03-15T02:00:00");
        for (due, done, missed) in [
            ("03-14T23:59:59", None, true),
            ("03-15T23:59:59", None, false),
            ("03-14T23:59:59", Some("03-09T00:00:00"), false),
        ] {
            assert_eq!(dates("03-01T00:00:00", Some(due), done).is_missed_by(run), missed, "{due}");
        }
    }
}
