//! What lies behind the current objects of a versioned bucket: the whole program must leave no version of a removed row, keep all
//! others, and say what stands in its way.

use std::collections::BTreeMap;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketVersioningStatus, ExpirationStatus, LifecycleRule, LifecycleRuleFilter,
    ObjectLockLegalHoldStatus, ObjectLockMode, StorageClass, Transition, TransitionStorageClass,
    VersioningConfiguration,
};
use serde_json::{Value, json};

use crate::fault_proxy::{Fault, FaultProxy, always};
use crate::s3::on_each_server;
use crate::s3_scrub::{Job, LISTED, check_exit, records, without_the_listed};
use crate::s3_server::{Bucket, Kind, server};

pub async fn keep_versions(bucket: &Bucket) {
    let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    bucket.client.put_bucket_versioning().bucket(&bucket.name).versioning_configuration(on).send().await.unwrap();
}

async fn job(bucket: &Bucket) -> Job {
    bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
    Job::new(bucket, &bucket.server.endpoint())
}

async fn delete(bucket: &Bucket, key: &str) {
    bucket.client.delete_object().bucket(&bucket.name).key(key).send().await.unwrap();
}

/// Per key below `prefix`: the contents of its versions, sorted, and how many delete markers.
async fn behind(bucket: &Bucket, prefix: &str) -> BTreeMap<String, (Vec<String>, usize)> {
    let listed = bucket.client.list_object_versions().bucket(&bucket.name).prefix(prefix).send().await.unwrap();
    let mut keys: BTreeMap<String, (Vec<String>, usize)> = BTreeMap::new();
    for version in listed.versions() {
        let key = version.key().unwrap();
        let got = bucket.client.get_object().bucket(&bucket.name).key(key).version_id(version.version_id().unwrap());
        let bytes = got.send().await.unwrap().body.collect().await.unwrap().into_bytes();
        keys.entry(key.to_owned()).or_default().0.push(String::from_utf8(bytes.to_vec()).unwrap());
    }
    for marker in listed.delete_markers() {
        keys.entry(marker.key().unwrap().to_owned()).or_default().1 += 1;
    }
    keys.values_mut().for_each(|(versions, _)| versions.sort_unstable());
    keys
}

fn versions(result: &Value) -> &Value {
    &result["datasets"][0]["versions"]
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

on_each_server! {
    async fn no_version_of_a_removed_row_is_left_and_every_other_is(bucket: &Bucket) {
        keep_versions(bucket).await;
        let (listed, clean, older) = (records(0, 5), without_the_listed(&records(10, 5)), records(20, 5));
        let older_clean = without_the_listed(&older);
        // The current object matches; an old version of it does, too, and another does not.
        for text in [&older, &older_clean, &listed] {
            bucket.upload("lake/a.csv", text.clone()).await;
        }
        // Only an old version matches.
        bucket.upload("lake/b.csv", older.clone()).await;
        bucket.upload("lake/b.csv", clean.clone()).await;
        // Deleted: one with a match, one without, one of both.
        for (key, texts) in [
            ("lake/c.csv", vec![&older]), ("lake/d.csv", vec![&clean]), ("lake/e.csv", vec![&older, &clean]),
        ] {
            for text in texts {
                bucket.upload(key, text.clone()).await;
            }
            delete(bucket, key).await;
        }
        // Keys that only share the prefix, or are no objects of the dataset.
        for key in ["lake", "lake.csv", "lakes/a.csv", "lake/x.csv.bak", "lake/_old/x.csv"] {
            bucket.upload(key, older.clone()).await;
            bucket.upload(key, clean.clone()).await;
        }
        let before = behind(bucket, "lake").await;
        let job = job(bucket).await;

        let planned = job.run(&["plan", job.path().to_str().unwrap(), "--json"]);
        check_exit(&planned, 0);
        let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
        let steps = planned["datasets"][0]["versions"].as_array().unwrap();
        assert_eq!(steps.iter().filter(|step| step["decision"] == "purge").count(), 4, "{planned:#}");
        assert_eq!(behind(bucket, "lake").await, before);
        check_exit(&job.run(&["verify", job.path().to_str().unwrap()]), 4);

        let result = job.scrub(0);
        let after = behind(bucket, "lake").await;
        assert_eq!(after["lake/a.csv"], (vec![without_the_listed(&listed), older_clean.clone()], 0));
        assert_eq!(after["lake/b.csv"], (vec![clean.clone()], 0));
        assert_eq!(after.get("lake/c.csv"), None, "neither the version nor the marker that hid it");
        assert_eq!(after["lake/d.csv"], (vec![clean.clone()], 1));
        assert_eq!(after["lake/e.csv"], (vec![clean.clone()], 1), "without its marker the version would come back");
        for key in ["lake", "lake.csv", "lakes/a.csv", "lake/x.csv.bak", "lake/_old/x.csv"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        // Listed: two old versions of a and the replaced one, one of b, c, d, two of e, and three markers.
        assert_eq!(*versions(&result), json!({ "listed": 11, "purged": 5, "locked": 0, "remaining": 5 }));
        assert_eq!(result["verification"]["residue"]["versions"], 0);
        assert_eq!(result["verdict"], "clean");

        let again = job.scrub(0);
        assert_eq!(behind(bucket, "lake").await, after);
        assert_eq!(*versions(&again), json!({ "listed": 5, "purged": 0, "locked": 0, "remaining": 5 }));
        let state = format!("s3://{}/privacy/lakescrub/", bucket.name);
        check_exit(&job.run(&["manifest", "check", &state]), 0);
    }

    async fn what_is_only_reported_is_residue(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        bucket.upload("lake/a.csv", without_the_listed(&records(0, 5))).await;
        let job = job(bucket).await;
        let report = job.run(&["scrub", job.path().to_str().unwrap(), "--set", "dataset.0.versions.noncurrent=report", "--json"]);
        check_exit(&report, 4);
        let result: Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!(*versions(&result), json!({ "listed": 1, "purged": 0, "locked": 0, "remaining": 1 }));
        assert_eq!((&result["verification"]["residue"]["versions"], &result["verdict"]), (&json!(1), &json!("residue")));
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 2);
    }

    async fn a_lock_blocks_and_is_told_with_its_end(bucket: &Bucket) {
        bucket.client.create_bucket().bucket(format!("{}-locked", bucket.name)).object_lock_enabled_for_bucket(true).send().await.unwrap();
        let locked = bucket.renamed(&format!("{}-locked", bucket.name));
        let until = DateTime::from_secs(4_000_000_000);
        for (key, mode) in [("lake/a.csv", ObjectLockMode::Governance), ("lake/b.csv", ObjectLockMode::Compliance)] {
            let put = locked.client.put_object().bucket(&locked.name).key(key).body(records(0, 5).into_bytes().into());
            put.object_lock_mode(mode).object_lock_retain_until_date(until).send().await.unwrap();
        }
        let put = locked.client.put_object().bucket(&locked.name).key("lake/c.csv").body(records(0, 5).into_bytes().into());
        put.object_lock_legal_hold_status(ObjectLockLegalHoldStatus::On).send().await.unwrap();
        locked.upload("lake/free.csv", records(0, 5)).await;
        let job = job(&locked).await;
        let output = job.run(&["scrub", job.path().to_str().unwrap()]);
        check_exit(&output, 5);
        let told = text(&output);
        assert!(told.contains("an object lock in governance mode holds it until 2096-10-02T07:06:40Z"), "{told}");
        assert!(told.contains("an object lock in compliance mode holds it until 2096-10-02T07:06:40Z"), "{told}");
        assert!(told.contains("a legal hold is on it"), "{told}");
        assert!(told.contains("verdict   blocked"), "{told}");
        // The current objects are clean; the unlocked old version is gone.
        let after = behind(&locked, "lake/").await;
        assert_eq!(after["lake/free.csv"].0.len(), 1);
        assert_eq!(after["lake/a.csv"].0.len(), 2);
        let again = job.scrub(5);
        assert_eq!(*versions(&again), json!({ "listed": 3, "purged": 0, "locked": 3, "remaining": 3 }));
        assert_eq!(again["datasets"][0]["rows"]["matched"], 0);
    }

    async fn a_version_that_cannot_be_read_makes_the_run_incomplete(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", "id,email\n\"never closed").await;
        bucket.upload("lake/a.csv", without_the_listed(&records(0, 5))).await;
        let has_classes = bucket.server.kind.differences().has_classes;
        let cold = bucket.client.put_object().bucket(&bucket.name).key("lake/b.csv").body(records(0, 5).into_bytes().into());
        cold.set_storage_class(has_classes.then_some(StorageClass::Glacier)).send().await.unwrap();
        bucket.upload("lake/b.csv", without_the_listed(&records(0, 5))).await;
        let job = job(bucket).await;
        let output = job.run(&["scrub", job.path().to_str().unwrap()]);
        check_exit(&output, 3);
        let told = text(&output);
        assert!(told.contains("/lake/") && told.contains("a.csv (version "), "{told}");
        assert_eq!(told.contains("/lake/b.csv is archived in storage class GLACIER"), has_classes, "{told}");
        assert_eq!(behind_count(bucket).await, if has_classes { 4 } else { 3 });
    }

    async fn a_missing_permission_blocks_and_standing_rules_are_told(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        let rule = LifecycleRule::builder()
            .id("cold")
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().prefix("lake/").build())
            .transitions(Transition::builder().days(30).storage_class(TransitionStorageClass::Glacier).build())
            .build()
            .unwrap();
        let rules = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
        bucket.client.put_bucket_lifecycle_configuration().bucket(&bucket.name).lifecycle_configuration(rules).send().await.unwrap();
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        let denied = "<Error><Code>AccessDenied</Code></Error>";
        let is_delete = |request: &str| request.starts_with("DELETE") && request.contains("lake/a.csv") && request.contains("versionId");
        let proxy = FaultProxy::before(bucket.server.port, vec![always(is_delete, Fault::Answer(403, denied))]);
        let job = Job::new(bucket, &proxy.endpoint());
        let result = job.scrub(5);
        assert_eq!(result["verdict"], "blocked");
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 2);
        assert!(result["limits"].to_string().contains("moves objects to other storage classes"), "{result:#}");
    }

    async fn versions_that_cannot_be_listed_are_never_taken_for_none(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        let unknown = "<Error><Code>NotImplemented</Code></Error>";
        let is_listing = |request: &str| request.starts_with("GET") && request.contains("versions") && request.contains("prefix=lake");
        let proxy = FaultProxy::before(bucket.server.port, vec![always(is_listing, Fault::Answer(501, unknown))]);
        let job = Job::new(bucket, &proxy.endpoint());
        let output = job.run(&["scrub", job.path().to_str().unwrap()]);
        check_exit(&output, 3);
        assert!(text(&output).contains("may keep versions and the store cannot list them"), "{}", text(&output));
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 1, "nothing was written");
    }

    async fn a_version_that_is_held_is_not_purged(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        let old = bucket.client.head_object().bucket(&bucket.name).key("lake/a.csv").send().await.unwrap();
        let location = format!("s3://{}/lake/a.csv", bucket.name);
        let note = json!({ "location": location, "etag": old.e_tag().unwrap(), "reason": "differs" });
        bucket.upload("privacy/lakescrub/held/run-00000001.json", note.to_string()).await;
        let job = job(bucket).await;
        let output = job.run(&["scrub", job.path().to_str().unwrap()]);
        check_exit(&output, 4);
        assert!(text(&output).contains("may be the only good copy"), "{}", text(&output));
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 2);
        delete(bucket, "privacy/lakescrub/held/run-00000001.json").await;
        job.scrub(0);
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 1);
    }

    async fn what_was_swapped_and_never_read_back_keeps_its_old_version(bucket: &Bucket) {
        keep_versions(bucket).await;
        bucket.upload("lake/a.csv", records(0, 5)).await;
        let job = job(bucket).await;
        // Killed after the swap was confirmed; without the confirmation it is as if killed right before the read-back.
        assert!(!job.killed_after(2).status.success());
        let journal = bucket.client.list_objects_v2().bucket(&bucket.name).prefix("privacy/lakescrub/journal/").send().await.unwrap();
        let confirmed = journal.contents().iter().filter_map(|entry| entry.key()).find(|key| key.ends_with("00000002.json"));
        delete(bucket, confirmed.unwrap()).await;
        let output = job.run(&["scrub", job.path().to_str().unwrap()]);
        check_exit(&output, 4);
        assert!(text(&output).contains("may be the only good copy"), "{}", text(&output));
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 2);
        // Nor does the next run purge it.
        job.scrub(4);
        assert_eq!(behind(bucket, "lake/").await["lake/a.csv"].0.len(), 2);
    }

    async fn old_uploads_are_aborted_and_young_ones_told(bucket: &Bucket) {
        bucket.upload("lake/a.csv", without_the_listed(&records(0, 5))).await;
        for key in ["lake/a.csv", "lakes/a.csv"] {
            let upload = bucket.client.create_multipart_upload().bucket(&bucket.name).key(key).send().await.unwrap();
            let part = bucket.client.upload_part().bucket(&bucket.name).key(key).part_number(1);
            part.upload_id(upload.upload_id().unwrap()).body(records(0, 5).into_bytes().into()).send().await.unwrap();
        }
        let job = job(bucket).await;
        if bucket.server.kind.differences().tells_age_of_uploads {
            let young = job.scrub(0);
            assert_eq!(young["datasets"][0]["uploads"], json!({ "listed": 1, "aborted": 0, "remaining": 1 }));
            assert!(young["limits"].to_string().contains("1 unfinished uploads remain"), "{young:#}");
        }
        let all = job.run(&["scrub", job.path().to_str().unwrap(), "--set", "dataset.0.versions.abort_uploads_after_days=0", "--json"]);
        check_exit(&all, 0);
        let result: Value = serde_json::from_slice(&all.stdout).unwrap();
        assert_eq!(result["datasets"][0]["uploads"], json!({ "listed": 1, "aborted": 1, "remaining": 0 }));
        assert_eq!(bucket.open_uploads().await, 1, "the other prefix's upload stays");
    }

    async fn a_run_that_is_killed_at_any_entry_purges_all_the_same(bucket: &Bucket) {
        keep_versions(bucket).await;
        for killed_after in 0..4 {
            let (key, old) = (format!("lake/{killed_after}.csv"), records(0, 5));
            bucket.upload(&key, records(10, 5)).await;
            bucket.upload(&key, old.clone()).await;
            let job = job(bucket).await;
            let killed = job.killed_after(killed_after);
            assert!(!killed.status.success(), "entry {killed_after}: {}", text(&killed));
            let result = job.scrub(0);
            assert_eq!(behind(bucket, &key).await[&key], (vec![without_the_listed(&old)], 0), "entry {killed_after}");
            assert_eq!(versions(&result)["purged"], 2, "entry {killed_after}: {result:#}");
            assert_eq!(result["datasets"][0]["rows"]["removed"], 1, "entry {killed_after}");
        }
    }
}

async fn behind_count(bucket: &Bucket) -> usize {
    let listed = bucket.client.list_object_versions().bucket(&bucket.name).prefix("lake/").send().await.unwrap();
    listed.versions().len()
}
