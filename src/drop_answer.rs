//! What every DROP work item is answered, and in which upload file.
//!
//! Pure: a function of what the ledger's events amount to. Invariants: a work item gets one status, never two, and none is made up: one
//! that no run has ended with is unsettled, and while there is one nothing is answered (DROP holds back the next
//! download until every item of this one has its status).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::drop_files::{ArchiveName, Content, CsvName, ListType, Status, WorkItemId, part_suffix};
use crate::ledger_event::Text;
use crate::ledger_fold::{Request, Requests, State};

/// The ground of an exemption that is none: several consumers stand behind the identifier, and all are opted out of sale and sharing
/// (11 CCR 7613(a)(2)(B), 7614(b)(2)(B)) instead of being deleted.
pub const SEVERAL_CONSUMERS: &str = "several consumers behind one identifier: opted out";

/// One upload file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerFile {
    pub name: CsvName,
    pub rows: Vec<(WorkItemId, Status)>,
    /// The statuses replace earlier ones: the file goes to DROP's amend form, not to its upload form.
    pub is_amended: bool,
}

/// What there is to answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers {
    pub files: Vec<AnswerFile>,
    /// By status, over all files.
    pub statuses: BTreeMap<Status, u64>,
    /// Answered before and not changed since.
    pub unchanged: u64,
    /// Cancelled or withdrawn: no status is due.
    pub withdrawn: u64,
    /// Work items that no run has ended with.
    pub unsettled: Vec<Text>,
    /// How many of these are held by the exemption of another request, so that no run can.
    pub held: u64,
}

/// The download that a request came with; `None`: it is no DROP work item.
pub fn download_of(request: &Request) -> Option<ArchiveName> {
    ArchiveName::parse(&request.source)
}

/// Whether several consumers stand behind the request's identifier, so that its rows are kept.
pub fn is_opted_out(request: &Request, now: Timestamp) -> bool {
    means_several(request) && request.state(now) == State::Exempted
}

/// Whether that is the ground of its exemption.
pub fn means_several(request: &Request) -> bool {
    request.exempted.as_ref().is_some_and(|it| &*it.ground == SEVERAL_CONSUMERS)
}

/// What is to be said of a work item; `None`: its runs have not ended.
pub fn status_of(request: &Request, now: Timestamp) -> Option<Status> {
    match request.state(now) {
        State::Done => Some(Status::Deleted),
        State::NotFound => Some(Status::NotFound),
        State::Exempted if is_opted_out(request, now) => Some(Status::OptedOut),
        // Exempted is said of whom all is exempt: what was deleted before is deleted.
        State::Exempted if request.rows_removed() > 0 => Some(Status::Deleted),
        State::Exempted => Some(Status::Exempted),
        State::Open | State::Planned | State::Removed | State::Reappeared | State::Withdrawn => None,
    }
}

/// Every work item that has no status yet, or another one than it was answered. Files hold `rows_per_file` rows at most. Of list types
/// that are not `looked_for` no run says anything: their items were not found.
pub fn answers(requests: &Requests, now: Timestamp, rows_per_file: u64, looked_for: &BTreeSet<ListType>) -> Answers {
    let mut answers = Answers::default();
    let mut groups: BTreeMap<Group, Vec<(WorkItemId, Status)>> = BTreeMap::new();
    // Of every answer ever given: the last one of each work item does not tell all names that DROP has seen.
    let holds = requests.holds(now);
    let used: BTreeSet<CsvName> = requests.answer_files().iter().filter_map(|name| CsvName::parse(name)).collect();
    for request in requests.iter() {
        let (Some(archive), Some(id)) = (download_of(request), WorkItemId::parse(&request.id)) else { continue };
        let answered = request.answered.as_ref();
        let list_type = requests.identifiers(request).find_map(|tagged| ListType::of_kind(&tagged.kind));
        let is_blind = list_type.is_some_and(|list_type| !looked_for.contains(&list_type));
        let of_blind = (is_blind && request.state(now) == State::Open).then_some(Status::NotFound);
        match (request.state(now), status_of(request, now).or(of_blind), list_type) {
            (State::Withdrawn, _, _) => answers.withdrawn += 1,
            (_, Some(status), _) if answered.is_some_and(|it| it.status == u64::from(status.code())) => {
                answers.unchanged += 1;
            }
            (_, Some(status), Some(list_type)) => {
                let group = Group { archive, list_type, is_amended: answered.is_some() };
                groups.entry(group).or_default().push((id, status));
                *answers.statuses.entry(status).or_default() += 1;
            }
            // It came back, say: what was answered stands until a run has ended with it.
            (_, None, _) if answered.is_some() => answers.unchanged += 1,
            (_, None, _) | (_, _, None) => {
                answers.held += u64::from(!requests.held_by(request, &holds).is_empty());
                answers.unsettled.push(request.id.clone());
            }
        }
    }
    for (group, mut rows) in groups {
        rows.sort_unstable_by_key(|(id, _)| *id);
        let parts = rows.chunks(usize::try_from(rows_per_file).unwrap_or(usize::MAX).max(1));
        let names = group.names(parts.len(), &used);
        let file = |(name, rows): (CsvName, &[(WorkItemId, Status)])| AnswerFile {
            name,
            rows: rows.to_vec(),
            is_amended: group.is_amended,
        };
        answers.files.extend(names.into_iter().zip(parts).map(file));
    }
    answers
}

/// What goes into files of one name but for the suffix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    archive: ArchiveName,
    list_type: ListType,
    is_amended: bool,
}

impl Group {
    fn name(&self, suffix: Option<String>) -> CsvName {
        let ArchiveName { date, broker_id } = self.archive.clone();
        CsvName { date, broker_id, content: Content::List(self.list_type), suffix }
    }

    /// DROP rejects a file name that it has seen for a download: amended files are numbered on, and so is what comes late.
    fn names(&self, parts: usize, used: &BTreeSet<CsvName>) -> Vec<CsvName> {
        let first = |prefix: &str| -> Vec<CsvName> {
            (0..parts).map(|part| self.name(Some(part_suffix(prefix, part, parts)))).collect()
        };
        if !self.is_amended {
            let plain = if parts == 1 { vec![self.name(None)] } else { first("part") };
            if used.iter().all(|known| !self.is_of(known)) {
                return plain;
            }
        }
        let word = if self.is_amended { "am" } else { "late" };
        let numbered = (1..).map(|round| {
            let round = format!("{word}{round:02}");
            if parts == 1 { vec![self.name(Some(round))] } else { first(&format!("{round}p")) }
        });
        let fresh = |names: &Vec<CsvName>| names.iter().all(|name| !used.contains(name));
        let is_free = |names: &Vec<CsvName>| {
            // A round that was split is used as a whole.
            let round = names[0].suffix.as_deref().and_then(|suffix| suffix.split('p').next()).unwrap_or_default();
            let taken = |known: &CsvName| {
                self.is_of(known)
                    && known.suffix.as_deref().is_some_and(|suffix| suffix.split('p').next() == Some(round))
            };
            fresh(names) && !used.iter().any(taken)
        };
        numbered.into_iter().find(is_free).expect("numbers go on")
    }

    fn is_of(&self, name: &CsvName) -> bool {
        let own = self.name(None);
        (name.date, &name.broker_id, name.content) == (own.date, &own.broker_id, own.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger_event::{Event, Fact, Segment, Tagged};

    /// The requests that these facts amount to, each told as the id and what happened.
    fn requests(facts: &[(&str, Fact)]) -> Requests {
        let mut requests = Requests::new("key".into());
        let recorded_at = now();
        let event = |(id, fact): &(&str, Fact)| Event { recorded_at, request_id: (*id).into(), fact: fact.clone() };
        let events = facts.iter().map(event).collect();
        requests.take(&Segment { sequence: 1, key_id: "key".into(), events });
        requests
    }

    fn now() -> Timestamp {
        "2026-08-20T00:00:00Z".parse().unwrap()
    }

    fn received(kind: &str, number: u8) -> Fact {
        Fact::Received {
            identifier: Tagged { kind: kind.into(), tag: [number; 32] },
            source: "20260812_4821_DROP.zip".into(),
            received_at: None,
            regime: None,
            due: None,
            list_digest: None,
        }
    }

    fn removed() -> Fact {
        let (dataset, run_id, manifest_digest) = ("d".into(), "r".into(), "m".into());
        Fact::Removed { dataset, run_id, rows: 2, consumers: None, manifest_digest }
    }

    fn verified() -> Fact {
        Fact::VerifiedClean { run_id: "r".into(), manifest_digest: "m".into() }
    }

    fn answered(status: u64, file: &str) -> Fact {
        Fact::Answered { status, source: file.into() }
    }

    fn exempted(ground: &str) -> Fact {
        Fact::Exempted { ground: ground.into(), until: None }
    }

    /// Files as `name: id=code ...`.
    fn check(facts: &[(&str, Fact)], rows_per_file: u64, wanted: &[&str]) -> Answers {
        let answers = answers(&requests(facts), now(), rows_per_file, &ListType::ALL.into_iter().collect());
        let rows = |file: &AnswerFile| -> Vec<String> {
            file.rows.iter().map(|(id, status)| format!("{id}={}", status.code())).collect()
        };
        let shown: Vec<String> =
            answers.files.iter().map(|file| format!("{}: {}", file.name, rows(file).join(" "))).collect();
        assert_eq!(shown, wanted);
        answers
    }

    const A: &str = "AAAAaaaa0001";
    const B: &str = "AAAAaaaa0002";
    const C: &str = "AAAAaaaa0003";

    #[test]
    fn every_outcome_has_its_code() {
        let answers = check(
            &[
                (A, received("email", 1)),
                (A, removed()),
                (A, verified()),
                (B, received("email", 2)),
                (B, verified()),
                (C, received("ndz", 3)),
                (C, exempted("legal claim")),
                ("AAAAaaaa0004", received("maid", 4)),
                ("AAAAaaaa0004", exempted(SEVERAL_CONSUMERS)),
                ("AAAAaaaa0005", received("phone", 5)),
                ("AAAAaaaa0005", Fact::Withdrawn { source: "s".into(), at: None }),
                ("R1", received("email", 6)),
            ],
            10,
            &[
                "20260812_4821_NDZ.csv: AAAAaaaa0003=2",
                "20260812_4821_Email.csv: AAAAaaaa0001=3 AAAAaaaa0002=5",
                "20260812_4821_MAID.csv: AAAAaaaa0004=4",
            ],
        );
        assert_eq!((answers.withdrawn, answers.unsettled.len()), (1, 0));
    }

    #[test]
    fn what_no_run_has_ended_with_is_unsettled() {
        for facts in [vec![(A, received("email", 1))], vec![(A, received("email", 1)), (A, removed())]] {
            assert_eq!(check(&facts, 10, &[]).unsettled, [Text::from(A)]);
        }
    }

    #[test]
    fn what_no_run_looks_for_was_not_found() {
        let requests = requests(&[(A, received("maid", 1)), (B, received("email", 2))]);
        let answers = answers(&requests, now(), 10, &BTreeSet::from([ListType::Email]));
        assert_eq!(answers.statuses, BTreeMap::from([(Status::NotFound, 1)]));
        assert_eq!(answers.unsettled, [Text::from(B)]);
    }

    #[test]
    fn only_what_changed_is_answered_again_and_under_a_new_name() {
        let first = [(A, received("email", 1)), (A, verified()), (A, answered(5, "20260812_4821_Email.csv"))];
        let unchanged = check(&first, 10, &[]);
        assert_eq!((unchanged.unchanged, unchanged.unsettled.len()), (1, 0));
        let back = [&first[..], &[(A, removed())]].concat();
        assert_eq!(check(&back, 10, &[]).unchanged, 1, "not yet: no run has ended with it");
        let gone = [&back[..], &[(A, verified())]].concat();
        let answers = check(&gone, 10, &["20260812_4821_Email_am01.csv: AAAAaaaa0001=3"]);
        assert!(answers.files[0].is_amended);
        // What was deleted stays so when the rest is exempted; only what is all exempt is answered as that.
        let again =
            [&gone[..], &[(A, answered(3, "20260812_4821_Email_am01.csv")), (A, exempted("legal claim"))]].concat();
        assert_eq!(check(&again, 10, &[]).unchanged, 1);
        let exempt = [&first[..], &[(A, exempted("legal claim"))]].concat();
        check(&exempt, 10, &["20260812_4821_Email_am01.csv: AAAAaaaa0001=2"]);
        // And no name a third time, although no request's last answer tells of the first amended file any more.
        let third = [
            &gone[..],
            &[
                (A, answered(3, "20260812_4821_Email_am01.csv")),
                (A, exempted("legal claim")),
                (A, answered(2, "20260812_4821_Email_am02.csv")),
                (A, exempted(SEVERAL_CONSUMERS)),
            ],
        ]
        .concat();
        check(&third, 10, &["20260812_4821_Email_am03.csv: AAAAaaaa0001=4"]);
        // What comes late to a list that was answered once has a name of its own, too.
        let late = [&first[..], &[(B, received("email", 2)), (B, verified())]].concat();
        check(&late, 10, &["20260812_4821_Email_late01.csv: AAAAaaaa0002=5"]);
    }

    #[test]
    fn what_is_asked_anew_is_answered_again_with_the_same_status_even() {
        let later = Some("2026-10-12T00:00:00Z".parse().unwrap());
        let mut anew = received("email", 1);
        let Fact::Received { received_at, source, .. } = &mut anew else { panic!("received") };
        (*received_at, *source) = (later, "20261012_4821_DROP.zip".into());
        let facts = [
            (A, received("email", 1)),
            (A, verified()),
            (A, answered(5, "20260812_4821_Email.csv")),
            (A, Fact::Withdrawn { source: "s".into(), at: None }),
            (A, anew),
        ];
        assert_eq!(check(&facts, 10, &[]).unsettled, [Text::from(A)]);
        let facts = [&facts[..], &[(A, verified())]].concat();
        let answers = check(&facts, 10, &["20261012_4821_Email.csv: AAAAaaaa0001=5"]);
        assert!(!answers.files[0].is_amended);
    }

    #[test]
    fn files_are_split_and_their_names_stay_drops() {
        let facts: Vec<(&str, Fact)> = [A, B, C]
            .into_iter()
            .zip(1..)
            .flat_map(|(id, number)| [(id, received("email", number)), (id, verified())])
            .collect();
        let answers = check(
            &facts,
            2,
            &[
                "20260812_4821_Email_part01.csv: AAAAaaaa0001=5 AAAAaaaa0002=5",
                "20260812_4821_Email_part02.csv: AAAAaaaa0003=5",
            ],
        );
        for file in &answers.files {
            assert_eq!(CsvName::parse(&file.name.to_string()).as_ref(), Some(&file.name));
        }
    }
}
