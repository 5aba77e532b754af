//! Posts ⋈ answers → enhanced posts. Answers are read first, in whatever order they come, into a store of bounded
//! memory; then the posts stream past it, in order, and each takes its own.

use std::{path::Path, sync::Arc};

use super::{Ended, next::NextCommand, outputs};
use crate::{
    analysis::AnalysisSet,
    cli::{Format, MergeArgs},
    console::Console,
    error::{Error, Result},
    flow::{
        Fault, FaultKind, FaultLine,
        enhanced::{Enhanced, Seen, parse_answer},
        faults::FaultLog,
        posts::{PostCounts, Posts},
        shards::{Key, Shards, field},
        tally::Tally,
    },
    lines::{
        blocks::{Block, Line, LineReader, Shape},
        input::{Input, is_stdin},
        output::{JsonWriter, Output, is_array_name, is_stream},
    },
    report::Report,
    settings::Config,
    text::excerpt,
    units::count,
};

pub fn run(args: &MergeArgs, console: &Console) -> Result<Ended> {
    let answers: Vec<Option<&Path>> = match args.answers.as_slice() {
        [] => vec![None],
        paths => paths.iter().map(|path| Some(path.as_path())).collect(),
    };
    let from_stdin = |path: &Option<&Path>| path.is_none_or(|path| path == Path::new("-"));
    if answers.iter().filter(|path| from_stdin(path)).count() + usize::from(is_stdin(Some(&args.posts))) > 1 {
        return Err(Error::usage("merge: only one of its inputs can be stdin")
            .fix("name the others, e.g. zbatch merge posts.jsonl - < answers.jsonl"));
    }
    let set = Arc::new(Config::load(args.source.config.as_deref(), console)?.analyses(&args.source)?);
    for text in &set.notes {
        console.note(text);
    }
    // Inputs and outputs are opened before the work, so that a wrong path is known at once.
    let (max_line, start_index) = (args.input.max_line, args.input.start_index);
    let posts = Posts::open(Some(&args.posts), None, Arc::clone(&set), max_line, start_index)?;
    let output = args.output.output.as_deref();
    let inputs = answers.iter().map(|path| path.unwrap_or(Path::new("-")));
    outputs::check(Some(&args.posts), inputs, output, &args.faults, None)?;
    let as_array = match args.output.format {
        Some(format) => format == Format::Json,
        None => output.is_some_and(is_array_name),
    };
    let mut writer = JsonWriter::new(Output::create(output)?, as_array);
    let mut seen = Seen { tally: Tally::new(set.list.len()), log: FaultLog::create(args.faults.faults.as_deref())? };
    let tmp_dir = args.memory.tmp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut store = Shards::new(set.list.len(), args.memory.memory, &tmp_dir)?;
    let mut rank = 0;
    for path in answers {
        let input = Input::open(path, "zbatch parse results/*.jsonl | zbatch merge posts.jsonl -")?;
        read_answers(input, args, &set, &mut store, &mut rank, &mut seen)?;
    }
    let bad = seen.tally.unplaced.count(FaultKind::BadLine);
    if rank > 0 && bad == rank {
        let first = seen.log.first().map(FaultLine::describe).unwrap_or_default();
        return Err(Error::input(format!("none of {} is an answer; {first}", count(rank, "line"))).fix(
            "results go through `zbatch parse` first: zbatch parse results/*.jsonl | zbatch merge posts.jsonl -",
        ));
    }
    let posts_name = posts.name().to_owned();
    let mut enhanced = Enhanced::new(&set, posts, start_index, store.sorted(), None, seen);
    while let Some(post) = enhanced.next()? {
        writer.put(post)?;
    }
    let (mut seen, counts, _) = enhanced.finish();
    counts.check(&posts_name, console)?;
    // Where the output replaces the posts, one that could not be read would be gone.
    let replaced = output.filter(|output| counts.posts < counts.places && outputs::may_replace(&args.posts, output));
    let aside = match replaced {
        Some(_) => Some(writer.commit_aside()?),
        None => writer.commit().map(|()| None)?,
    };
    let written = aside.as_deref().or(output);
    seen.log.commit()?;
    write_report(args, &set, &seen.tally, counts, written)?;
    summarize(args, &set, &seen.tally, counts, written, console);
    seen.log.show(console);
    if let Some((output, aside)) = output.zip(aside.as_deref()) {
        let fix = "mend what could not be read and run the same command again, or name another file with -o";
        return Err(outputs::kept_posts(output, aside, counts, fix));
    }
    let rows = counts.places.saturating_mul(set.list.len() as u64);
    Ok(Ended::judge(args.faults.max_faults, seen.log.total(), rows))
}

fn write_report(
    args: &MergeArgs,
    set: &AnalysisSet,
    tally: &Tally,
    counts: PostCounts,
    written: Option<&Path>,
) -> Result<()> {
    let Some(path) = &args.faults.report else { return Ok(()) };
    let report = Report {
        analyses: set.list.iter().map(|a| (a.name.as_str(), a.field.as_str())).collect(),
        tally,
        posts: Some((counts.places, counts.posts)),
        batches: None,
        times: None,
        next: (tally.analyses.iter().any(|t| t.missing > 0)).then(|| next_command(args, written)),
    };
    report.write(path)
}

/// Puts the answers of one file into the store; `rank` counts lines, over all files.
fn read_answers(
    input: Input,
    args: &MergeArgs,
    set: &AnalysisSet,
    store: &mut Shards,
    rank: &mut u64,
    seen: &mut Seen,
) -> Result<()> {
    let mut lines = LineReader::new(input, Shape::Lines, args.input.max_line, 0);
    let mut block = Block::default();
    while lines.fill(&mut block)? {
        for line in block.lines() {
            *rank += 1;
            let fault = match place_answer(&line, args.input.start_index, set) {
                Ok((index, at, value)) => {
                    let key = Key { index, field: field(at), is_fault: value.is_none(), rank: *rank };
                    store.push(key, value.unwrap_or_default().as_bytes())?;
                    continue;
                }
                Err(fault) => fault,
            };
            let analysis = fault.analysis.as_deref().and_then(|name| set.find(name));
            let fault = FaultLine {
                file: Some(lines.name().to_owned()),
                line: Some(line.number),
                offset: Some(line.offset),
                excerpt: Some(excerpt(line.bytes)),
                ..*fault
            };
            seen.add(analysis, &fault)?;
        }
    }
    Ok(())
}

/// Where an answer belongs (index and place in the set), and its value.
fn place_answer<'a>(
    line: &Line<'a>,
    start_index: u64,
    set: &AnalysisSet,
) -> Result<(u64, usize, Option<&'a str>), Box<FaultLine>> {
    if line.too_long {
        return Err(FaultLine::new(Fault::new(FaultKind::BadLine, "the line is longer than --max-line")).into());
    }
    let answer = parse_answer(line.bytes).map_err(|fault| Box::new(FaultLine::new(fault)))?;
    let index = answer.index.0;
    let why = match set.find(&answer.analysis) {
        Some(at) if index >= start_index => return Ok((index, at, answer.value)),
        Some(_) => "the index is before --start-index",
        None => "no such analysis is in force",
    };
    Err(Box::new(FaultLine {
        index: Some(index),
        // A name that is none of ours may be anything: it is kept short and harmless.
        analysis: Some(excerpt(answer.analysis.as_bytes())),
        ..FaultLine::new(Fault::new(FaultKind::UnknownId, why))
    }))
}

/// Posts, what is missing, and the command that asks for it.
fn summarize(
    args: &MergeArgs,
    set: &AnalysisSet,
    tally: &Tally,
    counts: PostCounts,
    written: Option<&Path>,
    console: &Console,
) {
    let unreadable = counts.places - counts.posts;
    let missing: u64 = tally.analyses.iter().map(|analysis| analysis.missing).sum();
    let (fields, posts) = (set.list.len(), count(counts.places, "post"));
    console.note(match (unreadable, missing) {
        (0, 0) if fields == 1 => format!("{posts}, its field filled"),
        (0, 0) => format!("{posts}, all {fields} fields filled"),
        (0, _) => format!("{posts}, {} missing", count(missing, "field")),
        _ => format!("{posts} ({unreadable} unreadable), {} missing", count(missing, "field")),
    });
    for (analysis, seen) in set.list.iter().zip(&tally.analyses).filter(|(_, seen)| seen.missing > 0) {
        let absent = seen.faults.count(FaultKind::Absent);
        // What is neither absent nor unreadable was answered by a fault, which `parse` counted.
        let faulted = seen.missing.saturating_sub(absent + unreadable);
        let of = [
            (absent, format!("{absent} absent")),
            (faulted, count(faulted, "fault")),
            (unreadable, format!("{unreadable} unreadable")),
        ];
        let of: Vec<String> = of.into_iter().filter(|(n, _)| *n > 0).map(|(_, said)| said).collect();
        let name = &analysis.name;
        console.note(format_args!("{name}: {} filled, {} missing ({})", seen.filled, seen.missing, of.join(", ")));
    }
    if missing > 0 {
        console.note(format_args!("next: {}", next_command(args, written)));
    }
}

/// Asks for what is missing in our output, under the settings that were in force here.
fn next_command(args: &MergeArgs, written: Option<&Path>) -> String {
    let output = written.filter(|path| !is_stream(path)).unwrap_or(Path::new("ENHANCED"));
    NextCommand::new("zbatch gen --missing")
        .operand(output)
        .path("--skip", args.faults.faults.as_deref())
        .typed("gen", &args.typed, &["output", "faults", "report"])
        .into_text()
}
