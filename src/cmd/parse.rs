//! Result lines → answers, one for one, in order. A line that belongs to no row is a fault and gives no answer line.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{Ended, outputs};
use crate::{
    analysis::AnalysisSet,
    cli::ParseArgs,
    console::Console,
    error::{Error, Result},
    flow::{
        Fault, FaultKind, FaultLine, PostIndex,
        answers::{AnswerReader, Outcome},
        faults::FaultLog,
        results::Usage,
        tally::Tally,
    },
    lines::{
        blocks::{Block, LineReader, Shape},
        input::{Input, is_stdin},
        output::Output,
        pool::{map_in_order, workers},
    },
    report::write_filter_report,
    settings::Config,
    text::excerpt,
    units::count,
};

const EXAMPLE: &str = "zbatch parse results/*.jsonl, or zbatch fetch -d work -o - | zbatch parse";

pub fn run(args: &ParseArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let set = config.analyses(&args.source)?;
    set.notes.iter().for_each(|note| console.note(note));
    check_inputs(args)?;
    let stdin = args.results.is_empty().then_some(Path::new("-"));
    let inputs = args.results.iter().map(PathBuf::as_path).chain(stdin);
    outputs::check(None, inputs, args.output.as_deref(), &args.faults, None)?;

    let mut output = Output::create(args.output.as_deref())?;
    let mut faults = FaultLog::create(args.faults.faults.as_deref())?;
    let mut tally = Tally::new(set.list.len());
    let (mut lines, mut placed) = (0, 0);
    let mut inputs = Inputs {
        paths: if args.results.is_empty() { vec![None] } else { some(&args.results) }.into_iter(),
        open: None,
    };
    let readers =
        (0..workers().get()).map(|_| Parser { set: &set, reader: AnswerReader::new(&set), tally: tally.clone() });
    let readers = map_in_order(
        readers.collect(),
        |job: &mut Job| inputs.fill(job, args.max_line),
        Parser::parse,
        |job| {
            lines += job.lines;
            placed += job.placed;
            for (analysis, fault) in job.faults.drain(..) {
                tally.add_fault(analysis, &fault);
                faults.add(&fault)?;
            }
            output.put(&job.answers)
        },
    )?;
    readers.iter().for_each(|reader| tally.add(&reader.tally));
    if lines > 0 && placed == 0 {
        let first = faults.first().map(FaultLine::describe).unwrap_or_default();
        return Err(Error::input(format!(
            "none of {} has a custom_id that can be read; {first}",
            count(lines, "line")
        ))
        .fix("are these result files? Each line is {\"custom_id\":…,\"response\":…}"));
    }
    output.commit()?;
    faults.commit()?;
    if let Some(path) = &args.faults.report {
        write_filter_report(path, &set, &tally)?;
    }
    faults.show(console);
    Ok(Ended::judge(args.faults.max_faults, faults.total(), lines))
}

/// A file that is missing is better noticed before the first hour's output than after it.
fn check_inputs(args: &ParseArgs) -> Result<()> {
    if args.results.iter().filter(|path| is_stdin(Some(path))).count() > 1 {
        return Err(Error::usage("`-` is given twice: stdin can be read once").fix("name it once"));
    }
    for path in args.results.iter().filter(|path| !is_stdin(Some(path))) {
        if !std::fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
            Input::open(Some(path), EXAMPLE)?;
        }
    }
    Ok(())
}

fn some(paths: &[PathBuf]) -> Vec<Option<&Path>> {
    paths.iter().map(|path| Some(path.as_path())).collect()
}

/// The result files, one after another; `None` is stdin.
struct Inputs<'a> {
    paths: std::vec::IntoIter<Option<&'a Path>>,
    open: Option<(LineReader, Arc<str>)>,
}

impl Inputs<'_> {
    fn fill(&mut self, job: &mut Job, max_line: u64) -> Result<bool> {
        loop {
            if let Some((lines, name)) = &mut self.open
                && lines.fill(&mut job.block)?
            {
                job.file = Arc::clone(name);
                return Ok(true);
            }
            let Some(path) = self.paths.next() else { return Ok(false) };
            let lines = LineReader::new(Input::open(path, EXAMPLE)?, Shape::Lines, max_line, 0);
            let name = Arc::from(lines.name());
            self.open = Some((lines, name));
        }
    }
}

/// A block of result lines, and what came of it.
#[derive(Default)]
struct Job {
    file: Arc<str>,
    block: Block,
    answers: Vec<u8>,
    /// With the place of the analysis, if it is known.
    faults: Vec<(Option<usize>, FaultLine)>,
    lines: u64,
    /// Lines whose custom_id could be read.
    placed: u64,
}

/// A worker.
struct Parser<'s> {
    set: &'s AnalysisSet,
    reader: AnswerReader<'s>,
    tally: Tally,
}

impl Parser<'_> {
    fn parse(&mut self, job: &mut Job) {
        job.answers.clear();
        (job.lines, job.placed) = (0, 0);
        for line in job.block.lines() {
            job.lines += 1;
            let outcome = if line.too_long {
                let fault = Fault::new(FaultKind::BadLine, "the line is longer than --max-line");
                Outcome::unplaced(fault)
            } else {
                self.reader.read(line.bytes)
            };
            self.tally.count(&outcome);
            match outcome {
                Outcome::Answer { index, analysis, value, usage, .. } => {
                    job.placed += 1;
                    let name = self.set.list.get(analysis).map_or("", |known| known.name.as_str());
                    write_answer(&mut job.answers, index, name, value, usage);
                }
                Outcome::Fault { index, analysis, name, fault, text, .. } => {
                    job.placed += u64::from(index.is_some() || fault.kind != FaultKind::BadLine);
                    if let (Some(index), Some(name)) = (index, &name) {
                        write_fault(&mut job.answers, index, name, &fault);
                    }
                    let fault = FaultLine {
                        index: index.map(|index| index.0),
                        analysis: name.map(|name| name.into_owned()),
                        file: Some(job.file.to_string()),
                        line: Some(line.number),
                        offset: Some(line.offset),
                        excerpt: Some(excerpt(text.map_or(line.bytes, str::as_bytes))),
                        ..FaultLine::new(fault)
                    };
                    job.faults.push((analysis, fault));
                }
            }
        }
    }
}

/// The name of an analysis in force needs no escape: `[a-z][a-z0-9_]*`. Numbers go round `fmt`, which takes longer than all
/// the rest.
fn write_answer(out: &mut Vec<u8>, index: PostIndex, name: &str, value: &[u8], usage: Option<Usage>) {
    let mut number = itoa::Buffer::new();
    out.extend_from_slice(br#"{"index":"#);
    out.extend_from_slice(number.format(index.0).as_bytes());
    out.extend_from_slice(br#","analysis":""#);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(br#"","value":"#);
    out.extend_from_slice(value);
    if let Some(Usage { prompt_tokens, completion_tokens, total_tokens }) = usage {
        let mut open = br#","usage":{"#.as_slice();
        for (key, count) in [
            ("\"prompt_tokens\":", prompt_tokens),
            ("\"completion_tokens\":", completion_tokens),
            ("\"total_tokens\":", total_tokens),
        ] {
            out.extend_from_slice(open);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(number.format(count).as_bytes());
            open = b",";
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"}\n");
}

fn write_fault(out: &mut Vec<u8>, index: PostIndex, name: &str, fault: &Fault) {
    let quote = |text: &str| Value::from(text).to_string();
    let kind = fault.kind.as_str();
    let (name, detail) = (quote(name), quote(&fault.detail));
    // Writing to a Vec cannot fail.
    let _infallible =
        writeln!(out, r#"{{"index":{index},"analysis":{name},"fault":{{"kind":"{kind}","detail":{detail}}}}}"#);
}
