//! Request lines → chunk files.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Ended, outputs,
    setup::{ChunkRecords, cap_note, claim, cutter, forget_empty, record_models, resolve_limits, say_remade},
};
use crate::{
    analysis,
    cli::ChunkArgs,
    console::Console,
    error::{Error, Result},
    flow::{
        CustomId, Fault, FaultKind, FaultLine,
        chunks::{Chunk, Pushed, write_behind},
        faults::FaultLog,
        tally::Tally,
    },
    journal::Event,
    json::{Object, is_on_one_line, on_one_line},
    lines::{
        blocks::{Block, Line, LineReader, Shape},
        input::Input,
    },
    provider::Dialect,
    report::Report,
    settings::Config,
    snapshots,
    text::{excerpt, short},
    units::count,
};

/// What cutting needs to know of a request line.
#[derive(Deserialize)]
struct RequestLine<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    body: Object<Body<'a>>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
}

pub fn run(args: &ChunkArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let models = config.models(&args.model)?;
    let dialect = Dialect::find(&models.provider.value)?;
    let limits = resolve_limits(&config, &args.limits, dialect);
    let dir = config.work_dir(args.work.work_dir.as_deref()).value;
    let requests = args.requests.as_deref().unwrap_or(std::path::Path::new("-"));
    outputs::check(None, [requests], None, &args.faults, Some(&dir))?;
    let input = Input::open(args.requests.as_deref(), "zbatch gen posts.jsonl | zbatch chunk -d work")?;
    let mut reader = LineReader::new(input, Shape::Lines, args.max_line, 0);
    let (work, journal) =
        claim(&dir, (args.new, args.work.moved), record_models(&models, limits, false), false, console)?;
    let mut cutter = cutter(&journal, work.folder(), limits)?;
    let mut log = FaultLog::create(args.faults.faults.as_deref())?;
    let mut tally = Tally::new(0);
    let mut records = ChunkRecords::create()?;
    let record = |chunk: Chunk, input| {
        journal.append(&Event::Chunk { chunk: chunk.clone(), input })?;
        records.print(&chunk)
    };
    let (mut lines, mut good) = (0, 0);
    let mut block = Block::default();
    let mark = write_behind(work.folder(), record, |writer| {
        while reader.fill(&mut block)? {
            for line in block.lines() {
                lines += 1;
                cutter.read_place(line.bytes)?;
                let request = one_line(line.bytes);
                let outcome = read_request(&line, dialect).and_then(|(id, model)| {
                    let bytes = request.len() as u64 + 1;
                    if !limits.admit(bytes) {
                        let detail = format!("it has {bytes} bytes; a file may hold {}", limits.bytes);
                        return Err(Fault::new(FaultKind::TooLarge, detail));
                    }
                    Ok((id, model, bytes))
                });
                let fault = match &outcome {
                    Err(fault) => {
                        line.check_end(reader.name())?;
                        fault.clone()
                    }
                    Ok((id, model, bytes)) => {
                        let id = CustomId::parse(id).unwrap_or(CustomId { analysis: "", index: Default::default() });
                        let vision = *model == models.multimodal_model.value && *model != models.model.value;
                        let group = cutter.group(id.analysis, vision, model);
                        let write = |out: &mut dyn std::io::Write| {
                            out.write_all(&request)
                                .and_then(|()| out.write_all(b"\n"))
                                .map_err(|e| Error::io("write", "the chunk", &e))
                        };
                        match cutter.push(group, id.index.0, *bytes, write, writer)? {
                            Pushed::Written | Pushed::Held => {
                                good += 1;
                                continue;
                            }
                            Pushed::Twice => {
                                Fault::new(FaultKind::BadLine, format!("{id} is in this chunk already: ids are unique"))
                            }
                        }
                    }
                };
                let fault = FaultLine {
                    file: Some(reader.name().to_owned()),
                    line: Some(line.number),
                    offset: Some(line.offset),
                    excerpt: Some(excerpt(line.bytes)),
                    ..FaultLine::new(fault)
                };
                tally.add_fault(None, &fault);
                log.add(&fault)?;
            }
        }
        cutter.finish(writer)
    })?;
    let is_all_bad = lines > 0 && good == 0;
    // The user named the wrong input if every line was bad, and will name another one: its end is not recorded.
    if journal.read(|state| state.posts.is_none())? && !is_all_bad {
        journal.append(&Event::Posts { good, input: mark })?;
    }
    if !forget_empty(&work, &journal, console)? {
        journal.read(|state| snapshots::write_files_info(&work, state, console))??;
    }
    log.commit()?;
    if let Some(path) = &args.faults.report {
        let report =
            Report { analyses: Vec::new(), tally: &tally, posts: None, batches: None, times: None, next: None };
        report.write(path)?;
    }
    if let Some(cap) = cap_note(&config, &args.limits, dialect).filter(|_| cutter.bytes_bind()) {
        console.note(cap);
    }
    say_remade(cutter.remade(), console);
    log.show(console);
    if is_all_bad {
        return Err(Error::input(format!("{}: none of its {} is a request", reader.name(), count(lines, "line")))
            .fix("give it what `zbatch gen` writes, one request a line (`jq -c`); posts go to `zbatch gen -d`"));
    }
    Ok(Ended::judge(args.faults.max_faults, log.total(), lines))
}

/// The line as it goes into a file for the provider: its own bytes, but for the characters that would end it for some servers.
/// `jq` and others write these unescaped, also where `zbatch gen` had escaped them.
fn one_line(line: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(line) {
        Ok(text) if !is_on_one_line(line) => Cow::Owned(on_one_line(text).into_bytes()),
        _ => Cow::Borrowed(line),
    }
}

/// The custom_id and the model of a request line.
fn read_request(line: &Line<'_>, dialect: &Dialect) -> Result<(String, String), Fault> {
    let bad = |detail: String| Fault::new(FaultKind::BadLine, detail);
    if line.too_long {
        return Err(Fault::new(FaultKind::TooLarge, "the line is longer than --max-line"));
    }
    let Object(request): Object<RequestLine<'_>> =
        serde_json::from_slice(line.bytes).map_err(|e| bad(format!("not a request line: {e}")))?;
    let id = CustomId::parse(&request.custom_id).filter(|id| analysis::is_name(id.analysis));
    if id.is_none() {
        return Err(bad(format!("custom_id `{}` is not NAME_INDEX", short(&request.custom_id))));
    }
    if request.method != "POST" || request.url != dialect.line_url {
        let (method, url) = (short(&request.method), short(&request.url));
        return Err(bad(format!("`{method} {url}`; {} takes `POST {}`", dialect.name, dialect.line_url)));
    }
    Ok((request.custom_id.into_owned(), request.body.0.model.into_owned()))
}
