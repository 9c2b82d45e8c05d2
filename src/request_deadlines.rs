//! How the requests of a ledger stand against their due dates, and what is told of it.
//!
//! Which dates a request has is said here once, for every command; counting them is [`crate::standing`]'s. Invariant: what is shown as a
//! request's due date is the one that it is overdue by.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::{Value, json};

use crate::deadline::{Received, Regimes, Since};
use crate::drop_answer::{download_of, status_of};
use crate::error::Result;
use crate::ledger_event::DueDate;
use crate::ledger_fold::{Request, State};
use crate::requests::Desk;
use crate::standing::{Dates, Standing, next_run, standing, whole_days};

/// Requests that are named one by one.
const SHOWN: usize = 20;

/// The dates of a request that a deadline can be measured by, and its due date with how that was computed; `None` for those that are
/// withdrawn, or exempted unless DROP is to be told so. One that came back, or was found after a run had found nothing, or is owed
/// another status than it was answered, has a term of its own from that day on.
pub fn dates(regimes: &Regimes, request: &Request, now: Timestamp) -> Option<(Dates, Option<DueDate>)> {
    let (state, is_item) = (request.state(now), download_of(request).is_some());
    let told = request.answered.as_ref().filter(|_| is_item);
    let is_open = match state {
        State::Withdrawn => return None,
        State::Exempted if !is_item => return None,
        state => state.is_open() || is_unanswered(request, now),
    };
    let done = told.map(|answered| answered.at).or_else(|| request.done_at()).unwrap_or(now);
    // Of one that is exempted that is the end of its exemption.
    let reopened_at = request.reopened_at.filter(|_| request.verified.is_none() && !request.is_exempt(now));
    let again = match (request.reappeared_at, reopened_at, told) {
        _ if !is_open => None,
        (Some(at), _, _) => Some((Since::Back, at)),
        (None, Some(at), _) => Some((Since::Reopened, at)),
        (None, None, Some(told)) => Some((Since::Changed, changed_at(request, told.at, now))),
        (None, None, None) => None,
    };
    let (received, due) = match again {
        Some((since, at)) => {
            let regime = request.regime.as_ref();
            let due = regime.and_then(|regime| regimes.due_since(regime, since, Received::At(at)).ok());
            (at, due.map(|due| DueDate { at: due.date, how: due.how.into() }))
        }
        None => (request.clock_from(), request.due.clone()),
    };
    let dates = Dates {
        received,
        due: due.as_ref().and_then(|due| regimes.end_of(due.at)),
        done: (!is_open).then_some(done),
        is_return: request.reappearances > 0 || request.reopened_at.is_some() || again.is_some(),
    };
    Some((dates, due))
}

/// The date that a request is due on, if any.
pub fn due_of(regimes: &Regimes, request: &Request, now: Timestamp) -> Option<DueDate> {
    dates(regimes, request, now).and_then(|(_, due)| due)
}

/// Whether DROP is owed a status of a work item that a run has ended with: its first, or another than it was told.
pub fn is_unanswered(request: &Request, now: Timestamp) -> bool {
    let owed = status_of(request, now).map(|status| u64::from(status.code()));
    download_of(request).is_some() && owed.is_some() && request.answered.as_ref().map(|it| it.status) != owed
}

/// The first thing that happened to a work item after it was answered.
fn changed_at(request: &Request, answered_at: Timestamp, now: Timestamp) -> Timestamp {
    let exemption = request.exempted.as_ref();
    let ended = exemption.and_then(|exemption| exemption.until).filter(|until| *until <= now);
    let verified = request.verified.as_ref().map(|verified| verified.at);
    let changes = [request.reopened_at, exemption.map(|exemption| exemption.at), ended, verified];
    changes.into_iter().flatten().filter(|at| *at > answered_at).min().unwrap_or(answered_at)
}

/// How the requests stand against their due dates, and what the next run of the schedule comes too late for.
pub struct Deadlines<'a> {
    pub standing: Standing,
    /// Of the open ones: a run has ended with them, and DROP is still to be told.
    unanswered: u64,
    /// Open requests by due date.
    due: BTreeMap<Date, u64>,
    /// With the due date that was applied, the most overdue first.
    overdue: Vec<(&'a Request, DueDate)>,
    next_run: Option<NextRun<'a>>,
}

struct NextRun<'a> {
    at: Timestamp,
    /// There was a run to count from.
    is_scheduled: bool,
    missed: Vec<&'a Request>,
}

pub async fn deadlines(desk: &Desk, due_within: u32) -> Result<Deadlines<'_>> {
    let requests = desk.ledger.requests();
    let all = requests.iter().filter_map(|request| Some((request, dates(&desk.job.regimes, request, desk.now)?)));
    let mut dated: Vec<(&Request, Dates)> = Vec::new();
    let mut overdue: Vec<(&Request, DueDate)> = Vec::new();
    let (mut due, mut unanswered): (BTreeMap<Date, u64>, u64) = (BTreeMap::new(), 0);
    for (request, (dates, due_on)) in all {
        dated.push((request, dates));
        unanswered += u64::from(dates.is_open() && !request.state(desk.now).is_open());
        if let Some(due_on) = due_on.filter(|_| dates.is_open()) {
            *due.entry(due_on.at).or_default() += 1;
            if dates.is_overdue(desk.now) {
                overdue.push((request, due_on));
            }
        }
    }
    overdue.sort_by_key(|(_, due)| due.at);
    let next_run = match desk.job.runs_every {
        None => None,
        Some(every) => {
            let last = desk.last_scrub().await?;
            let started = last.and_then(|last| last["run"]["started_at"].as_str()?.parse().ok());
            let at = next_run(started, every, desk.now);
            let missed = dated.iter().filter(|(_, dates)| dates.is_missed_by(at)).map(|(request, _)| *request);
            Some(NextRun { at, is_scheduled: started.is_some(), missed: missed.collect() })
        }
    };
    let dates: Vec<Dates> = dated.iter().map(|(_, dates)| *dates).collect();
    Ok(Deadlines { standing: standing(&dates, desk.now, due_within), unanswered, due, overdue, next_run })
}

impl Deadlines<'_> {
    pub fn json(&self, desk: &Desk, due_within: u32) -> Vec<(&'static str, Value)> {
        let ids = |requests: &[&Request]| requests.iter().map(|request| json!(&*request.id)).collect::<Vec<Value>>();
        let in_days = |date: Date| {
            let end = desk.job.regimes.end_of(date);
            end.map(|end| whole_days(desk.now, end))
        };
        let due = self.due.iter();
        let due = due.map(|(date, count)| json!({ "due_at": date, "in_days": in_days(*date), "requests": count }));
        let Standing { open, done, overdue, due_soon, without_due_date, done_late, oldest_open_days, days_to_done } =
            self.standing;
        let rounded = |days: f64| (days * 100.0).round() / 100.0;
        vec![
            ("open", json!(open)),
            ("unanswered", json!(self.unanswered)),
            ("done", json!(done)),
            ("overdue", json!(overdue)),
            ("overdue_requests", json!(self.overdue.iter().map(|(request, _)| &*request.id).collect::<Vec<_>>())),
            ("due_within", json!({ "days": due_within, "requests": due_soon })),
            ("due", json!(due.collect::<Vec<Value>>())),
            ("without_due_date", json!(without_due_date)),
            ("done_late", json!(done_late)),
            ("oldest_age_days", json!(oldest_open_days.map(rounded))),
            (
                "days_to_done",
                json!(days_to_done.map(|days| json!({
                    "p50": rounded(days.p50), "p95": rounded(days.p95), "max": rounded(days.max),
                }))),
            ),
            (
                "forecast",
                json!(self.next_run.as_ref().map(|next| json!({
                    "next_run_at": next.at, "missed": next.missed.len(), "missed_requests": ids(&next.missed),
                }))),
            ),
        ]
    }

    pub fn lines(&self, due_within: u32) -> Vec<String> {
        let Standing { open, overdue, due_soon, without_due_date, done_late, oldest_open_days, days_to_done, .. } =
            self.standing;
        let unanswered = match self.unanswered {
            0 => String::new(),
            unanswered => format!(" ({unanswered} of them to be answered to DROP)"),
        };
        let mut lines = vec![format!(
            "{open:>10}  still to do{unanswered}: {due_soon} due within {due_within} days, {without_due_date} without a due date"
        )];
        lines.push(format!("{overdue:>10}  overdue"));
        lines.extend(self.overdue_lines());
        lines.push(format!("{done_late:>10}  done late"));
        if let Some(days) = oldest_open_days {
            lines.push(format!("{days:>10.1}  days: age of the oldest of these"));
        }
        if let Some(days) = days_to_done {
            lines.push(format!(
                "{:>10.1}  days to done (p50), {:.1} (p95), {:.1} at most",
                days.p50, days.p95, days.max
            ));
        }
        if let Some(NextRun { at, is_scheduled, missed }) = &self.next_run {
            let when = if *is_scheduled { format!("the next run, {at}") } else { "a run now".to_owned() };
            lines.push(format!("{:>10}  will be late at {when}", missed.len()));
            lines.extend(missed.iter().take(SHOWN).map(|request| format!("{:>10}  {}", "", request.id)));
            lines.extend(and_more(missed.len()));
        }
        lines
    }

    /// One line a request; how a date was computed is told once for each regime.
    fn overdue_lines(&self) -> Vec<String> {
        let regime = |request: &Request| request.regime.as_deref().unwrap_or_default().to_owned();
        let told = |(request, due): &(&Request, DueDate)| {
            let back = request.reappeared_at.map(|at| format!(", back since {at}")).unwrap_or_default();
            format!("{:>10}  {}: due on {} ({}){back}", "", request.id, due.at, regime(request))
        };
        let shown = &self.overdue[..self.overdue.len().min(SHOWN)];
        let mut lines: Vec<String> = shown.iter().map(told).collect();
        lines.extend(and_more(self.overdue.len()));
        let mut ways: BTreeMap<String, &(&Request, DueDate)> = BTreeMap::new();
        for overdue in shown {
            ways.entry(regime(overdue.0)).or_insert(overdue);
        }
        let way = |(request, due): &(&Request, DueDate)| format!("{:>10}  {}: {}", "", request.id, due.how);
        lines.extend(ways.into_values().map(way));
        lines
    }
}

fn and_more(count: usize) -> Option<String> {
    (count > SHOWN).then(|| format!("{:>10}  and {} more; --json lists all", "", count - SHOWN))
}
