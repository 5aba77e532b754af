//! Analysis folders and data dirs that somebody else prepared: each ends at once, with exit 65 and the file that is to blame.

use std::{
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    bombs::measure,
    workdir::{Ran, WorkDir},
};

/// The slowest prompt is given up after 10 seconds.
const SOON: Duration = Duration::from_secs(40);
const MEMORY: u64 = 256 << 20;
const LABELS: &str = "an/q/labels.json";

/// A folder `an/q` with an analysis that is sound.
fn sound() -> WorkDir {
    let dir = WorkDir::new();
    let rule = json!({"type": "labels", "min": 0, "max": 2});
    define(&dir, &json!({"name": "q", "field": "q", "rule": rule, "reference": {"file": "labels.json"}}));
    dir.write("an/q/prompt.txt", "{{labels}} {{content}}").write(LABELS, r#"["Yes","No"]"#);
    dir
}

fn define(dir: &WorkDir, definition: &serde_json::Value) {
    dir.write("an/q/analysis.json", definition.to_string());
}

fn fifo(dir: &WorkDir, name: &str) {
    let made = Command::new("mkfifo").arg(dir.join(name)).status().expect("mkfifo runs");
    assert!(made.success());
}

/// Of a write only the file counts.
fn put(_: &WorkDir) {}

/// Replaces a file by a link.
fn link(dir: &WorkDir, name: &str, to: &str) {
    let _was_not_there = std::fs::remove_file(dir.join(name));
    symlink(to, dir.join(name)).expect("linked");
}

/// `gen` of one post; it ends soon and in little memory, or the test fails.
fn ask(dir: &WorkDir, more: &[&str]) -> Ran {
    let args = [&["30", env!("CARGO_BIN_EXE_zbatch"), "gen", "--analyses=an", "--only=q"], more].concat();
    let mut command = Command::new("timeout");
    command.current_dir(dir.path()).args(args).stdin(Stdio::piped());
    let started = Instant::now();
    let (ran, peak) = measure(command, |to| to.write_all(br#"{"content":"x"}"#));
    assert!(started.elapsed() < SOON && ran.code != Some(124), "it does not end: {}", ran.stderr);
    assert!(peak < MEMORY, "{peak} bytes: {}", ran.stderr);
    ran
}

/// What the prompt does, the exit code, and what is said.
fn prompts() -> Vec<(String, i32, &'static str)> {
    let chain = |unit: &str, times: usize| format!("{{{{labels}}}}{{{{content}}}}{{{{ 1{} }}}}", unit.repeat(times));
    let beside = |text: &str| format!("{{{{labels}}}}{{{{content}}}}{text}");
    let much = "it computes too much";
    vec![
        (beside("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"), 65, much),
        (beside(&("{% set a='xxxxxxxxxxxxxxxx' %}".to_owned() + &"{% set a=a~a %}".repeat(40) + "{{a}}")), 65, much),
        (beside("{{ 'x'*1000000000 }}"), 65, much),
        (beside("{{ '%1000000000s'|format(1) }}"), 65, much),
        (beside(&("{% for a in range(9000) %}".to_owned() + &"y".repeat(10_000) + "{% endfor %}")), 65, much),
        (
            beside(&format!("{{% for a in range(200) %}}{}{{% endfor %}}", "y".repeat(10_000))),
            65,
            "1048576 are the most",
        ),
        (beside("{% macro m(x) %}{{m(x)}}{% endmacro %}{{m(1)}}"), 65, "recursion limit"),
        (beside("{% set n=namespace() %}{% set n.a=n %}{{n}}"), 65, "`namespace` is used"),
        (beside(&format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000))), 65, "recursion limit"),
        (beside(&format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000))), 65, "recursion limit"),
        (beside(&("{% if 1 %}".repeat(3_000) + &"{% endif %}".repeat(3_000))), 65, "recursion limit"),
        (chain("()", 32_000), 65, "not callable"),
        // These parse as deep as they are long, and that is enough.
        (chain("+1", 32_000), 0, ""),
        (beside(&format!("{{{{ {}1 }}}}", "-".repeat(65_000))), 0, ""),
        // The time decides on a slow machine, the fuel on a fast one.
        (chain("~1", 32_000), 65, "prompt.txt: "),
        (beside(&(0..5_000).map(|n| format!("{{{{a{n}}}}}")).collect::<String>()), 65, "more than 1000 fields"),
        (beside(&"x".repeat(64 << 10)), 65, "an/q/prompt.txt has 65557 bytes; a prompt has at most 64 KiB"),
    ]
}

#[test]
fn r11_5_a_prompt_ends_whatever_it_computes() {
    for (prompt, code, says) in prompts() {
        let dir = sound();
        dir.write("an/q/prompt.txt", &prompt);
        let ran = ask(&dir, &[]);
        let shown: String = prompt.chars().take(80).collect();
        assert_eq!(ran.code, Some(code), "{shown}: {}", ran.stderr);
        assert!(ran.stderr.contains(says) && ran.stderr.len() < 2_000, "{shown}: {}", ran.stderr);
        assert_eq!(ran.stdout.is_empty(), code != 0, "{shown}");
    }
}

type Change = fn(&WorkDir);

/// What a folder holds, and what is said of it.
const FOLDERS: &[(&str, Change, &str)] = &[
    ("a prompt elsewhere", |dir| link(dir, "an/q/prompt.txt", "/etc/hostname"), "an/q/prompt.txt: it leads out of an"),
    ("labels elsewhere", |dir| link(dir, LABELS, "../../../../../../../etc/hostname"), "it leads out of an"),
    ("endless labels", |dir| link(dir, LABELS, "/dev/zero"), "it leads out of an"),
    ("examples elsewhere", |dir| link(dir, "an/q/examples.jsonl", "/dev/null"), "it leads out of an"),
    ("a definition elsewhere", |dir| link(dir, "an/q/analysis.json", "/etc/hostname"), "it leads out of an"),
    (
        "a folder elsewhere",
        |dir| {
            std::fs::rename(dir.join("an/q"), dir.join("q")).expect("moved");
            link(dir, "an/q", "../q");
        },
        "it leads out of an",
    ),
    ("a link to itself", |dir| link(dir, LABELS, "labels.json"), "labels.json: "),
    (
        "a prompt that is a pipe",
        |dir| {
            std::fs::remove_file(dir.join("an/q/prompt.txt")).expect("removed");
            fifo(dir, "an/q/prompt.txt");
        },
        "prompt.txt is not a regular file",
    ),
    ("examples that are a pipe", |dir| fifo(dir, "an/q/examples.jsonl"), "examples.jsonl is not a regular file"),
    (
        "labels that are a directory",
        |dir| {
            std::fs::remove_file(dir.join(LABELS)).expect("removed");
            std::fs::create_dir(dir.join(LABELS)).expect("made");
        },
        "labels.json is not a regular file",
    ),
    (
        "a definition that is a pipe",
        |dir| {
            std::fs::create_dir(dir.join("an/r")).expect("made");
            fifo(dir, "an/r/analysis.json");
        },
        "analysis.json is not a regular file",
    ),
    ("no prompt", |dir| std::fs::remove_file(dir.join("an/q/prompt.txt")).expect("removed"), "it has no prompt.txt"),
    ("a large definition", |dir| put(dir.write("an/q/analysis.json", " ".repeat(70_000))), "at most 64 KiB"),
    ("large labels", |dir| put(dir.write(LABELS, " ".repeat(5 << 20))), "a file of labels has at most 4096 KiB"),
    ("large examples", |dir| put(dir.write("an/q/examples.jsonl", "\n".repeat(2 << 20))), "at most 1024 KiB"),
    (
        "many labels",
        |dir| put(dir.write(LABELS, json!((0..100_001).map(|n| n.to_string()).collect::<Vec<_>>()).to_string())),
        "it has more than 100000 labels",
    ),
    ("labels that are none", |dir| put(dir.write(LABELS, format!("[{}0]", "{},".repeat(1 << 20)))), "element 0 is not"),
    ("a large element", |dir| put(dir.write(LABELS, format!("[[{}0]]", "{},".repeat(1 << 20)))), "element 0 is not"),
    ("deep labels", |dir| put(dir.write(LABELS, "[".repeat(1 << 20))), "not a JSON array"),
    (
        "a deep element",
        |dir| put(dir.write(LABELS, format!("[{}{}]", "[".repeat(9_000), "]".repeat(9_000)))),
        "recursion limit",
    ),
    ("a label that talks to a terminal", |dir| put(dir.write(LABELS, r#"["\u001b[2J"]"#)), "has a control character"),
    ("a label of two lines", |dir| put(dir.write(LABELS, r#"["a\nb"]"#)), "has a control character"),
    (
        "a long label twice",
        |dir| put(dir.write(LABELS, json!(["x".repeat(1 << 20), "x".repeat(1 << 20)]).to_string())),
        "is there twice",
    ),
    (
        "deep examples",
        |dir| put(dir.write("an/q/examples.jsonl", format!(r#"{{"post":{{"a":{}"#, "[".repeat(100_000)))),
        "line 1 is no",
    ),
    (
        "a deep fallback",
        |dir| {
            let deep = "[".repeat(20_000) + &"]".repeat(20_000);
            let text = r#"{"name":"q","field":"q","rule":{"type":"integer","min":1,"max":2},"fallback":"#;
            dir.write("an/q/analysis.json", format!("{text}{deep}}}"));
        },
        "`fallback`: recursion limit",
    ),
    (
        "a deep rule",
        |dir| put(dir.write("an/q/analysis.json", format!(r#"{{"name":"q","rule":{}"#, "[".repeat(60_000)))),
        "`rule`",
    ),
    (
        "a number beyond numbers",
        |dir| {
            let text = r#"{"name":"q","field":"q","rule":{"type":"integer","min":1,"max":1e400}}"#;
            dir.write("an/q/analysis.json", text);
        },
        "number out of range",
    ),
    (
        "a field that talks to a terminal",
        |dir| {
            let rule = json!({"type": "integer", "min": 1, "max": 2});
            define(dir, &json!({"name": "q", "field": "a\u{1b}[2J", "rule": rule}));
        },
        "has a control character",
    ),
    (
        "a reference above",
        |dir| {
            let rule = json!({"type": "label"});
            define(dir, &json!({"name": "q", "field": "q", "rule": rule, "reference": {"file": ".."}}));
        },
        "must be a plain name",
    ),
    (
        "a long name",
        |dir| {
            let rule = json!({"type": "label"});
            define(dir, &json!({"name": "q".repeat(60_000), "field": "q", "rule": rule}));
        },
        "cannot be an analysis' name",
    ),
    (
        "many analyses",
        |dir| {
            for n in 0..101 {
                let name = format!("q{n}x");
                let rule = json!({"type": "integer", "min": 1, "max": 2});
                let definition = json!({"name": name, "field": name, "rule": rule});
                dir.write(&format!("an/{name}/analysis.json"), definition.to_string())
                    .write(&format!("an/{name}/prompt.txt"), "{{content}}");
            }
        },
        "it has more than 100 analyses",
    ),
];

#[test]
fn r11_5_a_folder_of_somebody_elses_is_read_and_nothing_else() {
    for (name, change, says) in FOLDERS {
        let dir = sound();
        change(&dir);
        let ran = ask(&dir, &[]);
        assert_eq!(ran.code, Some(65), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains(says) && ran.stderr.len() < 2_000, "{name}: {}", ran.stderr);
        assert!(ran.stdout.is_empty() && !ran.stderr.contains('\u{1b}'), "{name}");
    }
}

#[test]
fn r11_5_labels_in_a_data_dir_stay_below_it() {
    for (target, says) in [(Some("/etc/hostname"), "it leads out of data"), (None, "is not a regular file")] {
        let dir = sound();
        std::fs::remove_file(dir.join(LABELS)).expect("removed");
        std::fs::create_dir(dir.join("data")).expect("made");
        match target {
            Some(target) => link(&dir, "data/labels.json", target),
            None => fifo(&dir, "data/labels.json"),
        }
        let ran = ask(&dir, &["--data-dir=data"]).exits(65);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}

/// The ordinary user's links: to a folder that is named, and within one.
#[test]
fn r11_5_links_to_named_folders_and_within_them_stay() {
    let dir = sound();
    std::fs::rename(dir.join("an"), dir.join("real")).expect("moved");
    link(&dir, "an", "real");
    dir.write("real/shared/labels.json", r#"["Maybe","Never"]"#);
    link(&dir, LABELS, "../shared/labels.json");
    assert!(ask(&dir, &[]).exits(0).text().contains("- Maybe"));
    std::fs::remove_file(dir.join(LABELS)).expect("removed");
    dir.write("labels/v2/labels.json", r#"["Perhaps"]"#);
    link(&dir, "labels/labels.json", "v2/labels.json");
    link(&dir, "data", "labels");
    assert!(ask(&dir, &["--data-dir=data"]).exits(0).text().contains("- Perhaps"));
}

/// The emulator took the middle of a range as `min + (max - min) / 2`.
#[test]
fn r11_5_the_widest_rules_are_answered() {
    let dir = sound();
    for rule in [
        json!({"type": "integer", "min": i64::MIN, "max": i64::MAX}),
        json!({"type": "labels", "min": 0, "max": u64::MAX}),
    ] {
        define(&dir, &json!({"name": "q", "field": "q", "rule": rule, "reference": {"file": "labels.json"}}));
        dir.write("posts.jsonl", (0..40).map(|n| format!("{{\"content\":\"post {n}\"}}\n")).collect::<String>());
        dir.run(&["run", "posts.jsonl", "-o", "out.jsonl", "--emulate", "--analyses=an", "--only=q", "--new", "-q"])
            .exits(0);
    }
}
