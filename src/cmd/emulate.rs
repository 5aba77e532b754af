//! Serves the Batch API on a loopback port.

use std::{io::Write as _, net::Ipv4Addr, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::net::TcpListener;

use super::{Ended, remote::runtime};
use crate::{
    cli::EmulateArgs,
    console::Console,
    emulator::{self, Dialect, Emulator},
    error::{Error, Kind, Result},
    settings::Config,
    stop::Signals,
};

/// What a worker is given to end when the server ends. Nothing is lost: it is done again at the next start.
const GRACE: Duration = Duration::from_millis(500);

pub fn run(args: &EmulateArgs, console: &Console) -> Result<Ended> {
    let mut settings = emulator::Settings::of(&args.emulator)?;
    let token = settings.upstream.as_ref().map(|_| token()).transpose()?;
    settings.token = token.as_ref().map(|token| blake3::hash(token.as_bytes()));
    let analyses = Arc::new(Config::load(args.source.config.as_deref(), console)?.analyses(&args.source)?);
    let temporary = match &args.state {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|e| Error::io("create", "a temporary directory", &e))?),
    };
    let state =
        args.state.as_deref().or(temporary.as_ref().map(tempfile::TempDir::path)).unwrap_or("emulator".as_ref());
    let emulator = Emulator::open(settings, state, analyses)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(&emulator, args.port, token.as_deref(), console));
    runtime.shutdown_timeout(GRACE);
    ended
}

/// Until a signal, which is how a server ends.
async fn serve(emulator: &Emulator, port: u16, token: Option<&str>, console: &Console) -> Result<Ended> {
    let at = (Ipv4Addr::LOCALHOST, port);
    let busy = |e: std::io::Error| Error::io("listen on", format!("127.0.0.1:{port}"), &e);
    let listener = TcpListener::bind(at).await.map_err(busy)?;
    let here = format!("http://{}", listener.local_addr().map_err(busy)?);
    let mut signals = Signals::listen()?;
    if let Some(token) = token {
        console.note("the answers of --upstream may cost money: only clients that send this key are answered");
        console.shell_line(&format!("export ZHIPUAI_API_KEY={token}"));
    }
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
        number = signals.next() => Err(ended_by(number)),
    }
}

/// A key that nobody can guess, new at each start.
fn token() -> Result<String> {
    let mut secret = [0; 24];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut secret);
    filled.map_err(|_| Error::new(Kind::Io, "the system gives no random numbers"))?;
    Ok(format!("zbatch-{}", URL_SAFE_NO_PAD.encode(secret)))
}

fn ended_by(number: i32) -> Error {
    Error::new(Kind::Interrupted(number), "the emulator was stopped")
}
