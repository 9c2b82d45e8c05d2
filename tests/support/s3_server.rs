//! The S3 servers of the tests: ministack and moto from the virtual environment that `make venv` makes, and Ceph's gateway for
//! `make test-ceph`, one of each for the whole binary, on free loopback ports. They end with the test process, however that ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use lakescrub::store::s3::{REQUESTS_IN_FLIGHT, S3Settings, S3Store};
use lakescrub::store::{ConditionalWrites, Location};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ministack,
    Moto,
    /// Enforces signatures and policies; must be installed.
    Ceph,
}

/// Where the servers are known to differ; everything else is expected to be the same.
#[derive(Debug, Clone, Copy)]
pub struct Differences {
    pub verdict: ConditionalWrites,
    /// How many parts the ETag of a swapped object of 20 MiB tells: none where the store makes the swap a single write.
    pub parts_of_20_mib: Option<u32>,
    pub line_breaks_in_keys: bool,
    /// How many the listing of several pages has.
    pub many_objects: usize,
    /// Whether it knows storage classes beside the standard one, and keys of a key service.
    pub has_classes: bool,
    /// Whether it tells when an upload was begun.
    pub tells_age_of_uploads: bool,
}

impl Kind {
    pub fn ignores_conditions(self) -> bool {
        self.differences().verdict == ConditionalWrites::Ignored
    }

    pub fn differences(self) -> Differences {
        match self {
            Kind::Ministack => Differences {
                verdict: ConditionalWrites::Honoured,
                has_classes: true,
                parts_of_20_mib: Some(3),
                tells_age_of_uploads: true,
                line_breaks_in_keys: true,
                many_objects: 5_000,
            },
            Kind::Moto => Differences {
                // Completes an upload whatever its If-Match says.
                verdict: ConditionalWrites::SingleWritesOnly,
                has_classes: true,
                parts_of_20_mib: None,
                // All uploads are of 2010.
                tells_age_of_uploads: false,
                // Stores and lists such a key, and then does not find it.
                line_breaks_in_keys: false,
                // Two pages: it takes its time to store them.
                many_objects: 1_200,
            },
            Kind::Ceph => Differences {
                // A quoted If-Match never fits, an unquoted one never on a versioned bucket, and If-None-Match is ignored there.
                verdict: ConditionalWrites::Ignored,
                has_classes: false,
                parts_of_20_mib: Some(3),
                tells_age_of_uploads: true,
                line_breaks_in_keys: true,
                many_objects: 1_200,
            },
        }
    }
}

pub struct S3Server {
    pub kind: Kind,
    pub port: u16,
    /// Holds the pipe whose end ends the server.
    _keeper: Child,
}

static MINISTACK: LazyLock<S3Server> = LazyLock::new(|| S3Server::start(Kind::Ministack));
static MOTO: LazyLock<S3Server> = LazyLock::new(|| S3Server::start(Kind::Moto));
static CEPH: LazyLock<S3Server> = LazyLock::new(|| S3Server::start(Kind::Ceph));

pub fn server(kind: Kind) -> &'static S3Server {
    match kind {
        Kind::Ministack => &MINISTACK,
        Kind::Moto => &MOTO,
        Kind::Ceph => &CEPH,
    }
}

/// Kills the group, itself included, as soon as the pipe from the test process is closed: that the kernel does for every death.
const KEEPER: &str = r#""$@" </dev/null & cat >/dev/null; kill -9 0"#;

fn venv() -> PathBuf {
    match std::env::var_os("LAKESCRUB_TEST_VENV") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv"),
    }
}

fn program(name: &str) -> PathBuf {
    let path = venv().join("bin").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make venv`, or set LAKESCRUB_TEST_VENV to the environment it made",
        path.display()
    );
    path
}

impl S3Server {
    fn start(kind: Kind) -> S3Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("s3-{kind:?}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (arguments, variables) = command_line(kind, port, &folder);
        let log = fs::File::create(folder.join("log")).unwrap();
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .args(arguments)
            .envs(variables)
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // So that Ctrl-C at the tests does not end it before they have.
            .process_group(0)
            .spawn()
            .unwrap();
        let server = S3Server { kind, port, _keeper: keeper };
        let started = Instant::now();
        while !server.answers() {
            if started.elapsed() > Duration::from_secs(60) {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                panic!("{kind:?} does not answer on port {port}; its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", self.port);
        let mut reply = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).and_then(|()| stream.read_exact(&mut reply)).is_ok() && reply == *b"HTTP/"
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A new bucket for one test.
    pub async fn bucket(&'static self, name: &str) -> Bucket {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let client = client(&self.endpoint());
        client.create_bucket().bucket(&name).send().await.unwrap();
        Bucket { server: self, name, client }
    }
}

fn command_line(kind: Kind, port: u16, folder: &Path) -> (Vec<PathBuf>, BTreeMap<&'static str, String>) {
    let port = port.to_string();
    match kind {
        Kind::Ministack => {
            let variables = [
                // Its default is every interface.
                ("BIND_HOST", "127.0.0.1".to_owned()),
                ("GATEWAY_PORT", port),
                ("SERVICES", "s3".to_owned()),
                ("PERSIST_STATE", "0".to_owned()),
                ("S3_PERSIST", "0".to_owned()),
                ("STATE_DIR", folder.join("state").display().to_string()),
                ("S3_DATA_DIR", folder.join("data").display().to_string()),
                ("DOCKER_HOST", "unix:///nonexistent".to_owned()),
            ];
            (vec![program("ministack")], variables.into())
        }
        Kind::Moto => {
            let arguments = vec![program("moto_server"), "-H".into(), "127.0.0.1".into(), "-p".into(), port.into()];
            (arguments, [("MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", "67108864".to_owned())].into())
        }
        Kind::Ceph => {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/ceph.sh");
            let monitor = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
            (vec![script, port.into(), monitor.into()], BTreeMap::new())
        }
    }
}

fn client(endpoint: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(credentials())
        .endpoint_url(endpoint)
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

fn credentials() -> Credentials {
    Credentials::new("test", "test", None, None, "test")
}

pub struct Bucket {
    pub server: &'static S3Server,
    pub name: String,
    /// A client that is not ours, to lay things out and to look at what is there.
    pub client: Client,
}

impl Bucket {
    pub fn at(&self, key: &str) -> Location {
        Location::S3 { bucket: self.name.clone(), key: key.to_owned() }
    }

    /// Another bucket of the same server, which must exist.
    pub fn renamed(&self, name: &str) -> Bucket {
        Bucket { server: self.server, name: name.to_owned(), client: self.client.clone() }
    }

    /// Where conditions are ignored, as a job that allows it has it.
    pub async fn store(&self) -> S3Store {
        store(&self.server.endpoint(), self.server.kind.ignores_conditions()).await
    }

    /// Another writer's, or what was there before.
    pub async fn upload(&self, key: &str, bytes: impl Into<Bytes>) {
        let body = ByteStream::from(bytes.into());
        self.client.put_object().bucket(&self.name).key(key).body(body).send().await.unwrap();
    }

    pub async fn upload_owned(&self, key: String) {
        self.upload(&key, "x").await;
    }

    pub async fn bytes(&self, key: &str) -> Bytes {
        let reply = self.client.get_object().bucket(&self.name).key(key).send().await.unwrap();
        reply.body.collect().await.unwrap().into_bytes()
    }

    /// Multipart uploads that nobody completed or aborted.
    pub async fn open_uploads(&self) -> usize {
        self.client.list_multipart_uploads().bucket(&self.name).send().await.unwrap().uploads().len()
    }
}

pub async fn store(endpoint: &str, unconditional_writes: bool) -> S3Store {
    let settings = S3Settings {
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        unconditional_writes,
        ..S3Settings::default()
    };
    S3Store::open_as(credentials(), &settings, REQUESTS_IN_FLIGHT).await.unwrap()
}
