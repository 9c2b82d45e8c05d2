//! The whole program with its data, lists and state on S3.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lakescrub::store::Store;
use serde_json::Value;

use crate::fault_proxy::{Fault, FaultProxy, at};
use crate::s3::{on_each_server, on_each_simulator};
use crate::s3_server::{Bucket, Kind, server, store};

pub const LISTED: &str = "ann@example.org";

/// A job and its keys in a folder of its own; data, list and state are in the bucket.
pub struct Job {
    pub folder: tempfile::TempDir,
    endpoint: String,
    pub credentials: Option<(&'static str, &'static str)>,
}

impl Job {
    pub fn new(bucket: &Bucket, endpoint: &str) -> Job {
        let job = Job {
            folder: tempfile::tempdir().unwrap(),
            endpoint: endpoint.to_owned(),
            credentials: Some(("test", "test")),
        };
        let name = &bucket.name;
        let allowed = if bucket.server.kind.ignores_conditions() { "unconditional_writes = \"allow\"" } else { "" };
        let text = format!(
            r#"
version = 1
[state]
uri = "s3://{name}/privacy/lakescrub/"
[storage.s3]
endpoint = "{endpoint}"
allow_http = true
{allowed}
[guard]
max_fraction = 0.5
[[list]]
name = "crm"
uri = "s3://{name}/privacy/optouts/*.csv"
[[list.column]]
column = "email"
kind = "email"
[[dataset]]
name = "customers"
uri = "s3://{name}/lake/"
format = "csv"
[[dataset.match]]
column = "email"
kind = "email"
"#
        );
        std::fs::write(job.path(), text).unwrap();
        let keys = job.folder.path().join("keys");
        assert!(job.run(&["keygen", keys.to_str().unwrap()]).status.success());
        job
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("job.toml")
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A scrub that dies as by kill -9 after a journal entry.
    pub fn killed_after(&self, entry: u64) -> Output {
        let path = self.path();
        let mut command = self.command(&["scrub", path.to_str().unwrap()]);
        command.env("LAKESCRUB_TEST_KILL_AFTER_ENTRY", entry.to_string()).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lakescrub"));
        // Nothing of the machine's own AWS settings.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.args(arguments).current_dir(self.folder.path()).env("HOME", self.folder.path());
        // `manifest check` reads no job file.
        command.env("AWS_ENDPOINT_URL", &self.endpoint);
        if let Some((key, secret)) = self.credentials {
            command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
        }
        command
    }

    /// The program's result as JSON; `exit` is what it must end with.
    pub fn scrub(&self, exit: i32) -> Value {
        let output = self.run(&["scrub", self.path().to_str().unwrap(), "--json", "-v", "-v"]);
        check_exit(&output, exit);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    fn refusal(&self, exit: i32, arguments: &[&str]) -> String {
        let path = self.path();
        let output = self.run(&[&["scrub", path.to_str().unwrap()], arguments].concat());
        check_exit(&output, exit);
        String::from_utf8(output.stderr).unwrap()
    }
}

pub fn check_exit(output: &Output, exit: i32) {
    let told = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{}\n{}", told.0, told.1);
    assert!(!told.1.contains(LISTED), "{}", told.1);
}

/// `count` records from `first` on; the third is the listed person's.
pub fn records(first: usize, count: usize) -> String {
    let email = |i: usize| if i == first + 2 { LISTED.to_owned() } else { format!("u{i}@example.org") };
    (first..first + count)
        .fold("id,email,note\r\n".to_owned(), |text, i| text + &format!("{i},{},\"note, {i}\"\r\n", email(i)))
}

pub fn without_the_listed(text: &str) -> String {
    text.split_inclusive("\r\n").filter(|record| !record.contains(LISTED)).collect()
}

/// The keys and ETags below the data's prefix.
async fn lake(bucket: &Bucket) -> Vec<(String, String)> {
    let listed = store(&bucket.server.endpoint(), false).await.list(&bucket.at("lake/")).await.unwrap();
    listed.into_iter().map(|object| (object.location.to_string(), object.etag.0)).collect()
}

on_each_server! {
    async fn a_scrub_cleans_proves_and_changes_nothing_the_second_time(bucket: &Bucket) {
        let large = records(0, 200_000);
        let odd = records(1_000_000, 20);
        let clean = without_the_listed(&records(2_000_000, 20));
        bucket.upload("lake/large.csv", large.clone()).await;
        bucket.upload("lake/day=1/odd name+100%//ä.csv", odd.clone()).await;
        bucket.upload("lake/clean.csv", clean.clone()).await;
        bucket.upload("privacy/optouts/a.csv", format!("email\n {}\n", LISTED.to_uppercase())).await;
        let before = lake(bucket).await;

        let job = Job::new(bucket, &bucket.server.endpoint());
        let result = job.scrub(0);
        assert_eq!(result["verdict"], "clean");
        assert_eq!(result["datasets"][0]["rows"]["removed"], 2);
        assert!(bucket.bytes("lake/large.csv").await == without_the_listed(&large).as_bytes());
        assert!(bucket.bytes("lake/day=1/odd name+100%//ä.csv").await == without_the_listed(&odd).as_bytes());
        let after = lake(bucket).await;
        let is_clean = |object: &&(String, String)| object.0.ends_with("/clean.csv");
        assert_eq!(after.iter().find(is_clean), before.iter().find(is_clean));
        assert_eq!(bucket.open_uploads().await, 0);

        let result = job.scrub(0);
        assert_eq!(result["datasets"][0]["rows"]["removed"], 0);
        assert_eq!(lake(bucket).await, after);

        let state = format!("s3://{}/privacy/lakescrub/", bucket.name);
        let public_key = job.folder.path().join("keys/signing.pub");
        check_exit(&job.run(&["manifest", "check", &state, "--public-key", public_key.to_str().unwrap()]), 0);
    }

    async fn an_identifier_in_user_metadata_or_a_tag_is_residue(bucket: &Bucket) {
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        bucket.upload("lake/b.csv", records(0, 2)).await;
        let job = Job::new(bucket, &bucket.server.endpoint());
        for (metadata, tagging, residue) in [
            (("for", "bob@example.org"), "owner=bob%40example.org", 0),
            (("for", LISTED), "owner=bob%40example.org", 1),
            (("for", LISTED), "owner=ann%40example.org", 2),
        ] {
            let body = aws_sdk_s3::primitives::ByteStream::from(records(0, 10).into_bytes());
            let request = bucket.client.put_object().bucket(&bucket.name).key("lake/a.csv").body(body);
            request.metadata(metadata.0, metadata.1).tagging(tagging).send().await.unwrap();
            let result = job.scrub(if residue == 0 { 0 } else { 4 });
            assert_eq!(result["verification"]["residue"]["labels"], residue, "{metadata:?} {tagging}");
            // They stay as they are, and the row is gone all the same.
            assert_eq!(bucket.bytes("lake/a.csv").await, without_the_listed(&records(0, 10)).as_bytes());
        }
    }

    async fn a_store_that_goes_away_in_the_middle_is_exit_7(bucket: &Bucket) {
        for i in 0..20 {
            bucket.upload(&format!("lake/{i}.csv"), records(i * 10, 10)).await;
        }
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        // The fifth swap of the run never comes back, nor does anything after it.
        let is_swap = |request: &str| request.starts_with("PUT ") && request.contains("/lake/") && !request.contains("probe");
        let proxy = FaultProxy::before(bucket.server.port, vec![at(5, is_swap, Fault::Die)]);
        let job = Job::new(bucket, &proxy.endpoint());
        let started = Instant::now();
        let told = job.refusal(7, &[]);
        assert!(told.contains("cannot be reached: the connection failed"), "{told}");
        assert!(proxy.all_faults_happened());
        assert!(started.elapsed() < Duration::from_secs(120));
        // No half of anything: each object is as it was or as it is to be, and the next run ends the work.
        for i in 0..20 {
            let (now, old) = (bucket.bytes(&format!("lake/{i}.csv")).await, records(i * 10, 10));
            assert!(now == old.as_bytes() || now == without_the_listed(&old).as_bytes(), "{i}");
        }
        let path = job.path();
        let text = std::fs::read_to_string(&path).unwrap().replace(&proxy.endpoint(), &bucket.server.endpoint());
        std::fs::write(&path, text).unwrap();
        assert_eq!(job.scrub(0)["verdict"], "clean");
        assert_eq!(lake(bucket).await.len(), 20);
    }

    async fn a_dataset_that_cannot_be_listed_leaves_the_others_to_go_on(bucket: &Bucket) {
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        bucket.upload("secret/a.csv", records(0, 10)).await;
        let denied = "<Error><Code>AccessDenied</Code></Error>";
        let is_secret = |request: &str| request.contains("list-type=2") && request.contains("secret");
        let proxy = FaultProxy::before(bucket.server.port, vec![at(0, is_secret, Fault::Answer(403, denied))]);
        let name = &bucket.name;
        for (uri, exit, told) in [
            ("s3://no-such-bucket-of-ours/lake/".to_owned(), 3, "bucket no-such-bucket-of-ours does not exist"),
            (format!("s3://{name}/secret/"), 5, "access is denied: AccessDenied"),
        ] {
            bucket.upload("lake/a.csv", records(0, 10)).await;
            let job = Job::new(bucket, &proxy.endpoint());
            let more = format!("[[dataset]]\nname = \"other\"\nuri = \"{uri}\"\nformat = \"csv\"\n[[dataset.match]]\ncolumn = \"email\"\nkind = \"email\"\n");
            std::fs::write(job.path(), std::fs::read_to_string(job.path()).unwrap() + &more).unwrap();
            for command in ["check", "plan"] {
                let output = job.run(&[command, job.path().to_str().unwrap()]);
                check_exit(&output, exit);
                assert!(String::from_utf8_lossy(&output.stdout).contains(told), "{command}: {output:?}");
            }
            let result = job.scrub(exit);
            assert_eq!(bucket.bytes("lake/a.csv").await, without_the_listed(&records(0, 10)).as_bytes());
            assert_eq!(result["datasets"][0]["rows"]["removed"], 1);
            assert_eq!(result["datasets"][1]["objects"]["listed"], "not checked");
            assert!(result["limits"].to_string().contains(told), "{result:#}");
            check_exit(&job.run(&["verify", job.path().to_str().unwrap()]), exit);
            let state = format!("s3://{name}/privacy/lakescrub/");
            check_exit(&job.run(&["manifest", "check", &state]), 0);
        }
    }
}

on_each_simulator! {
    async fn a_store_that_ignores_conditions_is_refused(bucket: &Bucket) {
        bucket.upload("lake/a.csv", records(0, 10)).await;
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        let proxy = FaultProxy::before(bucket.server.port, vec![at(0, |_| true, Fault::StripConditions)]);
        let job = Job::new(bucket, &proxy.endpoint());
        let told = job.refusal(10, &[]);
        assert!(told.contains("ignores conditional writes") && told.contains("unconditional_writes"), "{told}");
        assert_eq!(bucket.bytes("lake/a.csv").await, records(0, 10).as_bytes());

        let path = job.path();
        let allowed = job.run(&["scrub", path.to_str().unwrap(), "--json", "--set", "storage.s3.unconditional_writes=allow"]);
        check_exit(&allowed, 0);
        let result: Value = serde_json::from_slice(&allowed.stdout).unwrap();
        assert!(result["limits"].to_string().contains("ignores conditional writes"));
        assert_eq!(bucket.bytes("lake/a.csv").await, without_the_listed(&records(0, 10)).as_bytes());
    }

    async fn a_write_lost_to_another_writer_is_exit_6(bucket: &Bucket) {
        bucket.upload("lake/a.csv", records(0, 10)).await;
        bucket.upload("privacy/optouts/a.csv", format!("email\n{LISTED}\n")).await;
        let is_swap = |request: &str| request.starts_with("PUT ") && request.contains("/lake/a.csv");
        let proxy = FaultProxy::before(bucket.server.port, vec![at(1, is_swap, Fault::OtherWriter("id,email\r\n"))]);
        let job = Job::new(bucket, &proxy.endpoint());
        job.scrub(6);
        assert!(proxy.all_faults_happened());
        assert_eq!(bucket.bytes("lake/a.csv").await, "id,email\r\n");
        assert_eq!(job.scrub(0)["verdict"], "clean");
    }
}

/// A job on a server that answers one thing only, whose buckets need not be there.
async fn job_at(endpoint: &str) -> Job {
    Job::new(&server(Kind::Ministack).bucket("nowhere").await, endpoint)
}

#[tokio::test]
async fn credentials_that_are_turned_down_are_exit_5_with_a_hint() {
    let turned_down = "<Error><Code>InvalidAccessKeyId</Code><Message>who is AKIA?</Message></Error>";
    let proxy = FaultProxy::alone(403, turned_down);
    let told = job_at(&proxy.endpoint()).await.refusal(5, &[]);
    assert!(told.contains("InvalidAccessKeyId") && told.contains("AWS_SECRET_ACCESS_KEY"), "{told}");
    assert!(!told.contains("who is"));
}

#[tokio::test]
async fn no_credentials_are_exit_5_with_a_hint_and_soon() {
    let mut job = job_at("http://127.0.0.1:9").await;
    job.credentials = None;
    let started = Instant::now();
    let told = job.refusal(5, &[]);
    assert!(told.contains("no AWS credentials could be obtained") && told.contains("AWS_ACCESS_KEY_ID"), "{told}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn nothing_at_the_endpoint_is_exit_7() {
    let told = job_at("http://127.0.0.1:9").await.refusal(7, &[]);
    assert!(told.contains("cannot be reached: the connection failed"), "{told}");
}

#[tokio::test]
async fn plain_http_must_be_permitted() {
    let told = job_at("http://127.0.0.1:9").await.refusal(2, &["--set", "storage.s3.allow_http=false"]);
    assert!(told.contains("allow_http"), "{told}");
}

#[tokio::test]
async fn without_an_endpoint_a_region_must_be_known() {
    let mut job = job_at("http://127.0.0.1:9").await;
    let text = std::fs::read_to_string(job.path()).unwrap();
    std::fs::write(job.path(), text.replace("endpoint = \"http://127.0.0.1:9\"\n", "")).unwrap();
    job.endpoint.clear();
    let told = job.refusal(2, &[]);
    assert!(told.contains("AWS_REGION"), "{told}");
}

/// A local job needs no S3 and no credentials.
#[test]
fn a_local_path_opens_no_s3() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lakescrub"))
        .args(["manifest", "check", Path::new(folder.path()).to_str().unwrap()])
        .env_clear()
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("AWS"), "{output:?}");
}
