//! The S3 store against independent servers: the same demands on each, where they are known to differ as a table in
//! `s3_server.rs`. Faults on the way are in `s3_faults.rs`, the whole program in `s3_scrub.rs`.

use std::sync::LazyLock;

use aws_sdk_s3::types::{
    BucketVersioningStatus, MetadataDirective, ServerSideEncryption, StorageClass, VersioningConfiguration,
};
use bytes::Bytes;
use futures::StreamExt;
use lakescrub::store::{Object, Precondition, Replacement, Store, StoreError};

use crate::s3_server::{Bucket, Kind, server};

/// The same test on every server, each in a bucket of its own; on Ceph's by `make test-ceph`.
macro_rules! on_each_server {
    ($(async fn $name:ident($bucket:ident: &Bucket) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn test($bucket: &Bucket) $body
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn ministack() {
                test(&server(Kind::Ministack).bucket("lake").await).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn moto() {
                test(&server(Kind::Moto).bucket("lake").await).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs Ceph: make test-ceph"]
            async fn ceph() {
                test(&server(Kind::Ceph).bucket("lake").await).await;
            }
        }
    )*};
}
pub(crate) use on_each_server;

/// The same test on the simulators alone: they check no signature, so that a proxy may alter what was signed, and know storage classes
/// and conditions that Ceph's gateway lacks.
macro_rules! on_each_simulator {
    ($(async fn $name:ident($bucket:ident: &Bucket) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn test($bucket: &Bucket) $body
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn ministack() {
                test(&server(Kind::Ministack).bucket("lake").await).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn moto() {
                test(&server(Kind::Moto).bucket("lake").await).await;
            }
        }
    )*};
}
pub(crate) use on_each_simulator;

/// Not the same in any two parts, and no repetition that a shifted byte could hide in.
pub fn content(size: usize) -> Bytes {
    static ALL: LazyLock<Bytes> = LazyLock::new(|| {
        (0..21 * MIB as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>().into()
    });
    ALL.slice(..size)
}

pub const MIB: usize = 1 << 20;

/// Starts the replacement of an object and brings it up to the swap.
pub async fn prepared(store: &dyn Store, object: &Object, id: &str, new: &[u8]) -> Box<dyn Replacement> {
    let mut replacement = store.replace(object, id).await.unwrap();
    for piece in new.chunks(MIB) {
        replacement.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(replacement.stage().await.unwrap(), None);
    replacement
}

pub async fn replaced(store: &dyn Store, object: &Object, new: &[u8]) -> Result<Object, StoreError> {
    prepared(store, object, "run-1", new).await.commit().await
}

fn keys(objects: &[Object]) -> Vec<String> {
    objects.iter().map(|object| object.location.to_string().splitn(4, '/').nth(3).unwrap().to_owned()).collect()
}

on_each_server! {
    async fn keys_come_and_go_exactly_as_they_are_spelled(bucket: &Bucket) {
        let mut odd = vec![
            "odd/100%", "odd/a b", "odd/a%20b", "odd/a+b", "odd/a//b", "odd/day=2024-01-01/x", "odd/folder/", "odd/./x",
            "odd/../y", "odd/quote\"'&<>", "odd/ä/日本", "odd/~(x)!*", "odd/\u{1}\t",
        ];
        if bucket.server.kind.differences().line_breaks_in_keys {
            odd.push("odd/new\nline");
        }
        let store = bucket.store().await;
        for key in &odd {
            store.put(&bucket.at(key), Bytes::from((*key).to_owned()), Precondition::Absent).await.unwrap();
        }
        let listed = store.list(&bucket.at("odd/")).await.unwrap();
        odd.sort_unstable();
        assert_eq!(keys(&listed), odd);
        for object in &listed {
            let (got, bytes) = store.get(&object.location).await.unwrap();
            assert_eq!((&got.etag, got.size_bytes), (&object.etag, object.size_bytes));
            assert_eq!(object.location, bucket.at(std::str::from_utf8(&bytes).unwrap()));
            assert_eq!(store.head(&object.location).await.unwrap().etag, object.etag);
            assert!(store.list(&object.location).await.unwrap().contains(object));
            let again = replaced(&store, object, b"new").await.unwrap();
            assert_eq!(store.get_range(&again, 0..3).await.unwrap(), "new");
        }
        assert_eq!(store.list(&bucket.at("odd/a")).await.unwrap().len(), 4);
        for object in store.list(&bucket.at("odd/")).await.unwrap() {
            store.delete(&object).await.unwrap();
        }
        assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
    }

    async fn thousands_of_objects_are_listed_in_byte_order(bucket: &Bucket) {
        let store = bucket.store().await;
        let count = bucket.server.kind.differences().many_objects;
        let uploads = (0..count).map(|i| bucket.upload_owned(format!("many/{i:05}.csv")));
        futures::stream::iter(uploads).buffer_unordered(16).collect::<Vec<()>>().await;
        bucket.upload("many", "beside the prefix").await;
        let listed = store.list(&bucket.at("many/")).await.unwrap();
        let wanted: Vec<String> = (0..count).map(|i| format!("many/{i:05}.csv")).collect();
        assert_eq!(keys(&listed), wanted);
    }

    async fn reads_are_pinned_to_what_was_listed(bucket: &Bucket) {
        let store = bucket.store().await;
        bucket.upload("a.csv", "0123456789").await;
        let listed = store.list(&bucket.at("a.csv")).await.unwrap().remove(0);
        assert_eq!(listed.size_bytes, 10);
        assert_eq!(store.get_range(&listed, 2..5).await.unwrap(), "234");
        assert_eq!(store.get_range(&listed, 0..10).await.unwrap(), "0123456789");
        assert_eq!(store.get_range(&listed, 10..10).await.unwrap(), "");
        assert!(matches!(store.get_range(&listed, 5..11).await, Err(StoreError::Other { .. })));

        bucket.upload("a.csv", "another's").await;
        let changed = StoreError::Changed(bucket.at("a.csv"));
        assert_eq!(store.get_range(&listed, 2..5).await, Err(changed.clone()));
        assert_eq!(store.replace(&listed, "run-1").await.map(|_| ()), Err(changed));

        bucket.client.delete_object().bucket(&bucket.name).key("a.csv").send().await.unwrap();
        let gone = StoreError::NotFound(bucket.at("a.csv"));
        assert_eq!(store.get_range(&listed, 2..5).await, Err(gone.clone()));
        assert_eq!(store.get(&bucket.at("a.csv")).await.map(|_| ()), Err(gone.clone()));
        assert_eq!(store.head(&bucket.at("a.csv")).await, Err(gone));
    }

    async fn a_missing_bucket_is_named(bucket: &Bucket) {
        let store = bucket.store().await;
        let location = lakescrub::store::Location::S3 { bucket: "no-such-bucket".into(), key: "lake/".into() };
        let error = store.list(&location).await.unwrap_err();
        assert_eq!(error.to_string(), "s3://no-such-bucket/ does not exist");
    }

    async fn empty_objects_are_read_written_and_replaced(bucket: &Bucket) {
        let store = bucket.store().await;
        let object = store.put(&bucket.at("empty"), Bytes::new(), Precondition::Absent).await.unwrap();
        assert_eq!(store.get_range(&object, 0..0).await.unwrap(), "");
        assert_eq!(store.get(&bucket.at("empty")).await.unwrap().1, "");
        let object = replaced(&store, &object, b"x").await.unwrap();
        let object = replaced(&store, &object, b"").await.unwrap();
        assert_eq!((object.size_bytes, store.head(&bucket.at("empty")).await.unwrap().size_bytes), (0, 0));
    }

    async fn a_put_keeps_to_its_precondition(bucket: &Bucket) {
        let store = bucket.store().await;
        let (at, changed) = (bucket.at("lock.json"), StoreError::Changed(bucket.at("lock.json")));
        // As every run does before its first write: on Ceph's gateway an object is then looked at before it is written.
        store.probe(&at).await.unwrap();
        let put = |text: &'static str, when| store.put(&at, Bytes::from(text), when);
        let first = put("1", Precondition::Absent).await.unwrap();
        assert_eq!(put("2", Precondition::Absent).await, Err(changed.clone()));
        let second = put("3", Precondition::Unchanged(first.etag.clone())).await.unwrap();
        assert_eq!(put("4", Precondition::Unchanged(first.etag.clone())).await, Err(changed.clone()));
        assert_eq!(bucket.bytes("lock.json").await, "3");
        put("5", Precondition::None).await.unwrap();

        assert_eq!(store.delete(&second).await, Err(changed.clone()));
        let now = store.head(&at).await.unwrap();
        store.delete(&now).await.unwrap();
        store.delete(&now).await.unwrap();
        assert_eq!(put("6", Precondition::Unchanged(now.etag)).await, Err(changed));
    }

    async fn of_many_writers_one_wins(bucket: &Bucket) {
        let store = bucket.store().await;
        let puts = (0..8).map(|i| {
            let (store, at) = (store.clone(), bucket.at("one"));
            async move { store.put(&at, Bytes::from(format!("writer {i}")), Precondition::Absent).await }
        });
        let outcomes = futures::future::join_all(puts).await;
        let won: Vec<usize> = (0..8).filter(|i| outcomes[*i].is_ok()).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        assert_eq!(bucket.bytes("one").await, format!("writer {}", won[0]).as_bytes());
        assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|e| *e == StoreError::Changed(bucket.at("one"))));
    }

    async fn a_swap_lost_to_another_writer_keeps_their_bytes(bucket: &Bucket) {
        let store = bucket.store().await;
        for size in [100, 20 * MIB] {
            bucket.upload("a.csv", content(size)).await;
            let listed = store.head(&bucket.at("a.csv")).await.unwrap();
            let replacement = prepared(&store, &listed, "run-1", &content(size - 10)).await;
            bucket.upload("a.csv", "another's").await;
            assert_eq!(replacement.commit().await, Err(StoreError::Changed(bucket.at("a.csv"))));
            assert_eq!(bucket.bytes("a.csv").await, "another's");
            // Deleted instead of overwritten.
            let listed = store.head(&bucket.at("a.csv")).await.unwrap();
            let replacement = prepared(&store, &listed, "run-1", &content(size - 10)).await;
            bucket.client.delete_object().bucket(&bucket.name).key("a.csv").send().await.unwrap();
            assert_eq!(replacement.commit().await, Err(StoreError::Changed(bucket.at("a.csv"))));
            assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
        }
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn a_swap_carries_everything_over(bucket: &Bucket) {
        let store = bucket.store().await;
        let has_classes = bucket.server.kind.differences().has_classes;
        for (size, parts) in [(100, None), (20 * MIB, bucket.server.kind.differences().parts_of_20_mib)] {
            let key = format!("{size}.csv.gz");
            let put = bucket.client.put_object().bucket(&bucket.name).key(&key).body(content(size).into());
            put.content_type("text/csv; charset=utf-8")
                .content_encoding("gzip")
                .content_language("de")
                .content_disposition("attachment; filename=\"a.csv\"")
                .cache_control("max-age=60")
                .expires(aws_sdk_s3::primitives::DateTime::from_secs(1_900_000_000))
                .metadata("team", "events & co")
                .metadata("lakescrub-write", "an older run's")
                .tagging("class=a%20b&owner=c%2Bd")
                .set_storage_class(has_classes.then_some(StorageClass::StandardIa))
                .set_server_side_encryption(has_classes.then_some(ServerSideEncryption::AwsKms))
                .set_ssekms_key_id(has_classes.then(|| "arn:aws:kms:us-east-1:000000000000:key/1".to_owned()))
                .set_bucket_key_enabled(has_classes.then_some(true))
                .send()
                .await
                .unwrap();
            let before = bucket.client.head_object().bucket(&bucket.name).key(&key).send().await.unwrap();
            let listed = store.list(&bucket.at(&key)).await.unwrap().remove(0);
            if has_classes {
                assert_eq!(listed.storage_class.as_deref(), Some("STANDARD_IA"));
            }

            let new = content(size + 3);
            let object = replaced(&store, &listed, &new).await.unwrap();
            assert!(bucket.bytes(&key).await == new);
            assert_eq!(store.head(&bucket.at(&key)).await.unwrap(), object);
            let told = object.etag.0.trim_matches('"').split_once('-').map(|(_, parts)| parts.parse().unwrap());
            assert_eq!(told, parts);

            let after = bucket.client.head_object().bucket(&bucket.name).key(&key).send().await.unwrap();
            let shown = |head: &aws_sdk_s3::operation::head_object::HeadObjectOutput| {
                let mut metadata: Vec<_> = head.metadata().unwrap().clone().into_iter().collect();
                metadata.retain(|(key, _)| key != "lakescrub-write");
                format!(
                    "{metadata:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                    head.content_type(), head.content_encoding(), head.content_language(), head.content_disposition(),
                    head.cache_control(), head.expires_string(), head.storage_class(), head.server_side_encryption(),
                    head.ssekms_key_id(), head.bucket_key_enabled(),
                )
            };
            assert_eq!(shown(&after), shown(&before));
            assert_eq!(after.metadata().unwrap()["lakescrub-write"], "run-1");
            let tags = bucket.client.get_object_tagging().bucket(&bucket.name).key(&key).send().await.unwrap();
            let mut tags: Vec<String> = tags.tag_set().iter().map(|tag| format!("{}={}", tag.key(), tag.value())).collect();
            tags.sort_unstable();
            assert_eq!(tags, ["class=a b", "owner=c+d"]);
        }
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn content_at_the_edge_of_a_part_arrives_whole(bucket: &Bucket) {
        let store = bucket.store().await;
        bucket.upload("a", "old").await;
        for size in [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB, 17 * MIB] {
            let listed = store.head(&bucket.at("a")).await.unwrap();
            let object = replaced(&store, &listed, &content(size)).await.unwrap();
            assert_eq!(object.size_bytes, size as u64);
            assert!(bucket.bytes("a").await == content(size), "{size}");
        }
    }

    async fn what_is_given_up_leaves_no_parts(bucket: &Bucket) {
        let store = bucket.store().await;
        bucket.upload("a", "old").await;
        let listed = store.head(&bucket.at("a")).await.unwrap();
        prepared(&store, &listed, "run-1", &content(20 * MIB)).await.abort().await.unwrap();
        assert_eq!(bucket.open_uploads().await, 0);
        drop(prepared(&store, &listed, "run-1", &content(20 * MIB)).await);
        for _ in 0..100 {
            if bucket.open_uploads().await == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(bucket.open_uploads().await, 0);
        assert_eq!(bucket.bytes("a").await, "old");
    }

    async fn a_versioned_bucket_gets_a_version_or_a_marker(bucket: &Bucket) {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        bucket.client.put_bucket_versioning().bucket(&bucket.name).versioning_configuration(on).send().await.unwrap();
        let store = bucket.store().await;
        bucket.upload("a", "old").await;
        let listed = store.list(&bucket.at("a")).await.unwrap().remove(0);
        assert_eq!(store.probe(&bucket.at("")).await.unwrap(), bucket.server.kind.differences().verdict);
        let object = replaced(&store, &listed, b"new").await.unwrap();
        assert!(object.version_id.is_some());
        assert_eq!(store.replace(&listed, "run-2").await.map(|_| ()), Err(StoreError::Changed(bucket.at("a"))));
        store.delete(&object).await.unwrap();
        store.delete(&object).await.unwrap();
        assert_eq!(store.head(&bucket.at("a")).await, Err(StoreError::NotFound(bucket.at("a"))));
        let versions = bucket.client.list_object_versions().bucket(&bucket.name).send().await.unwrap();
        // The probe left neither a version nor a marker of its own.
        assert_eq!((versions.versions().len(), versions.delete_markers().len()), (2, 1));
    }

    async fn the_probe_tells_what_the_server_honours(bucket: &Bucket) {
        let store = bucket.store().await;
        assert_eq!(store.probe(&bucket.at("lake/events/")).await.unwrap(), bucket.server.kind.differences().verdict);
        assert_eq!(store.list(&bucket.at("")).await.unwrap(), []);
        assert_eq!(bucket.open_uploads().await, 0);
    }

    async fn metadata_alone_changed_by_another_is_kept(bucket: &Bucket) {
        // A copy onto itself keeps the bytes and so the ETag: nothing refuses the swap, which then carries the new metadata over.
        let store = bucket.store().await;
        bucket.upload("a", "old").await;
        let listed = store.head(&bucket.at("a")).await.unwrap();
        let copy = bucket.client.copy_object().bucket(&bucket.name).key("a").copy_source(format!("{}/a", bucket.name));
        copy.metadata_directive(MetadataDirective::Replace).metadata("team", "new").send().await.unwrap();
        assert_eq!(store.head(&bucket.at("a")).await.unwrap(), listed);
        replaced(&store, &listed, b"x").await.unwrap();
        let head = bucket.client.head_object().bucket(&bucket.name).key("a").send().await.unwrap();
        assert_eq!(head.metadata().unwrap()["team"], "new");
    }
}

on_each_simulator! {
    async fn archived_objects_are_told_as_such(bucket: &Bucket) {
        let store = bucket.store().await;
        let put = bucket.client.put_object().bucket(&bucket.name).key("cold").body(content(10).into());
        put.storage_class(StorageClass::Glacier).send().await.unwrap();
        let listed = store.list(&bucket.at("cold")).await.unwrap().remove(0);
        let archived = StoreError::Archived { location: bucket.at("cold"), class: "GLACIER".into() };
        assert_eq!(store.get_range(&listed, 0..3).await, Err(archived.clone()));
        assert_eq!(store.replace(&listed, "run-1").await.map(|_| ()), Err(archived));
    }
}
