//! Inputs that are larger than they look, or than memory: one line of hundreds of megabytes, and a few bytes that decompress
//! to as many. `ZBATCH_BOMB_MIB` sets the size (`make bombs` takes a gibibyte).

use std::{
    io::{self, Write},
    process::{Command, Stdio},
    time::Duration,
};

use crate::workdir::{Ran, WorkDir};

const MIB: u64 = 1 << 20;
/// What a filter may hold for lines of up to a mebibyte.
const FLAT: u64 = 32 * MIB;
/// The longest line that is taken when nothing else is said.
const MAX_LINE: u64 = 64 * MIB;
const ONE: &str = "--only=publisher_decision";

fn size() -> u64 {
    let mib = std::env::var("ZBATCH_BOMB_MIB").ok().map(|text| text.parse().expect("a number of MiB"));
    mib.unwrap_or(200) * MIB
}

/// Runs a command with what `feed` writes on its stdin; its peak of memory too.
pub fn measure(
    mut command: Command,
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> (Ran, u64) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let feeder = std::thread::spawn(move || {
        // A program that stops early closes the pipe: that is its right.
        let _closed = feed(&mut stdin);
    });
    let status = format!("/proc/{}/status", child.id());
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        // Without memory it has ended.
        while let Some(kib) = high_water(&status) {
            peak = peak.max(kib * 1024);
            std::thread::sleep(Duration::from_millis(5));
        }
        peak
    });
    let output = child.wait_with_output().expect("the program ends");
    feeder.join().expect("fed");
    (Ran::of(output), watcher.join().expect("watched"))
}

#[expect(clippy::disallowed_methods, reason = "a page of the kernel's")]
fn high_water(status: &str) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// `before`, then `bytes` of text, then `after`.
fn line(
    before: &'static str,
    bytes: u64,
    after: &'static str,
) -> impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static {
    move |out| {
        out.write_all(before.as_bytes())?;
        fill(out, bytes)?;
        out.write_all(after.as_bytes())
    }
}

fn fill(out: &mut dyn Write, mut bytes: u64) -> io::Result<()> {
    let piece = [b'x'; 64 << 10];
    while bytes > 0 {
        let most = piece.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        out.write_all(piece.get(..most).unwrap_or(&piece))?;
        bytes -= most as u64;
    }
    Ok(())
}

const POST: &str = "{\"content\":\"";
const NEXT_POST: &str = "\"}\n{\"content\":\"b\"}\n";
const RESULT: &str =
    "{\"custom_id\":\"publisher_decision_0000\",\"response\":{\"body\":{\"choices\":[{\"message\":{\"content\":\"";
const NEXT_RESULT: &str = "\"}}]}}}\n{\"custom_id\":\"publisher_decision_0001\",\"response\":null}\n";
const ANSWER: &str = "{\"index\":0,\"analysis\":\"publisher_decision\",\"value\":\"";
const NEXT_ANSWER: &str = "\"}\n{\"index\":1,\"analysis\":\"publisher_decision\",\"value\":\"x\"}\n";

#[test]
fn s8_one_line_of_hundreds_of_megabytes_is_a_fault_in_bounded_memory() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n");
    let request: &str =
        "{\"custom_id\":\"publisher_decision_0000\",\"body\":{\"model\":\"m\",\"messages\":[{\"content\":\"";
    let next_request = "\"}]}}\n{\"custom_id\":\"publisher_decision_0001\",\"method\":\"POST\",\"url\":\"/v4/chat/completions\",\"body\":{\"model\":\"m\",\"messages\":[]}}\n";
    // Command, the long line, what follows it, lines that come out of what follows, and memory for the filter as such.
    for (args, before, after, lines, flat) in [
        (&["gen", ONE, "-q"][..], POST, NEXT_POST, 1, FLAT),
        (&["merge", "-", "/dev/null", ONE, "-q"], POST, NEXT_POST, 2, 256 * MIB),
        (&["merge", "posts.jsonl", "-", ONE, "-q"], ANSWER, NEXT_ANSWER, 2, 256 * MIB),
        (&["parse", ONE, "-q"], RESULT, NEXT_RESULT, 1, FLAT),
        (&["chunk", "-d", "w", "-q"], request, next_request, 1, FLAT),
    ] {
        for (limit, bound) in [(MIB, flat + 4 * MIB), (MAX_LINE, flat + 3 * MAX_LINE)] {
            let limit = limit.to_string();
            let mut args = args.to_vec();
            args.extend(["--max-line", &limit]);
            if args.contains(&"-d") {
                args.push("--new");
            }
            let (ran, peak) = measure(dir.command(&args), line(before, size(), after));
            let ran = ran.exits(1);
            assert_eq!(ran.text().lines().count(), lines, "{args:?}");
            assert!(peak > MIB && peak <= bound, "{args:?}: {} MiB", peak / MIB);
        }
    }
}

/// A line that is taken whole.
#[test]
fn s8_a_line_just_below_the_limit_is_taken_in_bounded_memory() {
    let dir = WorkDir::new();
    let bytes = 30 * MIB;
    for (args, before, after, code) in [
        (&["gen", ONE, "-q", "-o", "out"][..], POST, NEXT_POST, 0),
        (&["parse", ONE, "-q", "-o", "out"], RESULT, NEXT_RESULT, 1),
    ] {
        let (ran, peak) = measure(dir.command(args), line(before, bytes, after));
        ran.exits(code);
        assert!(peak <= FLAT + 3 * bytes + 4 * MIB, "{args:?}: {} MiB", peak / MIB);
    }
}

#[test]
fn n6_a_few_bytes_that_decompress_to_hundreds_of_megabytes() {
    let dir = WorkDir::new();
    let bomb = |encoder: &mut dyn Write| {
        fill(encoder, size())?;
        encoder.write_all(b"\n{\"content\":\"b\"}\n")
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb(&mut gzip).expect("compressed");
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    bomb(&mut zstd).expect("compressed");
    for (name, bytes) in [("gzip", gzip.finish().expect("compressed")), ("zstd", zstd.finish().expect("compressed"))] {
        assert!((bytes.len() as u64) < size() / 100, "{name}: {} bytes", bytes.len());
        let command = dir.command(&["gen", ONE, "-q", "--max-line=1MiB"]);
        let (ran, peak) = measure(command, move |out| out.write_all(&bytes));
        assert_eq!(ran.exits(1).json_lines().len(), 1);
        assert!(peak > MIB && peak <= FLAT + 4 * MIB, "{name}: {} MiB", peak / MIB);
    }
}

/// Millions of elements where a few are expected.
#[test]
fn s8_long_lists_within_a_post_are_not_held_as_lists() {
    let dir = WorkDir::new();
    let bytes = 30 * MIB;
    for element in [&b"1,"[..], b"\"\",", b"\"a\",", b"\"http://x\","] {
        let feed = move |out: &mut dyn Write| {
            out.write_all(b"{\"content\":\"a\",\"image_urls\":[")?;
            let piece = element.repeat(10_000);
            for _ in 0..bytes / piece.len() as u64 {
                out.write_all(&piece)?;
            }
            out.write_all(b"1]}\n")
        };
        let command = dir.command(&["gen", "-q", "--only=sentiment_polarity", "--max-faults=99"]);
        let (ran, peak) = measure(command, feed);
        assert_eq!(ran.exits(0).json_lines().len(), 1);
        assert!(peak <= FLAT + 3 * bytes + 4 * MIB, "{}: {} MiB", String::from_utf8_lossy(element), peak / MIB);
    }
}
