//! Post × analysis → request line. The prompt's constant parts were escaped once, at start; the post's own JSON
//! strings are spliced between them as they stand, so no text of a post can leave its string. A request is the places of
//! its parts: how long it is can be told without writing it, and it is written straight to where it goes.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CustomId, Fault, FaultKind, FaultLine, PostIndex,
    columns::is_empty,
    images::{Image, ImageFinder, Images},
    posts::Post,
};
use crate::{
    analysis::{Analysis, AnalysisSet, Piece, Slot, Template},
    cli::ImageUrls,
    error::{Error, Result},
    json::{Object, decode_unicode_escapes, ends_a_line, escape_json, on_one_line},
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
    },
};

/// Which rows are asked for, and which images they show.
#[derive(Debug, Default)]
pub struct Rows {
    /// Only fields that are absent or null.
    pub missing: bool,
    /// What became of rows in the rounds before.
    pub skip: Skip,
    pub image_urls: ImageUrls,
}

/// Rows of the faults files that `--skip` names, each a sorted list of (index, place of the analysis in the set).
#[derive(Debug, Default)]
pub struct Skip {
    /// These are left out: asking again would give the same fault.
    pub rows: Vec<(u64, usize)>,
    /// The provider refused these for an image: they are asked again without images.
    pub images: Vec<(u64, usize)>,
}

impl Skip {
    fn has(rows: &[(u64, usize)], index: PostIndex, at: usize) -> bool {
        rows.binary_search(&(index.0, at)).is_ok()
    }
}

impl Rows {
    pub fn wants(&self, post: &Post<'_>, at: usize, analysis: &Analysis) -> bool {
        let has_it = self.missing && post.has_value(analysis.field_slot);
        !has_it && !self.skips(post.index, at)
    }

    pub fn skips(&self, index: PostIndex, at: usize) -> bool {
        Skip::has(&self.skip.rows, index, at)
    }

    fn shows_images(&self, index: PostIndex, at: usize) -> bool {
        !Skip::has(&self.skip.images, index, at)
    }
}

/// The constant parts of an analysis' request lines.
#[derive(Debug)]
struct Frame {
    /// Up to and with `"custom_id":"NAME_`.
    id: String,
    /// What follows the index, for the text model and for the multimodal one.
    text: Line,
    vision: Line,
}

#[derive(Debug)]
struct Line {
    /// Each constant is followed by a text of the post, the last one by the images.
    pieces: Vec<Piece>,
    /// After the images.
    close: String,
    /// Bytes of all constants.
    bytes: u64,
}

impl Line {
    fn new(open: &str, template: &Template, end: &str, close: String) -> Self {
        let mut pieces = template.pieces.clone();
        if let Some(first) = pieces.first_mut() {
            first.constant.insert_str(0, open);
        }
        if let Some(last) = pieces.last_mut() {
            last.constant.push_str(end);
        }
        let bytes = pieces.iter().map(|piece| piece.constant.len()).sum::<usize>() + close.len();
        Self { pieces, close, bytes: bytes as u64 }
    }
}

/// One request line, ready to be written.
#[derive(Debug)]
pub struct Request<'a> {
    pub index: PostIndex,
    /// Place in the set.
    pub analysis: usize,
    /// Goes to the multimodal model, and that is another one.
    pub vision: bool,
    /// Bytes of the line, line feed included.
    pub bytes: u64,
    id: &'a str,
    line: &'a Line,
    post: Post<'a>,
    texts: &'a Texts,
    images: &'a [Image],
}

const IMAGE_OPEN: &str = r#",{"type":"image_url","image_url":{"url":""#;
const IMAGE_CLOSE: &str = r#""}}"#;

impl Request<'_> {
    pub fn write_to(&self, out: &mut (impl Write + ?Sized)) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("write", "the request", &e);
        out.write_all(self.id.as_bytes()).map_err(failed)?;
        out.write_all(self.texts.index.as_bytes()).map_err(failed)?;
        for piece in &self.line.pieces {
            out.write_all(piece.constant.as_bytes()).map_err(failed)?;
            if let Some(slot) = piece.slot {
                out.write_all(self.texts.get(&self.post, slot).as_bytes()).map_err(failed)?;
            }
        }
        for image in self.images {
            out.write_all(IMAGE_OPEN.as_bytes()).map_err(failed)?;
            image.write_to(out)?;
            out.write_all(IMAGE_CLOSE.as_bytes()).map_err(failed)?;
        }
        out.write_all(self.line.close.as_bytes()).map_err(failed)
    }
}

/// What rendering saw that is no fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderTally {
    pub requests: u64,
    /// Lone surrogates that became U+FFFD.
    pub surrogates: u64,
    /// Images beyond the most that a request may hold.
    pub images_dropped: u64,
    /// Image URLs that `--image-urls` does not pass on.
    pub urls_withheld: u64,
    /// Rows left out by `--skip`.
    pub skipped: u64,
    /// Rows with images that `--skip` names, asked without them.
    pub without_images: u64,
}

/// The models that requests name, and the temperature of an analysis that has none of its own.
#[derive(Clone, Copy, Debug)]
pub struct RequestModels<'m> {
    /// For requests without images.
    pub text: &'m str,
    /// For requests with images.
    pub vision: &'m str,
    pub temperature: &'m serde_json::Number,
}

/// Makes the requests of one post after another, and uses its buffers again.
#[derive(Debug)]
pub struct Requests {
    set: Arc<AnalysisSet>,
    frames: Vec<Frame>,
    finder: ImageFinder,
    rows: Arc<Rows>,
    max_bytes: u64,
    /// The multimodal model is another one, so that its requests need files of their own.
    two_models: bool,
    /// Of the current post: its texts, its images (`None`: no analysis has asked for them), and what comes of it.
    texts: Texts,
    images: Option<Images>,
    prepared: Vec<Prepared>,
    pub tally: RenderTally,
}

/// A request whose length is known, or the fault in its place.
#[derive(Debug)]
enum Prepared {
    Request { analysis: usize, with_images: bool, bytes: u64 },
    Fault(Box<FaultLine>),
}

impl Requests {
    /// `url` is the provider's line url; a line of more than `max_bytes` is a `too_large` fault.
    pub fn new(
        set: Arc<AnalysisSet>,
        models: RequestModels<'_>,
        url: &str,
        data_dir: Option<&Path>,
        rows: Arc<Rows>,
        max_bytes: u64,
    ) -> Result<Self> {
        let RequestModels { text, vision, temperature } = models;
        let frames = set.list.iter().map(|analysis| Frame::new(analysis, text, vision, url, temperature)).collect();
        Ok(Self {
            set,
            frames,
            finder: ImageFinder::new(data_dir, rows.image_urls)?,
            rows,
            max_bytes,
            two_models: text != vision,
            texts: Texts::default(),
            images: None,
            prepared: Vec::new(),
            tally: RenderTally::default(),
        })
    }

    /// Every wanted request of a post, in the order of the analyses, and the faults among them. A place of the input that is
    /// no post gives its own fault.
    pub fn of<'a>(
        &'a mut self,
        post: &'a std::result::Result<Post<'_>, FaultLine>,
    ) -> impl Iterator<Item = std::result::Result<Request<'a>, FaultLine>> {
        self.prepared.clear();
        self.images = None;
        match post {
            Ok(post) => {
                self.texts.begin(post.index);
                (0..self.frames.len()).for_each(|at| self.prepare(post, at));
            }
            Err(fault) => self.prepared.push(Prepared::Fault(Box::new(fault.clone()))),
        }
        let Self { frames, texts, images, two_models, prepared, .. } = self;
        let (frames, texts, two_models) = (&*frames, &*texts, *two_models);
        let images = images.as_ref().map_or(&[][..], |images| &images.found);
        prepared.drain(..).filter_map(move |prepared| match (prepared, post) {
            (Prepared::Fault(fault), _) => Some(Err(*fault)),
            (Prepared::Request { analysis, with_images, bytes }, Ok(post)) => {
                let frame = frames.get(analysis)?;
                Some(Ok(Request {
                    index: post.index,
                    analysis,
                    vision: two_models && with_images,
                    bytes,
                    id: &frame.id,
                    line: if with_images { &frame.vision } else { &frame.text },
                    post: *post,
                    texts,
                    images: if with_images { images } else { &[] },
                }))
            }
            (Prepared::Request { .. }, Err(_)) => None,
        })
    }

    /// Prepares what comes of a post under one analysis, if anything does.
    fn prepare(&mut self, post: &Post<'_>, at: usize) {
        let Some((analysis, frame)) = self.set.list.get(at).zip(self.frames.get(at)) else { return };
        if !self.rows.wants(post, at, analysis) {
            self.tally.skipped += u64::from(self.rows.skips(post.index, at));
            return;
        }
        let fault = |fault: Fault| {
            let (index, analysis) = (Some(post.index.0), Some(analysis.name.clone()));
            Prepared::Fault(Box::new(FaultLine { index, analysis, ..FaultLine::new(fault) }))
        };
        if let Some(missing) = missing_text(post, analysis, &self.set) {
            self.prepared.push(fault(missing));
            return;
        }
        let shows_images = self.rows.shows_images(post.index, at);
        self.tally.without_images += u64::from(!shows_images);
        let images: &[Image] = match self.set.image_slot.filter(|_| analysis.images && shows_images) {
            None => &[],
            Some(slot) => {
                let find = || find_images(&self.finder, post, slot, &mut self.prepared, &mut self.tally);
                &self.images.get_or_insert_with(find).found
            }
        };
        let line = if images.is_empty() { &frame.text } else { &frame.vision };
        let mut bytes = line.bytes + (frame.id.len() + self.texts.index.len()) as u64;
        for slot in line.pieces.iter().filter_map(|piece| piece.slot) {
            self.texts.look_at(post, slot, &mut self.tally.surrogates);
            bytes += self.texts.get(post, slot).len() as u64;
        }
        let around = (IMAGE_OPEN.len() + IMAGE_CLOSE.len()) as u64;
        bytes += images.iter().map(|image| image.bytes() + around).sum::<u64>();
        self.prepared.push(if bytes > self.max_bytes {
            let detail = format!("its request has {bytes} bytes; a file may hold {}", self.max_bytes);
            fault(Fault::new(FaultKind::TooLarge, detail))
        } else {
            self.tally.requests += 1;
            Prepared::Request { analysis: at, with_images: !images.is_empty(), bytes }
        });
    }
}

/// The images of a post. The faults of others of them belong to the post, not to an analysis.
fn find_images(
    finder: &ImageFinder,
    post: &Post<'_>,
    slot: Slot,
    prepared: &mut Vec<Prepared>,
    tally: &mut RenderTally,
) -> Images {
    let mut images = post.raw(slot).map_or_else(Images::default, |raw| finder.find(raw));
    prepared.extend(images.faults.drain(..).map(|fault| {
        let index = Some(post.index.0);
        Prepared::Fault(Box::new(FaultLine { index, ..FaultLine::new(fault) }))
    }));
    tally.images_dropped += images.dropped;
    tally.urls_withheld += images.withheld;
    images
}

/// What the analysis needs and the post does not have.
fn missing_text(post: &Post<'_>, analysis: &Analysis, set: &AnalysisSet) -> Option<Fault> {
    let bad = |detail: String| Some(Fault::new(FaultKind::BadPost, detail));
    if let Some(requires) = &analysis.requires {
        return requires.iter().find_map(|(name, slot)| {
            let what = match post.raw(*slot) {
                Some("\"\"") => "empty",
                Some(raw) if raw.starts_with('"') => return None,
                Some("null") => "null",
                Some(_) => "not a string",
                None => "absent",
            };
            bad(format!("`{name}` is {what}"))
        });
    }
    let placed = || analysis.template.pieces.iter().filter_map(|piece| piece.slot);
    let mut asked = placed().chain(set.image_slot.filter(|_| analysis.images));
    if asked.any(|slot| post.raw(slot).is_some_and(|raw| !is_empty(raw))) {
        return None;
    }
    let names: BTreeSet<String> = placed().map(|slot| format!("`{}`", set.fields.name(slot))).collect();
    let names = Vec::from_iter(names).join(", ");
    bad(format!("nothing to ask about: of what its prompt places ({names}) all is empty or absent"))
}

impl Frame {
    fn new(analysis: &Analysis, model: &str, vision: &str, url: &str, temperature: &serde_json::Number) -> Self {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let open = |model: &str| {
            format!(
                r#"","method":"POST","url":{},"body":{{"model":{},"messages":[{{"role":"user","content":"#,
                quote(url),
                quote(model)
            )
        };
        let temperature = analysis.temperature.as_ref().unwrap_or(temperature);
        let mut close = format!(r#"}}],"temperature":{temperature}"#);
        if let Some(max_tokens) = analysis.max_tokens {
            close += &format!(r#","max_tokens":{max_tokens}"#);
        }
        close += "}}\n";
        let probe = CustomId { analysis: &analysis.name, index: PostIndex(0) }.to_string();
        let name = probe.strip_suffix("0000").unwrap_or(&probe);
        Self {
            id: format!(r#"{{"custom_id":"{name}"#),
            text: Line::new(&(open(model) + "\""), &analysis.template, "\"", close.clone()),
            // The text part ends before the images.
            vision: Line::new(
                &(open(vision) + r#"[{"type":"text","text":""#),
                &analysis.template,
                r#""}"#,
                format!("]{close}"),
            ),
        }
    }
}

/// The current post's index and texts as they go into a request. Several analyses use a text: each is looked at once.
#[derive(Debug, Default)]
struct Texts {
    /// `{index:04}`.
    index: String,
    /// With a text of its own where the post's cannot go as it is written.
    known: Vec<(Slot, Option<String>)>,
}

impl Texts {
    fn begin(&mut self, index: PostIndex) {
        self.known.clear();
        self.index.clear();
        // Writing to a String cannot fail.
        let _infallible = write!(self.index, "{:04}", index.0);
    }

    fn look_at(&mut self, post: &Post<'_>, slot: Slot, surrogates: &mut u64) {
        if self.known.iter().any(|(known, _)| *known == slot) {
            return;
        }
        let written = written(post, slot);
        let changed = match post.raw(slot) {
            Some(raw) if raw.starts_with('"') => {
                (!goes_as_it_is(written.as_bytes())).then(|| on_one_line(&decode_unicode_escapes(written, surrogates)))
            }
            Some(raw) if raw.starts_with(['{', '[']) => Some(escape_json(raw)),
            _ => None,
        };
        self.known.push((slot, changed));
    }

    /// A text that was looked at.
    fn get<'a>(&'a self, post: &Post<'a>, slot: Slot) -> &'a str {
        let changed = self.known.iter().find(|(known, _)| *known == slot).and_then(|(_, changed)| changed.as_deref());
        changed.unwrap_or_else(|| written(post, slot))
    }
}

/// A field's value without its quotes; nothing, if it is null or not there.
fn written<'a>(post: &Post<'a>, slot: Slot) -> &'a str {
    match post.raw(slot) {
        None | Some("null") => "",
        Some(raw) => raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(raw),
    }
}

/// Without `\u` escapes, and without what some readers take for the end of a line.
fn goes_as_it_is(text: &[u8]) -> bool {
    memchr::memchr3_iter(b'\\', 0xc2, 0xe2, text).all(|at| {
        let here = text.get(at..).unwrap_or_default();
        !(here.starts_with(b"\\u") || ends_a_line(here))
    })
}

/// What faults files say of rows, for `--skip`.
///
/// # Errors
/// A line that is no fault line, or more rows than fit into [`MAX_SKIPPED`].
pub fn read_skip(paths: &[PathBuf], set: &AnalysisSet) -> Result<Skip> {
    let (mut rows, mut images) = (HashSet::new(), HashSet::new());
    for path in paths {
        let input = Input::open(Some(path), "--skip faults.jsonl")?;
        let mut reader = LineReader::new(input, Shape::Lines, 64 << 20, 0);
        let mut block = Block::default();
        while reader.fill(&mut block)? {
            for line in block.lines() {
                let Object(fault): Object<FaultLine> = serde_json::from_slice(line.bytes).map_err(|e| {
                    Error::input(format!("{}, line {}: not a line of a faults file: {e}", path.display(), line.number))
                        .fix("name a file that --faults wrote")
                })?;
                let at = fault.analysis.as_deref().map(|name| set.find(name));
                match (fault.index, at) {
                    (Some(index), None) if fault.kind.is_final() => {
                        rows.extend((0..set.list.len()).map(|at| (index, at)));
                    }
                    (Some(index), Some(Some(at))) if fault.kind.is_final() => rows.extend([(index, at)]),
                    // Without an analysis it is an image of the post that we could not find: it may be there by now.
                    (Some(index), Some(Some(at))) if fault.kind == FaultKind::Image => images.extend([(index, at)]),
                    _ => {}
                }
                if rows.len() + images.len() > MAX_SKIPPED {
                    return Err(Error::input(format!("{}: more than {MAX_SKIPPED} rows for --skip", path.display()))
                        .fix("split the input, or leave those posts out of it"));
                }
            }
        }
    }
    let sorted = |rows: HashSet<(u64, usize)>| {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable();
        rows
    };
    Ok(Skip { rows: sorted(rows), images: sorted(images) })
}

/// Rows that `--skip` may name: 64 MB of memory.
const MAX_SKIPPED: usize = 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{analysis::Sources, flow::posts::PostParser};

    fn models(temperature: &serde_json::Number) -> RequestModels<'_> {
        RequestModels { text: "m", vision: "v", temperature }
    }

    fn temperature() -> serde_json::Number {
        serde_json::Number::from_f64(0.7).expect("finite")
    }

    fn requests(set: &Arc<AnalysisSet>, max_bytes: u64) -> Requests {
        let url = "/v4/chat/completions";
        Requests::new(Arc::clone(set), models(&temperature()), url, None, Arc::default(), max_bytes).expect("ready")
    }

    /// The request lines and faults of one post under the built-in analyses named.
    fn render(post: &str, only: &[&str], max_bytes: u64) -> (Vec<serde_json::Value>, Vec<FaultLine>, RenderTally) {
        let only = only.iter().map(|name| (*name).to_owned()).collect();
        let set = Arc::new(AnalysisSet::load(&Sources { only, ..Default::default() }).expect("a set"));
        let mut requests = requests(&set, max_bytes);
        let mut parser = PostParser::default();
        let post = Ok(parser.parse(&set.fields, PostIndex(7), post.as_bytes()).expect("a post"));
        let (mut lines, mut faults) = (Vec::new(), Vec::new());
        for request in requests.of(&post) {
            match request {
                Ok(request) => {
                    let mut line = Vec::new();
                    request.write_to(&mut line).expect("written");
                    assert_eq!(line.len() as u64, request.bytes);
                    assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
                    lines.push(serde_json::from_slice(&line).expect("a JSON line"));
                }
                Err(fault) => faults.push(fault),
            }
        }
        (lines, faults, requests.tally)
    }

    fn prompt(line: &serde_json::Value) -> &str {
        let content = &line["body"]["messages"][0]["content"];
        content.as_str().or_else(|| content[0]["text"].as_str()).expect("a prompt")
    }

    #[test]
    fn a_request_line_has_the_shape_of_the_contract() {
        let (lines, faults, _) = render(r#"{"content":"好"}"#, &["sentiment_polarity"], 1 << 20);
        assert_eq!(faults, []);
        let mut line = lines[0].clone();
        assert!(prompt(&line).contains("\n好\n"));
        line["body"]["messages"][0]["content"] = "…".into();
        assert_eq!(
            line.to_string(),
            serde_json::json!({"custom_id":"sentiment_polarity_0007","method":"POST","url":"/v4/chat/completions",
                "body":{"model":"m","messages":[{"role":"user","content":"…"}],"temperature":0.7}})
            .to_string()
        );
    }

    #[test]
    fn p2_post_text_is_spliced_verbatim_and_cannot_break_out() {
        let hostile = "a\"b\\c\n{{labels}} {% if %} $1 \u{2028} \"}],\"model\":\"x\" \u{1F600} \u{0}";
        let post = serde_json::json!({ "content": hostile }).to_string();
        for line in render(&post, &[], 1 << 20).0 {
            assert!(prompt(&line).contains(hostile), "{}", prompt(&line));
        }
    }

    #[test]
    fn other_values_render_as_written() {
        let post = r#"{"content":"x","username":1e5,"location":null,"publish_time":{"y": "2026"}}"#;
        let (lines, ..) = render(post, &["publisher_decision"], 1 << 20);
        assert!(prompt(&lines[0]).contains("<用户名>1e5</用户名>"), "{}", prompt(&lines[0]));
        assert!(prompt(&lines[0]).contains(r#"<发布时间>{"y": "2026"}</发布时间>"#));
        assert!(prompt(&lines[0]).contains("<所在地></所在地>"));
    }

    #[test]
    fn a_post_without_its_text_is_a_fault_for_each_analysis() {
        for (post, what) in [("{}", "absent"), (r#"{"content":null}"#, "null"), (r#"{"content":5}"#, "not a string")] {
            let (lines, faults, _) = render(post, &[], 1 << 20);
            assert_eq!((lines.len(), faults.len()), (0, 6));
            assert_eq!(faults[0].detail, format!("`content` is {what}"));
        }
    }

    #[test]
    fn too_large_at_the_limit_and_around_it() {
        let post = r#"{"content":"好"}"#;
        let bytes = {
            let set = Arc::new(AnalysisSet::load(&Sources::default()).expect("a set"));
            let mut requests = requests(&set, 1 << 20);
            let mut parser = PostParser::default();
            let post = Ok(parser.parse(&set.fields, PostIndex(7), post.as_bytes()).expect("a post"));
            let second = requests.of(&post).flatten().find(|request| request.analysis == 1);
            second.expect("a request").bytes
        };
        for (limit, fits) in [(bytes - 1, false), (bytes, true), (bytes + 1, true)] {
            let (lines, faults, _) = render(post, &["sentiment_attribute"], limit);
            assert_eq!((lines.len() == 1, faults.is_empty()), (fits, fits), "{limit}");
        }
    }

    #[test]
    fn images_go_to_the_multimodal_model_and_bad_ones_do_not_stop_the_post() {
        let post = r#"{"content":"x","image_urls":["https://x/1.jpg?a=\"","nosuch.png"]}"#;
        let (lines, faults, _) = render(post, &[], 1 << 20);
        assert_eq!(lines.len(), 6);
        assert_eq!((faults.len(), faults[0].kind), (1, FaultKind::Image));
        let models: Vec<&str> = lines.iter().map(|l| l["body"]["model"].as_str().expect("a model")).collect();
        assert_eq!(models, ["v", "m", "v", "m", "m", "m"]);
        let content = &lines[0]["body"]["messages"][0]["content"];
        assert_eq!(content[1]["image_url"]["url"], "https://x/1.jpg?a=\"");
        let (lines, ..) = render(r#"{"content":"x","image_urls":["nosuch.png"]}"#, &["topic_analysis"], 1 << 20);
        assert_eq!(lines[0]["body"]["model"], "m", "asked about with what is left");
    }
}
