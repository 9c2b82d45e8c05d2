//! What a rewrite takes over from the old object is copied by the store and not sent: how much travels, that nothing else differs,
//! and what becomes of it where the store does not copy.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use lakescrub::store::{Object, Store, StoreError};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::fault_proxy::{Fault, FaultProxy, Rule, always, at};
use crate::rewrite_parquet::{scrubbed, written};
use crate::s3::{MIB, content, on_each_server};
use crate::s3_scrub::{Job, LISTED, check_exit, records, without_the_listed};
use crate::s3_server::{Bucket, Kind, server, store};

fn is_copy(request: &str) -> bool {
    request.starts_with("PUT ") && request.contains("x-id=UploadPartCopy")
}

/// Content on its way, whole or in parts.
fn is_sent(request: &str) -> bool {
    request.starts_with("PUT ") && request.contains("/lake/") && !request.contains("probe")
}

fn proxy(bucket: &Bucket, rules: Vec<Rule>) -> FaultProxy {
    FaultProxy::before(bucket.server.port, rules)
}

async fn ministack() -> Bucket {
    server(Kind::Ministack).bucket("lake").await
}

const OLD_BYTES: usize = 21 * MIB;
/// What goes of the old content, for which something else comes.
const GOES: Range<usize> = 9 * MIB..9 * MIB + 1000;
const COMES: &[u8] = b"what comes instead";

fn new_content() -> Vec<u8> {
    let old = content(OLD_BYTES);
    [&old[..GOES.start], COMES, &old[GOES.end..]].concat()
}

/// Replaces an object of 21 MiB, all of whose bytes stay but for a few in the middle.
async fn replaced(store: &dyn Store, object: &Object) -> Result<Object, StoreError> {
    let mut replacement = store.replace(object, "run-1").await?;
    let mut outcome = Ok(());
    for (range, instead) in [(0..GOES.start, COMES), (GOES.end..OLD_BYTES, b"")] {
        for start in range.clone().step_by(MIB) {
            let piece = content(OLD_BYTES).slice(start..range.end.min(start + MIB));
            outcome = outcome.and(replacement.take_over(start as u64, piece).await);
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            outcome = replacement.write(Bytes::from_static(instead)).await;
        }
    }
    let staged = match outcome {
        Ok(()) => replacement.stage().await,
        Err(error) => Err(error),
    };
    match staged {
        Ok(_) => replacement.commit().await,
        Err(error) => {
            replacement.abort().await.unwrap();
            Err(error)
        }
    }
}

/// Through a proxy with these rules the new content arrives whole.
async fn check(bucket: &Bucket, rules: Vec<Rule>) -> FaultProxy {
    bucket.upload("lake/a", content(OLD_BYTES)).await;
    let proxy = proxy(bucket, rules);
    let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
    let listed = store.head(&bucket.at("lake/a")).await.unwrap();
    let object = replaced(&store, &listed).await.unwrap();
    assert_eq!(object.size_bytes, new_content().len() as u64);
    assert!(bucket.bytes("lake/a").await == new_content());
    assert_eq!(bucket.open_uploads().await, 0);
    assert!(proxy.all_faults_happened());
    proxy
}

on_each_server! {
    async fn what_is_taken_over_is_not_sent_where_the_completion_is_conditional(bucket: &Bucket) {
        let proxy = check(bucket, vec![]).await;
        let (copies, sent) = (proxy.requests(is_copy), proxy.bytes_sent(is_sent));
        match bucket.server.kind {
            // The few new bytes are no part: the head of what follows goes with them.
            Kind::Ministack => assert!(copies == 2 && sent < 5 * MIB + 10_000, "{copies} copies, {sent} bytes"),
            Kind::Moto | Kind::Ceph => assert!(copies == 0 && sent >= new_content().len()),
        }
    }

    async fn the_source_of_a_copy_is_found_by_any_key(bucket: &Bucket) {
        let proxy = proxy(bucket, vec![]);
        let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
        let keys = ["lake/a b+c%20d", "lake/100%", "lake/day=1//ä/日本?x=1&y#z", "lake/q\"'&<>~(x)!*", "lake/./x/"];
        for (number, key) in keys.into_iter().enumerate() {
            bucket.upload(key, content(OLD_BYTES)).await;
            let listed = store.head(&bucket.at(key)).await.unwrap();
            replaced(&store, &listed).await.unwrap();
            assert!(bucket.bytes(key).await == new_content(), "{key}");
            if bucket.server.kind == Kind::Ministack {
                // Copied, and not sent because its source was missing.
                assert_eq!(proxy.requests(is_copy), 2 * (number + 1), "{key}");
                assert!(proxy.bytes_sent(is_sent) < 6 * MIB * (number + 1), "{key}");
            }
        }
    }

    async fn a_copy_is_of_the_version_that_was_scanned(bucket: &Bucket) {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        bucket.client.put_bucket_versioning().bucket(&bucket.name).versioning_configuration(on).send().await.unwrap();
        bucket.upload("lake/a", "older").await;
        bucket.upload("lake/a", content(OLD_BYTES)).await;
        let store = bucket.store().await;
        let listed = store.head(&bucket.at("lake/a")).await.unwrap();
        assert!(listed.version_id.is_some());
        replaced(&store, &listed).await.unwrap();
        assert!(bucket.bytes("lake/a").await == new_content());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_failed_on_the_way_is_asked_for_again() {
    let bucket = ministack().await;
    for fault in [
        Fault::Answer(503, "<Error><Code>SlowDown</Code></Error>"),
        Fault::Answer(200, "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>"),
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::StatusAfter(500),
    ] {
        let proxy = check(&bucket, vec![at(1, is_copy, fault), at(3, is_copy, fault)]).await;
        assert_eq!(proxy.requests(is_copy), 4, "{fault:?}");
        assert!(proxy.bytes_sent(is_sent) < 5 * MIB + 10_000, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_store_does_not_copy_the_same_bytes_are_sent() {
    let bucket = ministack().await;
    for (nth, fault, asked) in [
        (0, Fault::Answer(501, "<Error><Code>NotImplemented</Code></Error>"), 1),
        (0, Fault::Answer(405, ""), 1),
        (0, Fault::Answer(400, "<Error><Code>InvalidRequest</Code></Error>"), 1),
        (0, Fault::Answer(403, "<Error><Code>AccessDenied</Code></Error>"), 1),
        // Refuses the right ETag, too.
        (0, Fault::Answer(412, ""), 1),
        // Fails at each attempt.
        (0, Fault::Answer(500, ""), 7),
        // Says it is done, and does not say what.
        (0, Fault::Answer(200, "<?xml version=\"1.0\"?><CopyPartResult></CopyPartResult>"), 1),
        // Copies all there is.
        (0, Fault::StripRange, 1),
        // After a part was copied.
        (2, Fault::Answer(501, "<Error><Code>NotImplemented</Code></Error>"), 2),
    ] {
        let proxy = check(&bucket, vec![at(nth, is_copy, fault)]).await;
        // What the first copy met the others would meet.
        assert_eq!(proxy.requests(is_copy), asked, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_does_not_copy_is_not_asked_for_each_object() {
    let bucket = ministack().await;
    let proxy = proxy(&bucket, vec![always(is_copy, Fault::Answer(501, ""))]);
    let store = store(&proxy.endpoint(), false).await;
    for key in ["lake/a", "lake/b"] {
        bucket.upload(key, content(OLD_BYTES)).await;
        let listed = store.head(&bucket.at(key)).await.unwrap();
        replaced(&store, &listed).await.unwrap();
        assert!(bucket.bytes(key).await == new_content());
    }
    assert_eq!(proxy.requests(is_copy), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_changed_before_it_was_copied_keeps_its_new_bytes() {
    let bucket = ministack().await;
    // Large enough to be copied from, if nobody looked whose it is.
    let another_s: &str = "another's".repeat(3 * MIB).leak();
    for nth in [1, 2] {
        bucket.upload("lake/a", content(OLD_BYTES)).await;
        let proxy = proxy(&bucket, vec![at(nth, is_copy, Fault::OtherWriter(another_s))]);
        let store = store(&proxy.endpoint(), false).await;
        let listed = store.head(&bucket.at("lake/a")).await.unwrap();
        assert_eq!(replaced(&store, &listed).await, Err(StoreError::Changed(bucket.at("lake/a"))));
        assert!(proxy.all_faults_happened());
        // The copy itself was refused: nothing had to be read to notice.
        assert_eq!(proxy.requests(|request| request.contains("/lake/a?x-id=GetObject")), 0);
        assert!(bucket.bytes("lake/a").await == another_s);
        assert_eq!(bucket.open_uploads().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_do_not_stand_where_they_are_told_to_are_never_swapped_in() {
    let bucket = ministack().await;
    bucket.upload("lake/a", content(OLD_BYTES)).await;
    for at in [1, 8 * MIB + 5] {
        // A store that was not asked yet: it is what copies.
        let store = bucket.store().await;
        let listed = store.head(&bucket.at("lake/a")).await.unwrap();
        let mut replacement = store.replace(&listed, "run-1").await.unwrap();
        replacement.take_over(at as u64, content(OLD_BYTES).slice(..10 * MIB)).await.unwrap();
        let error = replacement.stage().await.unwrap_err();
        assert!(error.to_string().ends_with("are not those that its new content takes over"), "{error}");
        replacement.abort().await.unwrap();
        assert!(bucket.bytes("lake/a").await == content(OLD_BYTES));
        assert_eq!(bucket.open_uploads().await, 0);
    }
}

const GROUP_ROWS: usize = 12_000;
/// In the fourth of eight row groups.
const LISTED_ROW: usize = 3 * GROUP_ROWS + 700;

/// About 40 MB in eight row groups.
fn large_parquet() -> Bytes {
    let rows = 8 * GROUP_ROWS;
    let email = |row| if row == LISTED_ROW { LISTED.to_owned() } else { format!("u{row}@example.org") };
    let note = |row: usize| -> String {
        (0..25).map(|word| format!("{:016x}", (row * 25 + word).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ("email", Arc::new(StringArray::from_iter_values((0..rows).map(email)))),
        ("note", Arc::new(StringArray::from_iter_values((0..rows).map(note)))),
    ];
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false);
    written(&RecordBatch::try_from_iter(columns).unwrap(), properties.build())
}

fn parquet_job(bucket: &Bucket, endpoint: &str) -> Job {
    let job = Job::new(bucket, endpoint);
    let text = std::fs::read_to_string(job.path()).unwrap();
    std::fs::write(job.path(), text.replace("format = \"csv\"", "format = \"parquet\"")).unwrap();
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_parquet_object_only_the_touched_row_group_is_sent() {
    let old = large_parquet();
    assert!((38 << 20..50 << 20).contains(&old.len()), "{} bytes", old.len());
    let new = scrubbed(&old, [LISTED_ROW as u64]);
    let mut sent = Vec::new();
    for rules in [vec![], vec![always(is_copy, Fault::Answer(501, "<Error><Code>NotImplemented</Code></Error>"))]] {
        let bucket = ministack().await;
        bucket.upload("lake/a b+c%20/ä.parquet", old.clone()).await;
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        let proxy = proxy(&bucket, rules);
        assert_eq!(parquet_job(&bucket, &proxy.endpoint()).scrub(0)["verdict"], "clean");
        assert!(bucket.bytes("lake/a b+c%20/ä.parquet").await == new);
        assert_eq!(bucket.open_uploads().await, 0);
        sent.push(proxy.bytes_sent(is_sent));
    }
    println!("{} bytes sent of {}, without copies {}", sent[0], new.len(), sent[1]);
    // The group, or the least part where its pages were taken over as well.
    assert!(sent[0] < old.len() / 8 + MIB, "{sent:?}");
    assert!(sent[1] >= new.len(), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_csv_object_little_more_than_a_part_is_sent() {
    let bucket = ministack().await;
    let old = records(0, 700_000);
    bucket.upload("lake/a.csv", old.clone()).await;
    bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
    let proxy = proxy(&bucket, vec![]);
    assert_eq!(Job::new(&bucket, &proxy.endpoint()).scrub(0)["verdict"], "clean");
    assert!(bucket.bytes("lake/a.csv").await == without_the_listed(&old).as_bytes());
    let sent = proxy.bytes_sent(is_sent);
    assert!(old.len() > 24 * MIB && sent < 6 * MIB, "{sent} bytes of {}", old.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_lost_to_another_writer_is_exit_6() {
    let bucket = ministack().await;
    bucket.upload("lake/a.parquet", large_parquet()).await;
    bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
    let proxy = proxy(&bucket, vec![at(2, is_copy, Fault::OtherWriter("another's"))]);
    let job = parquet_job(&bucket, &proxy.endpoint());
    check_exit(&job.run(&["scrub", job.path().to_str().unwrap()]), 6);
    assert!(proxy.all_faults_happened());
    assert_eq!(bucket.bytes("lake/a.parquet").await, "another's");
    assert_eq!(bucket.open_uploads().await, 0);
}
