//! Until when a request is to be done, and how that date came about.
//!
//! Presets are those of `regulation.md` section 3, each with its source and how sure it is; a job adds its own. Pure: the time comes from
//! the caller. Invariant: where a text has two readings the earlier date is taken, and [`Due::how`] tells the whole way to it.

use std::collections::HashMap;

use jiff::civil::{Date, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};

use crate::ledger_event::{DueDate, Text};

/// How long, and in what it is counted. The day of the event itself is never counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    CalendarDays(u32),
    /// Without Saturdays, Sundays and the holidays of the regime's calendar.
    BusinessDays(u32),
    /// Ends on the same day of the month, or on its last day when it has no such day.
    Months(u32),
}

/// The holidays that are known by rule. A holiday that is missing makes a date earlier, never later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holidays {
    None,
    /// 5 U.S.C. 6103, with the days on which they are observed.
    UsFederal,
    /// What every member state keeps: 1 January and 25 December. Art. 3(4) of Reg. 1182/71 means the holidays of the state where the duty
    /// is done, and of the others some states have none.
    Eu,
}

/// How well a preset's facts are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The primary text was seen.
    Primary,
    /// A report about it was.
    Secondary,
    /// Neither; common knowledge.
    Background,
    /// The job file says so.
    Job,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Source::Primary => "primary text",
            Source::Secondary => "secondary source",
            Source::Background => "not confirmed",
            Source::Job => "job file",
        }
    }
}

/// One duty with its term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regime {
    pub id: String,
    pub duty: String,
    pub term: Term,
    /// What may be added with a notice to the person; never part of [`Due::at`].
    pub extension: Option<Term>,
    /// Reg. (EEC, Euratom) 1182/71 Art. 3(4): a term that ends on a day off ends with the next working day.
    pub ends_on_working_day: bool,
    pub holidays: Holidays,
    /// Days off beyond `holidays`.
    pub days_off: Vec<Date>,
    /// First day on which it applies.
    pub from: Option<Date>,
    /// Last day on which it applies.
    pub until: Option<Date>,
    /// What applies to requests received after `until`.
    pub successor: Option<&'static str>,
    pub citation: String,
    pub source: Source,
}

/// A due date and how it was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The regime that was applied: a successor's id when the request came after the end of the one that was asked for.
    pub regime: String,
    pub date: Date,
    /// The last second of that date in the time zone; later is overdue.
    pub at: Timestamp,
    /// The date with the extension that the regime allows.
    pub extended: Option<Date>,
    /// In words, with every day that was left out.
    pub how: String,
}

/// When a request arrived. A date alone is that day, in whatever zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    At(Timestamp),
    On(Date),
}

/// What a term runs from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Since {
    Received,
    /// Nobody said when it was received.
    Recorded,
    /// Its data came back.
    Back,
    /// First rows were found, or an identifier was added.
    Reopened,
    /// Another status than the one that was answered is owed.
    Changed,
}

impl Since {
    fn words(self) -> &'static str {
        match self {
            Since::Received => "received",
            Since::Recorded => "recorded",
            Since::Back => "back since",
            Since::Reopened => "open again since",
            Since::Changed => "another status owed since",
        }
    }
}

/// The due dates of many requests under one regime, each day's computed once.
pub struct DueDates<'a> {
    regimes: &'a Regimes,
    regime: Text,
    known: HashMap<(Date, Since), Option<DueDate>>,
}

impl<'a> DueDates<'a> {
    pub fn new(regimes: &'a Regimes, regime: &Text) -> Result<Self, NoDue> {
        match regimes.get(regime) {
            Some(_) => Ok(DueDates { regimes, regime: regime.clone(), known: HashMap::new() }),
            None => Err(NoDue::Unknown(regime.to_string())),
        }
    }

    /// `None`: the rule does not apply yet, or the date lies outside the calendar.
    pub fn of(&mut self, received: Received, since: Since) -> Option<DueDate> {
        let DueDates { regimes, regime, known } = self;
        let day = regimes.day_received(received);
        let due = || {
            let due = regimes.due_since(regime, since, Received::On(day)).ok()?;
            Some(DueDate { at: due.date, how: due.how.into() })
        };
        known.entry((day, since)).or_insert_with(due).clone()
    }
}

/// The regimes of a job: the presets, and those of its own, which come first.
#[derive(Debug, Clone)]
pub struct Regimes {
    all: Vec<Regime>,
    zone: TimeZone,
    zone_name: String,
}

/// Why there is no due date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDue {
    #[error("there is no deadline \"{0}\"")]
    Unknown(String),
    /// A rule binds nobody before it is in force.
    #[error("{regime} applies from {from} on")]
    NotInForce { regime: String, from: Date },
    #[error("the deadline lies outside the calendar")]
    OutOfRange,
}

/// Whether `name` is a zone of the IANA database.
pub fn known_zone(name: &str) -> bool {
    TimeZone::get(name).is_ok()
}

impl Regimes {
    /// `own` are a job's; `zone` is one that [`known_zone`] knows: which day it is when a request arrives, and when a day ends.
    pub fn new(own: Vec<Regime>, zone: &str) -> Self {
        let known = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
        Regimes { all: own.into_iter().chain(presets()).collect(), zone: known, zone_name: zone.to_owned() }
    }

    pub fn zone_name(&self) -> &str {
        &self.zone_name
    }

    pub fn all(&self) -> &[Regime] {
        &self.all
    }

    pub fn get(&self, id: &str) -> Option<&Regime> {
        self.all.iter().find(|regime| regime.id == id)
    }

    /// The ids, for messages.
    pub fn ids(&self) -> Vec<&str> {
        self.all.iter().map(|regime| regime.id.as_str()).collect()
    }

    /// The presets that a job's own rule stands in for by its name.
    pub fn replaced(&self) -> impl Iterator<Item = &str> {
        let is_preset = |id: &str| self.all.iter().any(|other| other.id == id && other.source != Source::Job);
        let own = self.all.iter().filter(|regime| regime.source == Source::Job).map(|regime| regime.id.as_str());
        own.filter(move |id| is_preset(id))
    }

    /// When a request that was received then is due.
    pub fn due(&self, id: &str, received: Received) -> Result<Due, NoDue> {
        self.due_since(id, Since::Received, received)
    }

    /// When it is due what is to be done since then.
    pub fn due_since(&self, id: &str, since: Since, received: Received) -> Result<Due, NoDue> {
        let received = self.day_received(received);
        let mut how = format!("{} {received} ({})", since.words(), self.zone_name);
        let mut regime = self.get(id).ok_or_else(|| NoDue::Unknown(id.to_owned()))?;
        while let (Some(until), Some(next)) = (regime.until, regime.successor)
            && received > until
            && let Some(successor) = self.get(next)
        {
            how.push_str(&format!(", after the end of {} on {until}: {}", regime.id, successor.id));
            regime = successor;
        }
        if let Some(from) = regime.from.filter(|from| received < *from) {
            return Err(NoDue::NotInForce { regime: regime.id.clone(), from });
        }
        let date = regime.end(received, regime.term, &mut how).ok_or(NoDue::OutOfRange)?;
        let extended = regime.extension.and_then(|more| regime.extended(received, date, more));
        if let (Some(extended), Some(more)) = (extended, regime.extension) {
            how.push_str(&format!("; {extended} with an extension of {} told in time", more.words()));
        }
        how.push_str(&format!(" ({})", regime.citation));
        Ok(Due { regime: regime.id.clone(), date, at: self.end_of(date).ok_or(NoDue::OutOfRange)?, extended, how })
    }

    /// The last second of a day.
    pub fn end_of(&self, day: Date) -> Option<Timestamp> {
        let next = day.tomorrow().ok()?.to_zoned(self.zone.clone()).ok()?.timestamp();
        next.checked_sub(1.second()).ok()
    }

    /// The first moment of a day.
    pub fn start_of(&self, day: Date) -> Option<Timestamp> {
        Some(day.to_zoned(self.zone.clone()).ok()?.timestamp())
    }

    fn day_received(&self, received: Received) -> Date {
        match received {
            Received::At(at) => at.to_zoned(self.zone.clone()).date(),
            Received::On(date) => date,
        }
    }
}

impl Term {
    fn words(self) -> String {
        let (count, unit) = match self {
            Term::CalendarDays(count) => (count, "calendar day"),
            Term::BusinessDays(count) => (count, "business day"),
            Term::Months(count) => (count, "month"),
        };
        format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

impl Regime {
    /// The last day of `term` from `received`; the way there is added to `how`.
    fn end(&self, received: Date, term: Term, how: &mut String) -> Option<Date> {
        how.push_str(&format!("; {} after that day", term.words()));
        let plain = self.plain_end(received, term, how)?;
        if !self.ends_on_working_day {
            return Some(plain);
        }
        let mut end = plain;
        while let Some(reason) = self.off(end) {
            how.push_str(&format!(", {end} is {reason}"));
            end = end.tomorrow().ok()?;
        }
        if end != plain {
            how.push_str(&format!(", so the next working day, {end}"));
        }
        Some(end)
    }

    fn plain_end(&self, received: Date, term: Term, how: &mut String) -> Option<Date> {
        match term {
            Term::CalendarDays(count) => {
                let end = received.checked_add(Span::new().try_days(count).ok()?).ok()?;
                how.push_str(&format!(" end on {end}"));
                Some(end)
            }
            Term::Months(count) => {
                let end = received.checked_add(Span::new().try_months(count).ok()?).ok()?;
                let cut = if end.day() == received.day() { "" } else { ", the last day of its month" };
                how.push_str(&format!(" end on {end}{cut}"));
                Some(end)
            }
            Term::BusinessDays(count) => {
                let (mut day, mut left, mut skipped) = (received, count, Vec::new());
                while left > 0 {
                    day = day.tomorrow().ok()?;
                    match self.off(day) {
                        None => left -= 1,
                        Some("a Saturday" | "a Sunday") => {}
                        Some(holiday) => skipped.push(format!("{day} ({holiday})")),
                    }
                }
                let left_out = match skipped.is_empty() {
                    true => "Saturdays and Sundays".to_owned(),
                    false => format!("Saturdays, Sundays and {}", skipped.join(", ")),
                };
                how.push_str(&format!(" end on {day}, without {left_out}"));
                Some(day)
            }
        }
    }

    /// "Two further months" is read from the end of the first term or from receipt: the earlier date is taken.
    fn extended(&self, received: Date, first_end: Date, more: Term) -> Option<Date> {
        let mut way = String::new();
        let after = self.plain_end(self.plain_end(received, self.term, &mut way)?, more, &mut way)?;
        let whole = match (self.term, more) {
            (Term::CalendarDays(a), Term::CalendarDays(b)) => Some(Term::CalendarDays(a + b)),
            (Term::BusinessDays(a), Term::BusinessDays(b)) => Some(Term::BusinessDays(a + b)),
            (Term::Months(a), Term::Months(b)) => Some(Term::Months(a + b)),
            _ => None,
        };
        let whole = whole.and_then(|whole| self.plain_end(received, whole, &mut way)).unwrap_or(after);
        let mut end = after.min(whole).max(first_end);
        while self.ends_on_working_day && self.off(end).is_some() {
            end = end.tomorrow().ok()?;
        }
        Some(end)
    }

    /// Why nobody works on `day`.
    fn off(&self, day: Date) -> Option<&'static str> {
        match day.weekday() {
            Weekday::Saturday => return Some("a Saturday"),
            Weekday::Sunday => return Some("a Sunday"),
            Weekday::Monday | Weekday::Tuesday | Weekday::Wednesday | Weekday::Thursday | Weekday::Friday => {}
        }
        if self.days_off.contains(&day) {
            return Some("a day off by the job file");
        }
        match self.holidays {
            Holidays::None => None,
            Holidays::UsFederal => us_federal(day),
            Holidays::Eu => eu(day),
        }
    }
}

/// 5 U.S.C. 6103(a); (b): a holiday on a Saturday is observed on the Friday before, one on a Sunday (E.O. 11582) on the Monday after.
fn us_federal(day: Date) -> Option<&'static str> {
    let observed = |day: Date| match day.weekday() {
        Weekday::Saturday => day.yesterday().ok(),
        Weekday::Sunday => day.tomorrow().ok(),
        _ => Some(day),
    };
    let fixed = [
        (1, 1, "New Year's Day"),
        (6, 19, "Juneteenth"),
        (7, 4, "Independence Day"),
        (11, 11, "Veterans Day"),
        (12, 25, "Christmas Day"),
    ];
    // New Year's Day of the next year may be observed on 31 December of this one.
    for year in [day.year(), day.year().saturating_add(1)] {
        for (month, number, name) in fixed {
            let since = if name == "Juneteenth" { 2021 } else { 0 };
            if year >= since && Date::new(year, month, number).ok().and_then(observed) == Some(day) {
                return Some(name);
            }
        }
    }
    let floating = [
        (1, 3, Weekday::Monday, "Birthday of Martin Luther King, Jr."),
        (2, 3, Weekday::Monday, "Washington's Birthday"),
        (5, -1, Weekday::Monday, "Memorial Day"),
        (9, 1, Weekday::Monday, "Labor Day"),
        (10, 2, Weekday::Monday, "Columbus Day"),
        (11, 4, Weekday::Thursday, "Thanksgiving Day"),
    ];
    let at = |(month, nth, weekday, _): &(i8, i8, Weekday, &str)| {
        day.month() == *month && date(day.year(), *month, 1).nth_weekday_of_month(*nth, *weekday).ok() == Some(day)
    };
    floating.iter().find(|holiday| at(holiday)).map(|(_, _, _, name)| *name)
}

fn eu(day: Date) -> Option<&'static str> {
    match (day.month(), day.day()) {
        (1, 1) => Some("New Year's Day"),
        (12, 25) => Some("Christmas Day"),
        _ => None,
    }
}

/// The presets of regulation.md section 3.
pub fn presets() -> Vec<Regime> {
    use Source::{Background, Primary, Secondary};
    use Term::{BusinessDays, CalendarDays, Months};
    let us = |id, duty, term, citation, source| preset(id, duty, term, Holidays::UsFederal, citation, source);
    let eu = |id, duty, term, citation, source| Regime {
        ends_on_working_day: true,
        ..preset(id, duty, term, Holidays::Eu, citation, source)
    };
    let other = |id, duty, term, citation, source| preset(id, duty, term, Holidays::None, citation, source);
    // In force from 2026-08-01: whoever has a download earlier than that has requests, too.
    let drop_2026 =
        |regime: Regime| Regime { until: Some(date(2026, 12, 31)), successor: Some("us-ca-drop-2027"), ..regime };
    let extended = |more, regime: Regime| Regime { extension: Some(more), ..regime };
    let from = |day, regime: Regime| Regime { from: Some(day), ..regime };
    vec![
        drop_2026(us(
            "us-ca-drop",
            "process a DROP request and report on it",
            CalendarDays(45),
            "Cal. Civ. Code 1798.99.86(c); counted from the download",
            Primary,
        )),
        drop_2026(us(
            "us-ca-drop-access",
            "access DROP again",
            CalendarDays(45),
            "Cal. Civ. Code 1798.99.86(c)",
            Primary,
        )),
        from(
            date(2027, 1, 1),
            us(
                "us-ca-drop-2027",
                "process a DROP request and report on it; access DROP again",
                CalendarDays(30),
                "AB 883, not confirmed",
                Secondary,
            ),
        ),
        us("us-ca-ccpa-ack", "confirm receipt of a request", BusinessDays(10), "11 CCR 7021(a)", Primary),
        extended(
            CalendarDays(45),
            us(
                "us-ca-ccpa-delete",
                "respond to a request to delete, correct or know",
                CalendarDays(45),
                "11 CCR 7021(b); the clock runs whether verified or not",
                Primary,
            ),
        ),
        us("us-ca-ccpa-optout", "stop selling and sharing", BusinessDays(15), "11 CCR 7026", Secondary),
        extended(
            CalendarDays(45),
            us(
                "us-state-default",
                "respond to a request under a state's privacy act",
                CalendarDays(45),
                "VA CO CT UT TX FL OR MT NE DE NH NJ TN MN MD IN KY",
                Secondary,
            ),
        ),
        extended(
            CalendarDays(45),
            us("us-ia", "respond to a request in Iowa", CalendarDays(90), "Iowa Code 715D", Secondary),
        ),
        us(
            "us-ri-revoke",
            "honour a revocation of consent in Rhode Island",
            CalendarDays(15),
            "R.I. Gen. Laws 6-48.1",
            Secondary,
        ),
        us(
            "us-canspam",
            "stop commercial e-mail; do not sell or transfer the address",
            BusinessDays(10),
            "15 U.S.C. 7704(a)(4)",
            Primary,
        ),
        from(
            date(2025, 4, 11),
            us(
                "us-tcpa",
                "honour a revocation of consent or a do-not-call request",
                BusinessDays(10),
                "47 CFR 64.1200(a)(10), (d)(3)",
                Secondary,
            ),
        ),
        from(
            date(2027, 1, 31),
            us(
                "us-tcpa-revoke-all",
                "treat one revocation as one for all topics; in the time of us-tcpa",
                BusinessDays(10),
                "FCC DA-26-12, postponed to 2027-01-31",
                Secondary,
            ),
        ),
        extended(
            Months(2),
            eu(
                "eu-gdpr-erasure",
                "inform on action taken on an erasure request",
                Months(1),
                "GDPR Art. 12(3), 17; Reg. 1182/71 Art. 3",
                Primary,
            ),
        ),
        eu(
            "eu-gdpr-recipients",
            "tell each recipient of the erasure; with the erasure itself",
            Months(1),
            "GDPR Art. 19; Reg. 1182/71 Art. 3",
            Primary,
        ),
        extended(
            Months(2),
            Regime {
                holidays: Holidays::None,
                ..eu(
                    "uk-gdpr",
                    "inform on action taken on an erasure request",
                    Months(1),
                    "UK GDPR Art. 12(3)",
                    Background,
                )
            },
        ),
        from(
            date(2027, 5, 13),
            other("in-dpdp", "redress a grievance", CalendarDays(90), "DPDP Rules 2025, Rule 14", Background),
        ),
        other("br-lgpd", "delete, or answer with reasons, at once", CalendarDays(0), "LGPD Art. 18", Primary),
        other("br-lgpd-access", "give a complete declaration", CalendarDays(15), "LGPD Art. 19", Background),
        from(
            date(2028, 7, 1),
            us("us-ct-drop", "access Connecticut's mechanism again", CalendarDays(45), "Conn. PA 26-64", Secondary),
        ),
    ]
}

fn preset(id: &str, duty: &str, term: Term, holidays: Holidays, citation: &str, source: Source) -> Regime {
    Regime {
        id: id.to_owned(),
        duty: duty.to_owned(),
        term,
        extension: None,
        ends_on_working_day: false,
        holidays,
        days_off: Vec::new(),
        from: None,
        until: None,
        successor: None,
        citation: citation.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, received: &str, wanted: &str, says: &[&str]) {
        let due = Regimes::new(Vec::new(), "UTC").due(id, Received::On(received.parse().unwrap())).unwrap();
        assert_eq!(due.date.to_string(), wanted, "{id} {received}: {}", due.how);
        for part in says {
            assert!(due.how.contains(part), "{id} {received} does not say {part:?}: {}", due.how);
        }
    }

    #[test]
    fn calendar_days_run_on_whatever_day_it_is() {
        check(
            "us-ca-ccpa-delete",
            "2026-03-01",
            "2026-04-15",
            &["45 calendar days after that day end on 2026-04-15", "2026-05-30 with an extension"],
        );
        check("us-ca-drop", "2026-08-01", "2026-09-15", &["1798.99.86"]);
        // 2026-07-04 is a Saturday and a holiday: calendar days do not care.
        check("us-state-default", "2026-05-20", "2026-07-04", &[]);
        check("us-ia", "2026-01-01", "2026-04-01", &[]);
        check("us-ri-revoke", "2028-02-20", "2028-03-06", &[]);
        check("br-lgpd", "2026-02-03", "2026-02-03", &[]);
        check("in-dpdp", "2027-06-01", "2027-08-30", &[]);
    }

    #[test]
    fn business_days_leave_out_weekends_and_observed_holidays() {
        check("us-canspam", "2026-03-02", "2026-03-16", &["without Saturdays and Sundays ("]);
        // Received on a Saturday: the first business day is the Monday.
        check("us-canspam", "2026-03-07", "2026-03-20", &[]);
        // Independence Day 2026 is a Saturday and is observed on the Friday.
        check("us-canspam", "2026-06-29", "2026-07-14", &["2026-07-03 (Independence Day)"]);
        check("us-tcpa", "2025-11-20", "2025-12-05", &["2025-11-27 (Thanksgiving Day)"]);
        check(
            "us-ca-ccpa-optout",
            "2026-12-21",
            "2027-01-13",
            &["2026-12-25 (Christmas Day)", "2027-01-01 (New Year's Day)"],
        );
        // New Year's Day 2028 is a Saturday: observed in the old year.
        check(
            "us-ca-ccpa-ack",
            "2027-12-20",
            "2028-01-05",
            &["2027-12-24 (Christmas Day)", "2027-12-31 (New Year's Day)"],
        );
        check("us-canspam", "2026-05-22", "2026-06-08", &["2026-05-25 (Memorial Day)"]);
    }

    #[test]
    fn a_month_is_clamped_and_ends_on_a_working_day() {
        check("eu-gdpr-erasure", "2026-03-10", "2026-04-10", &["1 month after that day end on 2026-04-10"]);
        // 28 February 2026 is a Saturday.
        check(
            "eu-gdpr-erasure",
            "2026-01-31",
            "2026-03-02",
            &[
                "2026-02-28, the last day of its month",
                "2026-02-28 is a Saturday",
                "so the next working day, 2026-03-02",
            ],
        );
        check("eu-gdpr-erasure", "2028-01-31", "2028-02-29", &["the last day of its month"]);
        // What some member states do not keep is a working day: 6 April 2026 is Easter Monday, after the Sunday.
        check("eu-gdpr-erasure", "2026-03-05", "2026-04-06", &["2026-04-05 is a Sunday"]);
        check("eu-gdpr-erasure", "2025-11-25", "2025-12-26", &["2025-12-25 is Christmas Day"]);
        check("eu-gdpr-erasure", "2026-04-01", "2026-05-01", &[]);
        check("eu-gdpr-erasure", "2026-12-01", "2027-01-04", &["2027-01-01 is New Year's Day"]);
    }

    #[test]
    fn of_two_readings_of_an_extension_the_earlier_counts() {
        let regimes = Regimes::new(Vec::new(), "UTC");
        for (received, wanted) in
            [("2026-01-31", "2026-04-28"), ("2026-03-10", "2026-06-10"), ("2025-12-31", "2026-03-31")]
        {
            let due = regimes.due("eu-gdpr-erasure", Received::On(received.parse().unwrap())).unwrap();
            assert_eq!(due.extended, Some(wanted.parse().unwrap()), "{received}: {}", due.how);
        }
    }

    #[test]
    fn a_preset_ends_and_another_takes_its_place() {
        check("us-ca-drop", "2026-12-31", "2027-02-14", &[]);
        check(
            "us-ca-drop",
            "2027-01-01",
            "2027-01-31",
            &["after the end of us-ca-drop on 2026-12-31: us-ca-drop-2027", "not confirmed"],
        );
    }

    #[test]
    fn a_rule_that_is_not_in_force_yet_binds_nobody() {
        let regimes = Regimes::new(Vec::new(), "UTC");
        for (id, day, from) in [
            ("us-ct-drop", "2028-06-30", "2028-07-01"),
            ("us-tcpa-revoke-all", "2026-12-01", "2027-01-31"),
            ("in-dpdp", "2027-05-12", "2027-05-13"),
        ] {
            let received = |day: &str| Received::On(day.parse().unwrap());
            let wish = NoDue::NotInForce { regime: id.to_owned(), from: from.parse().unwrap() };
            assert_eq!(regimes.due(id, received(day)), Err(wish));
            assert!(regimes.due(id, received(from)).is_ok(), "{id}");
        }
    }

    #[test]
    fn the_time_zone_decides_which_day_it_is_and_when_it_ends() {
        let received = Received::At("2026-03-02T02:00:00Z".parse().unwrap());
        for (zone, date, at) in [
            ("UTC", "2026-04-16", "2026-04-16T23:59:59Z"),
            ("America/Los_Angeles", "2026-04-15", "2026-04-16T06:59:59Z"),
        ] {
            let due = Regimes::new(Vec::new(), zone).due("us-ca-ccpa-delete", received).unwrap();
            assert_eq!((due.date.to_string(), due.at.to_string()), (date.to_owned(), at.to_owned()));
            assert!(due.how.contains(zone), "{}", due.how);
        }
    }

    #[test]
    fn a_job_may_have_its_own_and_days_off() {
        let own = Regime {
            days_off: vec![date(2026, 3, 4)],
            source: Source::Job,
            ..preset("house", "answer", Term::BusinessDays(2), Holidays::None, "our own rule", Source::Job)
        };
        let due = Regimes::new(vec![own], "UTC").due("house", Received::On(date(2026, 3, 3))).unwrap();
        assert_eq!(due.date, date(2026, 3, 6), "{}", due.how);
        assert!(due.how.contains("2026-03-04 (a day off by the job file)"), "{}", due.how);
        let unknown = Regimes::new(Vec::new(), "UTC").due("house", Received::On(date(2026, 3, 3)));
        assert_eq!(unknown, Err(NoDue::Unknown("house".to_owned())));
        let far = Regimes::new(Vec::new(), "UTC").due("us-ia", Received::On(date(9999, 12, 1)));
        assert_eq!(far, Err(NoDue::OutOfRange));
    }

    #[test]
    fn every_preset_is_named_once_and_has_a_source() {
        let presets = presets();
        for (i, regime) in presets.iter().enumerate() {
            assert!(
                !regime.citation.is_empty() && !presets[..i].iter().any(|other| other.id == regime.id),
                "{}",
                regime.id
            );
            assert!(regime.successor.is_none_or(|next| presets.iter().any(|other| other.id == next)), "{}", regime.id);
        }
    }
}
