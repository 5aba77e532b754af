//! Results file → result lines: which row a line answers, and the text the model wrote or why there is none.
//!
//! Reads what Zhipu and OpenAI write, output and error files alike (`docs/providers.md`). A line whose
//! custom_id can be read belongs to that row whatever else is in it; only one without is a fault of no row.
//! Everything is borrowed from the line; the usual line is read in one pass, an odd one level by level, and one that is
//! not quite JSON after it was repaired.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Serialize,
    de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Fault, FaultKind,
    refusals::{error_kind, finish_kind},
};
use crate::{
    json::{JSON_SPACE, JsonText, Object, decode_escapes, not_json, word},
    text::short,
};

/// Tokens that a request was billed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}

impl Usage {
    pub fn add(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(other.total_tokens);
    }
}

/// One line of an output or error file whose custom_id could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultLine<'a> {
    /// As it was sent back; not yet known to be one of ours.
    pub custom_id: Cow<'a, str>,
    /// The model's text, or why there is none.
    pub content: Result<Content<'a>, Fault>,
    /// Of a fault, what the model wrote all the same.
    pub shown: Option<Content<'a>>,
    pub usage: Option<Usage>,
    /// Whether text stands where answers do; `None` for a line that is an error, or whose content is empty.
    pub has_text: Option<bool>,
}

/// The model's text as it stands in the line: a JSON string, or an array of parts. Decoding waits for a buffer that is used
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content<'a>(Cow<'a, str>);

impl<'a> Content<'a> {
    /// The text. A lone surrogate becomes U+FFFD and is counted; `buffer` is used only if there are escapes or parts.
    pub fn decode<'b>(self, buffer: &'b mut String, surrogates: &mut u64) -> &'b str
    where
        'a: 'b,
    {
        if let Cow::Borrowed(raw) = self.0
            && let Some(text) = JsonText::new(raw)
        {
            return text.decode(buffer, surrogates);
        }
        buffer.clear();
        for text in texts(&self.0) {
            decode_escapes(text.body(), buffer, surrogates);
        }
        buffer
    }

    fn into_owned(self) -> Content<'static> {
        Content(Cow::Owned(self.0.into_owned()))
    }
}

/// A string, or the text parts of an array: what is thinking or reasoning is no answer.
fn texts(raw: &str) -> Vec<JsonText<'_>> {
    if let Some(text) = JsonText::new(raw) {
        return vec![text];
    }
    let parts: Vec<&RawValue> = serde_json::from_str(raw).unwrap_or_default();
    parts.into_iter().filter_map(|part| part_text(part.get())).collect()
}

/// What a part says that is a refusal.
fn part_refusal(content: &str) -> Option<&str> {
    if !content.starts_with('[') {
        return None;
    }
    let parts: Vec<&RawValue> = serde_json::from_str(content).unwrap_or_default();
    parts.into_iter().find_map(|part| {
        let [kind, refusal] = pick_some(Some(part.get()), ["type", "refusal"]);
        refusal.filter(|raw| kind.map(word).as_deref() == Some("refusal") && !texts_are_empty(raw))
    })
}

fn part_text(part: &str) -> Option<JsonText<'_>> {
    let [kind, text] = pick_some(Some(part), ["type", "text"]);
    let is_text = matches!(kind.map(word).as_deref(), None | Some("text" | "output_text"));
    JsonText::new(part).or_else(|| text.filter(|_| is_text).and_then(JsonText::new))
}

/// Reads one line of a results file.
///
/// # Errors
/// A `bad_line` for bytes that are not one JSON object with a string `custom_id`: nobody can say whose they are.
pub fn parse_result(line: &[u8]) -> Result<ResultLine<'_>, Fault> {
    let bad = |detail: String| Fault::new(FaultKind::BadLine, detail);
    let line = std::str::from_utf8(line).map_err(|e| bad(format!("not UTF-8 at byte {}", e.valid_up_to())))?;
    if !line.trim_start_matches(JSON_SPACE).starts_with('{') {
        return Err(bad(match serde_json::from_str::<IgnoredAny>(line) {
            Ok(_) => "not a JSON object".to_owned(),
            Err(e) => not_json(&e),
        }));
    }
    let read = match serde_json::from_str::<Envelope<'_>>(line) {
        Ok(envelope) => Parts::from_envelope(&envelope).read(),
        Err(_) => match Parts::pick_from(line) {
            Ok(parts) => parts.unfolded().unwrap_or_else(|| parts.read()),
            Err(e) => {
                let repaired = repaired(line);
                let parts = Parts::pick_from(&repaired).map_err(|_| bad(not_json(&e)))?;
                parts.unfolded().unwrap_or_else(|| parts.read().map(ResultLine::into_owned))
            }
        },
    };
    read.map_err(bad)
}

impl ResultLine<'_> {
    fn into_owned(self) -> ResultLine<'static> {
        ResultLine {
            custom_id: Cow::Owned(self.custom_id.into_owned()),
            content: self.content.map(Content::into_owned),
            shown: self.shown.map(Content::into_owned),
            usage: self.usage,
            has_text: self.has_text,
        }
    }
}

/// JSON out of a line that some writers take for JSON: NaN and infinities are null, raw control characters and the
/// backslash of an escape that is none are escaped. Everything else stays.
fn repaired(line: &str) -> String {
    let mut out = String::with_capacity(line.len() + 16);
    let (mut rest, mut in_text) = (line, false);
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        let is_hex = |hex: &str| hex.bytes().all(|b| b.is_ascii_hexdigit());
        let word = ["NaN", "Infinity", "-Infinity"].iter().find_map(|word| rest.strip_prefix(word));
        (rest, in_text) = match c {
            '"' => {
                out.push(c);
                (after, !in_text)
            }
            '\\' if in_text => match after.chars().next() {
                Some(next @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u'))
                    if next != 'u' || after.get(1..5).is_some_and(is_hex) =>
                {
                    out.extend([c, next]);
                    (after.get(1..).unwrap_or_default(), true)
                }
                _ => {
                    out.push_str("\\\\");
                    (after, true)
                }
            },
            c if in_text && c < ' ' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
                (after, true)
            }
            c => match word.filter(|_| !in_text) {
                Some(after) => {
                    out.push_str("null");
                    (after, false)
                }
                None => {
                    out.push(c);
                    (after, in_text)
                }
            },
        };
    }
    out
}

/// The custom_id of a line that cannot be read, if exactly one stands at the top of its object: one in what a server
/// echoes, or in a text, is not the line's.
pub fn find_custom_id(line: &[u8]) -> Option<&str> {
    // What can be read has none in its place. That it is UTF-8 is looked at apart, since serde ignores it in what it skips.
    if std::str::from_utf8(line).is_ok_and(|line| serde_json::from_str::<IgnoredAny>(line).is_ok()) {
        return None;
    }
    let start = memchr::memchr3(b'{', b'[', b'"', line).filter(|start| line.get(*start) == Some(&b'{'))?;
    let mut rest = line.get(start..)?;
    let mut found = None;
    let (mut depth, mut is_whole) = (0_usize, true);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'{' | b'[' => depth += 1,
            // After its last brace, the line has no top any more.
            b'}' | b']' | b'"' if depth == 0 => {
                is_whole = false;
                break;
            }
            b'}' | b']' => depth -= 1,
            b'"' => {
                let Some((text, after)) = text_end(rest).and_then(|end| rest.split_at_checked(end)) else { break };
                rest = after.get(1..).unwrap_or_default();
                is_whole &= matches!(rest.trim_ascii_start().first(), None | Some(b':' | b',' | b'}' | b']'));
                if depth == 1
                    && text == b"custom_id"
                    && let Some(id) = id_after(rest)
                {
                    if found.is_some_and(|known| known != id) {
                        return None;
                    }
                    found = Some(id);
                }
            }
            _ => {}
        }
    }
    // Where a text ended in a wrong place, depth tells little: no other id may stand anywhere.
    let others = || memchr::memmem::find_iter(line, KEY).filter_map(|at| id_after(line.get(at + KEY.len()..)?));
    let found = found.filter(|known| is_whole || others().all(|id| id == *known))?;
    std::str::from_utf8(found).ok()
}

const KEY: &[u8] = b"\"custom_id\"";

/// Where the text ends whose first quote has been read.
fn text_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// The text that follows a key, if it may be an id.
fn id_after(rest: &[u8]) -> Option<&[u8]> {
    /// A longer one is none of ours.
    const LONGEST: usize = 300;
    let rest = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let end = memchr::memchr3(b'"', b'\\', b'\n', rest.get(..LONGEST).unwrap_or(rest))?;
    rest.split_at_checked(end).filter(|(_, after)| after.starts_with(b"\"")).map(|(id, _)| id)
}

/// The custom_id of a result line, if it has one that can be read.
pub fn read_custom_id(line: &[u8]) -> Option<Cow<'_, str>> {
    parse_result(line).ok().map(|line| line.custom_id)
}

/// The values of a line that matter, as they are written; what is absent or null is `None`.
#[derive(Debug, Default, PartialEq)]
struct Parts<'a> {
    custom_id: Option<&'a str>,
    error: Option<&'a str>,
    response: Option<&'a str>,
    has_response: bool,
    status: Option<&'a str>,
    raw_body: Option<&'a str>,
    body: BodyParts<'a>,
}

#[derive(Debug, Default, PartialEq)]
struct BodyParts<'a> {
    error: Option<&'a str>,
    /// Some routes put these beside each other instead of into `error`.
    code: Option<&'a str>,
    message: Option<&'a str>,
    msg: Option<&'a str>,
    has_choice: bool,
    has_message: bool,
    finish_reason: Option<&'a str>,
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    /// `reasoning_content` and `reasoning`, and the calls of tools: no answer, but text.
    elsewhere: [Option<&'a str>; 3],
    /// Prompt, completion, total.
    usage: [Option<&'a str>; 3],
}

/// The line as it nearly always is.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<Object<Response<'a>>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<Object<Body<'a>>>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    msg: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<First<Object<Choice<'a>>>>,
    #[serde(borrow)]
    usage: Option<Object<RawUsage<'a>>>,
}

#[derive(Deserialize)]
struct RawUsage<'a> {
    #[serde(borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    total_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<Object<Message<'a>>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

/// Where the text of a message may stand that has no content.
const ELSEWHERE: [&str; 3] = ["reasoning_content", "reasoning", "a tool call"];

/// The first element of an array: of `choices` we never ask for more than one.
struct First<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
            type Value = First<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let first = elements.next_element()?;
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

impl<'a> Parts<'a> {
    fn from_envelope(envelope: &Envelope<'a>) -> Self {
        let text = |raw: Option<&'a RawValue>| raw.map(RawValue::get);
        let response = envelope.response.as_ref().map(|Object(response)| response);
        let mut parts = Self {
            custom_id: text(envelope.custom_id),
            error: text(envelope.error),
            has_response: response.is_some(),
            status: response.and_then(|response| text(response.status_code)),
            ..Self::default()
        };
        if let Some(Object(body)) = response.and_then(|response| response.body.as_ref()) {
            let choice = body.choices.as_ref().and_then(|choices| choices.0.as_ref()).map(|Object(choice)| choice);
            let reply = choice.and_then(|choice| choice.message.as_ref()).map(|Object(message)| message);
            parts.body = BodyParts {
                error: text(body.error),
                code: text(body.code),
                message: text(body.message),
                msg: text(body.msg),
                has_choice: choice.is_some(),
                has_message: reply.is_some(),
                finish_reason: choice.and_then(|choice| text(choice.finish_reason)),
                content: reply.and_then(|reply| text(reply.content)),
                refusal: reply.and_then(|reply| text(reply.refusal)),
                elsewhere: reply
                    .map_or([None; 3], |reply| [reply.reasoning_content, reply.reasoning, reply.tool_calls].map(text)),
                usage: body.usage.as_ref().map_or([None; 3], |Object(usage)| {
                    [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens].map(text)
                }),
            };
        }
        parts
    }

    /// Level by level: a value of the wrong type is as good as absent, of a key that occurs twice the last counts.
    fn pick_from(line: &'a str) -> serde_json::Result<Self> {
        let [custom_id, error, response] = pick(line, ["custom_id", "error", "response"])?;
        let [status, body] = pick_some(response, ["status_code", "body"]);
        let [body_error, code, message, msg, choices, usage] =
            pick_some(body, ["error", "code", "message", "msg", "choices", "usage"]);
        let first = choices.and_then(|raw| serde_json::from_str::<First<&'a RawValue>>(raw).ok());
        let choice = first.and_then(|first| first.0).map(RawValue::get).filter(|raw| raw.starts_with('{'));
        let [finish_reason, reply] = pick_some(choice, ["finish_reason", "message"]);
        let [content, refusal, thoughts, reasoning, tools] =
            pick_some(reply, ["content", "refusal", "reasoning_content", "reasoning", "tool_calls"]);
        Ok(Self {
            custom_id,
            error,
            response,
            has_response: response.is_some_and(|raw| raw.starts_with('{')),
            status,
            raw_body: body,
            body: BodyParts {
                error: body_error,
                code,
                message,
                msg,
                has_choice: choice.is_some(),
                has_message: reply.is_some_and(|raw| raw.starts_with('{')),
                finish_reason,
                content,
                refusal,
                elsewhere: [thoughts, reasoning, tools],
                usage: pick_some(usage, ["prompt_tokens", "completion_tokens", "total_tokens"]),
            },
        })
    }

    /// The line with its response or its body out of the string that some servers put it into; `None` if neither is in one.
    fn unfolded(&self) -> Option<Result<ResultLine<'static>, String>> {
        let object = |raw: Option<&'a str>| {
            raw.and_then(JsonText::new).map(JsonText::to_cow).filter(|text| text.trim_start().starts_with('{'))
        };
        let null = |raw: Option<&'a str>| raw.unwrap_or("null");
        let response = match (object(self.response), object(self.raw_body)) {
            (Some(response), _) => response.into_owned(),
            (None, Some(body)) => format!(r#"{{"status_code":{},"body":{body}}}"#, null(self.status)),
            (None, None) => return None,
        };
        let line =
            format!(r#"{{"custom_id":{},"error":{},"response":{response}}}"#, null(self.custom_id), null(self.error));
        let line = if Parts::pick_from(&line).is_ok() { line } else { repaired(&line) };
        let parts = Parts::pick_from(&line).ok()?;
        // The body in the string of a response may be in a string again.
        Some(parts.unfolded().unwrap_or_else(|| parts.read().map(ResultLine::into_owned)))
    }

    fn read(&self) -> Result<ResultLine<'a>, String> {
        let custom_id = match self.custom_id {
            None => return Err("it has no custom_id".to_owned()),
            Some(raw) => JsonText::new(raw).ok_or("its custom_id is not a string")?.to_cow(),
        };
        let line = |content, shown: Option<&'a str>, has_text| {
            let shown = shown.map(|raw| Content(Cow::Borrowed(raw)));
            Ok(ResultLine { custom_id, content, shown, usage: self.usage(), has_text })
        };
        if let Err((fault, has_text)) = self.check_envelope() {
            return line(Err(fault), None, has_text);
        }
        let body = &self.body;
        let content = body.content.filter(|raw| !texts_are_empty(raw));
        let refusal = body.refusal.filter(|raw| !texts_are_empty(raw));
        if let Some(refusal) = refusal.or_else(|| body.content.and_then(part_refusal)) {
            let detail = format!("the model refuses: {}", short(&word(refusal)));
            return line(Err(Fault::new(FaultKind::Blocked, detail)), Some(refusal), Some(true));
        }
        let elsewhere = if content.is_none() { self.elsewhere() } else { None };
        let reason = body.finish_reason.map(word);
        let reason = reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        // A call of a tool is an end, if it is all there is.
        let is_call = |reason: &str| elsewhere.is_some() && matches!(reason, "tool_calls" | "function_call");
        if let Some(reason) = reason.filter(|reason| !is_call(reason))
            && let Err(kind) = finish_kind(reason)
        {
            let fault = Fault::new(kind, format!("finish_reason is {}", short(reason)));
            return line(Err(fault), content, content.is_some().then_some(true));
        }
        match (content, elsewhere) {
            (Some(raw), _) => line(Ok(Content(Cow::Borrowed(raw))), None, Some(true)),
            (None, Some((place, raw))) => {
                let chars = texts(raw).iter().map(|text| text.to_cow().chars().count()).sum::<usize>();
                let detail = format!("no content; {chars} characters of text are in {place}");
                line(Err(Fault::new(FaultKind::Empty, detail)), Some(raw), Some(false))
            }
            (None, None) => {
                let is_odd = body.content.is_some_and(|raw| !raw.starts_with(['"', '[']));
                let fault = if is_odd {
                    Fault::new(FaultKind::Provider, "the content is neither a string nor an array of parts")
                } else {
                    Fault::new(FaultKind::Empty, "no content in the response")
                };
                // A content that is empty stands where it should.
                line(Err(fault), None, (is_odd || !body.has_message).then_some(false))
            }
        }
    }

    /// Text that is not where answers are, and where it is.
    fn elsewhere(&self) -> Option<(&'static str, &'a str)> {
        let arguments = |raw: &'a str| {
            let call = serde_json::from_str::<First<&'a RawValue>>(raw).ok()?.0.map(RawValue::get);
            let [function] = pick_some(call, ["function"]);
            let [arguments] = pick_some(function, ["arguments"]);
            arguments
        };
        let [thoughts, reasoning, calls] = self.body.elsewhere;
        let found = [thoughts, reasoning, calls.and_then(arguments)];
        ELSEWHERE
            .into_iter()
            .zip(found)
            .find_map(|(place, raw)| Some((place, raw.filter(|raw| !texts_are_empty(raw))?)))
    }

    /// What keeps the line from having a choice at all, and its [`ResultLine::has_text`].
    fn check_envelope(&self) -> Result<(), (Fault, Option<bool>)> {
        let body = &self.body;
        let provider = |detail: &str| Fault::new(FaultKind::Provider, detail);
        let is_answer = || body.has_choice && self.status.is_none_or(|status| integer(status) == Some(200));
        let said = |error| said(error).filter(|raw| !(is_answer() && is_nothing(raw)));
        if let Some(error) = said(self.error).or(said(body.error)) {
            return Err((error_fault(error, self.status), None));
        }
        if !self.has_response {
            return Err((provider("no response, and no error that says why"), Some(false)));
        }
        if !body.has_choice && (body.code.is_some() || body.msg.is_some()) {
            return Err((coded_fault(body.code, None, body.message.or(body.msg), self.status), None));
        }
        if let Some(status) = self.status.filter(|status| integer(status) != Some(200)) {
            let kind = error_kind(&[], "", integer(status));
            return Err((Fault::new(kind, format!("HTTP status {}", short(status))), None));
        }
        if !body.has_choice {
            return Err((provider("no choices in the response"), Some(false)));
        }
        Ok(())
    }

    /// `None` if no number of it can be read.
    fn usage(&self) -> Option<Usage> {
        let [prompt, completion, total] = self.body.usage.map(|raw| raw.and_then(integer));
        prompt.or(completion).or(total)?;
        let (prompt_tokens, completion_tokens) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        let total_tokens = total.unwrap_or(prompt_tokens.saturating_add(completion_tokens));
        Some(Usage { prompt_tokens, completion_tokens, total_tokens })
    }
}

/// An error that says something: some servers write `{}` or `""` where there was none.
fn said(error: Option<&str>) -> Option<&str> {
    error.filter(|raw| !matches!(*raw, "\"\"" | "false") && !is_blank_object(raw))
}

/// What some servers write beside a good answer, for want of an error.
fn is_nothing(error: &str) -> bool {
    let is_word = |raw: &str| matches!(word(raw).trim(), "" | "None" | "null");
    let is_null = |value: &Option<&RawValue>| value.is_none_or(|raw| is_word(raw.get()));
    is_word(error)
        || serde_json::from_str::<BTreeMap<Cow<'_, str>, Option<&RawValue>>>(error)
            .is_ok_and(|entries| entries.values().all(is_null))
        || serde_json::from_str::<[IgnoredAny; 0]>(error).is_ok()
}

fn is_blank_object(raw: &str) -> bool {
    raw.strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .is_some_and(|rest| rest.trim_matches(JSON_SPACE).is_empty())
}

/// No text in it at all, as `""`, `null`, or parts without one.
fn texts_are_empty(raw: &str) -> bool {
    raw == "\"\"" || !raw.starts_with('"') && texts(raw).iter().all(|text| text.body().is_empty())
}

fn error_fault(error: &str, status: Option<&str>) -> Fault {
    if !error.starts_with('{') {
        return coded_fault(None, None, Some(error), status);
    }
    let [code, kind, message, msg] = pick_some(Some(error), ["code", "type", "message", "msg"]);
    coded_fault(code, kind, message.or(msg), status)
}

fn coded_fault(code: Option<&str>, class: Option<&str>, message: Option<&str>, status: Option<&str>) -> Fault {
    let [code, class, message] = [code, class, message].map(|raw| raw.map(word).unwrap_or_default());
    let kind = error_kind(&[&code, &class], &message, status.and_then(integer));
    let name = if code.is_empty() { class } else { code };
    let mut detail = if name.is_empty() { "error".to_owned() } else { format!("error {}", short(&name)) };
    if let Some(status) = status.filter(|status| integer(status) != Some(200)) {
        detail += &format!(" (HTTP status {})", short(status));
    }
    if !message.is_empty() {
        detail += &format!(": {}", short(&message));
    }
    Fault::new(kind, detail)
}

/// A whole number as a number, a float (`12.0`) or a string.
fn integer(raw: &str) -> Option<u64> {
    /// Beyond it a float is no exact count any more.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    if let Ok(number) = raw.parse() {
        return Some(number);
    }
    let text = word(raw);
    let text = text.trim();
    text.parse().ok().or_else(|| {
        let float: f64 = text.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, not negative, below 2^53")]
        (float.fract() == 0.0 && (0.0..EXACT).contains(&float)).then_some(float as u64)
    })
}

/// The raw values of some keys of an object; null is `None`.
///
/// # Errors
/// `raw` is not one JSON object.
fn pick<'a, const N: usize>(raw: &'a str, keys: [&str; N]) -> serde_json::Result<[Option<&'a str>; N]> {
    struct Pick<'k, const N: usize>([&'k str; N]);

    impl<'de, const N: usize> Visitor<'de> for Pick<'_, N> {
        type Value = [Option<&'de str>; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = [None; N];
            // A key as it is written, too: one with a lone surrogate is no string to serde.
            while let Some(key) = map.next_key::<&'de RawValue>()? {
                let value = map.next_value::<&'de RawValue>()?.get();
                let key = word(key.get());
                if let Some((_, slot)) = self.0.iter().zip(&mut found).find(|(known, _)| **known == key) {
                    *slot = (value != "null").then_some(value);
                }
            }
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_str(raw);
    let found = json.deserialize_map(Pick(keys))?;
    json.end()?;
    Ok(found)
}

/// As [`pick`]; what is no object has no keys.
fn pick_some<'a, const N: usize>(raw: Option<&'a str>, keys: [&str; N]) -> [Option<&'a str>; N] {
    raw.and_then(|raw| pick(raw, keys).ok()).unwrap_or([None; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use FaultKind::{Absent, BadLine, Blocked, Empty, PromptTooLong, Provider, Truncated};
    use proptest::prelude::*;

    /// A line with this response, as Zhipu writes it.
    fn line(response: &str) -> String {
        format!(r#"{{"response":{response},"custom_id":"a_0001","id":"batch_1"}}"#)
    }

    fn choice(choice: &str) -> String {
        line(&format!(r#"{{"status_code":200,"body":{{"choices":[{choice}]}}}}"#))
    }

    fn read(line: &str) -> (String, Result<String, Fault>, Option<Usage>) {
        let read = parse_result(line.as_bytes()).unwrap_or_else(|fault| panic!("{line}: {fault:?}"));
        let content = read.content.map(|text| text.decode(&mut String::new(), &mut 0).to_owned());
        (read.custom_id.into_owned(), content, read.usage)
    }

    #[test]
    fn good_lines() {
        let usage = |prompt_tokens, completion_tokens, total_tokens| {
            Some(Usage { prompt_tokens, completion_tokens, total_tokens })
        };
        let zhipu = r#"{"response":{"status_code":200,"body":{"created":1788420001,"usage":{"completion_tokens":12,"prompt_tokens":240,"total_tokens":252},"model":"glm-4-air","id":"8","choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"```json\n[\"好\"]\n```"}}],"request_id":"42-a_0001"}},"custom_id":"a_0001","id":"batch_2095408344001937408"}"#;
        let openai = r#"{"id": "batch_req_1", "custom_id": "a_0001", "response": {"status_code": 200, "request_id": "r", "body": {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "3", "refusal": null}, "logprobs": null, "finish_reason": "stop"}, {"index": 1}], "usage": {"prompt_tokens": 22, "completion_tokens": 2, "total_tokens": 24, "prompt_tokens_details": {"cached_tokens": 0}}, "system_fingerprint": null}}, "error": null}"#;
        let with_usage = |usage: &str| {
            line(&format!(
                r#"{{"status_code":200,"body":{{"usage":{usage},"choices":[{{"message":{{"content":"3"}}}}]}}}}"#
            ))
        };
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for (line, content, used) in [
            (zhipu, "```json\n[\"好\"]\n```", usage(240, 12, 252)),
            (openai, "3", usage(22, 2, 24)),
            (&with_usage("null"), "3", None),
            (&with_usage("{}"), "3", None),
            (&with_usage("[]"), "3", None),
            (&with_usage("7"), "3", None),
            (&with_usage(r#"{"prompt_tokens":5.0,"completion_tokens":"7"}"#), "3", usage(5, 7, 12)),
            (&with_usage(r#"{"prompt_tokens":1e400,"completion_tokens":-1,"total_tokens":9}"#), "3", usage(0, 0, 9)),
            (&with_usage(r#"{"total_tokens":2.5}"#), "3", None),
            (&with_usage(r#"{"total_tokens":1,"total_tokens":2}"#), "3", usage(0, 0, 2)),
            (&choice(r#"{"message":{"content":"3"}}"#), "3", None),
            (&choice(r#"{"finish_reason":null,"message":{"content":"3"}}"#), "3", None),
            (&choice(r#"{"finish_reason":"stop","message":{"content":"3","content":"4"}}"#), "4", None),
            (&choice(r#"{"finish_reason":"stop","message":{"content":"3"}},{"message":5}"#), "3", None),
            (
                &choice(r#"{"message":{"content":"\u597d\ud83d\ude00\ud800\/\b\f\"\\"}}"#),
                "好😀\u{fffd}/\u{8}\u{c}\"\\",
                None,
            ),
            (&choice(&format!(r#"{{"message":{{"content":"3"}},"x":{deep}}}"#)), "3", None),
            (&choice(r#"{"message":{"content":"3"},"\ud800":1e999}"#), "3", None),
            (&line(r#"{"status_code":"200","body":{"choices":[{"message":{"content":"3"}}]}}"#), "3", None),
            (&line(r#"{"status_code":null,"body":{"error":{},"choices":[{"message":{"content":"3"}}]}}"#), "3", None),
            (&line(r#"{"body":{"error":null,"choices":[{"message":{"content":"3"}}]}}"#), "3", None),
            (
                r#"{"custom_id":"b_1","custom_id":"a_0001","error":null,"response":null,"response":{"body":{"choices":[{"message":{"content":"3"}}]}}}"#,
                "3",
                None,
            ),
            (
                r#" {"c\u0075stom_id":"\u0061_0001","error":"","response":{"body":{"choices":[{"message":{"content":"3"}}]}}} "#,
                "3",
                None,
            ),
        ] {
            assert_eq!(read(line), ("a_0001".to_owned(), Ok(content.to_owned()), used), "{line}");
        }
    }

    #[test]
    fn faults_of_a_row() {
        let with_error = |error: &str| format!(r#"{{"custom_id":"a_0001","response":null,"error":{error}}}"#);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for (line, kind, detail) in [
            (
                r#"{"response":{"status_code":400,"body":{"model":"glm-4-air","error":{"code":"1301","message":"unsafe"}}},"custom_id":"a_0001","id":"batch_1","error":{"code":"1301","message":"unsafe"}}"#,
                Blocked,
                "error 1301 (HTTP status 400): unsafe",
            ),
            (&line(r#"{"status_code":400,"body":{"error":{"code":1300,"message":"x"}}}"#), Blocked, "error 1300"),
            (&line(r#"{"status_code":400,"body":{"error":{"code":"1261"}}}"#), PromptTooLong, "error 1261 (HTTP"),
            (&with_error(r#"{"code":"context_length_exceeded"}"#), PromptTooLong, "error context_length"),
            (&with_error(r#"{"code":null,"type":"content_filter"}"#), Blocked, "error content_filter"),
            (&with_error(r#"{"code":"1234","message":"network"}"#), Provider, "error 1234: network"),
            (&with_error(r#"{"code":500}"#), Provider, "error 500"),
            (&with_error(r#"{"code":{"a":1},"message":["x"]}"#), Provider, "error {\"a\":1}: [\"x\"]"),
            (&with_error(r#"{"code":"batch_expired","message":"not run"}"#), Absent, "error batch_expired: not run"),
            (&with_error(r#"{"code":"batch_cancelled"}"#), Absent, "error batch_cancelled"),
            (&with_error(r#"{"code":"request_timeout"}"#), Absent, "error request_timeout"),
            (&with_error("\"Not Found\""), Provider, "error: Not Found"),
            (&with_error("17"), Provider, "error: 17"),
            (&with_error("[]"), Provider, "error"),
            (&with_error(r#"{"message":"\u001b[31m\ud800"}"#), Provider, "error: \\u{1b}[31m\u{fffd}"),
            (&with_error("null"), Provider, "no response"),
            (r#"{"custom_id":"a_0001"}"#, Provider, "no response"),
            (&line("null"), Provider, "no response"),
            (&line("5"), Provider, "no response"),
            (&line("[]"), Provider, "no response"),
            (&line("\"\\ud800\""), Provider, "no response"),
            (&line(&deep), Provider, "no response"),
            (&line("{}"), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":null}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":"html"}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":{"choices":null}}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":{"choices":[]}}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":{"choices":{}}}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":{"choices":[null]}}"#), Provider, "no choices"),
            (&line(r#"{"status_code":200,"body":{"code":1302,"msg":"slow"}}"#), Provider, "error 1302: slow"),
            (&line(r#"{"status_code":200,"body":{"code":"1301","message":"x"}}"#), Blocked, "error 1301: x"),
            (
                &line(r#"{"status_code":500,"body":{"choices":[{"message":{"content":"3"}}]}}"#),
                Provider,
                "HTTP status 500",
            ),
            (&line(r#"{"status_code":{},"body":{}}"#), Provider, "HTTP status {}"),
            (&choice(r#"{"finish_reason":"length","message":{"content":"3"}}"#), Truncated, "finish_reason is length"),
            (&choice(r#"{"finish_reason":"sensitive","message":{"content":"3"}}"#), Blocked, "finish_reason is sens"),
            (&choice(r#"{"finish_reason":"content_filter","message":{}}"#), Blocked, "finish_reason is content"),
            (
                &choice(r#"{"finish_reason":"model_context_window_exceeded","message":{}}"#),
                PromptTooLong,
                "finish_reason is model",
            ),
            (&choice(r#"{"finish_reason":"network_error","message":{"content":"3"}}"#), Provider, "finish_reason is n"),
            (&choice(r#"{"finish_reason":"tool_calls","message":{"content":null}}"#), Provider, "finish_reason is t"),
            (&choice(r#"{"finish_reason":7,"message":{"content":"3"}}"#), Provider, "finish_reason is 7"),
            (&choice(r#"{"finish_reason":"stop","message":{"content":null}}"#), Empty, "no content"),
            (&choice(r#"{"finish_reason":"stop","message":{"content":""}}"#), Empty, "no content"),
            (&choice(r#"{"finish_reason":"stop","message":null}"#), Empty, "no content"),
            (&choice(r#"{"finish_reason":"stop","message":[]}"#), Empty, "no content"),
            (&choice(r#"{"finish_reason":"stop"}"#), Empty, "no content"),
            (&choice(r#"{"finish_reason":"stop","message":{"content":3}}"#), Provider, "the content is neither"),
            (&choice(r#"{"message":{"content":[{"type":"text"}]}}"#), Empty, "no content"),
        ] {
            let (custom_id, content, _) = read(line);
            let fault = content.expect_err(line);
            assert_eq!((custom_id.as_str(), fault.kind), ("a_0001", kind), "{line}: {}", fault.detail);
            assert!(fault.detail.starts_with(detail), "{} for {line}", fault.detail);
        }
        let long = read(&with_error(&format!("\"{}\"", "长".repeat(100_000)))).1.expect_err("a fault");
        assert_eq!(long.detail.chars().count(), "error: ".len() + 200 + 1);
    }

    #[test]
    fn lines_of_no_row() {
        let deep = "[".repeat(100_000);
        for (line, detail) in [
            (&b"nonsense"[..], "not JSON"),
            (b"{", "not JSON"),
            (deep.as_bytes(), "not JSON"),
            (b"{\"custom_id\":\"a_1\"", "not JSON"),
            (b"{\"custom_id\":\"a_1\",}", "not JSON"),
            (b"{\"custom_id\":\"a_1\"}{}", "not JSON"),
            (b"{\"custom_id\":\"a_1\",\"x\":\"\xff\"}", "not UTF-8 at byte 24"),
            (b"[\"a_1\",null,null]", "not a JSON object"),
            (b"17", "not a JSON object"),
            (b"null", "not a JSON object"),
            (b"{}", "it has no custom_id"),
            (b"{\"custom_id\":null}", "it has no custom_id"),
            (b"{\"custom_id\":7}", "its custom_id is not a string"),
            (b"{\"custom_id\":[\"a_1\"]}", "its custom_id is not a string"),
        ] {
            let fault = parse_result(line).expect_err("a fault");
            assert_eq!(fault.kind, BadLine);
            assert!(fault.detail.starts_with(detail), "{}", fault.detail);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _either = parse_result(&bytes);
        }

        #[test]
        fn both_ways_of_reading_see_the_same(
            id in prop_oneof![Just("null"), Just("7"), Just("\"a_1\""), Just("{}")],
            error in prop_oneof![Just("null"), Just("{\"code\":1}"), Just("\"x\""), Just("[1]")],
            status in prop_oneof![Just("null"), Just("200"), Just("\"200\"")],
            choices in prop_oneof![
                Just("null"), Just("[]"), Just("[{}]"), Just("[{\"message\":null},5]"),
                Just("[{\"finish_reason\":\"stop\",\"message\":{\"content\":\"\\ud800\",\"x\":[1]}}]"),
            ],
            usage in prop_oneof![Just("null"), Just("{}"), Just("{\"total_tokens\":\"5\",\"y\":{}}")],
        ) {
            let line = format!(
                r#"{{"custom_id":{id},"error":{error},"response":{{"status_code":{status},"body":{{"choices":{choices},"usage":{usage}}}}}}}"#
            );
            let envelope = serde_json::from_str::<Envelope<'_>>(&line).expect("the usual way");
            let level_by_level = Parts::pick_from(&line).expect("level by level");
            prop_assert_eq!(Parts::from_envelope(&envelope).read(), level_by_level.read());
        }
    }
}
