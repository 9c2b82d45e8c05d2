//! A proxy between the store's client and a server, which does one thing wrong at one request. Signatures survive because
//! bytes and Host pass unchanged. Without a server behind it, it is a server that answers one thing only.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is lost.
    DropBefore,
    /// The server acts, its reply is lost.
    DropAfter,
    /// The server acts, and the client is told this status.
    StatusAfter(u16),
    /// The client is told this status with this body, and the server nothing.
    Answer(u16, &'static str),
    /// Half of the reply's body.
    Truncate,
    /// The server acts, and its reply comes so many milliseconds late.
    Delay(u64),
    /// The server does not see the conditions of the request.
    StripConditions,
    /// The server does not see which range is asked for.
    StripRange,
    /// The server does not see the tags that come with a write.
    StripTags,
    /// Another writer puts this to the same key right before.
    OtherWriter(&'static str),
    /// The proxy goes away for good.
    Die,
}

/// What happens, at which of the requests whose `METHOD path?query` matches.
pub struct Rule {
    matches: fn(&str) -> bool,
    /// Counted from 1; 0 is each of them.
    nth: usize,
    fault: Fault,
    seen: AtomicUsize,
}

pub fn at(nth: usize, matches: fn(&str) -> bool, fault: Fault) -> Rule {
    Rule { matches, nth, fault, seen: AtomicUsize::new(0) }
}

pub fn always(matches: fn(&str) -> bool, fault: Fault) -> Rule {
    at(0, matches, fault)
}

pub struct FaultProxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Option<u16>,
    rules: Vec<Rule>,
    /// Each with the size of its body.
    requests: Mutex<Vec<(String, usize)>>,
    is_dead: watch::Sender<bool>,
}

impl FaultProxy {
    pub fn before(upstream: u16, rules: Vec<Rule>) -> FaultProxy {
        FaultProxy::start(Some(upstream), rules)
    }

    /// A server that gives `body` to whoever asks.
    pub fn alone(status: u16, body: &'static str) -> FaultProxy {
        FaultProxy::start(None, vec![always(|_| true, Fault::Answer(status, body))])
    }

    /// A server that gives these answers one after the other.
    pub fn answering(bodies: Vec<&'static str>) -> FaultProxy {
        let rule = |(number, body)| at(number + 1, |_| true, Fault::Answer(200, body));
        FaultProxy::start(None, bodies.into_iter().enumerate().map(rule).collect())
    }

    fn start(upstream: Option<u16>, rules: Vec<Rule>) -> FaultProxy {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared =
            Arc::new(Shared { upstream, rules, requests: Mutex::default(), is_dead: watch::Sender::new(false) });
        let ours = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // With the runtime everything ends: the listener and each open connection.
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let mut death = ours.is_dead.subscribe();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (client, _) = accepted.unwrap();
                            tokio::spawn(serve(client, ours.clone()));
                        }
                        _ = death.wait_for(|is_dead| *is_dead) => return,
                    }
                }
            });
        });
        FaultProxy { address, shared }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests so far match.
    pub fn requests(&self, matches: fn(&str) -> bool) -> usize {
        self.shared.requests.lock().unwrap().iter().filter(|(request, _)| matches(request)).count()
    }

    /// How many bytes came so far in the bodies of the requests that match.
    pub fn bytes_sent(&self, matches: fn(&str) -> bool) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|(request, _)| matches(request)).map(|(_, bytes)| bytes).sum()
    }

    /// Whether each rule met its request: a test whose fault never happened proves nothing.
    pub fn all_faults_happened(&self) -> bool {
        self.shared.rules.iter().all(|rule| rule.seen.load(Ordering::SeqCst) >= rule.nth.max(1))
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_dead.send_replace(true);
    }
}

struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn first_line(&self) -> String {
        let end = self.head.windows(2).position(|pair| pair == b"\r\n").unwrap_or(self.head.len());
        String::from_utf8_lossy(&self.head[..end]).into_owned()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

async fn read_head(from: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

async fn read_body(from: &mut BufReader<TcpStream>, head: &[u8], is_reply: bool) -> std::io::Result<Vec<u8>> {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut body = Vec::new();
    if header(&text, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line).await?;
            let size = String::from_utf8_lossy(&line).split(';').next().unwrap_or("").trim().to_owned();
            let size = usize::from_str_radix(&size, 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
            body.extend_from_slice(&line);
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk).await?;
            body.extend_from_slice(&chunk);
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match header(&text, "content-length").map(|value| value.parse::<usize>().unwrap_or(0)) {
        Some(length) => {
            body.resize(length, 0);
            from.read_exact(&mut body).await?;
        }
        None if is_reply => {
            from.read_to_end(&mut body).await?;
        }
        None => {}
    }
    Ok(body)
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let mut client = BufReader::new(client);
    // An error is the end of this connection, as any.
    while exchange(&mut client, &shared).await.unwrap_or(false) {}
}

/// One request and its reply; whether the connection goes on.
async fn exchange(client: &mut BufReader<TcpStream>, shared: &Shared) -> std::io::Result<bool> {
    let mut head = read_head(client).await?;
    if header(&String::from_utf8_lossy(&head), "expect").is_some() {
        client.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        head = without(&head, &["expect"]);
    }
    let body = read_body(client, &head, false).await?;
    let request = Message { head, body };
    let line = request.first_line();
    let line = line.rsplit_once(' ').map_or(line.as_str(), |(line, _)| line).to_owned();
    shared.requests.lock().unwrap().push((line.clone(), request.body.len()));
    let fault = fault_of(shared, &line);
    match fault {
        Some(Fault::DropBefore) => return Ok(false),
        Some(Fault::Answer(status, body)) => return answer(client, status, body, line.starts_with("HEAD")).await,
        Some(Fault::Die) => {
            shared.is_dead.send_replace(true);
            return Ok(false);
        }
        Some(Fault::OtherWriter(body)) => {
            let reply = forward(shared, other_writer(&request, &line, body), &line, None).await?;
            assert!(reply.first_line().contains("200"), "the other writer got {}", reply.first_line());
        }
        Some(
            Fault::DropAfter
            | Fault::StatusAfter(_)
            | Fault::Truncate
            | Fault::Delay(_)
            | Fault::StripConditions
            | Fault::StripRange
            | Fault::StripTags,
        )
        | None => {}
    }
    let reply = forward(shared, request, &line, fault).await?;
    if let Some(Fault::Delay(milliseconds)) = fault {
        tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
    }
    match fault {
        Some(Fault::DropAfter) => Ok(false),
        Some(Fault::StatusAfter(status)) => answer(client, status, "", line.starts_with("HEAD")).await,
        Some(Fault::Truncate) => {
            client.get_mut().write_all(&reply.head).await?;
            client.get_mut().write_all(&reply.body[..reply.body.len() / 2]).await?;
            Ok(false)
        }
        _ => {
            client.get_mut().write_all(&reply.head).await?;
            client.get_mut().write_all(&reply.body).await?;
            // One reply a connection upstream; whether its length is told decides here.
            Ok(header(&String::from_utf8_lossy(&reply.head), "connection").is_none_or(|value| value != "close"))
        }
    }
}

/// A put to the same key by somebody else with the same rights.
fn other_writer(request: &Message, line: &str, body: &str) -> Message {
    let text = String::from_utf8_lossy(&request.head).into_owned();
    let path = line.trim_start_matches("PUT ").split('?').next().unwrap_or("");
    let told = |name| header(&text, name).unwrap_or("").to_owned();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {}\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n",
        told("host"),
        told("authorization"),
        body.len()
    );
    Message { head: head.into_bytes(), body: body.into() }
}

/// Each rule counts each of its requests, whichever rule has its way.
fn fault_of(shared: &Shared, line: &str) -> Option<Fault> {
    let matching = shared.rules.iter().filter(|rule| (rule.matches)(line));
    let hits = matching.filter(|rule| {
        let seen = rule.seen.fetch_add(1, Ordering::SeqCst) + 1;
        rule.nth == 0 || rule.nth == seen
    });
    hits.fold(None, |first, rule| first.or(Some(rule.fault)))
}

async fn answer(client: &mut BufReader<TcpStream>, status: u16, body: &str, is_head: bool) -> std::io::Result<bool> {
    let head = format!("HTTP/1.1 {status} Injected\r\ncontent-length: {}\r\n\r\n", body.len());
    client.get_mut().write_all(head.as_bytes()).await?;
    if !is_head {
        client.get_mut().write_all(body.as_bytes()).await?;
    }
    Ok(true)
}

fn without(head: &[u8], names: &[&str]) -> Vec<u8> {
    let text = String::from_utf8_lossy(head).into_owned();
    let kept = text.split("\r\n").filter(|line| {
        !line.split_once(':').is_some_and(|(key, _)| names.iter().any(|name| key.eq_ignore_ascii_case(name)))
    });
    kept.collect::<Vec<_>>().join("\r\n").into_bytes()
}

async fn forward(shared: &Shared, request: Message, line: &str, fault: Option<Fault>) -> std::io::Result<Message> {
    let upstream = shared.upstream.expect("a proxy without a server behind it answers everything itself");
    let stripped: &[&str] = match fault {
        Some(Fault::StripConditions) => &["connection", "if-match", "if-none-match"],
        Some(Fault::StripRange) => &["connection", "range", "x-amz-copy-source-range"],
        Some(Fault::StripTags) => &["connection", "x-amz-tagging"],
        _ => &["connection"],
    };
    let mut head = without(&request.head, stripped);
    head.truncate(head.len() - 2);
    head.extend_from_slice(b"connection: close\r\n\r\n");
    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", upstream)).await?);
    server.get_mut().write_all(&head).await?;
    server.get_mut().write_all(&request.body).await?;
    loop {
        let head = read_head(&mut server).await?;
        let status = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or("").to_owned();
        if status == "100" {
            continue;
        }
        let has_body = !line.starts_with("HEAD") && status != "204" && status != "304";
        let body = if has_body { read_body(&mut server, &head, true).await? } else { Vec::new() };
        return Ok(Message { head, body });
    }
}
