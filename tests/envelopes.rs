//! Result lines as no provider should write them, and what each of them comes to (`parse`): a value, a fault of its row, or a
//! bad line that is nobody's. The verdicts are frozen: scripts match on the kinds.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
};

use serde_json::{Value, json};

use crate::{
    jobs::Setup,
    workdir::{WorkDir, fixture},
};

/// The line, and its verdict: `1/sentiment_polarity = 3`, `1/sentiment_polarity: empty`, or `bad_line`.
struct Case {
    name: &'static str,
    line: Vec<u8>,
    verdict: &'static str,
}

/// Every line without another id answers this row.
const ID: &str = "sentiment_polarity_0001";
const GOOD: &str = "1/sentiment_polarity = 3";

fn case(name: &'static str, line: impl Into<Vec<u8>>, verdict: &'static str) -> Case {
    Case { name, line: line.into(), verdict: if verdict.is_empty() { GOOD } else { verdict } }
}

fn response(json: &str) -> String {
    format!(r#"{{"response":{json},"custom_id":"{ID}","id":"batch_1"}}"#)
}

fn body(json: &str) -> String {
    response(&format!(r#"{{"status_code":200,"body":{json}}}"#))
}

fn choice(json: &str) -> String {
    body(&format!(r#"{{"choices":[{json}]}}"#))
}

fn message(json: &str) -> String {
    choice(&format!(r#"{{"finish_reason":"stop","message":{json}}}"#))
}

fn content(json: &str) -> String {
    message(&format!(r#"{{"role":"assistant","content":{json}}}"#))
}

fn finish(json: &str) -> String {
    choice(&format!(r#"{{"finish_reason":{json},"message":{{"content":"3"}}}}"#))
}

fn usage(json: &str) -> String {
    body(&format!(r#"{{"usage":{json},"choices":[{{"finish_reason":"stop","message":{{"content":"3"}}}}]}}"#))
}

fn status(json: &str) -> String {
    response(&format!(r#"{{"status_code":{json},"body":{{"choices":[{{"message":{{"content":"3"}}}}]}}}}"#))
}

/// As OpenAI writes what never ran.
fn error(json: &str) -> String {
    format!(r#"{{"id":"r","custom_id":"{ID}","response":null,"error":{json}}}"#)
}

fn id(json: &str) -> String {
    format!(r#"{{"custom_id":{json},"response":{{"body":{{"choices":[{{"message":{{"content":"3"}}}}]}}}}}}"#)
}

fn cases() -> Vec<Case> {
    [usual(), ids(), responses(), errors(), contents(), lines()].into_iter().flatten().collect()
}

fn usual() -> Vec<Case> {
    let line = |name: &str| fixture(&format!("replies/{name}.jsonl")).trim_end().to_owned();
    vec![
        case("Zhipu's success", line("zhipu_success"), ""),
        case("Zhipu's failure", line("zhipu_failure"), "1/sentiment_polarity: blocked"),
        case("OpenAI's success", line("openai_success"), ""),
        case("OpenAI's failure", line("openai_failure"), "1/sentiment_polarity: provider"),
        case("a thinking model", message(r#"{"content":"3","reasoning_content":"1? 2? 4!"}"#), ""),
        case("fields that are new", message(r#"{"content":"3","audio":{"a":[1e999,{}]},"tool_calls":[]}"#), ""),
    ]
}

fn ids() -> Vec<Case> {
    const NOBODY: &str = "unknown_id";
    vec![
        case("no padding", id(r#""sentiment_polarity_1""#), ""),
        case("much padding", id(r#""sentiment_polarity_00000000000000000000000000001""#), ""),
        case("an escaped id", id(r#""\u0073entiment\u005Fpolarity_000\u0031""#), ""),
        case("a solidus escaped in another value", id(r#""sentiment_polarity_1","x":"\/""#), ""),
        case("index 0", id(r#""sentiment_polarity_0000""#), "0/sentiment_polarity = 3"),
        case(
            "the largest index",
            id(r#""sentiment_polarity_18446744073709551615""#),
            "18446744073709551615/sentiment_polarity = 3",
        ),
        case("one more", id(r#""sentiment_polarity_18446744073709551616""#), NOBODY),
        case("forty digits", id(r#""sentiment_polarity_9999999999999999999999999999999999999999""#), NOBODY),
        case("a minus", id(r#""sentiment_polarity_-1""#), NOBODY),
        case("a plus", id(r#""sentiment_polarity_+1""#), NOBODY),
        case("a space before", id(r#""sentiment_polarity_ 1""#), NOBODY),
        case("a space after", id(r#""sentiment_polarity_1 ""#), NOBODY),
        case("a space around", id(r#"" sentiment_polarity_1""#), "1/ sentiment_polarity: unknown_id"),
        case("a line feed after", id(r#""sentiment_polarity_1\n""#), NOBODY),
        case("a NUL after", id(r#""sentiment_polarity_1\u0000""#), NOBODY),
        case("a float", id(r#""sentiment_polarity_1.0""#), NOBODY),
        case("an exponent", id(r#""sentiment_polarity_1e0""#), NOBODY),
        case("hexadecimal", id(r#""sentiment_polarity_0x1""#), NOBODY),
        case("full-width digits", id(r#""sentiment_polarity_１""#), NOBODY),
        case("Arabic digits", id(r#""sentiment_polarity_١""#), NOBODY),
        case("a superscript", id(r#""sentiment_polarity_¹""#), NOBODY),
        case("a lone surrogate for a digit", id(r#""sentiment_polarity_\ud800""#), NOBODY),
        case("a lone surrogate in the name", id(r#""\udc00_0001""#), "1/\u{fffd}: unknown_id"),
        case("no digits", id(r#""sentiment_polarity_""#), NOBODY),
        case("no index", id(r#""sentiment_polarity""#), NOBODY),
        case("no name", id(r#""_0001""#), NOBODY),
        case("nothing", id(r#""""#), NOBODY),
        case("a very long name", id(&format!("\"{}_0001\"", "a".repeat(100_000))), NOBODY),
        case("another hyphen", id(r#""sentiment_polarity-0001""#), NOBODY),
        case("two underscores", id(r#""sentiment_polarity__0001""#), "1/sentiment_polarity_: unknown_id"),
        case("an analysis that is not in force", id(r#""old_question_0001""#), "1/old_question: unknown_id"),
        case("another case", id(r#""Sentiment_Polarity_0001""#), "1/Sentiment_Polarity: unknown_id"),
        case("a look-alike", id(r#""ѕentiment_polarity_0001""#), "1/ѕentiment_polarity: unknown_id"),
        case("a path", id(r#""../../etc/passwd_0001""#), "1/../../etc/passwd: unknown_id"),
        case("null", id("null"), "bad_line"),
        case("a number", id("1"), "bad_line"),
        case("true", id("true"), "bad_line"),
        case("an array", id(r#"["sentiment_polarity_0001"]"#), "bad_line"),
        case("an object", id(r#"{"custom_id":"sentiment_polarity_0001"}"#), "bad_line"),
        case("none", r#"{"response":{"body":{"choices":[{"message":{"content":"3"}}]}}}"#, "bad_line"),
        case("an empty object", "{}", "bad_line"),
        case(
            "within the response",
            r#"{"response":{"custom_id":"sentiment_polarity_0001","body":{"choices":[{"message":{"content":"3"}}]}}}"#,
            "bad_line",
        ),
        case(
            "under another name",
            r#"{"customId":"sentiment_polarity_0001","id":"sentiment_polarity_0001"}"#,
            "bad_line",
        ),
        case(
            "under an escaped key",
            id("null").replace(r#""custom_id":null"#, r#""\u0063ustom_id":"sentiment_polarity_1""#),
            "",
        ),
        case(
            "under a key with a NUL",
            id("null").replace(r#""custom_id":null"#, r#""custom_id\u0000":"a_1""#),
            "bad_line",
        ),
        case("twice", id(r#""topic_analysis_0007","custom_id":"sentiment_polarity_0001""#), ""),
        case("twice, once escaped", id(r#""topic_analysis_0007","\u0063ustom_id":"sentiment_polarity_0001""#), ""),
        case("twice, then null", id(r#""sentiment_polarity_0001","custom_id":null"#), "bad_line"),
    ]
}

fn responses() -> Vec<Case> {
    const PROVIDER: &str = "1/sentiment_polarity: provider";
    let good = r#"{"body":{"choices":[{"message":{"content":"3"}}]}}"#;
    let twice = |first: &str, last: &str| format!(r#"{{"response":{first},"custom_id":"{ID}","response":{last}}}"#);
    vec![
        case("null", response("null"), PROVIDER),
        case("none", format!(r#"{{"custom_id":"{ID}"}}"#), PROVIDER),
        case("an array", response("[]"), PROVIDER),
        case(
            "an array of the fields' values",
            response(r#"[200,{"choices":[{"message":{"content":"3"}}]}]"#),
            PROVIDER,
        ),
        case(
            "a body of the fields' values",
            body(r#"[null,null,null,null,[{"message":{"content":"3"}}],null]"#),
            PROVIDER,
        ),
        case("a choice of the fields' values", choice(r#"["stop",{"content":"3"}]"#), PROVIDER),
        case("a number", response("200"), PROVIDER),
        case("JSON in a string", response(r#""{\"status_code\":200}""#), PROVIDER),
        case("an empty one", response("{}"), PROVIDER),
        case("twice, null first", twice("null", good), ""),
        case("twice, null last", twice(good, "null"), PROVIDER),
        case("status as a string", status(r#""200""#), ""),
        case("status as a float", status("200.0"), ""),
        case("status null", status("null"), ""),
        case("status 0", status("0"), PROVIDER),
        case("status -200", status("-200"), PROVIDER),
        case("status 201", status("201"), PROVIDER),
        case("status 500", status("500"), PROVIDER),
        case("status \"500\"", status(r#""500""#), PROVIDER),
        case("status ok", status(r#""ok""#), PROVIDER),
        case("status [200]", status("[200]"), PROVIDER),
        case("status 1e400", status("1e400"), PROVIDER),
        case("body null", body("null"), PROVIDER),
        case("body a page", body(r#""<html>502 Bad Gateway</html>""#), PROVIDER),
        case("body JSON in a string", body(r#""{\"choices\":[{\"message\":{\"content\":\"3\"}}]}""#), ""),
        case("no choices", body("{}"), PROVIDER),
        case("choices null", body(r#"{"choices":null}"#), PROVIDER),
        case("choices empty", body(r#"{"choices":[]}"#), PROVIDER),
        case("choices an object", body(r#"{"choices":{"0":{"message":{"content":"3"}}}}"#), PROVIDER),
        case("a choice null", choice("null"), PROVIDER),
        case("a choice of text", choice(r#""3""#), PROVIDER),
        case("the second choice", choice(r#"{"message":{"content":"3"}},{"message":{"content":"4"}}"#), ""),
        case("a broken second choice", choice(r#"{"message":{"content":"3"}},7"#), ""),
        case("finish stop", finish(r#""stop""#), ""),
        case("finish null", finish("null"), ""),
        case("finish empty", finish(r#""""#), ""),
        case("finish length", finish(r#""length""#), "1/sentiment_polarity: truncated"),
        case("finish sensitive", finish(r#""sensitive""#), "1/sentiment_polarity: blocked"),
        case("finish content_filter", finish(r#""content_filter""#), "1/sentiment_polarity: blocked"),
        case("finish network_error", finish(r#""network_error""#), PROVIDER),
        case("finish tool_calls", finish(r#""tool_calls""#), PROVIDER),
        case(
            "finish context window",
            finish(r#""model_context_window_exceeded""#),
            "1/sentiment_polarity: prompt_too_long",
        ),
        case("finish in capitals", finish(r#""STOP""#), ""),
        case("finish an object", finish(r#"{"why":"stop"}"#), PROVIDER),
        case("finish end_turn", finish(r#""end_turn""#), ""),
        case("finish EOS", finish(r#""EOS""#), ""),
        case("finish MAX_TOKENS", finish(r#""MAX_TOKENS""#), "1/sentiment_polarity: truncated"),
        case("finish SAFETY", finish(r#""SAFETY""#), "1/sentiment_polarity: blocked"),
        case("finish that nobody knows", finish(r#""tired""#), PROVIDER),
        case(
            "a response in a string",
            response(r#""{\"status_code\":200,\"body\":{\"choices\":[{\"message\":{\"content\":\"3\"}}]}}""#),
            "",
        ),
        case("usage null", usage("null"), ""),
        case("usage negative", usage(r#"{"prompt_tokens":-1,"completion_tokens":-2,"total_tokens":-3}"#), ""),
        case("usage huge", usage(r#"{"prompt_tokens":1e308,"completion_tokens":18446744073709551615}"#), ""),
        case("usage an array", usage("[1,2,3]"), ""),
        case("usage a text", usage(r#""many""#), ""),
    ]
}

fn errors() -> Vec<Case> {
    const PROVIDER: &str = "1/sentiment_polarity: provider";
    let beside = |error: &str| content(r#""3""#).replacen('{', &format!(r#"{{"error":{error},"#), 1);
    vec![
        case("null beside an answer", beside("null"), ""),
        case("an empty object beside an answer", beside("{}"), ""),
        case("a blank object beside an answer", beside("{ \t}"), ""),
        case("an empty text beside an answer", beside(r#""""#), ""),
        case("false beside an answer", beside("false"), ""),
        case("an error beside an answer", beside(r#"{"code":"1234"}"#), PROVIDER),
        case("a text beside an answer", beside(r#""boom""#), PROVIDER),
        case("in the body", body(r#"{"error":{"code":"1301"}}"#), "1/sentiment_polarity: blocked"),
        case(
            "in the body, beside choices",
            body(r#"{"error":{"code":1},"choices":[{"message":{"content":"3"}}]}"#),
            PROVIDER,
        ),
        case("beside each other", body(r#"{"code":1302,"msg":"slow"}"#), PROVIDER),
        case("batch_expired", error(r#"{"code":"batch_expired","message":"m"}"#), "1/sentiment_polarity: absent"),
        case("batch_cancelled", error(r#"{"code":"batch_cancelled"}"#), "1/sentiment_polarity: absent"),
        case("request_timeout", error(r#"{"code":"request_timeout"}"#), "1/sentiment_polarity: absent"),
        case("a number for a code", error(r#"{"code":1261}"#), "1/sentiment_polarity: prompt_too_long"),
        case("a type for a code", error(r#"{"type":"content_filter","code":null}"#), "1/sentiment_polarity: blocked"),
        case("an object for a code", error(r#"{"code":{"code":"1301"}}"#), PROVIDER),
        case("an array", error("[]"), PROVIDER),
        case("twice", error(r#"{"code":"1301"},"error":{"code":"1261"}"#), "1/sentiment_polarity: prompt_too_long"),
    ]
}

fn contents() -> Vec<Case> {
    const EMPTY: &str = "1/sentiment_polarity: empty";
    const PROVIDER: &str = "1/sentiment_polarity: provider";
    vec![
        case("null", content("null"), EMPTY),
        case("none", message("{}"), EMPTY),
        case("no message", choice(r#"{"finish_reason":"stop"}"#), EMPTY),
        case("message null", message("null"), EMPTY),
        case("message an array", message(r#"["3"]"#), EMPTY),
        case("message an array of pairs", message(r#"[["content","3"]]"#), EMPTY),
        case("empty", content(r#""""#), EMPTY),
        case("blank", content(r#"" \n\t\u3000""#), EMPTY),
        case("a refusal", message(r#"{"content":null,"refusal":"I cannot"}"#), "1/sentiment_polarity: blocked"),
        case("thoughts alone", message(r#"{"content":"","reasoning_content":"3"}"#), EMPTY),
        case("tool calls", message(r#"{"content":null,"tool_calls":[{"function":{"arguments":"3"}}]}"#), EMPTY),
        case("a number", content("3"), PROVIDER),
        case("parts", content(r#"[{"type":"text","text":"3"}]"#), ""),
        case("an object", content(r#"{"text":"3"}"#), PROVIDER),
        case("escapes", content(r#""\u0033""#), ""),
        case("twice", message(r#"{"content":"1","content":"3"}"#), ""),
        case("a lone surrogate", content(r#""\ud800""#), "1/sentiment_polarity: unreadable"),
        case("a byte order mark", content(r#""\ufeff3""#), ""),
        case("a huge number", content(r#""1e999999""#), "1/sentiment_polarity: not_accepted"),
        case("a long text", content(&format!("\"{}\"", "长".repeat(100_000))), "1/sentiment_polarity: unreadable"),
        case("a deep text", content(&format!("\"{}\"", "[".repeat(100_000))), "1/sentiment_polarity: unreadable"),
        case("a deep value", content(&("[".repeat(100_000) + &"]".repeat(100_000))), EMPTY),
    ]
}

fn lines() -> Vec<Case> {
    /// It cannot be read, but for its id.
    const LOST: &str = "1/sentiment_polarity: bad_line";
    let good = content(r#""3""#);
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1);
    let bytes = |before: &[u8], after: &[u8]| [before, good.as_bytes(), after].concat();
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).filter(|byte| *byte != b'\n').collect();
    vec![
        case("white space around", format!(" \t{good}\t "), ""),
        case("a carriage return after", format!("{good}\r"), ""),
        case("carriage returns between", good.replace(':', "\r:\r"), ""),
        case("a deep stranger", with(&format!(r#""x":{}{}"#, "[".repeat(100_000), "]".repeat(100_000))), ""),
        case("a huge number", with(&format!(r#""x":{}"#, "9".repeat(10_000))), ""),
        case("a long key", with(&format!(r#""{}":1"#, "k".repeat(100_000))), ""),
        case("a key that is a lone surrogate", with(r#""\ud800":1"#), ""),
        case("a byte order mark", bytes(b"\xef\xbb\xbf", b""), ""),
        case("a byte order mark of UTF-16", bytes(b"\xff\xfe", b""), LOST),
        case("UTF-16", utf16, "bad_line"),
        case("a DEL in a string", with("\"x\":\"\u{7f}\""), ""),
        case("Latin-1", bytes(b"", b"\xe9"), LOST),
        case("an overlong encoding", bytes(b"", b"\xc0\x80"), LOST),
        case("a NUL before", bytes(b"\0", b""), LOST),
        case("a NUL after", bytes(b"", b"\0"), LOST),
        case("a NUL in a string", with("\"x\":\"\0\""), ""),
        case("a tab in a string", with("\"x\":\"\t\""), ""),
        case("garbage after", format!("{good}x"), LOST),
        case("a comma after", format!("{good},"), LOST),
        case("two objects", format!("{good}{good}"), LOST),
        case("two objects, a space between", format!("{good} {good}"), LOST),
        case("an array of it", format!("[{good}]"), "bad_line"),
        case("a torn line", good.get(..good.len() / 2).unwrap_or_default(), "bad_line"),
        case("without its last brace", good.strip_suffix('}').unwrap_or_default(), LOST),
        case(
            "a trailing comma",
            with("").replace("{,", "{").replace(r#""id":"batch_1"}"#, r#""id":"batch_1",}"#),
            LOST,
        ),
        case("single quotes", good.replace('"', "'"), "bad_line"),
        case("an infinity", with(r#""x":Infinity"#), ""),
        case("a comment", format!("{good}// done"), LOST),
        case("a string", r#""sentiment_polarity_0001""#, "bad_line"),
        case("null", "null", "bad_line"),
        case("brackets without end", "[".repeat(100_000), "bad_line"),
        case("an event stream", format!("data: {good}"), LOST),
    ]
}

/// The verdict of each line, and of the good line that follows each.
fn judge(cases: &[Case]) -> Vec<(String, String)> {
    let neighbour = |at: usize| id(&format!("\"topic_analysis_{}\"", 1000 + at)).replace("\"3\"", "\"[]\"");
    let mut input = Vec::new();
    for (at, case) in cases.iter().enumerate() {
        assert!(!case.line.contains(&b'\n'), "{}", case.name);
        input.extend([case.line.as_slice(), b"\n", neighbour(at).as_bytes(), b"\n"].concat());
    }
    let dir = WorkDir::new();
    let ran = dir.pipe(&input, &["parse", "--faults", "faults.jsonl", "--max-faults=100%"]).exits(0);
    let mut faults: BTreeMap<u64, Value> = BTreeMap::new();
    for line in dir.read("faults.jsonl").lines() {
        let fault: Value = serde_json::from_str(line).expect("a fault is JSON");
        faults.insert(fault.get("line").and_then(Value::as_u64).expect("a line number"), fault);
    }
    let mut answers = ran.json_lines().into_iter();
    let mut verdict = |line: u64| {
        let field = |value: &Value, key: &str| value.get(key).cloned().unwrap_or_default();
        let kind = |value: &Value| field(value, "kind").as_str().unwrap_or_default().to_owned();
        match faults.get(&line) {
            Some(fault) if fault.get("index").is_none() => kind(fault),
            fault => {
                let answer = answers.next().expect("a line for each row");
                let row = format!("{}/{}", field(&answer, "index"), field(&answer, "analysis").as_str().unwrap_or("?"));
                assert_eq!(answer.get("fault").map(&kind), fault.map(&kind), "both tell the same");
                match fault {
                    Some(fault) => format!("{row}: {}", kind(fault)),
                    None => format!("{row} = {}", field(&answer, "value")),
                }
            }
        }
    };
    let verdicts = (0..cases.len() as u64).map(|at| (verdict(2 * at + 1), verdict(2 * at + 2))).collect();
    assert_eq!(answers.next(), None);
    verdicts
}

#[test]
fn h2_every_envelope_has_its_verdict() {
    let cases = cases();
    assert!(cases.len() >= 120, "{} cases", cases.len());
    check(&cases);
}

#[track_caller]
fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (at, (case, (seen, next))) in cases.iter().zip(judge(cases)).enumerate() {
        if seen != case.verdict {
            wrong.push(format!("{}: {seen}, not {}", case.name, case.verdict));
        }
        assert_eq!(next, format!("{}/topic_analysis = []", 1000 + at), "after {}: no other row is touched", case.name);
    }
    assert_eq!(wrong, [""; 0]);
}

/// What stands in the results of a job for a row that was not asked there, or twice, changes no other row.
#[test]
fn h2_of_two_answers_for_a_row_a_value_beats_a_fault_and_the_first_value_the_second() {
    let dir = WorkDir::new();
    let answer =
        |custom_id: &str, text: &str| id(&json!(custom_id).to_string()).replace("\"3\"", &json!(text).to_string());
    let results = [
        answer("sentiment_polarity_0000", "nonsense"),
        answer("sentiment_polarity_00", "4"),
        answer("sentiment_polarity_0", "5"),
        answer("sentiment_polarity_1", "2"),
        answer("sentiment_polarity_0001", "2"),
        answer("sentiment_polarity_9", "1"),
    ];
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n{\"content\":\"b\"}\n");
    let parsed = dir.pipe(results.join("\n"), &["parse", "-q", "--max-faults=1", "-o", "answers"]).exits(0);
    assert!(parsed.stdout.is_empty());
    let args = ["merge", "posts.jsonl", "answers", "--only=sentiment_polarity", "-q", "--faults=f"];
    let merged = dir.run(&args).exits(1);
    assert_eq!(
        merged.text(),
        "{\"content\":\"a\",\"sentiment_polarity\":4}\n{\"content\":\"b\",\"sentiment_polarity\":2}\n"
    );
    let kinds: Vec<Value> = dir.read("f").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<_> = kinds.iter().map(|fault| (fault.get("index"), fault.get("kind"))).collect();
    assert_eq!(kinds, [(Some(&json!(0)), Some(&json!("conflict"))), (Some(&json!(9)), Some(&json!("unknown_id")))]);
}

/// The fault that a line comes to.
fn fault_of(line: &str) -> Value {
    let dir = WorkDir::new();
    let neighbour = id("\"topic_analysis_7\"").replace("\"3\"", "\"[]\"");
    dir.pipe(format!("{line}\n{neighbour}\n"), &["parse", "--faults", "f", "-q"]).exits(1);
    serde_json::from_str(&dir.read("f")).unwrap_or_else(|e| panic!("{line}: one fault: {e}"))
}

fn of(fault: &Value, key: &str) -> String {
    fault.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Seen with Mistral's and OpenAI's newer routes: the content is an array of parts, thoughts among them.
#[test]
fn r10_7_content_may_be_parts() {
    const EMPTY: &str = "1/sentiment_polarity: empty";
    check(&[
        case("one part", content(r#"[{"type":"text","text":"3"}]"#), ""),
        case("output_text", content(r#"[{"type":"output_text","text":"3","annotations":[]}]"#), ""),
        case("a part without a type", content(r#"[{"text":"3"}]"#), ""),
        case("a bare string", content(r#"["3"]"#), ""),
        case(
            "two that belong together",
            content(r#"[{"type":"text","text":"答案："},{"type":"text","text":"\u0033"}]"#),
            "",
        ),
        case(
            "thinking before it",
            content(
                r#"[{"type":"thinking","thinking":[{"type":"text","text":"4?"}]},{"type":"reasoning","text":"5?"},{"type":"text","text":"3"}]"#,
            ),
            "",
        ),
        case("thinking alone", content(r#"[{"type":"thinking","text":"3"}]"#), EMPTY),
        case("no part", content("[]"), EMPTY),
        case("an empty part", content(r#"[{"type":"text","text":""}]"#), EMPTY),
    ]);
}

/// Seen with llama-stack's batches: 120 of 120 paid lines had their body in a string.
#[test]
fn r10_7_a_body_may_be_in_a_string() {
    let inside = r#"{"choices":[{"finish_reason":"stop","message":{"content":"\u0033"}}],"usage":{"total_tokens":9}}"#;
    let quoted = Value::from(inside).to_string();
    check(&[
        case("the body", body(&quoted), ""),
        case(
            "the response",
            response(&Value::from(format!(r#"{{"status_code":200,"body":{inside}}}"#)).to_string()),
            "",
        ),
        case("an error", body(r#""{\"error\":{\"code\":\"1301\"}}""#), "1/sentiment_polarity: blocked"),
        case("a page", body(r#""<html>""#), "1/sentiment_polarity: provider"),
        case("half of it", body(r#""{\"choices\":[""#), "1/sentiment_polarity: provider"),
    ]);
    let ran = WorkDir::new().pipe(body(&quoted), &["parse", "-q"]).exits(0);
    assert_eq!(ran.json_lines()[0]["usage"]["total_tokens"], 9);
}

/// Seen with Gemini, Anthropic, TGI, Cohere and Mistral behind OpenAI's shape.
#[test]
fn r10_7_ends_of_other_servers_are_known() {
    for reason in ["stop", "STOP", "end", "end_turn", "EOS", "eos_token", "stop_sequence", "COMPLETE"] {
        check(&[case("an end", finish(&format!("\"{reason}\"")), "")]);
    }
    for (reason, kind) in [
        ("max_tokens", "truncated"),
        ("MAX_TOKENS", "truncated"),
        ("Length", "truncated"),
        ("model_length", "truncated"),
        ("SAFETY", "blocked"),
        ("prohibited_content", "blocked"),
        ("refusal", "blocked"),
        ("tired", "provider"),
    ] {
        let fault = fault_of(&finish(&format!("\"{reason}\"")));
        assert_eq!((of(&fault, "kind"), of(&fault, "detail")), (kind.to_owned(), format!("finish_reason is {reason}")));
        assert_eq!(of(&fault, "excerpt"), "3", "{reason}: what the model wrote");
    }
}

/// Seen with Python servers, whose json module writes NaN, and with logs that were joined by hand.
#[test]
fn r10_7_damage_beside_the_answer_keeps_the_answer() {
    let good = content(r#""3""#);
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1);
    check(&[
        case("NaN", with(r#""logprob":NaN"#), ""),
        case("infinities", with(r#""a":Infinity,"b":[-Infinity]"#), ""),
        case("NaN in the usage", usage(r#"{"prompt_tokens":NaN,"total_tokens":3}"#), ""),
        case("a raw tab", with("\"x\":\"a\tb\""), ""),
        case("a raw NUL", with("\"x\":\"\0\""), ""),
        case("a bad escape", with(r#""path":"C:\data\x""#), ""),
        case("a bad unicode escape", with(r#""x":"\u12""#), ""),
        case("the word in a text", with(r#""x":"NaN","y":NaN"#), ""),
        case("in a body in a string", body(r#""{\"choices\":[{\"x\":NaN,\"message\":{\"content\":\"3\"}}]}""#), ""),
        case("a refused value", with(r#""x":NaN"#).replace("\"3\"", "\"9\""), "1/sentiment_polarity: not_accepted"),
    ]);
}

/// A line that nobody can read keeps its row, so that the row is known to have been answered badly.
#[test]
fn r10_7_a_line_that_cannot_be_read_keeps_its_row() {
    let torn = format!(r#"{{"id":"r","custom_id":"{ID}","response":{{"status_code":200,"body":{{"choi"#);
    let fault = fault_of(&torn);
    assert_eq!(
        (&fault["index"], of(&fault, "kind"), of(&fault, "analysis")),
        (&json!(1), "bad_line".to_owned(), "sentiment_polarity".to_owned())
    );
    check(&[
        case("torn", torn.clone(), "1/sentiment_polarity: bad_line"),
        case("blanks around the colon", torn.replace("\":\"sent", "\" : \"sent"), "1/sentiment_polarity: bad_line"),
        case("the same id twice", format!("{torn}{torn}"), "1/sentiment_polarity: bad_line"),
        case("two ids", format!("{torn}{}", torn.replace("_0001", "_0002")), "bad_line"),
        case("an id in a text", r#"{"x":"\"custom_id\":\"sentiment_polarity_0001\"","#, "bad_line"),
        case("an analysis that is not in force", torn.replace("sentiment_polarity", "old"), "bad_line"),
        case("an id that is none", torn.replace("_0001", ""), "bad_line"),
    ]);
}

/// Seen with a broken byte in a post's text: the id was plain to see, and its row was lost.
#[test]
fn r10_7_a_broken_byte_keeps_its_row() {
    const LOST: &str = "1/sentiment_polarity: bad_line";
    let good = content(r#""3 é""#);
    let (before, after) = good.split_once('é').expect("it is there");
    let broken = |before: &str, after: &str| [before.as_bytes(), b"\xff", after.as_bytes()].concat();
    let echoed = r#"{"request":{"custom_id":"sentiment_polarity_0009"},"#;
    check(&[
        case("in the answer", broken(before, after), LOST),
        case("in a key", broken(r#"{""#, &format!(r#"":1,"custom_id":"{ID}"}}"#)), LOST),
        case("between", broken(&format!(r#"{{"custom_id":"{ID}","#), "}"), LOST),
        case("beside an id that is not of the line", broken(&before.replacen('{', echoed, 1), after), LOST),
        case("in the id", broken(r#"{"custom_id":"sentiment_polarity_000"#, r#"1"}"#), "bad_line"),
        case("where no id is", broken(r#"{"x":""#, r#""}"#), "bad_line"),
    ]);
}

/// Seen with servers that echo the request: an id in it, or in a text, is not the line's.
#[test]
fn r10_7_only_the_lines_own_id_is_its_row() {
    const LOST: &str = "1/sentiment_polarity: bad_line";
    let torn = format!(r#"{{"id":"x","custom_id":"{ID}","request":{{"custom_id":"sentiment_polarity_0009"}},"resp"#);
    check(&[
        case("in the request", r#"{"id":"x","request":{"custom_id":"sentiment_polarity_0009"},"resp"#, "bad_line"),
        case("in an array", r#"{"id":"x","requests":[{"custom_id":"sentiment_polarity_0009"}],"resp"#, "bad_line"),
        case("in a text", r#"{"x":"\\\"custom_id\":\"sentiment_polarity_0009\"","resp"#, "bad_line"),
        case("in JSON in a text", r#"{"x":"{\"custom_id\":\"sentiment_polarity_0009\"}","resp"#, "bad_line"),
        case("as a value", r#"{"x":"custom_id","sentiment_polarity_0009":1,"resp"#, "bad_line"),
        case("after the end of a line", r#"x"},"custom_id":"sentiment_polarity_0009","resp"#, "bad_line"),
        case(
            "in quotes in a text",
            r#"{"x":"a","custom_id":"sentiment_polarity_0009" b"},"custom_id":"sentiment_polarity_0001"}"#,
            "bad_line",
        ),
        case(
            "after a brace too many",
            r#"{"id":"x"},"request":{"custom_id":"sentiment_polarity_0009"},"resp"#,
            "bad_line",
        ),
        case("its own beside another's", torn, LOST),
        case(
            "a bare quote in a text before it",
            format!(r#"{{"x":{{"y":"he said "so" twice"}},"custom_id":"{ID}"}}"#),
            LOST,
        ),
    ]);
}

/// Seen with servers that wrap what they forward: the string in the string, a refusal as a part, an error of nothing.
#[test]
fn r10_7_more_shapes_of_the_same() {
    const BLOCKED: &str = "1/sentiment_polarity: blocked";
    let inside = r#"{"choices":[{"finish_reason":"stop","message":{"content":"\u0033"}}]}"#;
    let both = json!({"status_code": 200, "body": inside}).to_string();
    let with_error = |error: &str| content(r#""3""#).replacen('{', &format!("{{\"error\":{error},"), 1);
    let in_body = |error: &str| body(&inside.replacen('{', &format!("{{\"error\":{error},"), 1));
    check(&[
        case("a body in a response, both in strings", response(&json!(both).to_string()), ""),
        case(
            "a refusal beside a text",
            content(r#"[{"type":"text","text":"3"},{"type":"refusal","refusal":"I can't"}]"#),
            BLOCKED,
        ),
        case("a refusal alone", content(r#"[{"type":"refusal","refusal":"I can't"}]"#), BLOCKED),
        case("a refusal of nothing", content(r#"[{"type":"text","text":"3"},{"type":"refusal","refusal":""}]"#), ""),
    ]);
    for error in ["[]", r#""None""#, r#""null""#, r#"{"code":null,"message":null}"#, r#"{"code": "", "param":null}"#] {
        check(&[case("beside an answer", with_error(error), ""), case("in the body", in_body(error), "")]);
        let line = with_error(error).replace(r#""status_code":200"#, r#""status_code":500"#);
        assert_eq!(of(&fault_of(&line), "kind"), "provider", "{error}");
        assert_eq!(of(&fault_of(&self::error(error)), "kind"), "provider", "{error}");
    }
    for error in ["[1]", r#""no""#, r#"{"code":null,"message":"no"}"#, r#"{"code":1}"#] {
        check(&[case("an error", with_error(error), "1/sentiment_polarity: provider")]);
    }
    let fault = fault_of(&content(r#"[{"type":"refusal","refusal":"I can\u0027t"}]"#));
    assert_eq!(
        (of(&fault, "detail").as_str(), of(&fault, "excerpt").as_str()),
        ("the model refuses: I can't", "I can't")
    );
    for reason in [" stop ", "stopped", "FINISH_REASON_STOP", "null", "", " "] {
        check(&[case("an end", finish(&json!(reason).to_string()), "")]);
    }
    check(&[case("no end", finish(r#""length\n""#), "1/sentiment_polarity: truncated")]);
}

/// Seen with thinking models whose parser puts everything into `reasoning_content`, and with models that call a tool.
#[test]
fn r10_7_text_that_is_no_content_is_named() {
    for (message_json, kind, detail, excerpt) in [
        (
            r#"{"content":"","reasoning_content":"我想是 3"}"#,
            "empty",
            "no content; 5 characters of text are in reasoning_content",
            "我想是 3",
        ),
        (r#"{"content":null,"reasoning":"hm"}"#, "empty", "no content; 2 characters of text are in reasoning", "hm"),
        (
            r#"{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\"a\":3}"}}]}"#,
            "empty",
            "no content; 7 characters of text are in a tool call",
            r#"{"a":3}"#,
        ),
        (r#"{"content":null,"refusal":"I can't help"}"#, "blocked", "the model refuses: I can't help", "I can't help"),
        (r#"{"content":null,"refusal":""}"#, "empty", "no content in the response", ""),
    ] {
        let fault = fault_of(&message(message_json));
        assert_eq!((of(&fault, "kind").as_str(), of(&fault, "detail").as_str()), (kind, detail));
        assert!(excerpt.is_empty() || of(&fault, "excerpt") == excerpt, "{fault}");
    }
    let call =
        r#"{"finish_reason":"tool_calls","message":{"content":null,"tool_calls":[{"function":{"arguments":"3"}}]}}"#;
    assert_eq!(of(&fault_of(&choice(call)), "kind"), "empty");
}

/// A server that answers every request with this.
fn upstream(body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a connection");
            let mut from = BufReader::new(socket.try_clone().expect("cloned"));
            let (mut length, mut line) = (0, String::new());
            while from.read_line(&mut line).expect("read") > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            from.read_exact(&mut vec![0; length]).expect("read");
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all((head + body).as_bytes()).expect("sent");
        }
    });
    url
}

/// Seen in a trial: everything was paid, nothing could be read, and the only copies were deleted.
#[test]
fn r10_7_the_files_of_another_format_are_kept() {
    let setup = Setup::new(&["--upstream", &upstream(r#"{"output":"3"}"#)]);
    setup.submit();
    let ran = setup.run(&["fetch"]);
    assert!(ran.stderr.contains("looks like another format, not like bad answers"), "{}", ran.stderr);
    assert!(setup.files("batch_output") > 0, "they are kept");
    // One line in the usual format is enough to know it.
    let setup = Setup::new(&["--upstream", &upstream(r#"{"choices":[{"message":{"content":"nonsense"}}]}"#)]);
    setup.submit();
    setup.run(&["fetch"]).exits(0);
    assert_eq!(setup.files("batch_output"), 0);
}

/// One table of codes and phrases, from public bug reports and the providers' pages of error codes.
#[test]
fn r10_8_kinds_come_from_one_table() {
    for row in fixture("replies/refused_rows.jsonl").lines() {
        let row: Value = serde_json::from_str(row).expect("a row of the table");
        let line = response(&json!({"status_code": row["status"], "body": {"error": row["error"]}}).to_string());
        assert_eq!(fault_of(&line)["kind"], row["kind"], "{row}");
    }
    assert_eq!(of(&fault_of(&response(r#"{"status_code":451,"body":null}"#)), "kind"), "blocked");
}

#[test]
fn r10_8_skip_leaves_out_what_would_be_refused_again() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n".repeat(7));
    let kinds = ["blocked", "prompt_too_long", "too_large", "bad_post", "bad_request", "image", "provider"];
    let lines = kinds.iter().enumerate().map(|(index, kind)| {
        json!({"index": index, "analysis": "sentiment_polarity", "kind": kind, "detail": ""}).to_string() + "\n"
    });
    dir.write("f", lines.collect::<String>());
    let ran = dir.run(&["gen", "posts.jsonl", "--only", "sentiment_polarity", "--skip", "f", "-q"]).exits(0);
    let ids: Vec<Value> = ran.json_lines().iter().map(|line| line["custom_id"].clone()).collect();
    assert_eq!(ids, ["sentiment_polarity_0005", "sentiment_polarity_0006"], "an image and a busy server may do better");
}

/// Seen in every fault line of a trial: 120 characters of envelope, and none of the model's.
#[test]
fn r10_9_faults_show_the_models_text() {
    let fault = fault_of(&content(r#""我不确定\u001b[31m，也许是 \"3\"？\n""#));
    assert_eq!(of(&fault, "excerpt"), "我不确定\\u{1b}[31m，也许是 \"3\"？\\n");
    let fault = fault_of(&content(&json!("长".repeat(5_000)).to_string()));
    assert_eq!(of(&fault, "excerpt"), format!("{}…", "长".repeat(120)));
    let fault = fault_of(&content(r#"[{"type":"text","text":"也许"},{"type":"text","text":"吧"}]"#));
    assert_eq!(of(&fault, "excerpt"), "也许吧");
    // Where there is no text of the model's, the line itself is all there is.
    let line = error(r#"{"code":"1234"}"#);
    assert!(line.starts_with(of(&fault_of(&line), "excerpt").trim_end_matches('…')));
    // On a terminal, too.
    let ran = WorkDir::new().pipe(content(r#""说不准""#), &["parse"]).exits(1);
    assert!(ran.stderr.contains("no answer in `说不准` | 说不准"), "{}", ran.stderr);
}
