//! The whole job in virtual time: real client, real journal, real files, against the emulator in the same thread, under a
//! schedule of faults, killed at any await or durable step and started again.
//!
//! ```text
//! cargo test --features drill --test simulator -- --seeds 20000          # from seed 0
//! cargo test --features drill --test simulator -- --seed 17              # that one, with what it says
//! cargo test --features drill --test simulator -- --sockets --threads 16 --seeds 200
//! cargo test --features drill --test simulator -- --sweep                # a kill at each durable step
//! ```
//!
//! A seed decides the posts, the analyses' faults, the provider, the chunk size, what goes wrong with which call, and when the
//! process is killed. Whatever happens, no content is created twice, no answer is another row's, no file is torn; and when the
//! faults stop, the job ends with the bytes of an undisturbed one.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test: what is not there fails it, and it talks to who runs it"
)]

mod sockets;
mod sweep;
mod world;

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use world::Count;

/// Seeds that failed once: they always run.
const KNOWN: &str = include_str!("seeds.txt");

#[derive(Debug, clap::Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This one only, with all that the program says
    #[arg(long)]
    seed: Option<u64>,
    /// Over real sockets, in real time
    #[arg(long)]
    sockets: bool,
    /// Instead, a kill at the first, middle and last durable step of each kind, and again during the resume
    #[arg(long)]
    sweep: bool,
    /// With --sweep: at every one
    #[arg(long)]
    every: bool,
    /// Stop after so many
    #[arg(long, default_value_t = 10)]
    most_failures: usize,
    /// Threads; each runs seeds of its own
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// What Cargo hands to every test
    #[arg(long, hide = true)]
    nocapture: bool,
}

fn main() -> ExitCode {
    let args = <Args as clap::Parser>::parse();
    let began = Instant::now();
    let (what, cases, failures) = match (args.sweep, args.seed) {
        (true, _) => ("sweep", 0, sweep::all(args.threads, args.every)),
        (false, Some(seed)) => ("seeds", 1, try_seed(seed, args.sockets, true).err().into_iter().collect()),
        (false, None) => {
            let known = if args.sockets { "" } else { KNOWN };
            let known = known.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
            let seeds: Vec<u64> = known.chain(args.from..args.from + args.seeds).collect();
            ("seeds", seeds.len(), all(&seeds, &args))
        }
    };
    let count = world::count();
    // A server that is another process does not tell how many.
    let faults = if count.faults == 0 { String::new() } else { format!("{} faults met, ", count.faults) };
    let cases = if args.sweep { String::new() } else { format!("{cases} ") };
    println!(
        "simulator: {cases}{what}, {} starts, {} kills, {faults}{} creates, {} s; {} failed",
        count.starts,
        count.kills,
        count.creates,
        began.elapsed().as_secs(),
        failures.len()
    );
    for failure in &failures {
        println!("{failure}");
    }
    let too_many = calls(&count);
    if too_many {
        return ExitCode::FAILURE;
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The most calls of a kind for each batch that was made, over many seeds with all their faults and restarts.
const MOST_CALLS: [(&str, f64); 6] =
    [("uploads", 2.0), ("creates", 1.6), ("polls", 34.0), ("lists", 2.8), ("downloads", 1.7), ("deletes", 3.0)];
/// Fewer seeds say nothing about how many calls are usual.
const MANY_CREATES: u64 = 1000;

/// Prints the calls for each batch, last. Whether there are too many of a kind.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn calls(count: &Count) -> bool {
    let by_name = count.calls.by_name();
    if by_name.iter().all(|(_, calls)| *calls == 0) {
        return false;
    }
    let each = by_name.map(|(name, calls)| (name, calls as f64 / count.creates.max(1) as f64));
    let mut too_many = false;
    for ((name, calls), (_, most)) in each.iter().zip(MOST_CALLS) {
        if count.creates >= MANY_CREATES && *calls > most {
            println!("{calls:.2} {name} for each batch; {most} are the most");
            too_many = true;
        }
    }
    let told = each.map(|(name, calls)| format!("{calls:.2} {name}"));
    println!(
        "simulator: {} seeds with hardships, {} copies gone on with ({} refused first), {} removals; for each batch {}",
        count.hardships,
        count.copies,
        count.refused,
        count.removals,
        told.join(", ")
    );
    too_many
}

/// Runs seeds on threads; what failed, first seeds first.
fn all(seeds: &[u64], args: &Args) -> Vec<String> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if let Err(failure) = try_seed(*seed, args.sockets, false) {
                        failed.lock().expect("no panic").push((*seed, failure));
                    }
                    if failed.lock().expect("no panic").len() >= args.most_failures {
                        return;
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no panic");
    failed.sort();
    failed.into_iter().map(|(_, failure)| failure).collect()
}

fn try_seed(seed: u64, sockets: bool, loud: bool) -> Result<(), String> {
    let simulate = if sockets { sockets::simulate } else { world::simulate };
    let tried = std::panic::catch_unwind(|| simulate(seed, loud));
    let failed = match tried {
        Ok(Ok(count)) => {
            Count::add(count);
            return Ok(());
        }
        Ok(Err(failure)) => failure,
        Err(_) => "it panicked".to_owned(),
    };
    let target = if sockets { "simulate-sockets" } else { "simulate" };
    Err(format!(
        "seed {seed}: {failed}\n    replay: make {target} SEED={seed}; once mended, add it to tests/simulator/seeds.txt"
    ))
}
