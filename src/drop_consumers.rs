//! DROP's rule for identifiers that lead to several consumers: none of these is deleted, all are opted out of sale and sharing
//! (11 CCR 7613(a)(2)(B), 7614(b)(2)(B)).
//!
//! Wiring: asks the verifier whose rows the datasets with a `consumer_key` hold, before anything is planned. Counts within one dataset, for
//! keys of two datasets need not mean the same. Invariant: what cannot be told is not deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use crate::dataset::listing;
use crate::drop_answer::{SEVERAL_CONSUMERS, download_of, means_several};
use crate::error::Result;
use crate::job::{DatasetSpec, Job, MatchRule};
use crate::ledger_event::{Event, Fact, Text};
use crate::ledger_fold::{Request, Requests};
use crate::plan::{Finding, Seen};
use crate::store::{Etag, Location, Object, StoreError, Stores};
use crate::verify::{self, Sightings};
use crate::verify_batch::Fault;

/// Work items that a run leaves alone, by request id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Withheld {
    /// Several consumers stand behind the identifier.
    pub several: BTreeSet<Text>,
    /// One does or none, as far as can be told: an object that may hold more could not be read.
    pub undecided: BTreeSet<Text>,
    /// By dataset, each object that was asked, as it was then; empty when there was nothing to ask.
    counted: BTreeMap<String, HashMap<Location, Etag>>,
}

impl Withheld {
    pub fn is_empty(&self) -> bool {
        self.several.is_empty() && self.undecided.is_empty()
    }

    /// What the ledger is to know of those that are decided.
    pub fn events(&self, now: Timestamp) -> Vec<Event> {
        as_events(&self.several, SEVERAL_CONSUMERS, now)
    }

    /// That all of them are left alone by this run: a supposition, of which only [`Withheld::events`] are written down.
    pub fn supposed(&self, now: Timestamp) -> Vec<Event> {
        [self.events(now), as_events(&self.undecided, UNDECIDED, now)].concat()
    }

    /// Whether consumers were counted in this dataset, so that nothing is removed from objects that were not asked.
    pub fn is_counted(&self, dataset: &str) -> bool {
        self.counted.contains_key(dataset)
    }

    /// How many of these objects may hold rows of consumers whom nobody counted: they match, or cannot be read, and were not there
    /// at the count or not as they are now.
    pub fn uncounted(&self, dataset: &str, findings: &[Finding]) -> usize {
        let Some(counted) = self.counted.get(dataset) else { return 0 };
        let may_match = |finding: &&Finding| match &finding.seen {
            Seen::Rows { matched, .. } => !matched.is_empty(),
            Seen::Skipped => false,
            Seen::Failed { .. } => true,
        };
        let is_new = |finding: &&Finding| counted.get(&finding.object.location) != Some(&finding.object.etag);
        findings.iter().filter(is_new).filter(may_match).count()
    }

    /// All of them.
    pub fn ids(&self) -> BTreeSet<Text> {
        self.several.union(&self.undecided).cloned().collect()
    }
}

/// Why a work item is left alone of which nobody can say how many consumers it means. Never recorded.
const UNDECIDED: &str = "consumers not counted";

fn as_events(ids: &BTreeSet<Text>, ground: &str, recorded_at: Timestamp) -> Vec<Event> {
    let fact = Fact::Exempted { ground: ground.into(), until: None };
    ids.iter().map(|id| Event { recorded_at, request_id: id.clone(), fact: fact.clone() }).collect()
}

/// What was seen behind one tag in one dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// Rows without a consumer key alone.
    Nobody,
    One(u64),
    Several,
}

impl Behind {
    fn and(self, consumer: u64) -> Behind {
        match self {
            Behind::Nobody => Behind::One(consumer),
            Behind::One(known) if known == consumer => self,
            Behind::One(_) | Behind::Several => Behind::Several,
        }
    }
}

/// Looks through every dataset that has a consumer key. Errors: one that cannot be listed.
pub async fn withheld(
    job: &Job,
    stores: &Stores,
    lists: &verify::Lists,
    requests: &Requests,
    now: Timestamp,
) -> Result<Withheld> {
    let is_asked = |request: &Request| download_of(request).is_some() && request.is_suppressed(now);
    let mut withheld = Withheld::default();
    let holds = requests.holds(now);
    // Nobody is looked for any more by an identifier that was found to lead to several: whichever work item names it, it still does.
    let is_several =
        |request: &&Request| requests.held_by(request, &holds).iter().any(|number| means_several(requests.at(*number)));
    withheld
        .several
        .extend(requests.iter().filter(|request| is_asked(request)).filter(is_several).map(|it| it.id.clone()));
    if !requests.iter().any(is_asked) {
        return Ok(withheld);
    }
    for spec in &job.datasets {
        let Some(consumer_key) = &spec.consumer_key else { continue };
        let Asked { objects, linked } = asked(spec, stores).await?;
        let as_it_is = |object: &Object| (object.location.clone(), object.etag.clone());
        let counted = objects.iter().chain(&linked).map(as_it_is).collect();
        withheld.counted.insert(spec.name.clone(), counted);
        let mut behind: HashMap<u128, Behind> = HashMap::new();
        // Nobody reads what a link leads to.
        let mut unread = linked.len() as u64;
        let (mut lacking, mut without_key) = (0, BTreeSet::new());
        let mut each = |_, sighted: Result<verify::Sighted, Fault>| match sighted {
            Ok(sighted) => {
                add(&mut behind, &sighted.sightings);
                if sighted.lacks_consumer_key && !sighted.sightings.is_empty() {
                    lacking += 1;
                    without_key.extend(sighted.sightings.keys().flatten().copied());
                }
            }
            // The run itself tells of an object that cannot be read.
            Err(_) => unread += 1,
        };
        verify::attribute(lists, job, stores, spec, Some(consumer_key), objects, &mut each).await;
        if unread + lacking > 0 {
            let (dataset, objects) = (&spec.name, unread + lacking);
            tracing::warn!(
                dataset,
                objects,
                "consumers not counted; DROP work items that may have rows here are left alone"
            );
        }
        if unread > 0 {
            // Its rows may be anybody's who is looked for here; whoever has rows elsewhere alone may have a second consumer in it.
            let kinds: BTreeSet<&str> =
                spec.rules.iter().flat_map(MatchRule::compared).map(|part| part.kind.name()).collect();
            let may_be_here = |request: &&Request| {
                is_asked(request) && requests.identifiers(request).any(|own| kinds.contains(&*own.kind))
            };
            withheld.undecided.extend(requests.iter().filter(may_be_here).map(|request| request.id.clone()));
        }
        for (tag, behind) in behind {
            let numbers = requests.with_tag(tag.to_be_bytes()).map(|number| requests.at(number));
            let ids = numbers.filter(|request| is_asked(request)).map(|request| request.id.clone());
            match behind {
                Behind::Several => withheld.several.extend(ids),
                Behind::Nobody | Behind::One(_) if without_key.contains(&tag) => withheld.undecided.extend(ids),
                Behind::Nobody | Behind::One(_) => {}
            }
        }
    }
    withheld.undecided.retain(|id| !withheld.several.contains(id));
    Ok(withheld)
}

#[derive(Default)]
struct Asked {
    objects: Vec<Object>,
    linked: Vec<Object>,
}

async fn asked(spec: &DatasetSpec, stores: &Stores) -> Result<Asked> {
    let belongs = |name: &str| listing::belongs(name, spec.format);
    match listing::list_dataset(&*stores.of(spec.scope.root()), &spec.scope, &belongs).await {
        Ok(listing) => Ok(Asked { objects: listing.in_scope, linked: listing.linked }),
        // The find stage tells of a dataset without objects.
        Err(StoreError::NotFound(_)) => Ok(Asked::default()),
        Err(error) => Err(error.into()),
    }
}

fn add(behind: &mut HashMap<u128, Behind>, sightings: &Sightings) {
    for (tags, sighting) in sightings {
        for tag in tags {
            let known = behind.entry(*tag).or_insert(Behind::Nobody);
            *known = sighting.consumers.iter().fold(*known, |known, consumer| known.and(*consumer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Sighting;

    #[test]
    fn several_are_several_and_a_row_without_a_key_is_nobody() {
        for (keys, wanted) in [
            (&[&[][..], &[]][..], Behind::Nobody),
            (&[&[], &[7], &[], &[7]], Behind::One(7)),
            (&[&[7], &[8], &[7]], Behind::Several),
            (&[&[7, 8]], Behind::Several),
        ] {
            let mut behind = HashMap::new();
            for (consumers, other) in keys.iter().zip(2..) {
                let sighting = Sighting { rows: 3, consumers: consumers.iter().copied().collect() };
                // Beside another identifier or alone: it is this one's consumer.
                add(&mut behind, &Sightings::from([(vec![1, other], sighting)]));
            }
            assert_eq!(behind[&1], wanted, "{keys:?}");
        }
    }
}
