//! M5, S6: signals at each step, many processes on one directory, streams that are closed, broken or full, a process or a
//! server that stands still. Whatever happens, the same command then finishes with the same bytes, and each batch is created once.
//!
//! `make people` runs the long form: more processes (`ZBATCH_RACERS`).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use zbatch::{emulator::ledger, lines::input::read_small};

use crate::{
    server::Server,
    workdir::{Ran, WorkDir, hears_signals, skipped},
};

const ONE: &str = "--only=topic_analysis";
const KEY: &str = "idididididid.secretsecretsecret";
/// For what should take no time.
const PATIENCE: Duration = Duration::from_secs(30);
const POSTS: usize = 12;
/// Of [`POSTS`] with `--max-lines 6`.
const CHUNKS: usize = 2;

fn posts(count: usize) -> String {
    (0..count).map(|n| json!({"content": format!("第{n}条：地铁又停了，等了{n}分钟")}).to_string() + "\n").collect()
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
    kill_process(pid, signal).expect("sent");
}

/// The end of a child that must end soon.
#[track_caller]
fn ends(mut child: Child) -> Output {
    let until = Instant::now() + PATIENCE;
    // Its output is short: it fits into the pipes.
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > until {
            child.kill().expect("killed");
            let output = child.wait_with_output().expect("gone");
            panic!("it did not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("ended")
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn holds(path: &Path, text: &str) -> bool {
    read_small(path, 1 << 24).is_ok_and(|there| there.contains(text))
}

/// No content was paid for twice; how many there were.
#[track_caller]
fn creates(state: &Path) -> usize {
    let ledger = ledger::read(state).expect("a ledger");
    assert!(ledger.by_content.values().all(|count| *count == 1), "{:?}", ledger.by_content);
    ledger.creates.len()
}

/// Stands between the program and the emulator, and holds the calls that it is told to hold.
struct Proxy {
    base: String,
    gate: Arc<Gate>,
    arrived: mpsc::Receiver<()>,
}

#[derive(Default)]
struct Gate {
    /// What begins like this waits.
    held: Mutex<Option<&'static str>>,
    opened: Condvar,
}

impl Gate {
    fn wait(&self, call: &str, arrived: &mpsc::Sender<()>) {
        let mut held = self.held.lock().expect("whole");
        if held.is_some_and(|held| call.starts_with(held)) {
            arrived.send(()).expect("the test goes on");
            while held.is_some() {
                held = self.opened.wait(held).expect("whole");
            }
        }
    }
}

impl Proxy {
    fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}/api/paas/v4", listener.local_addr().expect("an address"));
        let (gate, (arrive, arrived)) = (Arc::new(Gate::default()), mpsc::channel());
        let proxy = Self { base, gate: Arc::clone(&gate), arrived };
        let address = server.address.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (gate, arrive, address) = (Arc::clone(&gate), arrive.clone(), address.clone());
                // A client that is killed breaks its connection.
                std::thread::spawn(move || pass(socket.expect("a connection"), &address, &gate, &arrive).ok());
            }
        });
        proxy
    }

    fn hold(&self, call: &'static str) {
        *self.gate.held.lock().expect("whole") = Some(call);
    }

    fn release(&self) {
        *self.gate.held.lock().expect("whole") = None;
        self.gate.opened.notify_all();
        while self.arrived.try_recv().is_ok() {}
    }

    #[track_caller]
    fn await_call(&self) {
        self.arrived.recv_timeout(PATIENCE).expect("the call comes");
    }
}

/// One call and its reply. A create is held with its reply, when it is done; others before they reach the server.
fn pass(mut client: TcpStream, address: &str, gate: &Gate, arrived: &mpsc::Sender<()>) -> std::io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let (mut head, mut length, mut line) = (String::new(), 0, String::new());
    while from.read_line(&mut line)? > 2 {
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        head += &line;
        line.clear();
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let is_create = head.starts_with("POST /api/paas/v4/batches ");
    if !is_create {
        gate.wait(&head, arrived);
        // What nobody waits for any more is never sent.
        client.set_nonblocking(true)?;
        if client.peek(&mut [0]).is_ok_and(|left| left == 0) {
            return Ok(());
        }
        client.set_nonblocking(false)?;
    }
    let mut server = TcpStream::connect(address)?;
    server.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut reply = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "a test's reply is small")]
    server.read_to_end(&mut reply)?;
    if is_create {
        gate.wait(&head, arrived);
    }
    client.write_all(&reply)
}

/// A directory, an emulator, and something between the two. `golden.jsonl` is what must come out.
struct Setup {
    work: WorkDir,
    server: Server,
    proxy: Proxy,
}

impl Setup {
    fn new(emulator: &[&str]) -> Self {
        let work = WorkDir::new();
        work.write("posts.jsonl", posts(POSTS));
        work.run(&["run", "posts.jsonl", ONE, "-o", "golden.jsonl", "-d", "g", "--emulate"]).exits(0);
        let server = Server::start(&work, &work.join("state"), emulator);
        let proxy = Proxy::start(&server);
        Self { work, server, proxy }
    }

    fn command(&self, dir: &str) -> Command {
        let mut command = self.work.command(&["run", "posts.jsonl", ONE, "-o", "out.jsonl", "-d", dir]);
        command.args(["--base-url", &self.proxy.base, "--poll-interval", "10ms", "--settle", "100ms"]);
        command.args(["--max-lines", "6"]).env("ZHIPUAI_API_KEY", KEY);
        let mut command = hears_signals(&command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn spawn(&self, dir: &str) -> Child {
        self.command(dir).spawn().expect("it starts")
    }

    /// The same command, again: the golden bytes, and nothing paid twice.
    #[track_caller]
    fn finishes(&self, dir: &str, creates: usize) {
        Ran::of(ends(self.spawn(dir))).exits(0);
        self.is_golden(creates);
    }

    #[track_caller]
    fn is_golden(&self, creates: usize) {
        assert_eq!(self.work.read("out.jsonl"), self.work.read("golden.jsonl"));
        let ledger = self.server.ledger();
        assert_eq!(ledger.get("creates").and_then(Value::as_array).map(Vec::len), Some(creates), "{ledger}");
    }
}

const SIGNALS: [(Signal, i32); 3] = [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)];

#[test]
fn m5_one_signal_or_two_at_each_call() {
    // A listing is asked for when a create has no answer.
    let (smooth, dropping) = (Setup::new(&[]), Setup::new(&["--fault", "drop_create=12"]));
    let calls = [
        "POST /api/paas/v4/files",
        "POST /api/paas/v4/batches ",
        "GET /api/paas/v4/batches?",
        "GET /api/paas/v4/batches/",
        "GET /api/paas/v4/files/",
        "DELETE /api/paas/v4/files/",
    ];
    let mut paid = [0, 0];
    for (round, (call, twice)) in calls.iter().flat_map(|call| [(*call, false), (*call, true)]).enumerate() {
        let (signal, code) = SIGNALS[round % 3];
        let lists = call.ends_with('?');
        let setup = if lists { &dropping } else { &smooth };
        let dir = format!("w{round}");
        setup.proxy.hold(call);
        let child = setup.spawn(&dir);
        setup.proxy.await_call();
        let pid = child.id();
        send(pid, signal);
        std::thread::sleep(Duration::from_millis(100));
        if twice {
            send(pid, signal);
        } else if call.starts_with("POST /api/paas/v4/batches") {
            // The create in flight is waited for.
            setup.proxy.release();
        }
        let ran = Ran::of(ends(child)).exits(code);
        setup.proxy.release();
        let journal = setup.work.read(&format!("{dir}/journal.jsonl"));
        let created = journal.matches("\"event\":\"created\"").count();
        let fetched = journal.matches("\"event\":\"fetched\"").count();
        if !twice {
            assert!(ran.stderr.contains("interrupted; nothing is lost"), "{call}: {}", ran.stderr);
            if fetched < CHUNKS {
                assert!(ran.stderr.contains("to go on: the same command"), "{call}: {}", ran.stderr);
            }
            // The call in flight was finished: its id is here.
            assert!(created > 0 || !call.starts_with("POST /api/paas/v4/batches"), "{call}: {journal}");
            let ended = journal.matches("\"event\":\"ended\"").count();
            assert_eq!(ran.stderr.contains("these batches run on: batch_"), created > ended, "{call}: {}", ran.stderr);
        }
        assert!(!setup.work.exists("out.jsonl"), "{call}");
        paid[usize::from(lists)] += CHUNKS;
        setup.finishes(&dir, paid[usize::from(lists)]);
        std::fs::remove_file(setup.work.join("out.jsonl")).expect("there");
    }
}

/// The join has no calls to be held at: its output is.
#[test]
fn m5_signals_while_the_output_is_written() {
    for (round, (signal, code)) in SIGNALS.into_iter().enumerate() {
        let dir = WorkDir::new();
        dir.write("posts.jsonl", posts(20_000));
        let args = |output: &'static str| ["run", "posts.jsonl", ONE, "-o", output, "-d", "w", "--emulate"];
        dir.run(&args("golden.jsonl")).exits(0);
        let mut command = hears_signals(&dir.command(&args("-")));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let pid = child.id();
        let mut stdout = child.stdout.take().expect("a pipe");
        let mut some = [0; 1000];
        stdout.read_exact(&mut some).expect("it writes");
        send(pid, signal);
        std::thread::sleep(Duration::from_millis(100));
        if round == 0 {
            // Nobody reads what it writes: it hears the first one, and cannot act on it.
            send(pid, signal);
        } else {
            std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        }
        let ran = Ran::of(ends(child));
        // It may have been read to its end before the signal was heard.
        assert!(ran.code == Some(code) || ran.code == Some(0) && round > 0, "{:?}: {}", ran.code, ran.stderr);
        dir.run(&args("out.jsonl")).exits(0);
        assert!(dir.read("out.jsonl") == dir.read("golden.jsonl"), "{signal:?}");
        assert_eq!(creates(&dir.join("w/emulator")), 2);
    }
}

/// Filters, and what only cuts or reads, die of a signal as `cat` does, at once and without a trace of their output.
#[test]
fn filters_and_cutters_end_by_the_signal() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(3)).write("none", "");
    let cases: [&[&str]; 6] = [
        &["gen", "-", ONE, "-o", "out.jsonl"],
        &["parse", "-", ONE, "-o", "out.jsonl"],
        &["merge", "-", "none", ONE, "-o", "out.jsonl"],
        &["gen", "-", ONE, "-d", "w"],
        &["chunk", "-", ONE, "-d", "c"],
        &["run", "-", ONE, "-d", "r", "-o", "out.jsonl", "--emulate"],
    ];
    for (round, args) in cases.iter().cycle().take(12).enumerate() {
        let (signal, _) = SIGNALS[round % 3];
        let mut command = hears_signals(&dir.command(args));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        if round >= cases.len() {
            // More than fits into the pipe: when it is sent, the program is at work.
            stdin.write_all(posts(3000).as_bytes()).expect("it reads");
        }
        let started = format!("/proc/{}/cmdline", child.id());
        wait_until("it runs", || holds(Path::new(&started), "zbatch\0") && !holds(Path::new(&started), "env\0"));
        send(child.id(), signal);
        let output = ends(child);
        assert_eq!(output.status.signal(), Some(signal.as_raw()), "{args:?}");
        assert!(!dir.exists("out.jsonl"), "{args:?}");
        drop(stdin);
    }
    // What they left is no hindrance.
    dir.run(&["gen", "posts.jsonl", ONE, "-o", "out.jsonl"]).exits(0);
    dir.run(&["gen", "posts.jsonl", ONE, "-d", "w"]).exits(0);
    dir.run(&["chunk", "out.jsonl", ONE, "-d", "c"]).exits(0);
    dir.pipe(posts(3), &["run", "-", ONE, "-d", "r", "-o", "out.jsonl", "--emulate"]).exits(0);
}

/// How many at once.
fn racers() -> usize {
    std::env::var("ZBATCH_RACERS").ok().and_then(|count| count.parse().ok()).unwrap_or(16)
}

#[test]
fn s6_many_runs_in_one_directory() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(POSTS));
    dir.run(&["run", "posts.jsonl", ONE, "-o", "golden.jsonl", "-d", "g", "--emulate"]).exits(0);
    let args =
        ["run", "posts.jsonl", ONE, "-o", "out.jsonl", "-d", "w", "--emulate", "--max-lines", "3", "--faults", "f"];
    let mut finished = 0;
    // Each round finds the directory in another state.
    for latency in ["300ms", "0ms"] {
        let start = || {
            let mut command = dir.command(&args);
            command
                .args(["--latency", latency])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts")
        };
        let children: Vec<Child> = (0..racers()).map(|_| start()).collect();
        // Beside them, those that take no lock.
        for verb in ["status", "config"] {
            let code = dir.run(&[verb, "-d", "w"]).code;
            assert!(code == Some(0) || code == Some(65) && verb == "status", "{verb}: {code:?}");
        }
        for child in children {
            let ran = Ran::of(ends(child));
            match ran.code {
                Some(0) => finished += 1,
                Some(75) => assert!(ran.stderr.contains("w is in use by"), "{}", ran.stderr),
                _ => panic!("{:?}: {}", ran.code, ran.stderr),
            }
        }
    }
    assert!(finished > 0);
    assert_eq!(dir.read("out.jsonl"), dir.read("golden.jsonl"));
    assert_eq!(creates(&dir.join("w/emulator")), POSTS / 3);
}

#[test]
fn s6_many_cutters_in_one_directory() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(500));
    let start = |work: &str| {
        let mut command = dir.command(&["gen", "posts.jsonl", "-d", work, "--max-lines", "50"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    Ran::of(ends(start("golden"))).exits(0);
    let children: Vec<Child> = (0..racers()).map(|_| start("w")).collect();
    let codes: Vec<Option<i32>> = children.into_iter().map(|child| ends(child).status.code()).collect();
    assert!(codes.iter().all(|code| [Some(0), Some(75)].contains(code)) && codes.contains(&Some(0)), "{codes:?}");
    let events = |work: &str| {
        let journal = dir.read(&format!("{work}/journal.jsonl"));
        // The first two lines hold the name of the run and the place of the journal.
        journal.lines().skip(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(events("w"), events("golden"));
}

/// `program` with these file descriptors closed, as by `<&- >&- 2>&-`.
fn without(program: &Command, closed: &str) -> Command {
    let mut shell = hears_signals(program);
    let inner: Vec<_> = shell.get_args().map(ToOwned::to_owned).collect();
    let closing = [("0", " <&-"), ("1", " >&-"), ("2", " 2>&-")];
    let closing: String = closing.iter().filter(|(fd, _)| closed.contains(fd)).map(|(_, how)| *how).collect();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec env \"$@\"{closing}"), "sh"]).args(inner);
    command.current_dir(shell.get_current_dir().expect("set"));
    for (name, value) in shell.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    command
}

/// What is opened first takes the number of a stream that is closed: nothing that is said or read may go there.
#[test]
fn s2_closed_streams_harm_no_file() {
    let golden = WorkDir::new();
    let verbs: [&[&str]; 9] = [
        &["gen", "posts.jsonl", ONE, "-o", "requests.jsonl", "--faults", "gf", "--report", "gr"],
        &["gen", "posts.jsonl", ONE, "-d", "w"],
        &["chunk", "requests.jsonl", ONE, "-d", "c"],
        &["run", "posts.jsonl", ONE, "-d", "r", "-o", "out.jsonl", "--emulate", "--faults", "rf"],
        &["parse", "r/results/topic_analysis_batch_part1.output.jsonl", ONE, "-o", "answers.jsonl", "--faults", "pf"],
        &["merge", "posts.jsonl", "answers.jsonl", ONE, "-o", "enhanced.json", "--faults", "mf"],
        &["status", "-d", "r"],
        &["config"],
        &["gen", ONE],
    ];
    let files = ["requests.jsonl", "gf", "gr", "w/requests/topic_analysis_batch_part1.jsonl", "out.jsonl", "rf"];
    let more = ["answers.jsonl", "pf", "enhanced.json", "mf", "posts.jsonl", "r/rows/topic_analysis_batch_part1.txt"];
    golden.write("posts.jsonl", posts(POSTS));
    for args in verbs {
        golden.run(args).exits(0);
    }
    for closed in ["0", "1", "2", "01", "02", "12", "012"] {
        let dir = WorkDir::new();
        dir.write("posts.jsonl", posts(POSTS));
        for args in verbs {
            let mut command = without(&dir.command(args), closed);
            let ran = Ran::of(command.output().expect("it starts"));
            assert!(ran.code == Some(0), "{closed} {args:?}: {:?} {}", ran.code, ran.stderr);
        }
        for file in files.iter().chain(&more) {
            assert_eq!(dir.read(file), golden.read(file), "{closed} {file}");
        }
        assert_eq!(creates(&dir.join("r/emulator")), 1);
        for journal in ["w/journal.jsonl", "r/journal.jsonl"] {
            for line in dir.read(journal).lines() {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{closed} {line}: {e}"));
            }
        }
    }
}

/// Those that write data to stdout.
fn talkers(dir: &WorkDir) -> Vec<Vec<&'static str>> {
    dir.write("posts.jsonl", posts(2000));
    dir.run(&["run", "posts.jsonl", ONE, "-d", "r", "-o", "out.jsonl", "--emulate", "--max-lines", "100"]).exits(0);
    let results = std::fs::read_dir(dir.join("r/results")).expect("listed").map(|file| file.expect("a file").path());
    let results: String =
        results.map(|path| read_small(&path, 1 << 24).expect("text")).collect::<Vec<String>>().concat();
    dir.write("results.jsonl", results);
    dir.run(&["parse", "results.jsonl", ONE, "-o", "answers.jsonl"]).exits(0);
    vec![
        vec!["gen", "posts.jsonl", ONE],
        vec!["parse", "results.jsonl", ONE],
        vec!["merge", "posts.jsonl", "answers.jsonl", ONE],
        vec!["run", "posts.jsonl", ONE, "-d", "r", "-o", "-", "--emulate", "--max-lines", "100"],
        vec!["status", "-d", "r", "--json"],
        vec!["status", "-d", "r"],
        vec!["config"],
        vec!["--help"],
        vec!["run", "--help"],
        vec!["--version"],
    ]
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let dir = WorkDir::new();
    for args in talkers(&dir) {
        for taken in [0, 1, 5000, 100_000] {
            let mut command = dir.command(&args);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
            let mut stdout = child.stdout.take().expect("a pipe");
            let mut some = vec![0; taken];
            // Short ones have ended before.
            let _shorter = stdout.read_exact(&mut some);
            drop(stdout);
            let ran = Ran::of(ends(child)).exits(0);
            assert!(!ran.stderr.contains("roken pipe") && !ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
        }
    }
}

#[test]
fn s7_a_full_stdout_is_an_error() {
    let dir = WorkDir::new();
    for args in talkers(&dir) {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("there");
        let ran = Ran::of(dir.command(&args).stdout(full).output().expect("it starts")).exits(74);
        assert!(ran.stderr.contains("stdout: No space left on device"), "{args:?}: {}", ran.stderr);
    }
}

/// Messages are not worth a job: it goes on when nobody hears them.
#[test]
fn a_stderr_that_is_gone_or_full_stops_nothing() {
    let setup = Setup::new(&["--fault", "drop_create=1,rate_limit=2"]);
    for (round, stderr) in ["pipe", "full"].into_iter().enumerate() {
        let mut command = setup.command(&format!("w{round}"));
        command.args(["-vv", "--progress", if round == 0 { "json" } else { "plain" }]);
        let mut child = match stderr {
            "pipe" => command.spawn(),
            _ => command.stderr(std::fs::File::options().write(true).open("/dev/full").expect("there")).spawn(),
        }
        .expect("it starts");
        drop(child.stderr.take());
        assert_eq!(ends(child).status.code(), Some(0), "{stderr}");
        setup.is_golden((round + 1) * CHUNKS);
    }
}

#[test]
fn a_client_or_a_server_that_stands_still_goes_on() {
    let setup = Setup::new(&[]);
    // The server, in the middle of a poll.
    setup.proxy.hold("GET /api/paas/v4/batches/");
    let child = setup.spawn("w0");
    setup.proxy.await_call();
    send(setup.server.pid(), Signal::STOP);
    setup.proxy.release();
    std::thread::sleep(Duration::from_millis(700));
    send(setup.server.pid(), Signal::CONT);
    Ran::of(ends(child)).exits(0);
    setup.is_golden(CHUNKS);
    // The client, while its create is answered.
    setup.proxy.hold("POST /api/paas/v4/batches ");
    let child = setup.spawn("w1");
    setup.proxy.await_call();
    send(child.id(), Signal::STOP);
    setup.proxy.release();
    std::thread::sleep(Duration::from_millis(700));
    send(child.id(), Signal::CONT);
    Ran::of(ends(child)).exits(0);
    setup.is_golden(2 * CHUNKS);
    // The client, past its own deadline: a deadline is a time of day, not time at work.
    setup.proxy.hold("GET /api/paas/v4/batches/");
    let child = setup.command("w2").args(["--timeout", "1s"]).spawn().expect("it starts");
    setup.proxy.await_call();
    send(child.id(), Signal::STOP);
    std::thread::sleep(Duration::from_millis(1200));
    send(child.id(), Signal::CONT);
    let ran = Ran::of(ends(child)).exits(75);
    assert!(ran.stderr.contains("these batches run on: batch_"), "{}", ran.stderr);
    setup.proxy.release();
    setup.finishes("w2", 3 * CHUNKS);
}

#[test]
fn signals_that_mean_nothing_do_nothing() {
    let setup = Setup::new(&[]);
    setup.proxy.hold("GET /api/paas/v4/batches/");
    let child = setup.spawn("w");
    setup.proxy.await_call();
    for signal in [Signal::PIPE, Signal::WINCH, Signal::CONT, Signal::URG, Signal::CHILD] {
        send(child.id(), signal);
    }
    std::thread::sleep(Duration::from_millis(50));
    setup.proxy.release();
    Ran::of(ends(child)).exits(0);
    setup.is_golden(CHUNKS);
}

/// Without `--state` it leaves nothing; in the background of a script it is not ended by that script's Ctrl-C.
#[test]
fn an_emulator_hears_the_signals_that_are_meant_for_it() {
    for (signal, code) in SIGNALS {
        let work = WorkDir::new();
        let left = || work.path().read_dir().expect("listed").count();
        let start = |mut command: Command| {
            let mut child = command.env("TMPDIR", work.path()).stdout(Stdio::piped()).spawn().expect("it starts");
            let mut line = String::new();
            BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("its first line");
            child
        };
        let child = start(hears_signals(&work.command(&["emulate", "-q"])));
        assert_eq!(left(), 1);
        send(child.id(), signal);
        assert_eq!((ends(child).status.code(), left()), (Some(code), 0), "{signal:?}");

        let program = work.command(&["emulate", "-q"]);
        let mut deaf = Command::new("env");
        deaf.args(["--default-signal", "--ignore-signal=INT,HUP"]).arg(program.get_program()).args(program.get_args());
        let child = start(deaf);
        send(child.id(), Signal::INT);
        send(child.id(), Signal::HUP);
        std::thread::sleep(Duration::from_millis(50));
        send(child.id(), Signal::TERM);
        assert_eq!((ends(child).status.code(), left()), (Some(143), 0));
    }
}

/// A window that is closed, an ssh connection that is lost: HUP, and a stderr that takes nothing any more.
#[test]
fn m5_a_terminal_that_goes_away() {
    let setup = Setup::new(&[]);
    let program = setup.command("w");
    // The shell outlives its terminal to say how it ended.
    let script = "trap : HUP; env \"$@\"; echo $? > code.part; mv code.part code";
    setup.work.write("job.sh", script);
    let words = program.get_args().map(|word| format!("'{}'", word.to_string_lossy()));
    // The shell that has the terminal ends with it, and that is when all others hear of it.
    let line = format!("sh job.sh {}; true", words.collect::<Vec<_>>().join(" "));
    // Under nohup the shell would not hear it either.
    let mut terminal = Command::new("env");
    terminal
        .args(["--default-signal", "script", "-qec", &line, "/dev/null"])
        .current_dir(setup.work.path())
        .env("ZHIPUAI_API_KEY", KEY);
    if Command::new("script").arg("--version").output().is_err() {
        skipped("there is no `script` here");
        return;
    }
    terminal.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut terminal = terminal.spawn().expect("env starts");
    setup.proxy.hold("GET /api/paas/v4/batches/");
    setup.proxy.await_call();
    terminal.kill().expect("killed");
    terminal.wait().expect("gone");
    wait_until("it ended", || setup.work.exists("code"));
    assert_eq!(setup.work.read("code"), "129\n");
    setup.proxy.release();
    setup.finishes("w", CHUNKS);
}

/// Ctrl-C did nothing while the program waited for somebody to read the pipe.
#[test]
fn r11_9g_a_pipe_that_nobody_reads_does_not_swallow_a_signal() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(POSTS));
    let run = ["run", "posts.jsonl", ONE, "-d", "w", "--emulate"];
    dir.run(&[&run[..], &["-o", "golden.jsonl"]].concat()).exits(0);
    crate::outputs::fifo(&dir, "pipe");
    let server = Server::start(&dir, &dir.join("state"), &[]);
    let remote = ["-d", "f", "--base-url", &server.base, "--poll-interval", "10ms"];
    dir.run(&["gen", "posts.jsonl", ONE, "-d", "f"]).exits(0);
    for verb in ["submit", "fetch"] {
        let mut command = dir.command(&[&[verb], &remote[..]].concat());
        Ran::of(command.env("ZHIPUAI_API_KEY", KEY).output().expect("it starts")).exits(0);
    }
    let fetch = [&["fetch", "--again", "failed", "-o", "pipe"], &remote[..]].concat();
    let merge = ["merge", "posts.jsonl", "golden.jsonl", ONE];
    for (args, signal) in [
        (&[&run[..], &["-o", "pipe"]].concat()[..], Signal::INT),
        (&[&run[..], &["-o", "out.jsonl", "--faults", "pipe"]].concat(), Signal::TERM),
        (&[&run[..], &["-o", "out.jsonl", "--report", "pipe"]].concat(), Signal::INT),
        (&["run", "pipe", ONE, "-d", "v", "--emulate", "-o", "out.jsonl"], Signal::INT),
        (&fetch, Signal::INT),
        (&[&merge[..], &["-o", "pipe"]].concat(), Signal::INT),
    ] {
        let mut command = dir.command(args);
        let mut command = hears_signals(command.env("ZHIPUAI_API_KEY", KEY));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // It has come to the pipe, and waits.
        std::thread::sleep(Duration::from_millis(1500));
        send(child.id(), signal);
        let ended = ends(child);
        let number = signal.as_raw();
        let code = (ended.status.code(), ended.status.signal());
        assert!(code == (Some(128 + number), None) || code == (None, Some(number)), "{args:?}: {code:?}");
    }
    let reader = Command::new("cat").arg(dir.join("pipe")).stdout(Stdio::piped()).spawn().expect("cat starts");
    dir.run(&[&run[..], &["-o", "pipe"]].concat()).exits(0);
    let read = reader.wait_with_output().expect("it ends").stdout;
    assert_eq!(String::from_utf8_lossy(&read), dir.read("golden.jsonl"));
}
