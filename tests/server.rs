//! `zbatch emulate` as a process of its own, and the smallest HTTP client that can talk to it.

#![expect(clippy::indexing_slicing, reason = "a key that is not there fails the test")]

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::workdir::WorkDir;

/// How long a test waits for what takes no time.
const PATIENCE: Duration = Duration::from_secs(30);

/// An emulator on a port of its own; killed, by its own process id, when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT/api/paas/v4`
    pub base: String,
    pub address: String,
    /// The key that it showed on stderr, as with `--upstream`.
    pub shown_key: Option<String>,
}

/// A reply, or as much of it as came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// As sent, lower case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as the headers said.
    pub whole: bool,
}

impl Server {
    /// Keeps its state in `state`, so that the next one goes on with it.
    pub fn start(work: &WorkDir, state: &Path, args: &[&str]) -> Self {
        let mut command = work.command(&["emulate", "--port", "0", "--state"]);
        command.arg(state).args(args);
        if !args.contains(&"--upstream") {
            return Self::spawn(command);
        }
        work.write("emulate.log", "");
        let log = std::fs::File::options().append(true).open(work.join("emulate.log")).expect("opened");
        command.stderr(log);
        let mut server = Self::spawn_with_stderr(command);
        let said = work.read("emulate.log");
        let key = said.lines().find_map(|line| line.strip_prefix("export ZHIPUAI_API_KEY="));
        server.shown_key = Some(key.expect("a key").to_owned());
        server
    }

    pub fn key(&self) -> &str {
        self.shown_key.as_deref().unwrap_or("some.key")
    }

    pub fn spawn(mut command: Command) -> Self {
        command.stderr(Stdio::null());
        Self::spawn_with_stderr(command)
    }

    /// What it says goes where the command says.
    pub fn spawn_with_stderr(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the emulator starts");
        let mut base = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut base).expect("its first line");
        let base = base.trim_end().to_owned();
        let address = base.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        assert!(!address.is_empty(), "the first line on stdout is the base URL, not `{base}`");
        Self { child, address: address.to_owned(), base, shown_key: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// Sends SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("ended").code()
    }

    /// `None`: the connection ended without a reply.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
        let mut socket = TcpStream::connect(&self.address).expect("connects");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        socket.write_all(head.as_bytes()).expect("sent");
        // A server may close before it has read all.
        let sent = socket.write_all(body);
        Reply::read(&mut BufReader::new(socket)).or_else(|| {
            sent.expect("sent");
            None
        })
    }

    /// With a key, and a reply that must come.
    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.try_call(method, path, body).unwrap_or_else(|| panic!("{method} {path}: no reply"))
    }

    pub fn try_call(&self, method: &str, path: &str, body: &[u8]) -> Option<Reply> {
        let key = format!("Bearer {}", self.key());
        self.request(method, path, &[("Authorization", &key), ("Content-Type", "application/json")], body)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, b"").json(200)
    }

    pub fn upload_named(&self, root: &str, name: &str, purpose: &str, lines: &str) -> Reply {
        let body = format!(
            "--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n{lines}\r\n--xx\r\n\
             Content-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--xx--\r\n"
        );
        let key = format!("Bearer {}", self.key());
        let headers = [("Authorization", key.as_str()), ("Content-Type", "multipart/form-data; boundary=xx")];
        self.request("POST", &format!("{root}/files"), &headers, body.as_bytes()).expect("a reply")
    }

    /// Uploads lines; the id of the file.
    #[track_caller]
    pub fn upload(&self, root: &str, lines: &str) -> String {
        text(&self.upload_named(root, "chunk.jsonl", "batch", lines).json(200)["id"])
    }

    /// Creates a batch of an uploaded file; its id.
    #[track_caller]
    pub fn create(&self, root: &str, file: &str) -> String {
        text(&self.call("POST", &format!("{root}/batches"), create_body(root, file).as_bytes()).json(200)["id"])
    }

    /// Polls until the batch has ended; every status that was seen, and the batch.
    #[track_caller]
    pub fn wait(&self, root: &str, batch: &str) -> (Vec<String>, Value) {
        let (mut seen, started) = (Vec::new(), Instant::now());
        loop {
            let shown = self.get(&format!("{root}/batches/{batch}"));
            let status = text(&shown["status"]);
            if seen.last() != Some(&status) {
                seen.push(status.clone());
            }
            if ["completed", "failed", "expired", "cancelled"].contains(&status.as_str()) {
                return (seen, shown);
            }
            assert!(started.elapsed() < PATIENCE, "{shown}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines of a result file; none if there is no such file.
    #[track_caller]
    pub fn lines(&self, root: &str, file: &Value) -> Vec<Value> {
        match file.as_str() {
            None => Vec::new(),
            Some(id) => {
                let reply = self.call("GET", &format!("{root}/files/{id}/content"), b"");
                assert_eq!((reply.status, reply.whole), (200, true));
                let body = String::from_utf8(reply.body).expect("UTF-8");
                body.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
            }
        }
    }

    pub fn ledger(&self) -> Value {
        let key = format!("Bearer {}", self.key());
        let reply = self.request("GET", "/__emulator/ledger", &[("Authorization", &key)], b"").expect("a reply");
        reply.json(200)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill.
        let _ended = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Reply {
    fn read(from: &mut impl std::io::BufRead) -> Option<Self> {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let status = line.split(' ').nth(1)?.parse().expect("a status");
        let mut headers = Vec::new();
        loop {
            line.clear();
            from.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Self { status, headers, body: Vec::new(), whole: false };
        reply.whole = if reply.header("transfer-encoding") == Some("chunked") {
            read_chunks(from, &mut reply.body).is_some()
        } else {
            let length = reply.header("content-length").map(|length| length.parse().expect("a length"));
            read_all(from, length.unwrap_or(u64::MAX), &mut reply.body);
            length.is_none_or(|length| reply.body.len() as u64 == length)
        };
        Some(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body, when the status is this one.
    #[track_caller]
    pub fn json(&self, status: u16) -> Value {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{body}");
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{body}: {e}"))
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's reply is small")]
fn read_all(from: &mut impl Read, most: u64, into: &mut Vec<u8>) {
    // What came before a connection broke counts.
    let _broken = from.take(most).read_to_end(into);
}

/// `None`: it ended before its last chunk.
fn read_chunks(from: &mut impl std::io::BufRead, into: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let size = u64::from_str_radix(line.trim(), 16).ok()?;
        let before = into.len() as u64;
        read_all(from, size, into);
        if into.len() as u64 - before != size {
            return None;
        }
        line.clear();
        from.read_line(&mut line).ok()?;
        if size == 0 {
            return Some(());
        }
    }
}

/// The smallest create that a dialect takes.
pub fn create_body(root: &str, file: &str) -> String {
    let openai = root == "/v1";
    let endpoint = if openai { "/v1/chat/completions" } else { "/v4/chat/completions" };
    let mut body = json!({"input_file_id": file, "endpoint": endpoint});
    if openai {
        body["completion_window"] = json!("24h");
    }
    body.to_string()
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_owned()
}
