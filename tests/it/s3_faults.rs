//! What the S3 store makes of faults on the way and of servers that do not do as they should.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lakescrub::error::Exit;
use lakescrub::store::{ConditionalWrites, Object, ObjectReader, Precondition, Store, StoreError};

use crate::fault_proxy::{Fault, FaultProxy, Rule, always, at};
use crate::s3::{MIB, content, on_each_server, on_each_simulator, prepared, replaced};
use crate::s3_server::{Bucket, Kind, server, store};

fn is_put_of_a(request: &str) -> bool {
    request.starts_with("PUT ") && request.contains("/a.csv?x-id=PutObject")
}

fn is_put(request: &str) -> bool {
    request.starts_with("PUT ")
}

fn is_complete(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("/a.csv?uploadId=")
}

fn is_any_complete(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("uploadId=")
}

fn is_part(request: &str) -> bool {
    request.starts_with("PUT ") && request.contains("partNumber=2")
}

fn is_get(request: &str) -> bool {
    request.starts_with("GET ") && request.contains("/a.csv?x-id=GetObject")
}

fn is_list(request: &str) -> bool {
    request.starts_with("GET ") && request.contains("list-type=2")
}

fn is_delete(request: &str) -> bool {
    request.starts_with("DELETE ") && request.contains("/a.csv")
}

fn any(_: &str) -> bool {
    true
}

fn proxy(bucket: &Bucket, rules: Vec<Rule>) -> FaultProxy {
    FaultProxy::before(bucket.server.port, rules)
}

/// The three ways in which the reply to a write that was carried out gets lost.
const LOST: [Fault; 3] = [Fault::DropAfter, Fault::StatusAfter(503), Fault::StatusAfter(500)];

on_each_server! {
    async fn a_lost_reply_to_a_put_is_not_a_conflict(bucket: &Bucket) {
        for fault in LOST {
            // Where the object is looked at first, the lost put is not sent again.
            let ignores = bucket.server.kind.ignores_conditions();
            let second = if ignores { 2 } else { 3 };
            let proxy = proxy(bucket, vec![at(1, is_put_of_a, fault), at(second, is_put_of_a, fault)]);
            let store = store(&proxy.endpoint(), ignores).await;
            let at = bucket.at("a.csv");
            store.probe(&at).await.unwrap();
            let first = store.put(&at, Bytes::from_static(b"1"), Precondition::Absent).await.unwrap();
            let second = store.put(&at, Bytes::from_static(b"2"), Precondition::Unchanged(first.etag)).await.unwrap();
            assert_eq!(store.get(&at).await.unwrap(), (second.clone(), Bytes::from_static(b"2")));
            assert!(proxy.all_faults_happened(), "{fault:?}");
            store.delete(&second).await.unwrap();
        }
    }

    async fn a_lost_reply_to_a_swap_is_not_a_conflict(bucket: &Bucket) {
        for fault in LOST {
            for size in [100, 20 * MIB] {
                bucket.upload("a.csv", "old").await;
                let is_upload = size > MIB && bucket.server.kind != Kind::Moto;
                let swap = if is_upload { is_complete } else { is_put_of_a };
                let proxy = proxy(bucket, vec![at(1, swap, fault)]);
                let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
                let listed = store.head(&bucket.at("a.csv")).await.unwrap();
                let object = replaced(&store, &listed, &content(size)).await.unwrap();
                assert!(proxy.all_faults_happened(), "{fault:?} {size}");
                assert!(bucket.bytes("a.csv").await == content(size));
                assert_eq!(store.head(&bucket.at("a.csv")).await.unwrap().etag, object.etag);
            }
        }
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn a_swap_whose_reply_is_lost_after_another_won_is_a_conflict(bucket: &Bucket) {
        for size in [100, 20 * MIB] {
            bucket.upload("a.csv", "old").await;
            let swap = |request: &str| is_put_of_a(request) || is_complete(request);
            let proxy = proxy(bucket, vec![at(1, swap, Fault::DropBefore)]);
            let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
            let listed = store.head(&bucket.at("a.csv")).await.unwrap();
            let replacement = prepared(&store, &listed, "run-1", &content(size)).await;
            bucket.upload("a.csv", "another's").await;
            assert_eq!(replacement.commit().await, Err(StoreError::Changed(bucket.at("a.csv"))));
            // Where the object is looked at first, that is told before anything is sent.
            assert!(proxy.all_faults_happened() || bucket.server.kind.ignores_conditions());
            assert_eq!(bucket.bytes("a.csv").await, "another's");
        }
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn requests_that_failed_are_sent_again(bucket: &Bucket) {
        bucket.upload("a.csv", content(3 * MIB)).await;
        let slow_down = "<Error><Code>SlowDown</Code><Message>ann@example.org</Message></Error>";
        let proxy = proxy(bucket, vec![
            at(1, is_list, Fault::Answer(503, slow_down)),
            at(2, is_list, Fault::DropBefore),
            at(3, is_list, Fault::Truncate),
            at(1, is_get, Fault::Truncate),
            at(2, is_get, Fault::DropAfter),
            at(3, is_get, Fault::Answer(500, "")),
            at(4, is_get, Fault::Answer(429, "")),
            at(1, is_part, Fault::DropAfter),
            at(1, is_delete, Fault::DropAfter),
        ]);
        let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
        let listed = store.list(&bucket.at("a.csv")).await.unwrap().remove(0);
        let wanted = content(3 * MIB);
        assert!(store.get_range(&listed, 0..3 * MIB as u64).await.unwrap() == wanted);
        let object = replaced(&store, &listed, &content(20 * MIB)).await.unwrap();
        assert!(bucket.bytes("a.csv").await == content(20 * MIB));
        store.delete(&object).await.unwrap();
        assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
        assert!(proxy.all_faults_happened() || bucket.server.kind == Kind::Moto);
    }

    async fn a_small_object_is_fetched_once_for_all_its_columns(bucket: &Bucket) {
        for (size, wanted) in [(3 * MIB, 1), (9 * MIB, 4)] {
            bucket.upload("a.csv", content(size)).await;
            let proxy = proxy(bucket, Vec::new());
            let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
            let listed = store.head(&bucket.at("a.csv")).await.unwrap();
            let reader = ObjectReader::new(std::sync::Arc::new(store), listed);
            let ranges = [0..10, 100..200, 5000..5001, MIB as u64..2 * MIB as u64];
            let read = move || ranges.map(|range| (reader.read_range(range.clone()).unwrap(), range));
            for (bytes, range) in tokio::task::spawn_blocking(read).await.unwrap() {
                assert!(bytes == content(size).slice(range.start as usize..range.end as usize), "{size}: {range:?}");
            }
            assert_eq!(proxy.requests(is_get), wanted, "{size}");
        }
    }

    async fn late_replies_and_throttling_change_nothing(bucket: &Bucket) {
        bucket.upload("a.csv", "old").await;
        let slow_down = "<Error><Code>SlowDown</Code></Error>";
        let proxy = proxy(bucket, vec![
            at(1, is_get, Fault::Delay(700)),
            at(1, is_put_of_a, Fault::Delay(700)),
            at(2, is_get, Fault::Answer(503, slow_down)),
            at(3, is_get, Fault::Answer(503, slow_down)),
        ]);
        let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        assert_eq!(store.get_range(&listed, 0..3).await.unwrap(), "old");
        assert_eq!(store.get_range(&listed, 0..3).await.unwrap(), "old");
        let object = replaced(&store, &listed, b"new").await.unwrap();
        assert_eq!(store.get_range(&object, 0..3).await.unwrap(), "new");
        assert!(proxy.all_faults_happened());
    }

    async fn a_store_that_goes_away_is_unavailable_and_soon_told(bucket: &Bucket) {
        bucket.upload("a.csv", content(100)).await;
        let proxy = proxy(bucket, vec![at(2, is_get, Fault::Die)]);
        let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        store.get_range(&listed, 0..10).await.unwrap();
        let error = store.get_range(&listed, 0..10).await.unwrap_err();
        assert_eq!(error.exit(), Exit::Unavailable);
        assert_eq!(error.to_string(), format!("{} cannot be reached: the connection failed", listed.location));
        // The patience is spent: a thousand more objects must not each have it in turn.
        let asked = Instant::now();
        for _ in 0..20 {
            assert_eq!(store.get_range(&listed, 0..10).await.unwrap_err().exit(), Exit::Unavailable);
        }
        assert!(asked.elapsed() < Duration::from_secs(5));
    }

    async fn a_delete_that_knows_no_condition_is_done_all_the_same(bucket: &Bucket) {
        bucket.upload("a.csv", "x").await;
        let proxy = proxy(bucket, vec![at(1, is_delete, Fault::Answer(501, "<Error><Code>NotImplemented</Code></Error>"))]);
        let store = store(&proxy.endpoint(), bucket.server.kind.ignores_conditions()).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        store.delete(&listed).await.unwrap();
        assert!(proxy.all_faults_happened());
        assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
    }
}

on_each_simulator! {
    async fn a_server_that_ignores_conditions_is_found_out(bucket: &Bucket) {
        for (rules, wanted) in [
            (vec![always(any, Fault::StripConditions)], ConditionalWrites::Ignored),
            (vec![always(is_put, Fault::StripConditions)], ConditionalWrites::Ignored),
            (vec![always(is_any_complete, Fault::StripConditions)], ConditionalWrites::SingleWritesOnly),
            // Refuses every If-Match, the right one, too.
            (vec![at(3, is_put, Fault::Answer(412, ""))], ConditionalWrites::Ignored),
        ] {
            let proxy = proxy(bucket, rules);
            let store = store(&proxy.endpoint(), false).await;
            assert_eq!(store.probe(&bucket.at("lake/")).await.unwrap(), wanted);
            assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
            assert_eq!(bucket.open_uploads().await, 0);
        }
    }

    async fn without_conditions_nothing_is_swapped_unless_allowed(bucket: &Bucket) {
        let proxy = proxy(bucket, vec![always(any, Fault::StripConditions)]);
        let careful = store(&proxy.endpoint(), false).await;
        let allowed = store(&proxy.endpoint(), true).await;
        for size in [100, 20 * MIB] {
            bucket.upload("a.csv", "old").await;
            let listed = careful.head(&bucket.at("a.csv")).await.unwrap();
            assert!(matches!(careful.replace(&listed, "run-1").await, Err(StoreError::Other { .. })));
            replaced(&allowed, &listed, &content(size)).await.unwrap();
            assert!(bucket.bytes("a.csv").await == content(size));
            // Allowed is not blind: what changed before the swap is left alone.
            let listed = allowed.head(&bucket.at("a.csv")).await.unwrap();
            let replacement = prepared(&allowed, &listed, "run-2", &content(size - 1)).await;
            bucket.upload("a.csv", "another's").await;
            assert_eq!(replacement.commit().await, Err(StoreError::Changed(bucket.at("a.csv"))));
            assert_eq!(bucket.bytes("a.csv").await, "another's");
        }
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn a_read_that_ignores_its_condition_is_found_out(bucket: &Bucket) {
        bucket.upload("a.csv", "0123456789").await;
        let proxy = proxy(bucket, vec![always(any, Fault::StripConditions)]);
        let store = store(&proxy.endpoint(), true).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        bucket.upload("a.csv", "9876543210").await;
        assert_eq!(store.get_range(&listed, 0..4).await, Err(StoreError::Changed(bucket.at("a.csv"))));
        assert_eq!(store.delete(&listed).await, Err(StoreError::Changed(bucket.at("a.csv"))));
    }

    async fn bytes_that_were_not_asked_for_are_no_answer(bucket: &Bucket) {
        bucket.upload("a.csv", "0123456789").await;
        let proxy = proxy(bucket, vec![always(is_get, Fault::StripRange)]);
        let store = store(&proxy.endpoint(), false).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        assert_eq!(store.get_range(&listed, 0..10).await.unwrap(), "0123456789");
        let error = store.get_range(&listed, 2..5).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{}: the store's reply is another range than the one asked for", listed.location));
    }

    async fn tags_that_the_server_drops_are_set_again(bucket: &Bucket) {
        let put = bucket.client.put_object().bucket(&bucket.name).key("a.csv").tagging("class=a%20b");
        put.send().await.unwrap();
        let proxy = proxy(bucket, vec![always(any, Fault::StripTags)]);
        let store = store(&proxy.endpoint(), false).await;
        let listed = store.head(&bucket.at("a.csv")).await.unwrap();
        replaced(&store, &listed, &content(100)).await.unwrap();
        let tags = bucket.client.get_object_tagging().bucket(&bucket.name).key("a.csv").send().await.unwrap();
        assert_eq!(tags.tag_set().iter().map(|tag| (tag.key(), tag.value())).collect::<Vec<_>>(), [("class", "a b")]);
    }
}

/// Every call of the store gets `error` from a server that answers one thing only.
async fn check_answer(status: u16, body: &'static str, wanted: &str) {
    let proxy = FaultProxy::alone(status, body);
    let store = store(&proxy.endpoint(), false).await;
    let location = lakescrub::store::Location::S3 { bucket: "lake".into(), key: "a.csv".into() };
    let object = Object {
        location: location.clone(),
        size_bytes: 10,
        etag: lakescrub::store::Etag("\"1\"".into()),
        version_id: None,
        storage_class: None,
    };
    for error in [
        store.list(&location).await.unwrap_err(),
        store.get(&location).await.unwrap_err(),
        store.get_range(&object, 0..5).await.unwrap_err(),
        store.put(&location, Bytes::new(), Precondition::Absent).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), wanted);
    }
}

#[tokio::test]
async fn credentials_that_are_turned_down_are_told_by_the_code_only() {
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"] {
        let body: &'static str = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>ann@example.org</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>"
        )
        .leak();
        check_answer(403, body, &format!("access to s3://lake/a.csv is denied: {code}")).await;
    }
    let error = StoreError::Denied {
        location: lakescrub::store::Location::S3 { bucket: "lake".into(), key: String::new() },
        reason: "InvalidAccessKeyId".into(),
    };
    assert_eq!(error.exit(), Exit::Blocked);
    assert!(error.hint().unwrap().contains("AWS_ACCESS_KEY_ID"));
}

#[tokio::test]
async fn what_is_no_s3_is_told_without_its_words() {
    check_answer(400, "<html>ann@example.org</html>", "s3://lake/a.csv: the store answers status 400").await;
}

fn page(keys: &[&str], next: Option<&str>) -> &'static str {
    let entry = |key: &&str| format!("<Contents><Key>{key}</Key><Size>1</Size><ETag>\"1\"</ETag></Contents>");
    let entries: String = keys.iter().map(entry).collect();
    let token = next.filter(|token| !token.is_empty());
    let token =
        token.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>")).unwrap_or_default();
    let is_truncated = next.is_some();
    let list =
        format!("<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{token}{entries}</ListBucketResult>");
    format!("<?xml version=\"1.0\"?>{list}").leak()
}

/// A listing that would never end, or ends too soon, or repeats itself.
#[tokio::test]
async fn a_listing_that_cannot_be_whole_is_an_error() {
    for (pages, wanted) in [
        (vec![page(&["a"], Some(""))], "the listing is broken: it is cut short and names no next page"),
        (vec![page(&["a"], Some("t")), page(&["a"], Some("u"))], "the listing is broken: a page comes again"),
        (
            vec![page(&[], Some("t")), page(&["a"], Some("t"))],
            "the listing is broken: it names the same next page again",
        ),
        (
            vec![page(&["a", "b"], Some("t")), page(&["b", "c"], None)],
            "the listing is broken: it names an object twice",
        ),
    ] {
        let proxy = FaultProxy::answering(pages);
        let store = store(&proxy.endpoint(), false).await;
        let location = lakescrub::store::Location::S3 { bucket: "lake".into(), key: String::new() };
        let error = store.list(&location).await.unwrap_err();
        assert_eq!(error.to_string(), format!("s3://lake/: {wanted}"));
        assert_eq!(error.exit(), Exit::Incomplete);
    }
}

/// Pages out of order are put in order; an empty page is not the end.
#[tokio::test]
async fn pages_of_any_order_make_one_listing() {
    let proxy = FaultProxy::answering(vec![page(&["c", "b"], Some("t")), page(&[], Some("u")), page(&["a"], None)]);
    let store = store(&proxy.endpoint(), false).await;
    let location = lakescrub::store::Location::S3 { bucket: "lake".into(), key: String::new() };
    let listed = store.list(&location).await.unwrap();
    assert_eq!(listed.iter().map(|object| object.location.file_name()).collect::<Vec<_>>(), ["a", "b", "c"]);
}
