//! Blocks of whole lines: what every stage reads. A line never travels alone; blocks do.
//!
//! A reader cuts its input at line feeds, or at the elements of one JSON array, and gives each line its place:
//! index, line number, byte offset. Lines of white space only take no index, and a byte order mark at the start of a line
//! is no part of it (joined files have one in the middle). A line over the limit is handed on as its first bytes and
//! skipped in constant memory. Posts inside one JSON object are refused, with the command that takes them out.

use std::{
    io::{self, Read},
    path::Path,
};

use serde::de::IgnoredAny;

use super::{
    array::{ArraySplitter, HEAD_BYTES, Position},
    flaw::Flaw,
    form::{Form, LOOK_BYTES, Wrapping},
    input::{Input, read_error, unpacker},
};
use crate::{
    error::{Error, Result},
    shell,
};

/// A block is handed on when it holds this many bytes; one longer line may make it larger.
pub const BLOCK_BYTES: usize = 1 << 20;
/// One read from the input.
const READ_BYTES: usize = 256 << 10;
/// A byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Lines, with their places, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    index: u64,
    number: u64,
    offset: u64,
    too_long: bool,
    has_no_end: bool,
}

/// One line, without its line break.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub bytes: &'a [u8],
    /// Place among the lines that count, from `start_index`.
    pub index: u64,
    /// Line number in the input, from 1.
    pub number: u64,
    /// Bytes from the start of the decompressed input.
    pub offset: u64,
    /// Over the limit: `bytes` is only its beginning.
    pub too_long: bool,
    /// The input ends in this line, without a line feed.
    pub has_no_end: bool,
}

impl Line<'_> {
    /// Refuses a line of JSON that the input ends in the middle of: whoever writes the file is not done, and what is made of
    /// the beginning would be paid for as if it were all.
    pub fn check_end(&self, name: &str) -> Result<()> {
        if !self.has_no_end || self.too_long || !is_cut_off(self.bytes) {
            return Ok(());
        }
        let Self { number, offset, .. } = self;
        let what = format!("{name}: the last line ends in the middle (line {number}, byte {offset})");
        let path = Path::new(name);
        let end = if path.is_file() { format!(" (`echo >> {}`)", shell::path(path)) } else { String::new() };
        Err(Error::input(what).fix(format!(
            "is the file still being written, or was its copy cut off? Run the same command when it is whole. \
             If there is no more of it, end the line with a line feed{end}: then it is one line that cannot be read"
        )))
    }
}

/// The beginning of a JSON object, without its end.
fn is_cut_off(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    if !line.starts_with(b"{") {
        return false;
    }
    // In the middle of a character.
    if let Err(error) = std::str::from_utf8(line) {
        return error.error_len().is_none();
    }
    serde_json::from_slice::<IgnoredAny>(line).is_err_and(|error| {
        // A number without its digits is not called an end.
        error.is_eof() || error.column() >= line.len() && error.to_string().starts_with("invalid number")
    })
}

impl Block {
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.spans.iter().map(|span| self.line_of(span))
    }

    /// The line at this place of the block, from 0.
    pub fn line(&self, at: usize) -> Option<Line<'_>> {
        self.spans.get(at).map(|span| self.line_of(span))
    }

    /// Lines in the block.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    fn line_of(&self, span: &Span) -> Line<'_> {
        Line {
            bytes: self.bytes.get(span.start..span.end).unwrap_or_default(),
            index: span.index,
            number: span.number,
            offset: span.offset,
            too_long: span.too_long,
            has_no_end: span.has_no_end,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    fn clear(&mut self) {
        self.spans.clear();
        self.bytes.clear();
        // After one very long line the buffer goes back to its usual size.
        if self.bytes.capacity() > 4 * BLOCK_BYTES {
            self.bytes.shrink_to(2 * BLOCK_BYTES);
        }
    }
}

/// What the input may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// JSON Lines that we wrote: nothing is passed over but white space.
    Own,
    /// JSON Lines.
    Lines,
    /// JSON Lines or one JSON array, told by the first byte.
    LinesOrArray,
}

enum Mode {
    Unknown,
    Lines,
    Array(ArraySplitter),
}

/// Cuts an input into blocks of lines.
pub struct LineReader {
    input: Input,
    shape: Shape,
    mode: Mode,
    max_line: usize,
    /// Bytes read and not yet handed on; at most one line and one read.
    pending: Vec<u8>,
    /// Offset of the first pending byte.
    offset: u64,
    /// Number of the line that the first pending byte is in.
    number: u64,
    first_index: u64,
    next_index: u64,
    at_end: bool,
    /// What messages call the input, if it is not read under its own name.
    name: Option<String>,
    /// The fields that a post has, for telling a post from what holds posts.
    fields: Vec<String>,
    /// The object that the input begins with.
    form: Option<Form>,
}

impl std::fmt::Debug for LineReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineReader").field("input", &self.input).field("next_index", &self.next_index).finish()
    }
}

impl LineReader {
    pub fn new(input: Input, shape: Shape, max_line: u64, start_index: u64) -> Self {
        Self {
            input,
            shape,
            mode: Mode::Unknown,
            max_line: usize::try_from(max_line).unwrap_or(usize::MAX),
            pending: Vec::new(),
            offset: 0,
            number: 1,
            first_index: start_index,
            next_index: start_index,
            at_end: false,
            name: None,
            fields: Vec::new(),
            form: None,
        }
    }

    /// What messages call the input instead of its own name; the fields that a post has.
    #[must_use]
    pub fn of_posts(self, name: Option<&str>, fields: Vec<String>) -> Self {
        Self { name: name.map(str::to_owned), fields, ..self }
    }

    pub fn name(&self) -> &str {
        self.name.as_ref().unwrap_or(&self.input.name)
    }

    /// The input is one JSON array: an element that is not JSON cannot be skipped.
    pub fn is_array(&self) -> bool {
        matches!(self.mode, Mode::Array(_))
    }

    /// The next lines; `false` at the end of the input. A block may hold no line.
    pub fn fill(&mut self, block: &mut Block) -> Result<bool> {
        block.clear();
        if matches!(self.mode, Mode::Unknown) && !self.find_mode()? {
            // The first line is too long to see how it begins: if it is blank, the next one is the first.
            self.skip_long_line(block)?;
            if !block.is_empty() {
                self.mode = Mode::Lines;
            }
            return Ok(true);
        }
        match self.mode {
            Mode::Array(_) => self.fill_from_array(block),
            Mode::Unknown | Mode::Lines => {
                let is_more = self.fill_lines(block)?;
                self.refuse_one_object(block)?;
                Ok(is_more)
            }
        }
    }

    fn read_more(&mut self) -> Result<usize> {
        let have = self.pending.len();
        self.pending.resize(have + READ_BYTES, 0);
        let read = loop {
            match self.input.reader.read(self.pending.get_mut(have..).unwrap_or_default()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.pending.truncate(have + *read.as_ref().unwrap_or(&0));
        self.at_end = matches!(read, Ok(0));
        read.map_err(|e| read_error(&self.input.name, &e))
    }

    /// Looks at the first bytes: `[` means an array. `false`: a line of white space does not end within the limit.
    fn find_mode(&mut self) -> Result<bool> {
        if self.shape != Shape::LinesOrArray {
            self.mode = Mode::Lines;
            return Ok(true);
        }
        // Blank lines before the first byte are passed over, so that they cannot grow; what stands before it on its own line
        // stays, and how the bytes came decides nothing.
        let mut looked = 0;
        loop {
            if looked == 0 {
                self.skip_marks()?;
            }
            let unseen = self.pending.get(looked..).unwrap_or_default();
            let blank = unseen.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(unseen.len());
            let blank = unseen.get(..blank).unwrap_or_default();
            let lines = memchr::memrchr(b'\n', blank).map_or(0, |feed| looked + feed + 1);
            self.number += memchr::memchr_iter(b'\n', blank).count() as u64;
            looked = looked + blank.len() - lines;
            self.consume(lines);
            if lines > 0 && looked == 0 {
                // A mark may stand at the start of this line too.
                continue;
            }
            if looked > self.max_line {
                return Ok(false);
            }
            let first = self.pending.get(looked).copied();
            if first.is_some() || self.at_end || self.read_more()? == 0 {
                self.mode = match first {
                    Some(b'[') => Mode::Array(ArraySplitter::new(self.max_line)),
                    _ => Mode::Lines,
                };
                if first == Some(b'{') {
                    self.look_at_first_object()?;
                }
                return Ok(true);
            }
        }
    }

    /// Passes over the byte order marks that the pending bytes, the start of a line, begin with.
    fn skip_marks(&mut self) -> Result<()> {
        while self.shape != Shape::Own {
            while self.pending.len() < BOM.len() && BOM.starts_with(&self.pending) && !self.at_end {
                self.read_more()?;
            }
            match marks(&self.pending) {
                0 => break,
                marks => self.consume(marks),
            }
        }
        Ok(())
    }

    /// Reads on until the pending bytes hold `enough`, or the input ends.
    fn read_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<()> {
        while !self.at_end && self.pending.len() < LOOK_BYTES && !enough(&self.pending) {
            self.read_more()?;
        }
        Ok(())
    }

    /// What the first object is. One that goes on over several lines is refused here; no more is read than its first line
    /// if it ends on that.
    fn look_at_first_object(&mut self) -> Result<()> {
        let feed = |bytes: &[u8]| memchr::memchr(b'\n', bytes.get(..LOOK_BYTES).unwrap_or(bytes));
        self.read_until(|pending| feed(pending).is_some())?;
        let end = feed(&self.pending);
        let (form, error) = Form::read(self.look(end));
        match &error {
            // Of a line that goes on further than is looked at this is the beginning.
            None => self.form = Some(form),
            Some(error) if error.is_eof() && end.is_none() && !self.at_end => self.form = Some(form),
            _ => {}
        }
        if end.is_none() || !error.is_some_and(|error| error.is_eof()) {
            return Ok(());
        }
        self.read_until(|_| false)?;
        let (form, error) = Form::read(self.look(None));
        // A line that was torn is followed by another one, and no object goes on like that.
        let is_torn = error.as_ref().is_some_and(|error| !error.is_eof() && error.line() <= 2);
        let first = self.look(end);
        if is_torn && (first.trim_ascii() != b"{" || first.len() > self.max_line) {
            return Ok(());
        }
        let flaw = error.filter(|error| !error.is_eof()).map(|error| Flaw::of(self.look(None), &error));
        if let Some(Flaw { what, line, column }) = flaw {
            let line = self.number + line as u64 - 1;
            return Err(Error::input(format!(
                "{}: one JSON object over several lines, and it is not JSON: line {line}, column {column}: {what}",
                self.name()
            ))
            .fix("mend it, and put each post on one line"));
        }
        Err(self.refuse_object_over_lines(&form))
    }

    /// The beginning of the input, up to `end` if that is given.
    fn look(&self, end: Option<usize>) -> &[u8] {
        let end = end.unwrap_or(LOOK_BYTES).min(self.pending.len());
        self.pending.get(..end).unwrap_or_default()
    }

    fn refuse_object_over_lines(&self, form: &Form) -> Error {
        if let Some(wrapping) = form.wrapping(&self.fields).filter(|_| !form.is_post(&self.fields)) {
            return self.refuse_wrapping(&wrapping);
        }
        Error::input(format!("{}: pretty-printed JSON, one object over several lines", self.name()))
            .fix(format!("one post a line; give zbatch what this prints: {}", jq_command(".", self.name())))
    }

    fn refuse_wrapping(&self, wrapping: &Wrapping) -> Error {
        Error::input(format!("{}: {}, not one post a line", self.name(), wrapping.what))
            .fix(format!("give zbatch what this prints: {}", jq_command(&wrapping.jq, self.name())))
    }

    fn consume(&mut self, count: usize) {
        self.pending.drain(..count);
        self.offset += count as u64;
    }

    fn fill_lines(&mut self, block: &mut Block) -> Result<bool> {
        self.skip_marks()?;
        // The pending bytes become the block; what follows its last line feed becomes pending again.
        let mut scanned = 0;
        loop {
            if memchr::memchr(b'\n', self.pending.get(scanned..).unwrap_or_default()).is_some() || self.at_end {
                break;
            }
            scanned = self.pending.len();
            if scanned > self.max_line {
                return self.skip_long_line(block).map(|()| true);
            }
            self.read_more()?;
        }
        std::mem::swap(&mut self.pending, &mut block.bytes);
        self.pending.clear();
        let end = match memchr::memrchr(b'\n', &block.bytes) {
            // Only the last line of an input may lack its line feed.
            _ if self.at_end => block.bytes.len(),
            Some(last) => last + 1,
            None => 0,
        };
        self.pending.extend_from_slice(block.bytes.get(end..).unwrap_or_default());
        block.bytes.truncate(end);
        let base = self.offset;
        let mut start = 0;
        for feed in memchr::memchr_iter(b'\n', &block.bytes).chain((!block.bytes.ends_with(b"\n")).then_some(end)) {
            let line = block.bytes.get(start..feed).unwrap_or_default();
            let is_own = self.shape == Shape::Own;
            let begin = if is_own { start } else { start + marks(line) };
            let line = line.get(begin - start..).unwrap_or_default();
            let too_long = line.len() > self.max_line;
            // NULs at the end pad the file, if it holds anything else.
            let unpadded = if feed == end && !is_own { without_nuls(line) } else { line };
            let is_padding = self.next_index > self.first_index && unpadded.is_empty();
            let line = if too_long || unpadded.is_empty() { line } else { unpadded };
            if !is_padding && !line.iter().all(u8::is_ascii_whitespace) {
                let end = match too_long {
                    true => begin + HEAD_BYTES.min(line.len()),
                    false => begin + line.len() - usize::from(line.ends_with(b"\r")),
                };
                let offset = base + begin as u64;
                let (index, number, has_no_end) = (self.next_index, self.number, feed == block.bytes.len());
                let span = Span { start: begin, end, index, number, offset, too_long, has_no_end };
                block.spans.push(span);
                self.next_index += 1;
            }
            self.number += 1;
            start = feed + 1;
        }
        self.offset = base + end as u64;
        Ok(!(self.at_end && end == 0))
    }

    /// An input that is one line, an object that is no post but holds posts.
    fn refuse_one_object(&mut self, block: &Block) -> Result<()> {
        let Some(form) = self.form.take() else { return Ok(()) };
        let wrapping = form.wrapping(&self.fields).filter(|wrapping| wrapping.is_sure && !form.is_post(&self.fields));
        let Some(wrapping) = wrapping else { return Ok(()) };
        let [only] = block.spans.as_slice() else { return Ok(()) };
        let line = block.bytes.get(only.start..only.end).unwrap_or_default();
        if only.too_long || serde_json::from_slice::<IgnoredAny>(line).is_ok() {
            let is_blank = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_whitespace);
            self.read_until(|pending| !is_blank(pending))?;
            if self.at_end && is_blank(&self.pending) {
                return Err(self.refuse_wrapping(&wrapping));
            }
        }
        Ok(())
    }

    fn skip_long_line(&mut self, block: &mut Block) -> Result<()> {
        let (index, number, offset) = (self.next_index, self.number, self.offset);
        let (mut blank, mut padding) = (true, self.next_index > self.first_index && self.shape != Shape::Own);
        loop {
            let feed = memchr::memchr(b'\n', &self.pending);
            let piece = self.pending.get(..feed.unwrap_or(self.pending.len())).unwrap_or_default();
            blank = blank && piece.iter().all(u8::is_ascii_whitespace);
            padding = padding && feed.is_none() && piece.iter().all(|byte| *byte == 0 || byte.is_ascii_whitespace());
            let room = HEAD_BYTES - block.bytes.len().min(HEAD_BYTES);
            block.bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
            if let Some(feed) = feed {
                self.consume(feed + 1);
                break;
            }
            self.offset += self.pending.len() as u64;
            self.pending.clear();
            self.pending.shrink_to(2 * READ_BYTES);
            if self.read_more()? == 0 {
                break;
            }
        }
        self.number += 1;
        // White space alone takes no index, however long it is.
        if !blank && !padding {
            let (end, too_long, has_no_end) = (block.bytes.len(), true, false);
            block.spans.push(Span { start: 0, end, index, number, offset, too_long, has_no_end });
            self.next_index += 1;
        }
        Ok(())
    }

    fn fill_from_array(&mut self, block: &mut Block) -> Result<bool> {
        while block.bytes.len() < BLOCK_BYTES {
            let Mode::Array(splitter) = &mut self.mode else { break };
            let mut place = Position { offset: self.offset, number: self.number };
            let mut index = self.next_index;
            let outcome = splitter.feed(&self.pending, &mut place, |element| {
                let start = block.bytes.len();
                block.bytes.extend_from_slice(element.bytes);
                let Position { offset, number } = element.place;
                let too_long = element.too_long;
                let (end, has_no_end) = (block.bytes.len(), false);
                block.spans.push(Span { start, end, index, number, offset, too_long, has_no_end });
                index += 1;
            });
            let done = splitter.is_done();
            (self.next_index, self.offset, self.number) = (index, place.offset, place.number);
            self.pending.clear();
            if let Err(what) = outcome {
                return Err(self.broken_array(&what));
            }
            if self.at_end || self.read_more()? == 0 {
                return if done { Ok(!block.is_empty()) } else { Err(self.broken_array("it ends without `]`")) };
            }
        }
        Ok(true)
    }

    /// A syntax error in an array cannot be skipped: no one can say where the next element begins.
    fn broken_array(&self, what: &str) -> Error {
        Error::input(format!(
            "{}: broken JSON array at index {}, line {}, byte {}: {what}",
            self.name(),
            self.next_index,
            self.number,
            self.offset
        ))
        .fix("mend the array there; to skip single bad posts, give one post a line instead")
    }
}

/// Bytes of the byte order marks that a line begins with.
fn marks(line: &[u8]) -> usize {
    line.chunks_exact(BOM.len()).take_while(|chunk| *chunk == BOM).count() * BOM.len()
}

fn without_nuls(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    line.get(..end).unwrap_or_default()
}

/// The command that reads a file, or a pipe, with this program.
pub fn jq_command(program: &str, name: &str) -> String {
    let (program, path) = (shell::word(program), Path::new(name));
    match unpacker(path) {
        // Also a name that is not UTF-8, and so not whole here.
        _ if !path.is_file() => format!("… | jq -c {program}"),
        Some(unpacker) => format!("{unpacker} {} | jq -c {program}", shell::path(path)),
        None => format!("jq -c {program} {}", shell::path(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives its bytes a few at a time, as a pipe may.
    struct Drip(Vec<u8>, usize, usize);

    impl Read for Drip {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.2.min(buf.len()).min(self.0.len() - self.1);
            buf[..n].copy_from_slice(&self.0[self.1..self.1 + n]);
            self.1 += n;
            Ok(n)
        }
    }

    type Place4 = (String, u64, u64, u64);

    fn lines(bytes: &[u8], piece: usize, max_line: u64) -> Result<Vec<Place4>> {
        let input = Input { reader: Box::new(Drip(bytes.to_vec(), 0, piece)), name: "test".to_owned() };
        let mut reader = LineReader::new(input, Shape::LinesOrArray, max_line, 0);
        let (mut block, mut found) = (Block::default(), Vec::new());
        while reader.fill(&mut block)? {
            found.extend(block.lines().map(|line| {
                let text = String::from_utf8_lossy(line.bytes) + if line.too_long { "…" } else { "" };
                (text.into_owned(), line.index, line.number, line.offset)
            }));
        }
        Ok(found)
    }

    fn place(text: &str, index: u64, number: u64, offset: u64) -> Place4 {
        (text.to_owned(), index, number, offset)
    }

    #[test]
    fn lines_have_places() {
        let input = b"\xef\xbb\xbf\n{\"a\":1}\r\n  \nbad\n\n{}";
        for piece in 1..input.len() {
            let found = lines(input, piece, 1000).expect("readable");
            assert_eq!(found, [place("{\"a\":1}", 0, 2, 4), place("bad", 1, 4, 16), place("{}", 2, 6, 21)], "{piece}");
        }
    }

    #[test]
    fn array_elements_have_places() {
        let input = b"\n[{\"a\":\n1},\n 7]\n";
        for piece in 1..input.len() {
            let found = lines(input, piece, 1000).expect("readable");
            assert_eq!(found, [place("{\"a\":1}", 0, 2, 2), place("7", 1, 4, 13)], "{piece}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = "x".repeat(3000);
        for piece in [1, 7, 512, 100_000] {
            for (input, next) in [(format!("{long}\n{{}}\n"), 3001), (format!("[\"{long}\",{{}}]"), 3004)] {
                let found = lines(input.as_bytes(), piece, 2000).expect("readable");
                assert_eq!((found.len(), found[0].0.len()), (2, HEAD_BYTES + "…".len()), "{piece}");
                assert_eq!((found[1].0.as_str(), found[1].1, found[1].3), ("{}", 1, next), "{piece}");
            }
        }
        for (limit, long) in [(2999, true), (3000, false), (3001, false)] {
            let found = lines(format!("{}\n", "x".repeat(3000)).as_bytes(), 64, limit).expect("readable");
            assert_eq!(found[0].0.ends_with('…'), long, "{limit}");
        }
    }

    #[test]
    fn s4_how_the_bytes_come_decides_nothing() {
        let blank = " ".repeat(40);
        for input in [
            // Blanks before the first post stand where they stand.
            "  {\"a\":1}\n{}\n".to_owned(),
            "\n \n  {\"a\":1}".to_owned(),
            "\u{feff} \n [1,2]".to_owned(),
            // White space takes no index, however long it is.
            format!("{{}}\n{blank}\n{{}}\n"),
            format!("{blank}\n{{}}\n"),
            format!("{blank}[1]\n"),
            format!("{blank}\n[1]\n"),
            format!("\n{blank}\n\u{feff}[1]\n"),
            format!("{{}}\n{blank}"),
            // The beginning that is kept of a long line.
            format!("{}\r\n{{}}\n", "y".repeat(30)),
            "{".to_owned() + &blank + "\n{}",
            format!("[\"{}\", \"{}\"]", "y".repeat(30), "z".repeat(700)),
        ] {
            let at_once = lines(input.as_bytes(), usize::MAX, 20).expect("readable");
            for piece in 1..input.len() {
                assert_eq!(lines(input.as_bytes(), piece, 20).expect("readable"), at_once, "{piece} of {input:?}");
            }
        }
        let found = lines(format!("{{}}\n{blank}\n{{}}\n").as_bytes(), 1, 20).expect("readable");
        assert_eq!(found, [place("{}", 0, 1, 0), place("{}", 1, 3, 44)]);
        let found = lines("y".repeat(30).as_bytes(), 1, 20).expect("readable");
        assert_eq!(found, [place(&("y".repeat(30) + "…"), 0, 1, 0)]);
    }

    #[test]
    fn pretty_printed_input_is_refused_with_advice() {
        let error = lines(b"{\n \"a\": 1\n}\n", 5, 1000).expect_err("refused");
        assert!(error.to_string().contains("jq -c"), "{error}");
    }

    #[test]
    fn a_broken_array_names_index_and_byte() {
        let error = lines(b"[{},{} {}]", 3, 1000).expect_err("refused");
        assert!(error.to_string().contains("index 2, line 1, byte 7"), "{error}");
        assert!(lines(b"[{},{}", 3, 1000).is_err());
    }

    proptest! {
        #[test]
        fn cutting_and_joining_is_the_identity(texts in proptest::collection::vec("[^\r\n\\s]{1,40}", 0..50), piece in 1usize..64) {
            // A mark at the start of a line is no part of it, and NULs at the end are padding.
            prop_assume!(texts.iter().all(|t| !t.starts_with(['\u{feff}']) && !t.ends_with('\0')));
            prop_assume!(texts.first().is_none_or(|t| !t.starts_with(['[', '{'])));
            let input = texts.join("\n");
            let found: Vec<String> = lines(input.as_bytes(), piece, 1000).expect("readable").into_iter().map(|l| l.0).collect();
            prop_assert_eq!(found, texts);
        }
    }
}
