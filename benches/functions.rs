//! The functions that every row goes through, each alone: `cargo bench`. Bytes or rows a second; compare within one run.

use std::{io::Cursor, sync::Arc};

use divan::{Bencher, counter::BytesCount};
use zbatch::{
    analysis::{AnalysisSet, Sources},
    flow::{
        CustomId, PostIndex,
        answers::AnswerReader,
        enhanced::{Answers, write_enhanced},
        posts::PostParser,
        requests::Requests,
        shards::{Key, Shards, field},
        tally::Tally,
    },
    lines::{
        blocks::{Block, LineReader, Shape},
        input::Input,
    },
    settings::Config,
};

fn main() {
    divan::main();
}

const POST: &str = r#"{"username":"白石县消防","content":"水退了，对门大爷先扫了我家门口，再去扫他自己家的。\n鼻子一酸。#洪水# http://t.example/A6x","publish_time":"2026-08-14 21:03:55","location":"白石县","repost_count":12,"comment_count":3,"like_count":980,"image_urls":[]}"#;

fn set() -> Arc<AnalysisSet> {
    Arc::new(AnalysisSet::load(&Sources::default()).expect("the built-in analyses"))
}

#[divan::bench]
fn parse_post(bencher: Bencher) {
    let set = set();
    let mut parser = PostParser::default();
    bencher
        .counter(BytesCount::of_str(POST))
        .bench_local(|| parser.parse(&set.fields, PostIndex(7), POST.as_bytes()).is_ok());
}

/// Six requests.
#[divan::bench]
fn render(bencher: Bencher) {
    let set = set();
    let models = Config::default().models(&Default::default()).expect("the defaults");
    let (url, rows) = ("/v4/chat/completions", Arc::default());
    let mut requests = Requests::new(Arc::clone(&set), models.of_requests(), url, None, rows, u64::MAX).expect("ready");
    let mut parser = PostParser::default();
    let post = Ok(parser.parse(&set.fields, PostIndex(7), POST.as_bytes()).expect("a post"));
    let mut out = Vec::new();
    let mut once = |out: &mut Vec<u8>| {
        requests.of(&post).flatten().for_each(|request| request.write_to(out).expect("written"));
    };
    once(&mut out);
    let bytes = out.len();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        out.clear();
        once(&mut out);
    });
}

fn result(analysis: &str, text: &str) -> String {
    let content = serde_json::Value::from(text);
    format!(
        r#"{{"response":{{"status_code":200,"body":{{"created":1788420001,"usage":{{"completion_tokens":12,"prompt_tokens":240,"total_tokens":252}},"model":"glm-4-air","id":"8668357533850320001","choices":[{{"finish_reason":"stop","index":0,"message":{{"role":"assistant","content":{content}}}}}],"request_id":"42"}}}},"custom_id":"{analysis}_000042","id":"batch_2095408344001937408"}}"#
    )
}

/// A whole result line, from bytes to a judged answer.
#[divan::bench(args = ["strict", "label", "fenced", "prose", "mended"])]
fn read_answer(bencher: Bencher, kind: &str) {
    let line = match kind {
        "strict" => result("sentiment_polarity", "3"),
        "label" => result("publisher_analysis", "普通网民"),
        "fenced" => {
            result("topic_analysis", "```json\n[{\"parent_topic\": \"灾害救援\", \"sub_topic\": \"洪涝救援\"}]\n```")
        }
        "prose" => result("sentiment_attribute", "根据博文内容，结果如下：\n[\"感动\", \"平静\"]\n以上。"),
        _ => result("sentiment_attribute", "[“感动”，‘平静’,]"),
    };
    let set = set();
    let mut reader = AnswerReader::new(&set);
    let mut tally = Tally::new(set.list.len());
    bencher.counter(BytesCount::of_str(&line)).bench_local(|| {
        tally.count(divan::black_box(&reader.read(line.as_bytes())));
    });
}

#[divan::bench]
fn splice(bencher: Bencher) {
    let set = set();
    let mut shards = Shards::new(set.list.len(), 1 << 20, &std::env::temp_dir()).expect("shards");
    for at in 0..set.list.len() {
        let key = Key { index: 7, field: field(at), is_fault: false, rank: 0 };
        shards.push(key, "[\"感动\"]".as_bytes()).expect("pushed");
    }
    let mut answers = Answers::new(shards.sorted(), set.list.len());
    let row = answers.row(7).expect("a row");
    let mut parser = PostParser::default();
    let post = parser.parse(&set.fields, PostIndex(7), POST.as_bytes()).expect("a post");
    let (mut out, mut filled) = (Vec::new(), Vec::new());
    bencher.counter(BytesCount::of_str(POST)).bench_local(|| {
        out.clear();
        write_enhanced(&post, &set, row, &mut out, &mut filled);
    });
}

#[divan::bench]
fn custom_id() -> Option<u64> {
    CustomId::parse(divan::black_box("sentiment_polarity_000042")).map(|id| id.index.0)
}

/// Cutting input into lines, and one array into its elements.
#[divan::bench(args = ["lines", "array"])]
fn read(bencher: Bencher, shape: &str) {
    let (open, between, close) = if shape == "lines" { ("", "\n", "\n") } else { ("[\n", ",\n", "\n]\n") };
    let input = format!("{open}{}{close}", vec![POST; 20_000].join(between));
    bencher.counter(BytesCount::of_str(&input)).bench_local(|| {
        let reader = Box::new(Cursor::new(input.clone().into_bytes()));
        let input = Input { reader, name: "memory".to_owned() };
        let mut reader = LineReader::new(input, Shape::LinesOrArray, 1 << 20, 0);
        let (mut block, mut count) = (Block::default(), 0);
        while reader.fill(&mut block).expect("read") {
            count += block.lines().count();
        }
        count
    });
}
