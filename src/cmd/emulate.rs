//! Serves the Batch API on a loopback port.

use std::{io::Write as _, net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, signal::unix::SignalKind};

use super::{
    Ended,
    remote::{heard, listen, runtime},
};
use crate::{
    cli::{EmulateArgs, EmulatorArgs},
    console::Console,
    emulator::{self, Clock, Dialect, Emulator, Upstream, faults::FaultPlan},
    error::{Error, Kind, Result},
    settings::Config,
};

/// What a worker is given to end when the server ends. Nothing is lost: it is done again at the next start.
const GRACE: Duration = Duration::from_millis(500);

pub fn run(args: &EmulateArgs, console: &Console) -> Result<Ended> {
    let settings = settings(&args.emulator)?;
    let analyses = Arc::new(Config::load(args.source.config.as_deref(), console)?.analyses(&args.source)?);
    let temporary = match &args.state {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|e| Error::io("create", "a temporary directory", &e))?),
    };
    let state =
        args.state.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path)).unwrap_or("emulator".as_ref());
    std::fs::create_dir_all(state).map_err(|e| Error::io("create", state, &e))?;
    let emulator = Emulator::open(settings, state, analyses)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(&emulator, args.port, console));
    runtime.shutdown_timeout(GRACE);
    ended
}

/// Until a signal, which is how a server ends.
async fn serve(emulator: &Emulator, port: u16, console: &Console) -> Result<Ended> {
    let at = (Ipv4Addr::LOCALHOST, port);
    let busy = |e: std::io::Error| Error::io("listen on", format!("127.0.0.1:{port}"), &e);
    let listener = TcpListener::bind(at).await.map_err(busy)?;
    let here = format!("http://{}", listener.local_addr().map_err(busy)?);
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{here}{}", Dialect::Zhipu.base())
        .and_then(|()| stdout.flush())
        .map_err(|e| Error::io("write to", "stdout", &e))?;
    drop(stdout);
    console.note(format_args!("OpenAI style: {here}{}; ledger: {here}/__emulator/ledger", Dialect::OpenAi.base()));
    console.note("answers are made up on this machine unless --upstream is given; Ctrl-C ends it");
    tokio::select! {
        served = emulator::serve(emulator, listener) => {
            served.map(|()| Ended::Finished).map_err(|e| Error::io("serve on", &here, &e))
        }
        () = heard(&mut interrupt) => Err(ended_by(2)),
        () = heard(&mut terminate) => Err(ended_by(15)),
        () = heard(&mut hangup) => Err(ended_by(1)),
    }
}

fn ended_by(number: i32) -> Error {
    Error::new(Kind::Interrupted(number), "the emulator was stopped")
}

/// # Errors
/// [`Kind::Usage`] for a fault or an upstream that cannot be.
pub fn settings(args: &EmulatorArgs) -> Result<emulator::Settings> {
    Ok(emulator::Settings {
        latency: args.latency.unwrap_or_default(),
        seed: args.seed.unwrap_or_default(),
        faults: FaultPlan::parse(&args.fault)?,
        upstream: args.upstream.as_deref().map(Upstream::resolve).transpose()?,
        clock: Clock::System,
    })
}
