//! The last pass of a run: the posts, each with its answers, its faults and its share of the report.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{
    cli::{Format, RunArgs},
    cmd::{
        Ended,
        next::NextCommand,
        outputs,
        request_settings::RequestSettings,
        source::{PartialOutput, PostsFile, holds_the_posts, remember_output},
    },
    console::Console,
    error::{Error, Result},
    flow::{
        enhanced::{self, Enhanced, Seen},
        faults::FaultLog,
        kept_faults::KeptFaultsReader,
        posts::PostCounts,
        tally::Tally,
    },
    journal::{Config, Job, Journal, State, Step, totals},
    lines::output::{JsonWriter, Output, is_array_name, is_stdout, is_stream},
    report::Report,
    shell,
    stop::Stop,
    units::sum,
    workdir::{CUT_FAULTS, REPORT, WorkDir},
};
use serde_json::json;

use super::{Gathered, check_signal, gather::Store};

/// What it needs beside posts and answers.
pub struct Join<'a> {
    pub args: &'a RunArgs,
    pub rendering: &'a RequestSettings,
    pub output: &'a Path,
    pub posts: &'a PostsFile,
    /// The provider does not take it, or not any more.
    pub refused_model: Option<&'a str>,
    pub advice: &'a OnceLock<String>,
    /// Chunks whose results neither this machine nor the provider has any more.
    pub gone: usize,
    pub stop: &'a Stop,
    pub console: &'a Console,
}

/// What the pass over the posts came to, beside the tally.
struct Passed<'a> {
    counts: PostCounts,
    /// Where the posts are now.
    output: &'a Path,
    /// Something is missing that another round would ask for.
    askable: bool,
}

/// Why the posts do not go where the user wants them, but beside it: the same command may bring more, or what is there may
/// hold more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aside {
    /// Rows are pending.
    Remains,
    /// Results that a file of an earlier run may hold are gone, or came short.
    LostResults,
    /// Posts that cannot be read stand in no other file as they were.
    LostPosts,
}

impl Join<'_> {
    pub fn write(
        &self,
        gathered: Gathered,
        work: &WorkDir,
        journal: &Journal,
        times: &dyn Fn() -> serde_json::Value,
    ) -> Result<Ended> {
        let as_array = match self.args.output.format {
            Some(format) => format == Format::Json,
            None => is_array_name(self.output),
        };
        let mut writer = JsonWriter::new(Output::create(Some(self.output))?, as_array);
        if self.posts.is_output {
            writer = writer.hashed();
        }
        let set = &self.rendering.set;
        let log = FaultLog::create(self.args.faults.faults.as_deref())?;
        let tally = Tally { surrogates: gathered.tally.surrogates, ..Tally::new(set.list.len()) };
        let cut_faults = KeptFaultsReader::open(&work.file(CUT_FAULTS))?;
        let is_uncut = journal.read(|state| state.posts.is_none())?;
        let Gathered { store: Store { answers, strays }, tally: parsed, .. } = gathered;
        let job = enhanced::Job::new(cut_faults, strays.sorted(), is_uncut, self.args.faults.faults.is_some());
        let posts = self.rendering.posts(Some(&self.posts.path), Some(&self.posts.name))?;
        let start = self.args.input.start_index;
        let mut enhanced = Enhanced::new(set, posts, start, answers.sorted(), Some(job), Seen { tally, log });
        while let Some(post) = enhanced.next()? {
            check_signal(self.stop)?;
            writer.put(post)?;
        }
        let (Seen { mut tally, mut log }, counts, job) = enhanced.finish();
        let askable = job.as_ref().is_some_and(enhanced::Job::is_askable);
        // Answers belong to places: in other posts they would stand in the wrong ones.
        let cut = journal.read(|state| state.posts.as_ref().map(|(_, mark)| mark.clone()))?;
        if cut.zip(job).is_some_and(|(cut, mut job)| cut != job.mark()) {
            return Err(Error::input("the posts have changed since they were cut into chunks; no output is written")
                .fix("put them back as they were and run the same command again: all answers are kept"));
        }
        for (tally, parsed) in tally.analyses.iter_mut().zip(&parsed.analyses) {
            tally.rungs = parsed.rungs;
            tally.unknown_labels = parsed.unknown_labels;
            tally.usage = parsed.usage;
        }
        let aside = journal.read(|state| self.why_aside(&tally, counts, work, state))??;
        let path = self.commit(writer, aside, work)?;
        log.commit()?;
        let output = if aside == Some(Aside::LostResults) { self.output } else { path.as_path() };
        let passed = Passed { counts, askable, output };
        let ended = journal.read(|state| self.tell(&tally, &passed, &log, work, state, times))??;
        match aside {
            Some(Aside::LostPosts) => Err(outputs::kept_posts(self.output, &path, counts, &self.mend(work))),
            Some(aside) => self.say_aside(aside, &path).map(|()| ended),
            None => Ok(ended),
        }
    }

    /// Says why the output is not where the user wants it, and where it is.
    fn say_aside(&self, aside: Aside, path: &Path) -> Result<()> {
        let (here, there) = (self.output.display(), path.display());
        let what = match aside {
            Aside::Remains if outputs::is_there(self.output)? => {
                format!("rows remain: {here} stays as it is until all are there; what is there now is in {there}")
            }
            Aside::Remains => {
                format!("rows remain: {here} appears when all are there; what is there now is in {there}")
            }
            Aside::LostResults | Aside::LostPosts => format!(
                "{here} stays as it is, since it may hold rows whose results are lost now or came short; the new output \
                 is in {there}; to have it in {here}, move that file away and run the same command again"
            ),
        };
        self.console.always(what);
        Ok(())
    }

    /// Says why the output does not take its name now. The exit code does not matter: an output that may hold less than the
    /// file that is there never replaces it. A pipe cannot be kept back.
    fn why_aside(&self, tally: &Tally, counts: PostCounts, work: &WorkDir, state: &State) -> Result<Option<Aside>> {
        if is_stream(self.output) {
            return Ok(None);
        }
        let lost = self.gone > 0 || state.jobs.iter().any(Job::came_short);
        Ok(if remains(state, tally) {
            Some(Aside::Remains)
        } else if lost && outputs::is_there(self.output)? {
            Some(Aside::LostResults)
        } else {
            self.loses_posts(counts, work)?.then_some(Aside::LostPosts)
        })
    }

    /// Lets the posts appear, and gives the path where they are.
    fn commit(&self, mut writer: JsonWriter, aside: Option<Aside>, work: &WorkDir) -> Result<PathBuf> {
        let partial = PartialOutput::of(self.output, work)?;
        if aside.is_some() {
            let path = writer.commit_aside()?;
            if aside == Some(Aside::Remains) {
                partial.remember()?;
            }
            return Ok(path);
        }
        writer.end()?.map_or(Ok(()), |hash| remember_output(&hash, work))?;
        writer.commit()?;
        partial.remove()?;
        Ok(self.output.to_owned())
    }

    /// The output would replace posts that could not be read, by the only copy of them that is the user's.
    fn loses_posts(&self, counts: PostCounts, work: &WorkDir) -> Result<bool> {
        Ok(counts.posts < counts.places && (self.posts.is_output || holds_the_posts(self.output, work)?))
    }

    /// How mended posts come to their answers, which are paid.
    fn mend(&self, work: &WorkDir) -> String {
        const GIVEN_HERE: [&str; 4] = ["output", "faults", "report", "max_faults"];
        let with = |verb: &str| {
            NextCommand::new(&format!("zbatch {verb}")).typed(verb, &self.args.typed, &GIVEN_HERE).into_text()
        };
        let output = shell::path(self.output);
        format!(
            "take the output from there; or mend the lines in {output}, then: {} {}/*.jsonl | {} {output} - -o {output}",
            with("parse"),
            shell::path(work.join("results")),
            with("merge"),
        )
    }

    fn tell(
        &self,
        tally: &Tally,
        passed: &Passed<'_>,
        log: &FaultLog,
        work: &WorkDir,
        state: &State,
        times: &dyn Fn() -> serde_json::Value,
    ) -> Result<Ended> {
        let Passed { counts, output, askable } = *passed;
        let pending = tally.pending();
        let remains = remains(state, tally);
        let came_short = state.jobs.iter().any(Job::came_short);
        let report = Report {
            analyses: self.rendering.set.list.iter().map(|a| (a.name.as_str(), a.field.as_str())).collect(),
            tally,
            posts: Some((counts.places, counts.posts)),
            batches: Some(batches(&state.jobs, state.config.as_ref())),
            times: Some(times()),
            next: match (remains, askable) {
                (true, _) if self.refused_model.is_some() && state.at_stake().0 == 0 => {
                    let command = self.next_command(output, work);
                    Some(self.advice.get_or_init(|| command).clone())
                }
                (true, _) if state.stays_cancelled() => Some("the same command with --resume".to_owned()),
                (true, _) if waits_for_the_user(state) => Some(
                    "look at what is said of the held chunks; the same command alone brings nothing more".to_owned(),
                ),
                (true, _) => Some("the same command; batches are not done yet".to_owned()),
                // Another round would pay for rows that the provider may have.
                (false, true) if came_short => Some(format!(
                    "the same command, which downloads again what came short; if rows stay absent: {}",
                    self.next_command(output, work)
                )),
                (false, true) => Some(self.next_command(output, work)),
                (false, false) => None,
            },
        };
        let path = match &self.args.faults.report {
            Some(path) => {
                report.write(path)?;
                path.clone()
            }
            None => {
                let file = work.file(REPORT);
                file.write(&report.to_text())?;
                file.path()
            }
        };
        let name = if output == Path::new("-") { Path::new("stdout") } else { output };
        self.console.table(name.display(), &report.table());
        self.console.note(format_args!("report: {}", path.display()));
        log.show(self.console);
        let rows = tally.analyses.iter().map(|tally| tally.rows).sum::<u64>() + (counts.places - counts.posts);
        if pending > 0 {
            return Ok(Ended::Remains);
        }
        Ok(Ended::judge(self.args.faults.max_faults, log.total(), rows))
    }

    /// Asks for what is missing in the output, in a directory of its own.
    fn next_command(&self, output: &Path, work: &WorkDir) -> String {
        // What went down a pipe is somewhere, under a name that only the user knows.
        let is_file = output != Path::new("-") && !is_stream(output);
        let output = if is_file { output } else { Path::new("ENHANCED") };
        let named = |path: &Option<PathBuf>| path.clone().filter(|path| !is_stdout(path) && !is_stream(path));
        let (faults, report) = (named(&self.args.faults.faults), named(&self.args.faults.report));
        let models = &self.rendering.models;
        let gone = |model: &str| self.refused_model == Some(model);
        let given_up = [("model", &models.model.value), ("multimodal_model", &models.multimodal_model.value)];
        let given_up = given_up.into_iter().filter(|(_, model)| gone(model)).map(|(id, _)| id);
        let others: Vec<&str> = OF_A_ROUND.into_iter().chain(given_up).collect();
        NextCommand::new("zbatch run --missing")
            .operand(output)
            .path("-o", Some(&of_next_round(output)))
            .path("-d", Some(&shell::path_with(work.path(), "-round2")))
            .paths("--skip", self.args.rows.skip.iter().chain(&faults))
            .path("--faults", faults.as_deref().map(of_next_round).as_deref())
            .path("--report", report.as_deref().map(of_next_round).as_deref())
            .typed("run", &self.args.typed, &others)
            .flag("--model", gone(&models.model.value).then_some(ANOTHER_MODEL))
            .flag("--multimodal-model", gone(&models.multimodal_model.value).then_some(ANOTHER_MODEL))
            .into_text()
    }
}

/// All chunks that are not fetched are held.
fn waits_for_the_user(state: &State) -> bool {
    let mut rest = state.jobs.iter().filter(|job| job.step() < Step::Fetched).peekable();
    rest.peek().is_some() && rest.all(Job::is_held)
}

/// The same command brings more. Also a chunk that was fetched a moment before a deadline, and read by nobody.
fn remains(state: &State, tally: &Tally) -> bool {
    state.below(Step::Fetched) > 0 || tally.pending() > 0
}

/// The flags of `run` that the next round does not repeat as they were typed. It has a directory and files of its own (`work_dir`
/// to `report`), adds the faults of this round to `skip`, is a round by `missing`, has nothing to move away (`new`) or to go on
/// with (`resume`), and must not strike the same lines in the emulator again (`fault`).
pub const OF_A_ROUND: [&str; 11] =
    ["work_dir", "moved", "output", "force", "faults", "report", "skip", "missing", "new", "resume", "fault"];

/// The user knows which.
const ANOTHER_MODEL: &str = "ANOTHER_MODEL";

/// `out/enhanced.json.gz` → `out/enhanced.round2.json.gz`.
fn of_next_round(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let dot = memchr::memchr(b'.', name.get(1..).unwrap_or_default()).map_or(name.len(), |at| at + 1);
    let (stem, ending) = name.split_at(dot);
    path.with_file_name(OsStr::from_bytes(&[stem, b".round2".as_slice(), ending].concat()))
}

/// What became of the batches, without anything that differs from run to run.
fn batches(jobs: &[Job], config: Option<&Config>) -> serde_json::Value {
    let mut by_status = std::collections::BTreeMap::<&str, u64>::new();
    for job in jobs {
        let status = job.end().map_or("unfinished", |end| end.status.as_str());
        *by_status.entry(status).or_default() += 1;
    }
    let rows = totals(jobs);
    let upstream = config.and_then(|config| config.upstream.as_deref());
    let mut told = json!({
        "chunks": jobs.len(), "by_status": by_status,
        "requests": sum(jobs.iter().map(|job| job.chunk.lines)),
        "results": rows.output, "errors": rows.error, "absent": rows.absent, "foreign": rows.foreign,
        "unreadable": rows.bad,
        "emulated": upstream.is_none() && config.is_some_and(|config| config.emulate),
    });
    if let (Some(upstream), Some(told)) = (upstream, told.as_object_mut()) {
        told.insert("upstream".to_owned(), upstream.into());
    }
    told
}
