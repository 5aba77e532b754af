//! Inputs as people have them: joined, padded and torn files, Python's idea of JSON, objects around the posts, fields under
//! other names. Each is read, or refused with the cause, the place and a command that helps; and no post is lost.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::workdir::{Ran, WorkDir, skipped};

/// One request a post.
const ONE: &str = "--only=sentiment_polarity";

const BOM: &str = "\u{feff}";

fn indexes(ran: &Ran) -> Vec<u64> {
    let ids = ran.json_lines().into_iter().map(|line| line["custom_id"].as_str().expect("an id").to_owned());
    ids.map(|id| id.rsplit_once('_').expect("an index").1.parse().expect("a number")).collect()
}

/// The one analysis `mood`, with this prompt and these further keys of its `analysis.json`.
fn mood(dir: &WorkDir, prompt: &str, more: &str) -> [&'static str; 4] {
    let analysis = r#"{"name":"mood","field":"mood","rule":{"type":"integer","min":0,"max":9}"#;
    dir.write("an/mood/analysis.json", format!("{analysis}{more}}}")).write("an/mood/prompt.txt", prompt);
    ["--analyses", "an", "--only", "mood"]
}

fn answers(count: usize) -> String {
    (0..count).map(|index| format!("{{\"index\":{index},\"analysis\":\"sentiment_polarity\",\"value\":3}}\n")).collect()
}

fn names(dir: &WorkDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).expect("listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

// Point 10: no post is lost.

const TORN: &str = "{\"content\":\"a\"}\n{\"content\":\"torn\n{\"content\":\"c\"}\n";
const TORN_MERGED: &str = "{\"content\":\"a\",\"sentiment_polarity\":3}\n{\"sentiment_polarity\":null}\n\
                           {\"content\":\"c\",\"sentiment_polarity\":3}\n";

/// A trial lost a post that could not be read: `merge posts.jsonl - -o posts.jsonl` wrote its fields alone in its place.
#[test]
fn r10_10_s0_an_output_over_its_input_loses_no_post_that_cannot_be_read() {
    // Every way in which two names are one file.
    type Way = (&'static str, fn(&WorkDir));
    let ways: [Way; 5] = [
        ("posts.jsonl", |_| ()),
        ("./posts.jsonl", |_| ()),
        ("link.jsonl", |dir| symlink("posts.jsonl", dir.join("link.jsonl")).expect("linked")),
        ("far/link.jsonl", |dir| {
            std::fs::create_dir(dir.join("far")).expect("made");
            symlink("../posts.jsonl", dir.join("far/link.jsonl")).expect("linked");
        }),
        ("hard.jsonl", |dir| std::fs::hard_link(dir.join("posts.jsonl"), dir.join("hard.jsonl")).expect("linked")),
    ];
    for (output, prepare) in ways {
        let dir = WorkDir::new();
        dir.write("posts.jsonl", TORN);
        prepare(&dir);
        let ran = dir.pipe(answers(3), &["merge", "posts.jsonl", "-", "-o", output, ONE]).exits(65);
        assert_eq!(dir.read("posts.jsonl"), TORN, "{output}");
        assert_eq!(dir.read(output), TORN, "{output}");
        let partial = if output == "hard.jsonl" { "hard.jsonl.partial" } else { "posts.jsonl.partial" };
        assert_eq!(dir.read(partial), TORN_MERGED, "{output}");
        for told in ["line 2", partial, "fix: "] {
            assert!(ran.stderr.contains(told), "{output}: {told}\n{}", ran.stderr);
        }
    }
    // The posts come through stdin, from the file that the output names.
    let dir = WorkDir::new();
    dir.write("posts.jsonl", TORN).write("answers.jsonl", answers(1));
    let mut command = dir.command(&["merge", "-", "answers.jsonl", "-o", "posts.jsonl", ONE]);
    command.stdin(File::open(dir.join("posts.jsonl")).expect("open"));
    Ran::of(command.output().expect("it starts")).exits(65);
    assert_eq!(dir.read("posts.jsonl"), TORN);
    assert!(dir.exists("posts.jsonl.partial"));
    // Mended, it is replaced as ever; and another output takes what there is.
    dir.write("posts.jsonl", TORN.replace("torn", "b\"}"));
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "posts.jsonl", ONE]).exits(1);
    assert_eq!(dir.read("posts.jsonl").lines().count(), 3);
    dir.write("posts.jsonl", TORN);
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "out.jsonl", ONE]).exits(1);
    assert_eq!(dir.read("out.jsonl").lines().count(), 3);
}

/// The same for `run`, whose input is kept in the work directory: also when it goes on without its input.
#[test]
fn r10_10_s0_run_over_its_input_loses_no_post_that_cannot_be_read() {
    let long = format!("{{\"content\":\"{}\"}}\n", "x".repeat(5000));
    for bad in ["{\"content\":\"torn\n", "{\"content\":\"\u{1}\"}\n", "[]\n", long.as_str()] {
        let dir = WorkDir::new();
        let posts = format!("{{\"content\":\"a\"}}\n{bad}{{\"content\":\"c\"}}\n");
        dir.write("posts.jsonl", &posts);
        let args =
            ["run", "posts.jsonl", "-o", "posts.jsonl", "-d", "w", "--emulate", ONE, "--max-line=4KiB", "--faults=f"];
        for _ in 0..2 {
            let ran = dir.run(&args).exits(65);
            assert!(ran.stderr.contains("line 2") && ran.stderr.contains("posts.jsonl.partial"), "{}", ran.stderr);
            assert_eq!(dir.read("posts.jsonl"), posts);
            let partial = dir.read("posts.jsonl.partial");
            let partial: Vec<&str> = partial.lines().collect();
            assert_eq!((partial.len(), partial[1]), (3, "{\"sentiment_polarity\":null}"));
            assert!(partial[2].starts_with("{\"content\":\"c\",\"sentiment_polarity\":"), "{partial:?}");
        }
    }
    let dir = WorkDir::new();
    dir.write("posts.jsonl", TORN);
    let args = ["run", "-", "-o", "posts.jsonl", "-d", "w", "--emulate", ONE];
    let mut command = dir.command(&args);
    command.stdin(File::open(dir.join("posts.jsonl")).expect("open"));
    Ran::of(command.output().expect("it starts")).exits(65);
    assert_eq!(dir.read("posts.jsonl"), TORN);
    // Nothing is piped in now: the kept posts are read, and the file still holds them.
    dir.run(&args).exits(65);
    assert_eq!(dir.read("posts.jsonl"), TORN);
}

/// `gen posts.jsonl -o posts.jsonl` replaced posts by prompts, `parse results -o results` paid results by judgements.
#[test]
fn r10_10_s0_only_posts_with_their_fields_replace_an_input() {
    let dir = WorkDir::new();
    let posts = "{\"content\":\"a\"}\n";
    dir.write("posts.jsonl", posts).write("answers.jsonl", answers(1));
    symlink("posts.jsonl", dir.join("link")).expect("linked");
    for output in ["posts.jsonl", "link"] {
        let ran = dir.run(&["gen", "posts.jsonl", "-o", output, ONE]).exits(64);
        assert!(ran.stderr.contains("is read already"), "{}", ran.stderr);
        assert_eq!(dir.read("posts.jsonl"), posts);
    }
    dir.run(&["parse", "posts.jsonl", "-o", "posts.jsonl"]).exits(64);
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "answers.jsonl", ONE]).exits(64);
    assert_eq!((dir.read("posts.jsonl").as_str(), dir.read("answers.jsonl")), (posts, answers(1)));
    // What a shell appends to the file that is read would be read again.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" >> posts.jsonl", "sh", env!("CARGO_BIN_EXE_zbatch")]);
    shell.args(["merge", "posts.jsonl", "answers.jsonl", ONE]).current_dir(dir.path());
    let ran = Ran::of(shell.output().expect("sh is here")).exits(64);
    assert!(ran.stderr.contains("stdout is posts.jsonl"), "{}", ran.stderr);
    assert_eq!(dir.read("posts.jsonl"), posts);
}

/// Seen with `zbatch gen -o p.jsonl < p.jsonl`: the file has no name on the command line, and was replaced all the same.
#[test]
fn r10_10_s0_a_file_on_stdin_is_an_input_too() {
    let dir = WorkDir::new();
    let (posts, torn) = ("{\"content\":\"a\"}\n", "{\"content\":\"a\"}\n{\"content\n");
    dir.write("posts.jsonl", posts).write("answers.jsonl", answers(1)).write("torn.jsonl", torn);
    symlink("posts.jsonl", dir.join("link")).expect("linked");
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &script.replace("zbatch", env!("CARGO_BIN_EXE_zbatch"))]).current_dir(dir.path());
        Ran::of(shell.output().expect("sh is here"))
    };
    for script in [
        "zbatch gen -o posts.jsonl < posts.jsonl",
        "zbatch gen - -o link < posts.jsonl",
        "zbatch gen --missing - -o posts.jsonl < link",
        "zbatch gen --faults posts.jsonl < posts.jsonl",
        "zbatch gen --report posts.jsonl < posts.jsonl",
        "zbatch parse -o posts.jsonl < posts.jsonl",
        "zbatch parse - --faults posts.jsonl < posts.jsonl",
        "zbatch merge posts.jsonl - -o answers.jsonl < answers.jsonl",
        "zbatch merge posts.jsonl -o answers.jsonl < answers.jsonl",
        "zbatch merge - answers.jsonl --faults posts.jsonl < posts.jsonl",
        "zbatch chunk -d w --faults posts.jsonl < posts.jsonl",
    ] {
        let ran = shell(script).exits(64);
        assert!(ran.stderr.contains("it is read already, as stdin"), "{script}: {}", ran.stderr);
        assert_eq!((dir.read("posts.jsonl").as_str(), dir.read("answers.jsonl")), (posts, answers(1)), "{script}");
    }
    // A pipe may hold the very file that is there.
    let ran = shell(&format!("cat torn.jsonl | zbatch merge - answers.jsonl -o torn.jsonl {ONE}")).exits(65);
    assert!(ran.stderr.contains("torn.jsonl.partial"), "{}", ran.stderr);
    assert_eq!(dir.read("torn.jsonl"), torn);
    // Another file may be written as before.
    shell(&format!("zbatch merge - answers.jsonl -o out.jsonl {ONE} < posts.jsonl")).exits(0);
    shell(&format!("zbatch merge - answers.jsonl -o posts.jsonl {ONE} < posts.jsonl")).exits(0);
}

/// Seen with `run X -o X` again after X was appended to: the new posts were gone, with exit 0.
#[test]
fn r10_10_s0_posts_that_were_changed_since_are_not_replaced() {
    let dir = WorkDir::new();
    let posts = "{\"content\":\"a\"}\n{\"content\":\"b\"}\n";
    dir.write("posts.jsonl", posts);
    let again = || dir.run(&["run", "posts.jsonl", "-o", "posts.jsonl", "-d", "w", "--emulate", ONE]);
    again().exits(0);
    let ours = dir.read("posts.jsonl");
    assert_ne!(ours, posts);
    again().exits(0);
    assert_eq!(dir.read("posts.jsonl"), ours, "its own output is no change");
    dir.write("posts.jsonl", posts);
    again().exits(0);
    assert_eq!(dir.read("posts.jsonl"), ours, "nor are the posts as they were");
    let changed = format!("{ours}{{\"content\":\"new\"}}\n");
    dir.write("posts.jsonl", &changed);
    let ran = again().exits(65);
    assert!(ran.stderr.contains("posts.jsonl has changed"), "{}", ran.stderr);
    assert_eq!(dir.read("posts.jsonl"), changed);
}

// Point 11: joined, padded and torn files.

/// `cat a.jsonl b.jsonl` of files that Windows editors or Python's utf-8-sig wrote.
#[test]
fn r10_11_a_bom_at_the_start_of_any_line_is_skipped() {
    let dir = WorkDir::new();
    let lines = ["{\"content\":\"a\"}\n", "{\"content\":\"b\"}\n", "\n", "{\"content\":\"c\"}\n"];
    let joined: String = lines.iter().map(|line| format!("{BOM}{line}")).collect();
    dir.write("posts.jsonl", &joined);
    let plain = dir.pipe(lines.concat(), &["gen", ONE]).exits(0);
    assert_eq!(dir.run(&["gen", "posts.jsonl", ONE]).exits(0).text(), plain.text());
    // A file of a mark alone, and then one with a mark.
    assert_eq!(dir.pipe(format!("{BOM}{joined}{BOM}"), &["gen", ONE]).exits(0).text(), plain.text());
    assert_eq!(
        dir.pipe(format!("\n{BOM}[{{\"content\":\"a\"}}]"), &["gen", ONE]).exits(0).text().lines().count(),
        1,
        "an array after a blank line"
    );
    let answers: String = answers(3).lines().map(|line| format!("{BOM}{line}\r\n")).collect();
    let merged = dir.pipe(answers, &["merge", "posts.jsonl", "-", ONE]).exits(0);
    assert!(!merged.text().contains(BOM) && merged.text().lines().count() == 3, "{}", merged.text());
    // The limit is for the line without it.
    let at_limit = format!("{BOM}{{\"content\":\"{}\"}}\n", "x".repeat(100));
    for (limit, code) in [(at_limit.len() - 5, 65), (at_limit.len() - 4, 0)] {
        dir.pipe(&at_limit, &["gen", ONE, "--max-line", &limit.to_string()]).exits(code);
    }
}

/// Tapes, block devices and some object stores fill up with zeros; `gzip -d` reads past them without a word.
#[test]
fn r10_11_zeros_after_packed_posts_are_padding() {
    let dir = WorkDir::new();
    let posts = "{\"content\":\"一\"}\n{\"content\":\"二\"}\n";
    let plain = dir.pipe(posts, &["gen", ONE]).exits(0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(posts.as_bytes()).expect("packed");
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(posts.as_bytes()).expect("packed");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(posts.as_bytes()).expect("packed");
    for (name, packed) in [
        ("gz", gzip.finish().expect("packed")),
        ("bz2", bzip2.finish().expect("packed")),
        ("xz", xz.finish().expect("packed")),
    ] {
        for zeros in [4, 512, 100_000] {
            let padded = [packed.as_slice(), &vec![0; zeros]].concat();
            assert_eq!(dir.pipe(&padded, &["gen", ONE]).exits(0).text(), plain.text(), "{name} and {zeros} zeros");
            // Between two members too.
            let twice = [padded.as_slice(), &packed].concat();
            assert_eq!(indexes(&dir.pipe(&twice, &["gen", ONE]).exits(0)), [0, 1, 2, 3], "{name}");
        }
        let garbage = [packed.as_slice(), b"\0\0\0\0garbage!"].concat();
        dir.pipe(&garbage, &["gen", ONE]).exits(65);
        dir.pipe(&packed[..packed.len() - 2], &["gen", ONE]).exits(65);
    }
}

/// What a crash or a preallocated file leaves behind the last line.
#[test]
fn r10_11_nul_padding_at_the_end_is_no_post() {
    let dir = WorkDir::new();
    for zeros in [1, 4096, 300_000] {
        let padding = "\0".repeat(zeros);
        for posts in ["{\"content\":\"a\"}\n{\"content\":\"b\"}\n", "{\"content\":\"a\"}\n{\"content\":\"b\"}"] {
            let ran = dir.pipe(format!("{posts}{padding}"), &["gen", ONE]).exits(0);
            assert_eq!(indexes(&ran), [0, 1], "{zeros}");
        }
        let ran = dir.pipe(format!("[{{\"content\":\"a\"}}]\n{padding}"), &["gen", ONE]).exits(0);
        assert_eq!(indexes(&ran), [0], "{zeros}");
        // Longer than a line may be, it is padding all the same.
        let ran = dir.pipe(format!("{{\"content\":\"a\"}}\n{padding}"), &["gen", ONE, "--max-line=64"]).exits(0);
        assert_eq!(indexes(&ran), [0], "{zeros}");
        // Anywhere else it is no padding, and a file of nothing else is not empty.
        let torn = format!("{{\"content\":\"a\"}}\n{padding}\n{{\"content\":\"b\"}}\n");
        assert_eq!(indexes(&dir.pipe(torn, &["gen", ONE]).exits(1)), [0, 2], "{zeros}");
        dir.pipe(format!("[{{\"content\":\"a\"}}]{padding}x"), &["gen", ONE]).exits(65);
        dir.pipe(&padding, &["gen", ONE]).exits(65);
    }
}

/// What Python's str, json.dumps with NaN, and hands write.
#[test]
fn r10_11_the_message_names_cause_line_and_column() {
    let dir = WorkDir::new();
    for (line, told) in [
        ("{\"content\":\"b\"}{\"content\":\"c\"}", "a second object on the same line; `jq -c .` puts"),
        ("{\"content\":\"二\", \"n\":NaN}", "`NaN` is no number in JSON; write null instead (column 21)"),
        ("{\"content\":\"b\", \"n\":-Infinity}", "`Infinity` is no number in JSON"),
        ("{'content': 'b'}", "single quotes are Python's; JSON has double ones"),
        ("{\"content\":\"b\",\"n\":None}", "`None` is Python's word; JSON has null, true and false"),
        ("{\"content\":\"b\",\"n\":True}", "`True` is Python's word"),
        ("{\"content\":\"b\",}", "a comma before the closing bracket (column 16)"),
        ("{\"content\":\"b\"},", "a comma after the object; JSON Lines have none between the posts (column 16)"),
        ("{\"content\":\"b\tc\"}", "a raw tab or other control character in a text; JSON writes \\t (column 14)"),
    ] {
        dir.write("posts.jsonl", format!("{{\"content\":\"a\"}}\n{line}\n"));
        let ran = dir.run(&["gen", "posts.jsonl", ONE]).exits(1);
        let told = format!("posts.jsonl line 2 index 1: bad_post: not JSON: {told}");
        assert!(ran.stderr.contains(&told), "{told}\n{}", ran.stderr);
        assert!(ran.stderr.contains("(column "), "{}", ran.stderr);
        // In an array it ends the verb.
        dir.write("posts.json", format!("[\n{{\"content\":\"a\"}},\n{line}\n]"));
        let ran = dir.run(&["gen", "posts.json", ONE]).exits(65);
        // A second comma is noticed where the next post should be.
        let place = if line.ends_with(',') { "line 4" } else { "line 3" };
        assert!(ran.stderr.contains("broken JSON array at index") && ran.stderr.contains(place), "{}", ran.stderr);
    }
}

/// `input.zst` in the work directory is ours: the user knows his own file.
#[test]
fn r10_11_run_names_the_users_file_and_never_the_copy() {
    let bad = "{\"content\":\"a\"}\n{\"content\":None}\n";
    let args = ["run", "posts.jsonl", "-o", "posts.jsonl", "-d", "w", "--emulate", ONE, "--faults=f"];
    let dir = WorkDir::new();
    dir.write("posts.jsonl", bad);
    for _ in 0..2 {
        let ran = dir.run(&args).exits(65);
        assert!(!ran.stderr.replace("kept in w/input.zst", "").contains("input.zst"), "{}", ran.stderr);
        let fault: Value = serde_json::from_str(&dir.read("f")).expect("JSON");
        assert_eq!((&fault["file"], &fault["line"]), (&json!("posts.jsonl"), &json!(2)));
    }
    for (input, told) in [
        ("1\n2\n", "stdin: none of its 2 lines is a post"),
        ("[{\"content\":\"a\"},\n{\"content\":None}]", "stdin: broken JSON array at index 1"),
        ("{\n\"content\": \"a\"\n}\n", "stdin: "),
    ] {
        let dir = WorkDir::new();
        let ran = dir.pipe(input, &["run", "-", "-o", "out.jsonl", "-d", "w", "--emulate", ONE]).exits(65);
        assert!(ran.stderr.contains(told) && !ran.stderr.contains("input.zst"), "{}", ran.stderr);
        // What was refused before anything was cut does not tie the directory to it.
        dir.pipe("{\"content\":\"a\"}\n", &["run", "-", "-o", "out.jsonl", "-d", "w", "--emulate", ONE]).exits(0);
        assert_eq!(dir.read("out.jsonl").lines().count(), 1);
    }
}

// Point 12: objects around the posts.

/// The `jq` command that a message names.
fn jq_command(stderr: &str) -> String {
    let line = stderr.lines().find(|line| line.contains("jq -c ")).unwrap_or_else(|| panic!("no command: {stderr}"));
    let at = line.find("jq -c ").expect("found above");
    line.split_at(at).1.to_owned()
}

#[test]
fn r10_12_an_object_around_the_posts_is_refused_with_the_jq_command_that_helps() {
    const PANDAS_SPLIT: &str = r#"{"columns":["content","n"],"index":[0,1],"data":[["a",1],["b\"",null]]}"#;
    const PANDAS_COLUMNS: &str = r#"{"content":{"0":"a","1":"b"},"n":{"0":1,"1":null}}"#;
    let has_jq = Command::new("jq").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_jq {
        skipped("jq is not here: its commands are not tried");
    }
    let posts = r#"[{"content":"a","u":{"x":1}},{"content":"b"}]"#;
    for (name, text, program) in [
        // weibo-crawler and the like: who, and what he wrote.
        ("posts.json", format!(r#"{{"user":{{"id":"1","name":"x"}},"weibo":{posts}}}"#), ".weibo[]"),
        ("posts.json", format!(r#"{{"data":{posts}}}"#), ".data[]"),
        ("posts.json", format!(r#"{{"ok":1,"data":{{"total":2,"list":{posts}}}}}"#), ".data.list[]"),
        // The copy that is read is not the file that is named.
        ("my posts.json", format!(r#"{{"it's":{posts}}}"#), r#".["it'\''s"][]"#),
        ("posts.json", format!(r#"{{"微博":{posts}}}"#), r#".["微博"][]"#),
        ("posts.json", format!(r#"{{"end":{posts}}}"#), r#".["end"][]"#),
        ("posts.json", r#"{"4901":{"content":"a"},"4902":{"content":"b"}}"#.to_owned(), ".[]"),
        // pandas: to_json(orient="split"), to_json(), to_dict("list").
        ("posts.json", PANDAS_SPLIT.to_owned(), ".columns as $c"),
        ("posts.json", PANDAS_COLUMNS.to_owned(), ". as $t"),
        ("posts.json", r#"{"content":["a","b"],"n":[1,2]}"#.to_owned(), ". as $t"),
        ("posts.json", r#"{"content":"a"}"#.to_owned(), "."),
    ] {
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let pretty = serde_json::to_string_pretty(&value).expect("JSON");
        let is_post = program == ".";
        for text in [Some(text.clone()).filter(|_| !is_post), Some(pretty.clone()), Some(format!("{BOM}\n{pretty}\n"))]
            .into_iter()
            .flatten()
        {
            let dir = WorkDir::new();
            dir.write(name, &text).write("answers.jsonl", answers(2));
            let gen_ran = dir.run(&["gen", name, ONE, "-o", "out.jsonl"]).exits(65);
            let command = jq_command(&gen_ran.stderr);
            let program = if is_post { ". " } else { &format!("'{program}") };
            assert!(command.starts_with(&format!("jq -c {program}")), "{command}");
            for args in [
                &["merge", name, "answers.jsonl", ONE, "-o", "out.jsonl"][..],
                &["run", name, "-o", "out.jsonl", "-d", "w", "--emulate", ONE],
            ] {
                let ran = dir.run(args).exits(65);
                assert_eq!(jq_command(&ran.stderr), command, "{args:?}");
            }
            assert!(!dir.exists("out.jsonl") && !gen_ran.stderr.contains("bad_post"), "{}", gen_ran.stderr);
            if !has_jq {
                continue;
            }
            let jq = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).output().expect("sh is here");
            assert!(jq.status.success(), "{command}: {}", String::from_utf8_lossy(&jq.stderr));
            let ran = dir.pipe(&jq.stdout, &["gen", ONE]).exits(0);
            assert_eq!(ran.text().lines().count(), 2 - usize::from(is_post), "{command}");
            assert!(!program.starts_with(". as") || String::from_utf8_lossy(&jq.stdout).contains("\"n\":null"));
        }
    }
}

/// Packed, the program would not read it: the command unpacks first. From a pipe there is no file to name.
#[test]
fn r10_12_the_command_fits_how_the_posts_come() {
    let dir = WorkDir::new();
    let text = r#"{"user":{"id":"1"},"weibo":[{"content":"a"},{"content":"b"}]}"#;
    dir.pipe(text, &["gen"]).exits(65);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).expect("packed");
    dir.write("posts.json.gz", gzip.finish().expect("packed"));
    for args in [
        &["gen", "posts.json.gz", ONE][..],
        &["run", "posts.json.gz", "-o", "posts.json.gz", "-d", "w", "--emulate", ONE],
    ] {
        let ran = dir.run(args).exits(65);
        assert!(ran.stderr.contains("gzip -dc posts.json.gz | jq -c '.weibo[]'"), "{}", ran.stderr);
    }
    let ran = dir.pipe(text, &["gen", ONE]).exits(65);
    assert!(ran.stderr.contains("jq -c '.weibo[]'") && !ran.stderr.contains("'.weibo[]' "), "{}", ran.stderr);
}

/// Longer than a line may be, longer than the beginning that is looked at, or one of several lines.
#[test]
fn r10_12_large_wrapped_inputs_are_told_from_their_beginning() {
    let dir = WorkDir::new();
    let posts: String = (0..30_000).map(|n| format!(r#",{{"content":"第{n}条"}}"#)).collect();
    let text = format!(r#"{{"user":{{"id":"1"}},"weibo":[{{"content":"a"}}{posts}]}}"#);
    dir.write("posts.json", &text);
    for args in [&["gen", "posts.json", ONE][..], &["gen", "posts.json", ONE, "--max-line=64KiB"]] {
        let ran = dir.run(args).exits(65);
        assert!(ran.stderr.contains("jq -c '.weibo[]' posts.json"), "{}", ran.stderr);
        assert_eq!(ran.text(), "");
    }
    dir.write("users.jsonl", [text.as_str(), &text, &text].join("\n"));
    let ran = dir.run(&["gen", "users.jsonl", ONE]).exits(65);
    assert!(ran.stderr.contains("jq -c '.weibo[]' users.jsonl"), "{}", ran.stderr);
}

/// What holds objects is a post all the same; and what is no JSON either gets no command that would fail.
#[test]
fn r10_12_posts_that_hold_objects_are_posts() {
    let dir = WorkDir::new();
    for post in [
        r#"{"content":"a","comments":[{"content":"x","username":"y"}]}"#,
        r#"{"user":{"content":"x"},"content":"a"}"#,
        r#"{"content":"a","data":[[1]],"columns":["content"]}"#,
        r#"{"content":"a","0":{"content":"b"}}"#,
    ] {
        dir.pipe(post, &["gen", ONE]).exits(0);
        let ran = dir.write("p", post).pipe(answers(1), &["merge", "p", "-", ONE]).exits(0);
        assert!(ran.text().contains("\"sentiment_polarity\":3"), "{}", ran.text());
    }
    // A torn first line loses one post, not all.
    let ran = dir.pipe("{\"content\":\"a\",\n{\"content\":\"b\"}\n", &["gen", ONE]).exits(1);
    assert_eq!(indexes(&ran), [1]);
    for (text, told) in [
        ("{\n 'content': 'a'\n}\n", "line 2, column 2: single quotes"),
        ("{\n \"content\": \"a\",\n \"n\": NaN\n}\n", "line 3, column 7: `NaN`"),
    ] {
        let ran = dir.pipe(text, &["gen", ONE]).exits(65);
        assert!(ran.stderr.contains(told) && !ran.stderr.contains("jq -c"), "{}", ran.stderr);
    }
}

// Point 13: no post has what the prompt names.

/// The greeting of a new user with English reviews was 1,200 faults.
#[test]
fn r10_13_posts_without_the_text_are_one_message_and_no_output() {
    let dir = WorkDir::new();
    let posts: String = (0..200).map(|n| format!("{{\"id\":{n},\"title\":\"t\",\"body\":\"Great {n}\"}}\n")).collect();
    dir.write("reviews.jsonl", &posts);
    for (args, code) in [
        (&["gen", "reviews.jsonl"][..], 65),
        (&["gen", "reviews.jsonl", "-o", "out", "--faults=f", "--report=r"], 65),
        (&["gen", "reviews.jsonl", "-d", "w", "--max-lines=10", "--faults=f"], 65),
        (&["run", "reviews.jsonl", "-o", "out", "-d", "w", "--emulate", "--faults=f"], 65),
    ] {
        let ran = dir.run(args).exits(code);
        assert_eq!(ran.text(), "", "{args:?}");
        for told in ["reviews.jsonl: no post has `content`", "id, title, body", "sentiment_polarity", "fix: "] {
            assert!(ran.stderr.contains(told), "{told}\n{}", ran.stderr);
        }
        assert!(!ran.stderr.contains("bad_post") && ran.stderr.lines().count() < 8, "{}", ran.stderr);
        for name in ["out", "f", "r", "out.partial"] {
            assert!(!dir.exists(name), "{name}");
        }
        let journal = if dir.exists("w/journal.jsonl") { dir.read("w/journal.jsonl") } else { String::new() };
        assert!(!journal.contains("\"chunk\"") && !journal.contains("\"posts\":"), "{journal}");
    }
    // The same directory takes the mended input.
    dir.write("mended.jsonl", posts.replace("body", "content"));
    dir.run(&["run", "mended.jsonl", "-o", "out", "-d", "w", "--emulate"]).exits(0);
    // There, and never a text.
    let ran = dir.pipe("{\"content\":null,\"n\":1}\n{\"content\":\"\"}\n{\"content\":7}\n", &["gen", ONE]).exits(65);
    assert!(ran.stderr.contains("`content`") && ran.stderr.contains("in every post"), "{}", ran.stderr);
}

/// A typo in a prompt, `{{boddy}}`: 200 paid prompts that ended in nothing.
#[test]
fn r10_13_a_typo_in_a_prompt_is_refused_before_anything_is_made() {
    let dir = WorkDir::new();
    let posts: String = (0..200).map(|n| format!("{{\"title\":\"t\",\"body\":\"{n}\",\"n\":1}}\n")).collect();
    dir.write("posts.jsonl", &posts);
    for (prompt, nearest) in [
        ("{{title}}: {{boddy}}", "body"),
        ("{{title}}: {{Body}}", "body"),
        ("{{titel}}: {{body}}", "title"),
        ("{{boddy}}", "body"),
    ] {
        let mood = mood(&dir, prompt, "");
        for args in [
            &["gen", "posts.jsonl"][..],
            &["gen", "posts.jsonl", "-d", "w"],
            &["run", "posts.jsonl", "-o", "out", "-d", "w", "--emulate"],
        ] {
            let ran = dir.run(&[args, &mood].concat()).exits(65);
            assert_eq!(ran.text(), "", "{args:?}");
            for told in ["no post has `", "mood", &format!("did you mean `{nearest}`?"), "title, body, n"] {
                assert!(ran.stderr.contains(told), "{told}\n{}", ran.stderr);
            }
            assert!(!dir.exists("out"));
            assert!(!dir.exists("w/journal.jsonl") || !dir.read("w/journal.jsonl").contains("\"event\":\"chunk\""));
        }
    }
    // Two fields that look alike, and both are meant.
    let ran = dir.run(&[&["gen", "posts.jsonl"][..], &mood(&dir, "{{title}} {{titles}}", "")].concat()).exits(0);
    assert!(ran.stderr.contains("no post has `titles`"), "{}", ran.stderr);
    let ran = dir.run(&[&["gen", "posts.jsonl"][..], &mood(&dir, "{{text}} {{summary}}", "")].concat()).exits(65);
    assert!(ran.stderr.contains("no post has `summary`, `text`"), "none of them is there: {}", ran.stderr);
}

#[test]
fn r10_13_a_field_that_no_post_has_is_one_note() {
    let dir = WorkDir::new();
    let posts = "{\"content\":\"a\",\"id\":1}\n{\"content\":\"b\"}\n";
    dir.write("posts.jsonl", posts);
    let two = "--only=publisher_analysis,publisher_decision";
    for args in [
        &["gen", "posts.jsonl", two][..],
        &["gen", "posts.jsonl", two, "-d", "c"],
        &["run", "posts.jsonl", "-o", "out", "-d", "w", "--emulate", two],
    ] {
        let ran = dir.run(args).exits(0);
        let told: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("no post has")).collect();
        assert_eq!(told.len(), 1, "{}", ran.stderr);
        assert!(told[0].contains("`location`, `publish_time`, `username`"), "{}", told[0]);
    }
    // Somewhere is enough, and null is there.
    let last = "{\"content\":\"c\",\"username\":\"u\",\"location\":null,\"publish_time\":\"\"}\n";
    let ran = dir.pipe(format!("{posts}{last}"), &["gen", two]).exits(0);
    assert!(!ran.stderr.contains("no post has"), "{}", ran.stderr);
}

/// A filter streams: after the first 1,000 posts it warns, and goes on until it knows.
#[test]
fn r10_13_a_filter_warns_after_a_thousand_posts_and_judges_at_the_end() {
    let dir = WorkDir::new();
    let without = "{\"body\":\"x\"}\n".repeat(1500);
    let ran = dir.pipe(&without, &["gen", ONE]).exits(65);
    assert_eq!((ran.text(), ran.stderr.contains("bad_post")), ("", false), "{}", ran.stderr);
    assert!(ran.stderr.contains("none of the first 1,000 posts has `content`"), "{}", ran.stderr);
    let ran = dir.pipe(without + "{\"content\":\"at last\"}\n", &["gen", ONE]).exits(1);
    assert_eq!(indexes(&ran), [1500]);
    assert!(ran.stderr.contains("none of the first 1,000 posts has `content`"), "{}", ran.stderr);
    // Rows are held back as long as their prompts may be wrong; then all of them come, in their order.
    let mood = mood(&dir, "{{title}}: {{boddy}}", "");
    let early = "{\"title\":\"t\",\"body\":\"x\"}\n".repeat(900);
    let ran = dir.pipe(&early, &[&["gen"][..], &mood].concat()).exits(65);
    assert_eq!(ran.text(), "");
    let ran = dir.pipe(early + "{\"boddy\":\"there\"}\n", &[&["gen"][..], &mood].concat()).exits(0);
    assert_eq!(indexes(&ran), (0..901).collect::<Vec<_>>());
}

/// `merge` of the wrong file wrote as many rows of nulls as it had lines, and then refused it.
#[test]
fn r10_13_a_filter_that_refuses_its_input_has_written_no_nulls() {
    let dir = WorkDir::new();
    dir.write("posts.csv", "id,content\n".repeat(20_000)).write("answers.jsonl", answers(1));
    let ran = dir.run(&["merge", "posts.csv", "answers.jsonl", ONE]).exits(65);
    assert_eq!(ran.text(), "");
    // With one post among them each place has its row.
    dir.write("posts.jsonl", "x\ny\n{\"content\":\"a\"}\nz\n");
    let ran = dir.run(&["merge", "posts.jsonl", "answers.jsonl", ONE]).exits(1);
    let null = "{\"sentiment_polarity\":null}\n";
    assert_eq!(ran.text(), format!("{null}{null}{{\"content\":\"a\",\"sentiment_polarity\":null}}\n{null}"));
}

/// The commands in the messages do what they say, for lines and for an array.
#[test]
fn r10_13_the_command_that_renames_a_field_works() {
    if Command::new("jq").arg("--version").stdout(Stdio::null()).status().is_err() {
        skipped("jq is not here: its commands are not tried");
        return;
    }
    for (posts, count) in [
        ("{\"Content\":\"a\"}\n{\"Content\":\"b\"}\n", 2),
        ("[{\"con tent\":\"a\",\"x\":1},\n{\"con tent\":\"b\"}]", 2),
        (
            "[{\"user\":1,\"weibo\":[{\"content\":\"a\"}]},{\"user\":2,\"weibo\":[{\"content\":\"b\"},{\"content\":\"c\"}]}]",
            3,
        ),
        ("{\"user\":1,\"weibo\":[{\"content\":\"a\"}]}\n{\"user\":2,\"weibo\":[{\"content\":\"b\"}]}", 2),
    ] {
        let dir = WorkDir::new();
        dir.write("posts.json", posts);
        let command = jq_command(&dir.run(&["gen", "posts.json", ONE]).exits(65).stderr);
        let jq = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).output().expect("sh is here");
        assert!(jq.status.success(), "{command}: {}", String::from_utf8_lossy(&jq.stderr));
        assert_eq!(indexes(&dir.pipe(&jq.stdout, &["gen", ONE]).exits(0)).len(), count, "{command}");
    }
}

#[test]
fn r10_13_an_empty_input_says_so() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "\n").write("posts.json", "[]").write("answers.jsonl", "");
    for name in ["posts.jsonl", "posts.json"] {
        for args in [&["gen", name][..], &["merge", name, "answers.jsonl"]] {
            let ran = dir.run(args).exits(0);
            assert!(ran.stderr.contains(&format!("{name} holds no posts")), "{args:?}: {}", ran.stderr);
            assert_eq!(ran.text(), "");
        }
        assert_eq!(dir.run(&["gen", name, "-q"]).exits(0).stderr, "");
    }
}

/// By default a prompt needs something to ask about; `requires` names what it needs.
#[test]
fn r10_13_a_post_that_leaves_a_whole_prompt_empty_is_a_bad_post() {
    let dir = WorkDir::new();
    let posts =
        "{\"title\":\"t\"}\n{\"body\":\"b\",\"title\":\"\"}\n{\"title\":null,\"body\":\"\",\"n\":1}\n{\"n\":1}\n";
    let asked = |more: &str, code: i32| {
        let mood = mood(&dir, "{{title}}: {{body}}", more);
        let ran = dir.pipe(posts, &[&["gen", "--faults=f"][..], &mood].concat()).exits(code);
        (indexes(&ran), dir.read("f"))
    };
    let (rows, faults) = asked("", 1);
    assert_eq!(rows, [0, 1]);
    let told = "\"kind\":\"bad_post\",\"detail\":\"nothing to ask about: of what its prompt places (`body`, `title`) all is empty or absent\"";
    assert!(faults.lines().count() == 2 && faults.lines().all(|line| line.contains(told)), "{faults}");
    assert_eq!(asked(",\"requires\":[]", 0).0, [0, 1, 2, 3]);
    let (rows, faults) = asked(",\"requires\":[\"title\"]", 1);
    assert_eq!((rows, faults.lines().count()), (vec![0], 3));
    assert!(faults.contains("`title` is empty") && faults.contains("`title` is absent"), "{faults}");
    // An image is something to ask about.
    let mood = mood(&dir, "{{title}}", ",\"images\":true");
    let posts = "{\"title\":\"t\"}\n{\"image_urls\":[\"https://x/1.jpg\"]}\n{\"image_urls\":[]}\n";
    assert_eq!(indexes(&dir.pipe(posts, &[&["gen"][..], &mood].concat()).exits(1)), [0, 1]);
}

/// Seen with a prompt without its labels: two notes, and requests that name no label.
#[test]
fn r10_13_a_typo_in_labels_is_refused_before_anything_is_made() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n")
        .write(
            "asked/mood/analysis.json",
            r#"{"rule":{"type":"label"},"reference":{"file":"moods.json"},"name":"mood","field":"mood"}"#,
        )
        .write("asked/mood/prompt.txt", "One of {{lables}}: {{content}}")
        .write("asked/mood/moods.json", r#"["good","bad"]"#);
    let ran =
        dir.run(&["run", "posts.jsonl", "--emulate", "--analyses", "asked", "--only", "mood", "-o", "o"]).exits(65);
    assert!(
        ran.stderr.contains("no post has `lables`") && ran.stderr.contains("did you mean `{{labels}}`?"),
        "{}",
        ran.stderr
    );
    assert!(!dir.exists("o"));
}

// Point 15: one request, one line, for every reader.

/// As Python's `str.splitlines` has it: servers that use it saw two lines, and refused both.
fn split_lines(text: &str) -> usize {
    let breaks = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    text.trim_end_matches('\n').split(breaks).count()
}

#[test]
fn r10_15_line_separators_are_escaped_in_request_lines_and_nowhere_else() {
    let dir = WorkDir::new();
    let text = "a\u{2028}b\u{2029}c\u{85}d“…”é·e";
    let posts = [
        format!("{{\"content\":\"{text}\"}}"),
        format!("{{\"content\":\"a\\u2028b\\u2029c\\u0085d“…”\\u00e9·e\",\"x\":\"{text}\"}}"),
        format!("{{\"content\":\"{text}\",\"image_urls\":[\"https://x/\u{2028}.jpg\"]}}"),
        format!("{{\"content\":\"{text}\",\"n\":{{\"{text}\":[\"{text}\"]}}}}"),
    ];
    let input = posts.join("\n") + "\n";
    dir.write("posts.jsonl", &input);
    let args = mood(&dir, &format!("问：{text}\n{{{{content}}}} {{{{n}}}}"), ",\"images\":true");
    let ran = dir.run(&[&["gen", "posts.jsonl"][..], &args].concat()).exits(0);
    assert_eq!((split_lines(ran.text()), ran.text().lines().count()), (4, 4));
    for line in ran.json_lines() {
        let content = &line["body"]["messages"][0]["content"];
        let prompt = content.as_str().or_else(|| content[0]["text"].as_str()).expect("a prompt");
        assert!(prompt.starts_with(&format!("问：{text}\n{text} ")), "{prompt}");
    }
    assert!(ran.text().contains("a\\u2028b\\u2029c\\u0085d“…”é·e"), "nothing else is escaped");
    // What jq or another tool unescaped on the way is escaped again where it goes into a file for the provider.
    let raw = ran.text().replace("\\u2028", "\u{2028}").replace("\\u2029", "\u{2029}").replace("\\u0085", "\u{85}");
    assert!(split_lines(&raw) > 4);
    dir.pipe(raw, &["chunk", "-d", "c"]).exits(0);
    dir.run(&[&["gen", "posts.jsonl", "-d", "g"][..], &args].concat()).exits(0);
    for work in ["c", "g"] {
        let mut chunks = String::new();
        for name in ["requests/mood_batch_part1.jsonl", "requests/mood_vision_batch_part1.jsonl"] {
            chunks += &dir.read(&format!("{work}/{name}"));
        }
        assert_eq!((split_lines(&chunks), chunks.lines().count()), (4, 4), "{work}");
        assert!(ran.text().lines().all(|line| chunks.contains(line)), "{work}");
    }
    // Posts keep their bytes.
    let merged = dir.pipe(answers(4), &["merge", "posts.jsonl", "-", ONE]).exits(0);
    let stripped = merged.text().replace(",\"sentiment_polarity\":3", "");
    assert_eq!(stripped, input);
    assert!(names(&dir).contains(&"posts.jsonl".to_owned()));
}
