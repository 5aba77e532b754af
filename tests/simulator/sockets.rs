//! The same over real sockets: the program and its server are processes, time is real, and kills are SIGKILL.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use zbatch::emulator::{calls::Lot, ledger::Ledger, schedule::Schedule};

use super::world::{Count, Job, Left, Place, World, difference, golden};

const PROGRAM: &str = env!("CARGO_BIN_EXE_zbatch");
/// A start is killed after this long at the latest: a server in trouble is waited for, and rightly.
const LONGEST_START: Duration = Duration::from_secs(15);
/// Without faults a start ends long before.
const LONGEST_CALM: Duration = Duration::from_secs(120);
const CALM_STARTS: usize = 4;

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(place: &Place, job: Job, port: u16, schedule: Option<u64>) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["emulate", "-q", "--port", &port.to_string(), "--seed", &job.number.to_string(), "--state"]);
        command.arg(place.path().join("server")).args(place.analyses());
        if !job.line_faults().is_empty() {
            command.args(["--fault", job.line_faults()]);
        }
        if let Some(seed) = schedule {
            command.args(["--fault", &format!("schedule={seed}")]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the server starts");
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut first).expect("its first line");
        let address = first.trim().strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split('/').next());
        let port = address.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no base URL: `{first}`"));
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Runs a seed.
pub fn simulate(seed: u64, loud: bool) -> Result<Count, String> {
    let job = Job::new(seed);
    // Where lines may be lost without a trace, over a socket a length would end the connection: other jobs then.
    let job = if job.has_extra_lines() { Job::new(seed + 1) } else { job };
    let golden = golden(job);
    let names = World::step_names(job);
    let place = Place::new(job);
    let mut lot = Lot::new(seed ^ 0x50c);
    let is_blind = Schedule::new(seed, Duration::ZERO).is_blind();
    let most = if is_blind { 2 } else { 1 };
    let mut count = Count::default();
    let mut server = Server::start(&place, job, 0, Some(seed));
    for _ in 0..1 + lot.turn() % 4 {
        let mut command = program(&place, server.port, &mut lot);
        let mut longest = LONGEST_START;
        match lot.turn() % 4 {
            0 | 1 => {
                let step = &names[(lot.turn() % names.len() as u64) as usize];
                command.env("ZBATCH_KILL", format!("{step}#{}", 1 + lot.turn() % 4));
            }
            2 => longest = Duration::from_millis(lot.turn() % 4000),
            _ => {}
        }
        let code = run(command, longest, loud);
        count.starts += 1;
        count.kills += u64::from(code.is_none());
        place.check(&ledger(&place), &golden, most)?;
    }
    let port = server.port;
    drop(server);
    server = Server::start(&place, job, port, None);
    for start in 0.. {
        let mut command = program(&place, server.port, &mut lot);
        if place.holds_any() {
            // Listings are honest now: the user can rely on them too.
            command.args(["--on-ambiguous", "again"]);
        }
        let code = run(command, LONGEST_CALM, loud);
        count.starts += 1;
        place.check(&ledger(&place), &golden, most)?;
        match code {
            Some(exit @ (0 | 1)) => {
                let made = ledger(&place).creates.len();
                // A second batch of a chunk may be there; that there is no third was checked.
                let creates = if is_blind { golden.creates } else { made };
                let left = Left { remote: golden.remote, ..place.left(exit, creates, 0) };
                if left != golden {
                    return Err(difference(&left, &golden));
                }
                count.creates = creates as u64;
                return Ok(count);
            }
            code if start >= CALM_STARTS => return Err(format!("it does not end without faults: {code:?}")),
            _ => {}
        }
    }
    unreachable!("the loop ends within")
}

fn program(place: &Place, port: u16, lot: &mut Lot) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(place.words(1 + lot.turn() % 4));
    command.args(["--poll-interval", "50ms", "--settle", "5s"]);
    command.args(["--base-url", &format!("http://127.0.0.1:{port}{}", place.base())]);
    command.env("ZHIPUAI_API_KEY", "some-key").env("OPENAI_API_KEY", "some-key");
    command.env_remove("ZBATCH_KILL").env_remove("ZBATCH_CONFIG");
    command
}

/// The exit code; `None` if it was killed, by itself or by us.
fn run(mut command: Command, most: Duration, loud: bool) -> Option<u8> {
    let stderr = if loud { Stdio::inherit() } else { Stdio::null() };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waited for") {
            return status.code().and_then(|code| u8::try_from(code).ok());
        }
        if began.elapsed() > most {
            child.kill().expect("killed");
            child.wait().expect("gone");
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// From the server's own log, whether it runs or not.
fn ledger(place: &Place) -> Ledger {
    zbatch::emulator::ledger::read(&place.path().join("server")).expect("a state log")
}
