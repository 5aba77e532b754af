//! `zbatch gen -d` and `zbatch chunk -d`: chunk files in a work directory.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::workdir::{Ran, WorkDir};

const ONE: &str = "--only=sentiment_polarity";
const TWO: &str = "--only=sentiment_polarity,sentiment_attribute";

fn posts(count: usize) -> String {
    (0..count)
        .map(|n| match n % 3 {
            0 => format!("{{\"content\":\"第{n}\",\"image_urls\":[\"https://x/{n}.jpg\"]}}\n"),
            _ => format!("{{\"content\":\"第{n}\"}}\n"),
        })
        .collect()
}

/// A request line as short as they get.
fn request(id: &str, model: &str) -> String {
    json!({"custom_id": id, "method": "POST", "url": "/v4/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": "？"}]}})
    .to_string()
        + "\n"
}

/// Every chunk file by name.
fn chunks(dir: &WorkDir, work: &str) -> BTreeMap<String, String> {
    let listing = std::fs::read_dir(dir.join(&format!("{work}/requests"))).expect("listed");
    listing
        .map(|entry| {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            let text = dir.read(&format!("{work}/requests/{name}"));
            (name, text)
        })
        .collect()
}

/// Name and lines of every chunk record.
fn records(ran: &Ran) -> Vec<(String, u64)> {
    let record =
        |value: Value| (value["chunk"].as_str().expect("a name").to_owned(), value["lines"].as_u64().expect("lines"));
    ran.json_lines().into_iter().map(record).collect()
}

#[test]
fn posts_become_chunk_files() {
    let dir = WorkDir::new();
    let ran = dir.pipe(posts(7), &["gen", TWO, "-d", "w", "--max-lines", "2"]).exits(0);
    let wanted = [
        ("sentiment_attribute_batch_part1", 2),
        ("sentiment_polarity_vision_batch_part1", 2),
        ("sentiment_attribute_batch_part2", 2),
        ("sentiment_polarity_batch_part1", 2),
        ("sentiment_attribute_batch_part3", 2),
        ("sentiment_polarity_batch_part2", 2),
        ("sentiment_polarity_vision_batch_part2", 1),
        ("sentiment_attribute_batch_part4", 1),
    ];
    let mut seen = records(&ran);
    let mut wanted = wanted.map(|(name, lines)| (name.to_owned(), lines)).to_vec();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
    for record in ran.json_lines() {
        let text = dir.read(&format!("w/{}", record["path"].as_str().expect("a path")));
        assert_eq!(record["bytes"], text.len());
        assert_eq!(record["lines"], text.lines().count());
        assert_eq!(record["blake3"], blake3::hash(text.as_bytes()).to_hex().as_str());
        let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(record["model"], first["body"]["model"]);
        let id = format!(
            "{}_{:04}",
            record["analysis"].as_str().expect("a name"),
            record["first_index"].as_u64().expect("an index")
        );
        assert_eq!(first["custom_id"], id.as_str());
    }
    let info: Value = serde_json::from_str(&dir.read("w/jsonl_files_info.json")).expect("JSON");
    assert_eq!(info["total_files"], 8);
    assert_eq!(info["analysis_types"]["sentiment_polarity"]["file_count"], 4);
    let file = &info["analysis_types"]["sentiment_attribute"]["files"][0];
    assert_eq!(file["path"], "requests/sentiment_attribute_batch_part1.jsonl");
    assert_eq!(file["size_bytes"], dir.read(&format!("w/{}", file["path"].as_str().expect("a path"))).len());
    assert!(info["total_size_bytes"].is_u64() && info["total_size_mb"].is_f64() && info["generation_time"].is_u64());
}

#[test]
fn gen_and_chunk_cut_the_same() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(20));
    for limits in [&["--max-lines=3"][..], &["--max-bytes=6000"], &["--max-lines=4", "--max-bytes=9kB"]] {
        dir.run(&[&["gen", "posts.jsonl", "-d", "w", "--new"], limits].concat()).exits(0);
        let lines = dir.run(&["gen", "posts.jsonl", "-q"]).exits(0);
        dir.pipe(&lines.stdout, &[&["chunk", "-d", "c", "--new"], limits].concat()).exits(0);
        assert_eq!(chunks(&dir, "c"), chunks(&dir, "w"), "{limits:?}");
        assert!(chunks(&dir, "w").len() > 12);
    }
}

#[test]
fn limits_hold_at_their_edges() {
    let line = request("a_0001", "m").len();
    let input: String = (0..6).map(|n| request(&format!("a_{n:04}"), "m")).collect();
    let sizes = |args: &[&str]| -> Vec<u64> {
        let dir = WorkDir::new();
        let ran = dir.pipe(&input, &[&["chunk", "-d", "w"], args].concat()).exits(0);
        records(&ran).into_iter().map(|(_, lines)| lines).collect()
    };
    assert_eq!(sizes(&["--max-lines=5"]), [5, 1]);
    assert_eq!(sizes(&["--max-lines=6"]), [6]);
    assert_eq!(sizes(&["--max-lines=7"]), [6]);
    for (bytes, wanted) in [
        (3 * line - 1, vec![2, 2, 2]),
        (3 * line, vec![3, 3]),
        (3 * line + 1, vec![3, 3]),
        (6 * line - 1, vec![5, 1]),
        (6 * line, vec![6]),
        (line, vec![1; 6]),
    ] {
        assert_eq!(sizes(&[&format!("--max-bytes={bytes}")]), wanted, "{bytes}");
    }
    let dir = WorkDir::new();
    let small = format!("--max-bytes={}", line - 1);
    let ran = dir.pipe(&input, &["chunk", "-d", "w", "--faults", "f.jsonl", &small]).exits(65);
    assert_eq!(ran.text(), "");
    assert_eq!(dir.read("f.jsonl").matches("\"kind\":\"too_large\"").count(), 6);
}

#[test]
fn a_cap_of_the_provider_is_named_when_it_binds() {
    let dir = WorkDir::new();
    let post = |bytes: usize| format!("{{\"content\":\"{}\"}}\n", "x".repeat(bytes));
    let input = post(40_000_000).repeat(3);
    let only = "--only=sentiment_attribute";
    let ran = dir.pipe(&input, &["gen", "-d", "w", only]).exits(0);
    assert_eq!(records(&ran).len(), 2);
    let told = "chunk files end at 100000000 bytes, the most that zhipu takes, and not at 500000000 (default)";
    assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
    for (args, input) in [(&["--max-bytes=90MB"][..], input), (&[], post(1000).repeat(3))] {
        let ran = dir.pipe(&input, &[&["gen", "-d", "w", "--new", only], args].concat()).exits(0);
        assert!(!ran.stderr.contains("zhipu takes"), "{}", ran.stderr);
    }
}

/// A chunk is open for each model, and the shell lets a process open only a few files unless it asks for more.
#[test]
fn more_chunks_are_open_than_files_by_default() {
    let dir = WorkDir::new();
    let models = 100;
    // As long as a piece, so that none can wait in memory for its end.
    let long = "？".repeat(30_000);
    let input: String = (0..2 * models)
        .map(|n| request(&format!("a_{n:04}"), &format!("m{}", n % models)).replace("？", &long))
        .collect();
    dir.write("requests.jsonl", input);
    let program = dir.command(&["chunk", "-q", "-d", "w", "requests.jsonl"]);
    let mut limited = Command::new("sh");
    limited.current_dir(dir.path()).args(["-c", "ulimit -Sn 50; exec \"$0\" \"$@\""]);
    limited.arg(program.get_program()).args(program.get_args());
    let ran = Ran::of(limited.output().expect("a shell")).exits(0);
    assert_eq!(records(&ran).len(), models);
    assert!(records(&ran).iter().all(|(_, lines)| *lines == 2));
}

#[test]
fn edited_lines_are_cut_by_their_model() {
    let dir = WorkDir::new();
    let input =
        [("a_0", "glm-4-air"), ("a_1", "other"), ("a_2", "glm-4v-plus"), ("a_3", "other"), ("b_07", "glm-4-air")]
            .map(|(id, model)| request(id, model))
            .concat();
    let ran = dir.pipe(&input, &["chunk", "-d", "w"]).exits(0);
    let seen: Vec<(String, String)> = ran
        .json_lines()
        .iter()
        .map(|record| ["chunk", "model"].map(|key| record[key].as_str().expect("a name").to_owned()).into())
        .collect();
    assert_eq!(
        seen,
        [
            ("a_batch_part1", "glm-4-air"),
            ("a_batch_part2", "other"),
            ("a_vision_batch_part1", "glm-4v-plus"),
            ("b_batch_part1", "glm-4-air")
        ]
        .map(|(name, model)| (name.to_owned(), model.to_owned()))
    );
    assert_eq!(dir.read("w/requests/a_batch_part2.jsonl"), request("a_1", "other") + &request("a_3", "other"));
}

#[test]
fn lines_that_are_no_requests_are_faults() {
    let dir = WorkDir::new();
    let good = request("a_0001", "m");
    let cases = [
        ("nonsense".to_owned(), "not a request line"),
        (good.replace("a_0001", "a_x"), "custom_id `a_x` is not NAME_INDEX"),
        (good.replace("a_0001", "../a_1"), "custom_id `../a_1` is not NAME_INDEX"),
        (good.replace("/v4/", "/v1/"), "zhipu takes `POST /v4/chat/completions`"),
        (good.replace("POST", "GET"), "`GET /v4/chat/completions`"),
        (good.replace("\"model\"", "\"modell\""), "missing field `model`"),
        ("{\"content\":\"a post\"}".to_owned(), "missing field `custom_id`"),
        ("[1]".to_owned(), "not a request line"),
        (good.clone(), "a_0001 is in this chunk already"),
    ];
    let bad: String = cases.iter().map(|(line, _)| line.trim_end().to_owned() + "\n").collect();
    let input = format!("{good}\n{bad}");
    let ran = dir.pipe(&input, &["chunk", "-d", "w", "--faults", "f.jsonl", "--report", "r.json"]).exits(1);
    assert_eq!(records(&ran), [("a_batch_part1".to_owned(), 1)]);
    let faults: Vec<Value> =
        dir.read("f.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(faults.len(), cases.len());
    for (at, (fault, (_, told))) in faults.iter().zip(&cases).enumerate() {
        assert!(fault["detail"].as_str().is_some_and(|detail| detail.contains(told)), "{fault}");
        assert_eq!((&fault["kind"], &fault["line"]), (&json!("bad_line"), &json!(at + 3)), "{fault}");
    }
    assert!(dir.read("r.json").contains("\"bad_line\""));
    dir.pipe(&input, &["chunk", "-d", "w", "-q", "--max-faults", "9"]).exits(0);
}

#[test]
fn the_wrong_input_does_not_keep_the_right_one_out() {
    let dir = WorkDir::new();
    let ran = dir.pipe(posts(2), &["chunk", "-d", "w"]).exits(65);
    assert!(ran.stderr.contains("posts go to `zbatch gen -d`"), "{}", ran.stderr);
    dir.pipe(request("a_1", "m"), &["chunk", "-d", "w"]).exits(0);
    dir.pipe("1\n2\n", &["gen", ONE, "-d", "g"]).exits(65);
    dir.pipe(posts(2), &["gen", ONE, "-d", "g"]).exits(0);
}

#[test]
fn empty_input_makes_no_chunk() {
    let dir = WorkDir::new();
    for verb in [&["gen", "-d", "w"][..], &["chunk", "-d", "c"]] {
        for _ in 0..2 {
            assert_eq!(dir.pipe("\n", verb).exits(0).text(), "");
        }
    }
    assert!(chunks(&dir, "w").is_empty() && chunks(&dir, "c").is_empty());
    dir.pipe(posts(1), &["gen", "-d", "w"]).exits(0);
}

#[test]
fn s5_the_same_again_changes_nothing_and_another_is_refused() {
    let dir = WorkDir::new();
    let input = posts(9);
    let args = ["gen", TWO, "-d", "w", "--max-lines", "2"];
    dir.pipe(&input, &args).exits(0);
    // From the first create on the directory keeps its settings.
    let (chunk, file_id) = ("sentiment_attribute_batch_part1", "file-1");
    let uploaded = json!({"event": "uploaded", "chunk": chunk, "file_id": file_id});
    let intent = json!({"event": "intent", "chunk": chunk, "file_id": file_id, "attempt": 1, "blake3": ""});
    dir.write("w/journal.jsonl", format!("{}{uploaded}\n{intent}\n", dir.read("w/journal.jsonl")));
    let (files, journal) = (chunks(&dir, "w"), dir.read("w/journal.jsonl"));
    let ran = dir.pipe(&input, &args).exits(0);
    assert_eq!(ran.text(), "", "nothing was cut");
    assert!(ran.stderr.contains("w holds 10 chunks already"), "{}", ran.stderr);

    for (other, told) in [
        (input.replace("第1", "第x"), "it differs before sentiment_attribute_batch_part1, in the first 2 lines"),
        (input.replace("第8", "第x"), "it differs before sentiment_polarity_batch_part3, in the first 9 lines"),
        (posts(8), "in the first 9 lines"),
        (posts(10), "it goes on after 9 lines"),
        (String::new(), "it differs before sentiment_attribute_batch_part1"),
    ] {
        let ran = dir.pipe(&other, &args).exits(65);
        assert!(ran.stderr.contains(told) && ran.stderr.contains("--new"), "{}", ran.stderr);
    }
    for (more, told) in [
        (&["--model=m"][..], "its `model` is \"glm-4-air\"; now it is \"m\""),
        (&["--start-index=1"], "start_index"),
        (&["--missing"], "missing"),
        (&["--max-bytes=1MB"], "max_bytes"),
        (&["--provider=openai", "--model=m"], "belongs to another job"),
        (&["--only=topic_analysis"], "its analyses are sentiment_polarity, sentiment_attribute; now they are"),
    ] {
        let ran = dir.pipe(&input, &[&args[..], more].concat()).exits(65);
        assert!(ran.stderr.contains(told) && ran.stderr.contains("--new"), "{}", ran.stderr);
    }
    dir.write("config.json", "{\"batch\":{\"temperature\":1}}");
    assert!(dir.pipe(&input, &args).exits(65).stderr.contains("temperature"));
    std::fs::remove_file(dir.join("config.json")).expect("removed");
    let ran = dir.pipe(&input, &["chunk", "-d", "w", "--max-lines", "2"]).exits(65);
    assert!(ran.stderr.contains("belongs to another job"), "{}", ran.stderr);
    assert_eq!((chunks(&dir, "w"), dir.read("w/journal.jsonl")), (files.clone(), journal), "nothing was touched");

    for n in 1..=2 {
        dir.pipe(posts(3), &[&args[..], &["--new"]].concat()).exits(0);
        assert!(dir.exists(&format!("w.old-{n}/journal.jsonl")));
    }
    assert_eq!(chunks(&dir, "w.old-1"), files, "the old contents are kept");
}

/// Requests that `chunk` refused as second ones are refused again, wherever its chunks ended.
#[test]
fn s5_duplicates_do_not_shift_what_is_held() {
    let ids = ["a_1", "a_1", "a_2", "a_2", "a_3", "a_1", "a_3", "a_4", "a_4", "a_1", "a_5"];
    let input: String = ids.iter().map(|id| request(id, "m")).collect();
    let line = request("a_1", "m").len();
    for args in
        ["--max-lines=2".to_owned(), format!("--max-bytes={}", 2 * line + 9), format!("--max-bytes={}", 3 * line)]
    {
        let dir = WorkDir::new();
        let args = ["chunk", "-q", "-d", "w", "--faults", "f.jsonl", &args];
        let first = dir.pipe(&input, &args).exits(1);
        let (files, journal, faults) = (chunks(&dir, "w"), dir.read("w/journal.jsonl"), dir.read("f.jsonl"));
        assert!(records(&first).len() >= 2);
        assert_eq!(dir.pipe(&input, &args).exits(1).text(), "");
        assert_eq!((chunks(&dir, "w"), dir.read("w/journal.jsonl"), dir.read("f.jsonl")), (files, journal, faults));
        // The journal is cut after every event.
        let whole = dir.read("w/journal.jsonl");
        for events in 1..whole.lines().count() {
            let kept: String = whole.lines().take(events).map(|line| line.to_owned() + "\n").collect();
            dir.write("w/journal.jsonl", kept);
            dir.pipe(&input, &args).exits(1);
            assert_eq!(dir.read("w/journal.jsonl"), whole, "{events} events");
        }
    }
}

/// The thread that writes fails: it is told with the file, and nothing of the chunk is in the journal.
#[test]
fn s7_a_chunk_that_cannot_be_written_is_told() {
    let dir = WorkDir::new();
    let args = ["gen", ONE, "-d", "w", "--max-lines", "2"];
    let blocked = "w/requests/sentiment_polarity_batch_part2.jsonl";
    std::fs::create_dir_all(dir.join(blocked)).expect("made");
    let ran = dir.pipe(posts(9), &args).exits(74);
    assert!(ran.stderr.contains(&format!("rename to {blocked}: ")), "{}", ran.stderr);
    let journaled = dir.read("w/journal.jsonl").matches("\"event\":\"chunk\"").count();
    assert_eq!(records(&ran).len(), journaled, "{}", ran.stderr);
    std::fs::remove_dir(dir.join(blocked)).expect("removed");
    dir.pipe(posts(9), &args).exits(0);
    dir.pipe(posts(9), &["gen", ONE, "-d", "calm", "--max-lines", "2"]).exits(0);
    assert_eq!(chunks(&dir, "w"), chunks(&dir, "calm"));
}

#[test]
fn s1_killed_in_the_middle_and_done_again() {
    for verb in ["gen", "chunk"] {
        let dir = WorkDir::new();
        let mut input = posts(40);
        if verb == "chunk" {
            input = dir.pipe(&input, &["gen", TWO]).exits(0).text().to_owned();
        }
        let limits = ["-d", "w", "--max-lines", "4"];
        let source: &[&str] = if verb == "gen" { &["gen", TWO] } else { &["chunk"] };
        let args = [source, &limits].concat();
        dir.pipe(&input, &[source, &["-d", "calm", "--max-lines", "4"]].concat()).exits(0);
        let half: String = input.split_inclusive('\n').take(input.lines().count() / 2).collect();
        let mut child = dir
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(half.as_bytes()).expect("fed");
        stdin.flush().expect("fed");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut record = String::new();
        stdout.read_line(&mut record).expect("a chunk record");
        assert!(record.contains("\"chunk\""), "{record}");

        // Meanwhile no one else gets in.
        let ran = dir.pipe(&input, &args).exits(75);
        assert!(ran.stderr.contains(&format!("in use by process {}", child.id())), "{}", ran.stderr);

        child.kill().expect("killed");
        child.wait().expect("ended");
        drop(stdin);
        let ran = dir.pipe(&input, &args).exits(0);
        assert_eq!(chunks(&dir, "w"), chunks(&dir, "calm"), "{verb}");
        assert!(ran.json_lines().len() < chunks(&dir, "w").len(), "what was there was not cut again");
        let journal = |work: &str| -> Vec<String> {
            // The first two lines hold the name of the run and the place of the journal.
            dir.read(&format!("{work}/journal.jsonl")).lines().skip(2).map(str::to_owned).collect()
        };
        assert_eq!(journal("w"), journal("calm"), "{verb}");
    }
}

#[test]
fn k2_what_is_written_is_for_its_owner_alone() {
    let dir = WorkDir::new();
    dir.pipe(posts(4), &["gen", "-d", "deep/w"]).exits(0);
    let mut folders = vec![dir.join("deep/w")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        let mode = |path: &std::path::Path| path.metadata().expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 8);
}

#[test]
fn the_job_goes_on_when_nobody_reads_the_records() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", posts(9));
    let lines = dir.run(&["gen", "posts.jsonl", TWO]).exits(0);
    dir.write("requests.jsonl", &lines.stdout);
    for (verb, input, work) in [("gen", "posts.jsonl", "w"), ("chunk", "requests.jsonl", "c")] {
        let args = [verb, input, "-d", work, "--max-lines", "1"];
        let only: &[&str] = if verb == "gen" { &[TWO] } else { &[] };
        let mut command = dir.command(&[&args[..], only].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(chunks(&dir, work).len(), 18);
    }
}
