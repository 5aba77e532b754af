//! Request lines → chunk files.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    Ended,
    cutting::note_remade,
    outputs,
    records::ChunkRecords,
    request_settings::{cap_note, record_models, resolve_limits},
};
use crate::{
    analysis,
    cli::ChunkArgs,
    console::Console,
    error::{Error, Result},
    flow::{
        CustomId, Fault, FaultKind, FaultLine,
        chunks::{Chunks, Cut, Limits, Source},
        faults::FaultLog,
        tally::Tally,
    },
    json::{Object, is_on_one_line, on_one_line},
    lines::{
        blocks::{Block, Line, LineReader, Shape},
        input::Input,
    },
    provider::Dialect,
    report::Report,
    settings::{Config, Models},
    snapshots,
    text::{excerpt, short},
    units::count,
    workdir::claim::{claim, forget_empty, recorder, resume},
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
    let reader = LineReader::new(input, Shape::Lines, args.max_line, 0);
    let (new, moved, record) = (args.new, args.work.moved, record_models(&models, limits, false));
    let (work, journal) = claim(&dir, (new, moved), record, false, console)?;
    let (input, cutter) = resume(&work, &journal, limits)?;
    let log = FaultLog::create(args.faults.faults.as_deref())?;
    let source = RequestLines::new(reader, models, dialect, limits, log);
    let mut chunks = Chunks::new(source, Cut::new(work.folder().clone(), input, cutter)?, recorder(&journal));
    ChunkRecords::create()?.print_all(&mut chunks)?;
    if !forget_empty(&work, &journal, console)? {
        journal.read(|state| snapshots::write_files_info(&work, state, console))??;
    }
    let (bytes_bind, remade) = (chunks.cutter().bytes_bind(), chunks.cutter().remade());
    let RequestLines { reader, mut log, tally, lines, good, .. } = chunks.into_source();
    log.commit()?;
    if let Some(path) = &args.faults.report {
        let report =
            Report { analyses: Vec::new(), tally: &tally, posts: None, batches: None, times: None, next: None };
        report.write(path)?;
    }
    if let Some(cap) = cap_note(&config, &args.limits, dialect).filter(|_| bytes_bind) {
        console.note(cap);
    }
    note_remade(remade, console);
    log.show(console);
    if lines > 0 && good == 0 {
        return Err(Error::input(format!("{}: none of its {} is a request", reader.name(), count(lines, "line")))
            .fix("give it what `zbatch gen` writes, one request a line (`jq -c`); posts go to `zbatch gen -d`"));
    }
    Ok(Ended::judge(args.faults.max_faults, log.total(), lines))
}

/// Lines of requests as a source of requests.
struct RequestLines {
    reader: LineReader,
    block: Block,
    /// The next line of `block`.
    next: usize,
    models: Models,
    dialect: &'static Dialect,
    limits: Limits,
    log: FaultLog,
    tally: Tally,
    /// Lines that were read, and requests among them.
    lines: u64,
    good: u64,
}

impl RequestLines {
    fn new(reader: LineReader, models: Models, dialect: &'static Dialect, limits: Limits, log: FaultLog) -> Self {
        let (block, tally) = (Block::default(), Tally::new(0));
        Self { reader, block, next: 0, models, dialect, limits, log, tally, lines: 0, good: 0 }
    }
}

impl Source for RequestLines {
    fn read(&mut self, cut: &mut Cut) -> Result<bool> {
        while self.next == self.block.len() {
            if !self.reader.fill(&mut self.block)? {
                return Ok(false);
            }
            self.next = 0;
        }
        let Some(line) = self.block.line(self.next) else { return Ok(false) };
        self.next += 1;
        self.lines += 1;
        cut.place(line.bytes)?;
        let fault = match read_request(&line, self.dialect, self.limits) {
            Ok(request) if request.push_to(cut, &self.models)? => {
                self.good += 1;
                return Ok(true);
            }
            Ok(RequestToCut { id, .. }) => {
                let id = CustomId::parse(&id).unwrap_or(CustomId { analysis: "", index: Default::default() });
                Fault::new(FaultKind::BadLine, format!("{id} is in this chunk already: ids are unique"))
            }
            Err(fault) => {
                line.check_end(self.reader.name())?;
                fault
            }
        };
        let fault = FaultLine {
            file: Some(self.reader.name().to_owned()),
            line: Some(line.number),
            offset: Some(line.offset),
            excerpt: Some(excerpt(line.bytes)),
            ..FaultLine::new(fault)
        };
        self.tally.add_fault(None, &fault);
        self.log.add(&fault)?;
        Ok(true)
    }

    fn end(&mut self) -> Result<Option<u64>> {
        Ok((self.lines == 0 || self.good > 0).then_some(self.good))
    }
}

/// A request line that may stand in a chunk.
struct RequestToCut<'a> {
    id: String,
    model: String,
    line: Cow<'a, [u8]>,
}

impl RequestToCut<'_> {
    /// `false`: the chunk has a row of this index already.
    fn push_to(&self, cut: &mut Cut, models: &Models) -> Result<bool> {
        let id = CustomId::parse(&self.id).unwrap_or(CustomId { analysis: "", index: Default::default() });
        let vision = self.model == models.multimodal_model.value && self.model != models.model.value;
        let group = cut.group(id.analysis, vision, &self.model);
        cut.push(group, id.index.0, self.bytes(), |out| {
            let written = out.write_all(&self.line).and_then(|()| out.write_all(b"\n"));
            written.map_err(|e| Error::io("write", "the chunk", &e))
        })
    }

    /// Bytes of the line, line feed included.
    fn bytes(&self) -> u64 {
        self.line.len() as u64 + 1
    }
}

/// The line as it goes into a file for the provider: its own bytes, but for the characters that would end it for some servers.
/// `jq` and others write these unescaped, also where `zbatch gen` had escaped them.
fn one_line(line: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(line) {
        Ok(text) if !is_on_one_line(line) => Cow::Owned(on_one_line(text).into_bytes()),
        _ => Cow::Borrowed(line),
    }
}

/// Reads a request line.
fn read_request<'a>(line: &Line<'a>, dialect: &Dialect, limits: Limits) -> Result<RequestToCut<'a>, Fault> {
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
    let (id, model) = (request.custom_id.into_owned(), request.body.0.model.into_owned());
    let request = RequestToCut { id, model, line: one_line(line.bytes) };
    if !limits.admit(request.bytes()) {
        let detail = format!("it has {} bytes; a file may hold {}", request.bytes(), limits.bytes);
        return Err(Fault::new(FaultKind::TooLarge, detail));
    }
    Ok(request)
}
