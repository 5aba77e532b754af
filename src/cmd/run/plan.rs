//! The passes over the posts before anything is paid. One checks that a resumed run has the same posts; one counts the chunks and
//! requests that they will take.

use std::sync::Arc;

use crate::{
    cmd::{cutting::Groups, remote::announce, request_settings::RequestSettings, source::PostsFile},
    console::Console,
    error::Result,
    flow::{chunks::Cutter, columns::Columns, posts::Posts, requests::Request},
    jobs::{JobSettings, check_caps},
    journal::{Journal, Step},
    workdir::claim::input_check,
};

pub fn open(posts: &PostsFile, settings: &RequestSettings) -> Result<Posts> {
    settings.posts(Some(&posts.path), Some(&posts.name))
}

/// On resume: checks that the input still begins with the posts that the chunks were cut from.
pub fn check_input(posts: &PostsFile, settings: &RequestSettings, journal: &Journal) -> Result<()> {
    let check = journal.read(|state| (state.below(Step::Fetched) > 0).then(|| input_check(state)))?;
    let Some(mut check) = check else { return Ok(()) };
    let mut posts = open(posts, settings)?;
    while !check.is_done() {
        let Some(place) = posts.next()? else { return check.finish() };
        check.add(place.bytes)?;
    }
    Ok(())
}

/// Before the first create: counts what the whole input will take, says it, and holds it against the caps. A broken input
/// is found here, before it costs anything.
pub fn plan(
    posts: &PostsFile,
    settings: &RequestSettings,
    journal: &Journal,
    job_settings: &JobSettings,
    console: &Console,
) -> Result<Option<u64>> {
    let (spent, known) =
        journal.read(|state| (state.spent().0, state.posts.as_ref().map(|_| state.jobs.len() as u64)))?;
    if spent > 0 {
        return Ok(known);
    }
    let name = &posts.name;
    let mut posts = open(posts, settings)?;
    let mut requests = settings.requests()?;
    let mut columns = Columns::new(Arc::clone(&settings.set));
    let mut planned = Planned::new(settings);
    while let Some(place) = posts.next()? {
        columns.note(&place);
        for request in requests.of(&place.post) {
            match request {
                Ok(request) => planned.add(&request)?,
                Err(fault) => settings.stop_at(&fault)?,
            }
        }
    }
    posts.counts().check_number(settings.expected, name)?;
    posts.counts().check(name, console)?;
    if let Some(note) = columns.judge(name)? {
        console.note(note);
    }
    let Planned { chunks, requests, bytes, .. } = planned.end()?;
    announce(console, chunks, requests, bytes, job_settings);
    match check_caps(job_settings, chunks, requests) {
        Some(error) => Err(error),
        None => Ok(Some(chunks)),
    }
}

/// What the requests will take, by the same decision as when they are cut.
struct Planned {
    cutter: Cutter,
    groups: Groups,
    chunks: u64,
    requests: u64,
    bytes: u64,
}

impl Planned {
    fn new(settings: &RequestSettings) -> Self {
        let mut cutter = Cutter::new(settings.limits, []);
        let groups = Groups::new(settings, |analysis, vision, model| cutter.group(analysis, vision, model));
        Self { cutter, groups, chunks: 0, requests: 0, bytes: 0 }
    }

    fn add(&mut self, request: &Request<'_>) -> Result<()> {
        let Some(group) = self.groups.of(request) else { return Ok(()) };
        while self.cutter.make_room(group, request.index.0, request.bytes)?.is_some() {
            self.chunks += 1;
        }
        self.cutter.add(group, request.index.0, request.bytes);
        self.chunks += u64::from(self.cutter.take_full(group)?.is_some());
        self.requests += 1;
        self.bytes += request.bytes;
        Ok(())
    }

    fn end(mut self) -> Result<Self> {
        while self.cutter.take_rest()?.is_some() {
            self.chunks += 1;
        }
        Ok(self)
    }
}
