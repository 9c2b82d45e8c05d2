//! A real gateway, run by `make test-ceph`: Ceph's, which checks signatures and policies. Its conditional writes are broken, and on a
//! versioned bucket silently ignored: the store that the probe must find out and a run must refuse.

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockLegalHoldStatus, VersioningConfiguration};
use lakescrub::store::{ConditionalWrites, Store};
use serde_json::Value;

use crate::s3_scrub::{Job, LISTED, check_exit, records, without_the_listed};
use crate::s3_server::{Bucket, Kind, server};

async fn bucket(keeps_versions: bool) -> Bucket {
    let bucket = server(Kind::Ceph).bucket("lake").await;
    if keeps_versions {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        bucket.client.put_bucket_versioning().bucket(&bucket.name).versioning_configuration(on).send().await.unwrap();
    }
    bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
    bucket
}

/// The contents of all versions below the dataset, by key.
async fn versions(bucket: &Bucket) -> Vec<(String, String)> {
    let listed = bucket.client.list_object_versions().bucket(&bucket.name).prefix("lake/").send().await.unwrap();
    let mut found = Vec::new();
    for version in listed.versions() {
        let (key, id) = (version.key().unwrap(), version.version_id().unwrap());
        let got = bucket.client.get_object().bucket(&bucket.name).key(key).version_id(id).send().await.unwrap();
        let bytes = got.body.collect().await.unwrap().into_bytes();
        found.push((key.to_owned(), String::from_utf8(bytes.to_vec()).unwrap()));
    }
    found.sort();
    found
}

fn allowed(job: &Job, exit: i32) -> Value {
    let path = job.path();
    let arguments = ["scrub", path.to_str().unwrap(), "--json"];
    let output = job.run(&arguments);
    check_exit(&output, exit);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Ceph: make test-ceph"]
async fn its_broken_conditions_are_found_out_and_refused() {
    for keeps_versions in [false, true] {
        let bucket = bucket(keeps_versions).await;
        bucket.upload("lake/a.csv", records(0, 10)).await;
        let store = bucket.store().await;
        assert_eq!(store.probe(&bucket.at("lake/")).await.unwrap(), ConditionalWrites::Ignored, "{keeps_versions}");
        let before = versions(&bucket).await;
        let job = Job::new(&bucket, &bucket.server.endpoint());
        let path = job.path();
        let refused = job.run(&["scrub", path.to_str().unwrap(), "--set", "storage.s3.unconditional_writes=refuse"]);
        check_exit(&refused, 10);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("ignores conditional writes") && told.contains("unconditional_writes"), "{told}");
        assert_eq!(versions(&bucket).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Ceph: make test-ceph"]
async fn a_job_that_allows_it_leaves_no_version_of_a_removed_row() {
    let bucket = bucket(true).await;
    let (listed, clean) = (records(0, 10), without_the_listed(&records(10, 10)));
    for text in [&listed, &clean, &listed] {
        bucket.upload("lake/a.csv", text.clone()).await;
    }
    bucket.upload("lake/deleted.csv", listed.clone()).await;
    bucket.client.delete_object().bucket(&bucket.name).key("lake/deleted.csv").send().await.unwrap();
    for key in ["lake/a b+c%25.csv", "lake/day=1//x.csv", "lake/\u{e4}.csv"] {
        bucket.upload(key, listed.clone()).await;
    }
    bucket.upload("lakes/a.csv", listed.clone()).await;
    let job = Job::new(&bucket, &bucket.server.endpoint());
    let result = allowed(&job, 0);
    assert_eq!(result["verdict"], "clean");
    assert!(result["limits"].to_string().contains("ignores conditional writes"));
    let kept = without_the_listed(&listed);
    let mut wish: Vec<(String, String)> = ["lake/a b+c%25.csv", "lake/a.csv", "lake/day=1//x.csv", "lake/\u{e4}.csv"]
        .map(|key| (key.to_owned(), kept.clone()))
        .into();
    wish.push(("lake/a.csv".to_owned(), clean));
    wish.sort();
    assert_eq!(versions(&bucket).await, wish);
    assert_eq!(bucket.bytes("lakes/a.csv").await, listed.as_bytes());
    assert_eq!(allowed(&job, 0)["datasets"][0]["rows"]["removed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Ceph: make test-ceph"]
async fn a_held_version_blocks_and_is_told() {
    let bucket = server(Kind::Ceph).bucket("unused").await;
    let bucket = bucket.renamed(&format!("{}-locked", bucket.name));
    let create = bucket.client.create_bucket().bucket(&bucket.name).object_lock_enabled_for_bucket(true);
    create.send().await.unwrap();
    bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
    bucket.upload("lake/a.csv", records(0, 10)).await;
    let on = aws_sdk_s3::types::ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
    let hold = bucket.client.put_object_legal_hold().bucket(&bucket.name).key("lake/a.csv").legal_hold(on);
    hold.send().await.unwrap();
    let job = Job::new(&bucket, &bucket.server.endpoint());
    allowed(&job, 5);
    assert_eq!(bucket.bytes("lake/a.csv").await, without_the_listed(&records(0, 10)).as_bytes());
    assert_eq!(versions(&bucket).await.len(), 2, "the held one is there");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Ceph: make test-ceph"]
async fn a_wrong_secret_and_a_policy_that_denies_are_exit_5() {
    let bucket = bucket(false).await;
    bucket.upload("lake/a.csv", records(0, 10)).await;
    bucket.upload("lake/b.csv", records(0, 10)).await;
    let mut job = Job::new(&bucket, &bucket.server.endpoint());
    job.credentials = Some(("test", "wrong"));
    allowed(&job, 5);
    assert_eq!(bucket.bytes("lake/a.csv").await, records(0, 10).as_bytes());
    job.credentials = Some(("test", "test"));
    let name = &bucket.name;
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::{name}/lake/b.csv"}}]}}"#
    );
    bucket.client.put_bucket_policy().bucket(name).policy(policy).send().await.unwrap();
    let result = allowed(&job, 5);
    assert_eq!(result["verdict"], "blocked");
    assert_eq!(bucket.bytes("lake/a.csv").await, without_the_listed(&records(0, 10)).as_bytes());
    bucket.client.delete_bucket_policy().bucket(name).send().await.unwrap();
    assert_eq!(bucket.bytes("lake/b.csv").await, records(0, 10).as_bytes());
    assert_eq!(allowed(&job, 0)["verdict"], "clean");
}
