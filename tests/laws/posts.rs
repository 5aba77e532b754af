//! An input of posts: it is split as someone would split it who holds it whole, however few bytes come at a time; a post
//! is what serde_json takes for an object; its request holds its text verbatim; its enhanced form holds its own keys.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::Arc,
};

use serde_json::{Map, Value, value::RawValue};
use zbatch::{
    analysis::Piece,
    cli::ModelArgs,
    flow::{
        CustomId, PostIndex,
        enhanced::{Answers, write_enhanced},
        posts::{Post, PostParser},
        requests::Requests,
        shards::{Key, Shards},
    },
    lines::{
        array::HEAD_BYTES,
        blocks::{Block, LineReader, Shape},
        input::Input,
    },
    settings::Config,
};

/// A line and its place.
#[derive(Debug, PartialEq)]
struct Place {
    bytes: Vec<u8>,
    index: u64,
    number: u64,
    offset: u64,
    too_long: bool,
}

/// Gives its bytes a few at a time, as a pipe may.
struct Pieces(io::Cursor<Vec<u8>>, usize);

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.1.min(buf.len());
        self.0.read(buf.get_mut(..most).unwrap_or_default())
    }
}

/// `None`: the input was refused.
fn split(input: &[u8], piece: usize, max_line: u64) -> (Option<Vec<Place>>, bool) {
    let reader = Box::new(Pieces(io::Cursor::new(input.to_vec()), piece));
    let mut lines = LineReader::new(Input { reader, name: "input".to_owned() }, Shape::LinesOrArray, max_line, 0);
    let (mut block, mut found) = (Block::default(), Vec::new());
    loop {
        match lines.fill(&mut block) {
            Ok(true) => found.extend(block.lines().map(|line| Place {
                bytes: line.bytes.to_vec(),
                index: line.index,
                number: line.number,
                offset: line.offset,
                too_long: line.too_long,
            })),
            Ok(false) => return (Some(found), lines.is_array()),
            Err(_) => return (None, lines.is_array()),
        }
    }
}

/// JSON Lines, split by someone who holds them whole.
fn split_lines(input: &[u8], max_line: usize) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut offset = 0;
    for (number, line) in (1..).zip(input.split(|byte| *byte == b'\n')) {
        let mut own = line;
        while let Some(rest) = own.strip_prefix(b"\xef\xbb\xbf") {
            own = rest;
        }
        let begin = offset + (line.len() - own.len()) as u64;
        offset += line.len() as u64 + 1;
        let too_long = own.len() > max_line;
        let is_last = offset > input.len() as u64;
        let nuls = if is_last { own.iter().rev().take_while(|byte| **byte == 0).count() } else { 0 };
        let unpadded = own.get(..own.len() - nuls).unwrap_or(own);
        let is_padding = unpadded.is_empty() && !places.is_empty();
        let text = if unpadded.is_empty() { own } else { unpadded };
        if is_padding || text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let whole = text.strip_suffix(b"\r").unwrap_or(text);
        let bytes = if too_long { own.get(..HEAD_BYTES).unwrap_or(own) } else { whole };
        places.push(Place { bytes: bytes.to_vec(), index: places.len() as u64, number, offset: begin, too_long });
    }
    places
}

/// One array, split by serde_json; `None` if it is none, or not in UTF-8.
fn split_array(input: &[u8]) -> Option<Vec<Place>> {
    let text = std::str::from_utf8(input).ok()?;
    let blank = |c: char| c.is_ascii_whitespace();
    let array = text.trim_start_matches(|c| c == '\u{feff}' || blank(c)).trim_end_matches(|c| c == '\0' || blank(c));
    let elements: Vec<&RawValue> = serde_json::from_str(array).ok()?;
    let place = |(index, raw): (u64, &RawValue)| {
        let offset = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let before = text.get(..offset).unwrap_or_default();
        Place {
            bytes: raw.get().bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect(),
            index,
            number: 1 + before.matches('\n').count() as u64,
            offset: offset as u64,
            too_long: false,
        }
    };
    Some((0..).zip(elements).map(place).collect())
}

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let Some((&[piece, limit], input)) = data.split_first_chunk::<2>() else { return };
    let max_line = if limit == 0 { 1 << 20 } else { usize::from(limit) * 4 };
    let (places, is_array) = split(input, usize::from(piece) + 1, max_line as u64);
    let at_once = split(input, usize::MAX, max_line as u64);
    assert_eq!((&places, is_array), (&at_once.0, at_once.1), "it does not matter how the bytes come");
    let within = |places: &[Place]| places.iter().all(|place| place.bytes.len() <= max_line);
    if is_array {
        match (&places, split_array(input)) {
            (Some(places), Some(known)) if within(&known) => assert_eq!(*places, known),
            (None, Some(_)) => panic!("a sound array is refused"),
            (Some(places), None)
                if std::str::from_utf8(input).is_ok() && !places.iter().any(|place| place.too_long) =>
            {
                let is_json = |place: &Place| serde_json::from_slice::<&RawValue>(&place.bytes).is_ok();
                assert!(!places.iter().all(is_json), "what is no array came out as elements");
            }
            _ => {}
        }
    } else {
        let known = split_lines(input, max_line);
        match &places {
            Some(places) => assert_eq!(*places, known),
            // One object over several lines, or a table in one.
            None => assert!(known.first().is_some_and(|first| first.bytes.trim_ascii_start().starts_with(b"{"))),
        }
    }
    let set = super::set();
    let mut parser = PostParser::default();
    for place in places.unwrap_or_default().iter().filter(|place| !place.too_long) {
        let is_object = std::str::from_utf8(&place.bytes).is_ok_and(|line| {
            line.trim_ascii_start().starts_with('{') && serde_json::from_str::<&RawValue>(line).is_ok()
        });
        match parser.parse(&set.fields, PostIndex(place.index), &place.bytes) {
            Ok(post) => {
                assert!(is_object);
                check_post(&post);
            }
            Err(bad) => {
                assert!(!is_object, "{}", bad.detail);
                super::is_harmless(&bad.detail);
            }
        }
    }
}

fn check_post(post: &Post<'_>) {
    let set = super::set();
    // A key with a lone surrogate is no string to serde_json; then it has no opinion.
    let Ok(known) = serde_json::from_str::<BTreeMap<String, &RawValue>>(post.line) else { return };
    for analysis in &set.list {
        let own = known.get(&analysis.field).map(|raw| raw.get());
        assert_eq!(post.raw(analysis.field_slot), own);
    }

    let models = Config::default().models(&ModelArgs::default()).expect("the defaults");
    let (url, rows) = ("/v4/chat/completions", Arc::default());
    let mut requests = Requests::new(Arc::clone(set), models.of_requests(), url, None, rows, 1 << 20).expect("ready");
    let text = |slot| post.raw(slot).and_then(|raw| serde_json::from_str::<String>(raw).ok());
    for request in requests.of(&Ok(*post)).flatten() {
        let mut line = Vec::new();
        request.write_to(&mut line).expect("written");
        assert_eq!(line.len() as u64, request.bytes);
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
        let value: Value = serde_json::from_slice(&line).expect("a request is JSON");
        let id = value.get("custom_id").and_then(Value::as_str).and_then(CustomId::parse).expect("an id");
        let analysis = set.list.get(request.analysis).expect("in the set");
        assert_eq!((id.analysis, id.index), (analysis.name.as_str(), post.index));
        let content = value.get("body").and_then(|body| body.get("messages")?.get(0)?.get("content"));
        let content = content.expect("a prompt");
        let prompt = content.as_str().or_else(|| content.get(0)?.get("text")?.as_str()).expect("a text");
        // Each text of the post stands in the prompt verbatim, and in the order of the template.
        let mut rest = prompt;
        for Piece { slot, .. } in &analysis.template.pieces {
            if let Some(text) = slot.and_then(text) {
                let at = rest.find(&text).expect("the text is in the prompt");
                rest = rest.get(at + text.len()..).expect("a boundary");
            }
        }
    }

    let mut shards = Shards::new(set.list.len(), 1 << 16, &std::env::temp_dir()).expect("shards");
    let key = Key { index: post.index.0, field: 0, is_fault: false, rank: 0 };
    shards.push(key, b"3").expect("pushed");
    let mut answers = Answers::new(shards.sorted(), set.list.len());
    let (mut enhanced, mut filled) = (Vec::new(), Vec::new());
    write_enhanced(post, set, answers.row(post.index.0).expect("a row"), &mut enhanced, &mut filled);
    let enhanced: BTreeMap<String, &RawValue> = serde_json::from_slice(&enhanced).expect("an enhanced post is JSON");
    for (at, analysis) in set.list.iter().enumerate() {
        let own = known.get(&analysis.field).map_or("null", |raw| raw.get());
        let wanted = if at == 0 { "3" } else { own };
        assert_eq!(enhanced.get(&analysis.field).map(|raw| raw.get()), Some(wanted));
        assert_eq!(filled.get(at), Some(&(wanted != "null")));
    }
    let others = |map: &BTreeMap<String, &RawValue>| -> Map<String, Value> {
        let others = map.iter().filter(|(key, _)| set.list.iter().all(|analysis| analysis.field != **key));
        others.map(|(key, raw)| (key.clone(), raw.get().into())).collect()
    };
    assert_eq!(others(&enhanced), others(&known));
}
