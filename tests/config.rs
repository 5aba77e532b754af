//! `zbatch config`, `--help` and how wrong usage is told.

use crate::workdir::WorkDir;

/// Value and origin of a row of the table.
fn row(table: &str, key: &str) -> (String, String) {
    let line =
        table.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap_or_else(|| panic!("{key}:\n{table}"));
    let rest = line.strip_prefix(key).expect("begins so").trim();
    let (value, origin) = rest.rsplit_once("  ").unwrap_or((rest, ""));
    (value.trim().to_owned(), origin.trim().to_owned())
}

fn pair(value: &str, origin: &str) -> (String, String) {
    (value.to_owned(), origin.to_owned())
}

#[test]
fn defaults_in_an_empty_directory() {
    let dir = WorkDir::new();
    let ran = dir.run(&["config"]).exits(0);
    let table = ran.text();
    for (key, value) in [
        ("batch.model", "glm-4-air"),
        ("batch.multimodal_model", "glm-4v-plus"),
        ("batch.temperature", "0.7"),
        ("batch.provider", "zhipu"),
        ("batch.max_concurrent_tasks", "3"),
        ("batch.poll_interval", "60s"),
        ("batch.max_lines", "10000"),
        ("batch.max_bytes", "500000000, but zhipu takes 100000000"),
        ("paths.data_dir", "embedded data"),
        ("paths.enhanced_output", "enhanced_blogs.json"),
        ("paths.work_dir", "batch/temp"),
    ] {
        assert_eq!(row(table, key), pair(value, "default"));
    }
    assert_eq!(row(table, "config file").0, "none");
    assert!(row(table, "key").0.starts_with("not set (ZHIPUAI_API_KEY"));
    assert!(table.lines().all(|line| line == line.trim_end()), "{table:?}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0, "it writes nothing");
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let dir = WorkDir::new();
    dir.write(
        "batch/config.json",
        r#"{"batch":{"model":"file","base_url":"https://file/v4","poll_interval":5,"max_bytes":"50MB"},"paths":{"data_dir":"../labels"}}"#,
    );
    let named = "--config=batch/config.json";
    let ran = dir.run(&["config", named]).exits(65);
    assert!(ran.stderr.contains("batch/../labels (batch/config.json) is not a directory"), "{}", ran.stderr);
    std::fs::create_dir(dir.join("labels")).expect("made");
    let only = "--only=sentiment_polarity";
    let ran = dir.run(&["config", named, only]).exits(0);
    let file = "batch/config.json";
    assert_eq!(row(ran.text(), "config file").0, file);
    assert_eq!(row(ran.text(), "batch.model"), pair("file", file));
    assert_eq!(row(ran.text(), "batch.base_url"), pair("https://file/v4", file));
    assert_eq!(row(ran.text(), "batch.poll_interval"), pair("5s", file));
    assert_eq!(row(ran.text(), "batch.max_bytes"), pair("50000000", file));
    assert_eq!(row(ran.text(), "paths.data_dir"), pair("batch/../labels", file));
    assert_eq!(row(ran.text(), "paths.work_dir"), pair("batch/temp", file));
    assert_eq!(row(ran.text(), "batch.multimodal_model"), pair("glm-4v-plus", "default"));

    let with = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = dir.command(&[&["config", named, only], args].concat());
        crate::workdir::Ran::of(command.envs(variables.iter().copied()).output().expect("the program starts")).exits(0)
    };
    let base = [("ZHIPUAI_BASE_URL", "https://env/v4"), ("ZHIPUAI_API_KEY", "secret-key")];
    let ran = with(&base, &[]);
    assert_eq!(row(ran.text(), "batch.base_url"), pair("https://env/v4", "$ZHIPUAI_BASE_URL"));
    assert_eq!(row(ran.text(), "key"), pair("set", "$ZHIPUAI_API_KEY"));
    assert!(!ran.text().contains("secret-key") && !ran.stderr.contains("secret-key"));
    let ran =
        with(&base, &["--base-url", "https://flag/v4", "--model=m", "-d", "w", "--max-lines=7", "--max-bytes=1MiB"]);
    assert_eq!(row(ran.text(), "batch.base_url"), pair("https://flag/v4", "--base-url"));
    assert_eq!(row(ran.text(), "batch.model"), pair("m", "--model"));
    assert_eq!(row(ran.text(), "batch.max_lines"), pair("7", "--max-lines"));
    assert_eq!(row(ran.text(), "batch.max_bytes"), pair("1048576", "--max-bytes"));
    assert_eq!(row(ran.text(), "paths.work_dir"), pair("w", "-d"));
    // Zhipu's variable is nobody else's.
    let ran = with(&base, &["--provider=openai", "--base-url=https://flag/v4"]);
    assert_eq!(row(ran.text(), "batch.base_url"), pair("https://flag/v4", "--base-url"));
    assert!(row(ran.text(), "key").0.contains("OPENAI_API_KEY"));
    assert_eq!(row(ran.text(), "batch.multimodal_model").0, "file", "the one that is named");
}

#[test]
fn which_file_is_read() {
    let dir = WorkDir::new();
    let model = |args: &[&str], variable: Option<&str>| {
        let mut command = dir.command(&[&["config"], args].concat());
        command.envs(variable.map(|value| ("ZBATCH_CONFIG", value)));
        let ran = crate::workdir::Ran::of(command.output().expect("the program starts")).exits(0);
        row(ran.text(), "batch.model").0
    };
    let named = |name: &str| format!(r#"{{"batch":{{"model":"{name}"}}}}"#);
    // A config.json of some other program is left alone.
    for other in [r#"{"compilerOptions":{}}"#, r#"{"batch":5}"#, "not JSON", "[]"] {
        dir.write("config.json", other);
        assert_eq!(model(&[], None), "glm-4-air", "{other}");
    }
    dir.write("config.json", named("here"));
    assert_eq!(model(&[], None), "here");
    dir.write("batch/config.json", named("batch"));
    assert_eq!(model(&[], None), "batch");
    dir.write("env.json", named("env")).write("flag.json", named("flag"));
    assert_eq!(model(&[], Some("env.json")), "env");
    assert_eq!(model(&[], Some("")), "batch");
    assert_eq!(model(&["--config", "flag.json"], Some("env.json")), "flag");
    assert!(dir.run(&["config", "--config", "nosuch.json"]).exits(65).stderr.contains("nosuch.json"));
}

/// It was passed over without a word, and the defaults were paid for.
#[test]
fn r11_1_a_config_of_ours_that_is_broken_is_not_passed_over() {
    let dir = WorkDir::new();
    dir.write("config.json", r#"{"batch": {"model": "glm-4-flash"},}"#);
    let ran = dir.run(&["config"]).exits(65);
    assert!(ran.stderr.contains("config config.json: trailing comma at line 1 column 36"), "{}", ran.stderr);
    // Another program's, with comments as some write them.
    dir.write("config.json", "// of something else\n{\"port\": 80}");
    dir.run(&["config"]).exits(0);
}

#[test]
fn a_config_of_the_scripts_works_as_it_is() {
    let dir = WorkDir::new();
    dir.write(
        "batch/config.json",
        r#"{"batch":{"model":"glm-4-air","multimodal_model":"glm-4v-plus","max_concurrent_tasks":3,"poll_interval":60},
            "paths":{"data_dir":"../data","enhanced_output":"./enhanced_blogs.json"}}"#,
    );
    dir.write("data/sentiment_attributes.json", r#"["愤怒"]"#);
    let only = "--only=sentiment_attribute";
    let ran = dir.run(&["config", only]).exits(0);
    assert_eq!(row(ran.text(), "paths.enhanced_output").0, "batch/enhanced_blogs.json");
    assert_eq!(row(ran.text(), "paths.data_dir").0, "batch/../data");
    let ran = dir.pipe(r#"{"content":"x"}"#, &["gen", only]).exits(0);
    assert!(ran.text().contains("愤怒"));
    let own = "zbatch: built-in examples left out of the prompts, since their labels are not in your lists: \
               sentiment_attribute 4 of 4\n";
    assert_eq!(ran.stderr, own);
}

#[test]
fn wrong_files_are_told_by_key() {
    let dir = WorkDir::new();
    for (text, told) in [
        (r#"{"batch":{"modle":"m"}}"#, "unknown key `batch.modle`\n  fix: did you mean `batch.model`?"),
        (r#"{"batch":{"max_concurent_task":1}}"#, "did you mean `batch.max_concurrent_tasks`?"),
        (r#"{"paths":{"datadir":"d"}}"#, "did you mean `paths.data_dir`?"),
        (r#"{"bach":{}}"#, "unknown key `bach`\n  fix: did you mean `batch`?"),
        (r#"{"batch":[]}"#, "`batch` is not an object"),
        (r#"{"batch":{"poll_interval":"soon"}}"#, "`batch.poll_interval` is \"soon\""),
        (r#"{"batch":{"max_concurrent_tasks":0}}"#, "a whole number from 1"),
        (r#"{"batch":{"temperature":3}}"#, "a number from 0 to 2"),
        (r#"{"batch":{"model":""}}"#, "a non-empty string"),
        (r#"{"batch":{"max_bytes":"5 apples"}}"#, "100MB"),
        (r#"{"batch":{"provider":"zhipuu"}}"#, "did you mean `zhipu`?"),
        ("{", "config c.json"),
    ] {
        dir.write("c.json", text);
        let ran = dir.run(&["config", "--config", "c.json"]);
        assert!(matches!(ran.code, Some(65)), "{text}: {ran:?}");
        assert!(ran.stderr.contains(told), "{text}: {}", ran.stderr);
        assert_eq!(ran.text(), "");
    }
}

const VERBS: [&str; 12] =
    ["gen", "chunk", "parse", "merge", "submit", "fetch", "run", "status", "cancel", "clean", "emulate", "config"];

#[test]
fn help_leads_with_examples_and_fits_80_columns() {
    let dir = WorkDir::new();
    let help = |args: &[&str], columns: &str| {
        let output = dir.command(args).env("COLUMNS", columns).output().expect("the program starts");
        crate::workdir::Ran::of(output).exits(0).text().to_owned()
    };
    let top = |text: &str| text.split("\nUsage:").next().expect("a beginning").to_owned();
    for verb in VERBS {
        let text = help(&[verb, "--help"], "80");
        let begin = top(&text);
        assert!(begin.contains("\n\nExamples:\n  "), "{begin}");
        assert!(begin.contains("\n\nMemory: "), "{begin}");
        assert_eq!(begin, top(&help(&[verb, "--help"], "100")), "a line of it is too long");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{verb}: {line}");
        }
    }
    let text = help(&["--help"], "80");
    assert_eq!(top(&text), top(&help(&["--help"], "100")), "a line of it is too long");
    for verb in VERBS {
        assert!(text.contains(&format!("\n  {verb} ")), "{verb}");
    }
}

#[test]
fn wrong_usage_is_64_and_names_what_was_meant() {
    let dir = WorkDir::new();
    for (args, told) in [
        (&[][..], "Usage: zbatch"),
        (&["gne"], "unrecognized subcommand 'gne'"),
        (&["gen", "--max-lnes", "3"], "'--max-lines'"),
        (&["gen", "--max-lines", "0"], "--max-lines"),
        (&["gen", "--max-bytes", "1XB"], "`XB` is no unit; use kB, MB, GB, KiB, MiB or GiB"),
        (&["gen", "--max-faults", "101%"], "a percentage is from 0% to 100%"),
        (&["gen", "--new"], "--work-dir <DIR>"),
        (&["gen", "-d", "w", "-o", "x"], "cannot be used with"),
        (&["gen", "a", "b"], "unexpected argument 'b'"),
        (&["gen", "--provider", "zhipo"], "did you mean `zhipu`?"),
        (&["gen", "--base-url", " "], "the base URL is empty"),
        (&["merge"], "<POSTS>"),
        (&["run", "--api-key", "k"], "unexpected argument '--api-key'"),
    ] {
        let ran = dir.run(args).exits(64);
        assert!(ran.stderr.contains(told), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.text(), "", "{args:?}");
    }
    assert_eq!(dir.run(&["--version"]).exits(0).text(), format!("zbatch {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn files_may_begin_with_a_byte_order_mark() {
    let dir = WorkDir::new();
    dir.write("c.json", "\u{feff}{\"batch\":{\"model\":\"glm-4-flash\"}}");
    assert!(dir.run(&["config", "--config=c.json"]).exits(0).text().contains("glm-4-flash"));
}

#[test]
fn values_that_no_provider_takes_are_refused() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    dir.write("c.json", r#"{"batch":{"poll_interval":0}}"#);
    dir.run(&["config", "--config=c.json"]).exits(65);
    dir.run(&["submit", "-d", "w", "--poll-interval=0"]).exits(64);
    dir.run(&["gen", "posts.jsonl", "--model="]).exits(64);
    dir.run(&["gen", "posts.jsonl", "--multimodal-model", " "]).exits(64);
    for (key, value) in [
        ("temperature", "2.1"),
        ("temperature", "-1"),
        ("max_tokens", "0"),
        ("field", "\"\""),
        ("field", "\"content\""),
        ("field", "\"image_urls\""),
    ] {
        let mut analysis = serde_json::json!({"name":"q","field":"f","rule":{"type":"integer","min":0,"max":9}});
        analysis[key] = serde_json::from_str(value).expect("JSON");
        dir.write("an/q/analysis.json", analysis.to_string()).write("an/q/prompt.txt", "{{content}}");
        let ran = dir.run(&["gen", "posts.jsonl", "--analyses=an", "--only=q"]).exits(65);
        assert!(ran.stderr.contains("an/q") && ran.stderr.contains("fix:"), "{key} {value}: {}", ran.stderr);
    }
}

/// A trial mistyped verbs, keys and numbers: the hints named words that were not near, and `10k` got "invalid digit".
#[test]
fn r10_18_hints_are_near_or_there_are_none() {
    let dir = WorkDir::new();
    dir.write("c.json", r#"{"batch":{"frobnicate":1}}"#);
    for (args, code, hint) in [
        (&["gne"][..], 64, Some("a similar subcommand exists: 'gen'")),
        (&["conifg"], 64, Some("'config'")),
        (&["label"], 64, None),
        (&["export"], 64, None),
        (&["gen", "--max-lnes", "3"], 64, Some("'--max-lines'")),
        (&["gen", "--provider", "opnai"], 64, Some("did you mean `openai`?")),
        (&["gen", "--provider", "mistral"], 64, None),
        (&["gen", "--only", "topics_analysis"], 64, Some("did you mean `topic_analysis`?")),
        (&["gen", "--only", "urgency"], 64, None),
        (&["emulate", "--fault", "ratelimit=3"], 64, Some("did you mean `rate_limit`?")),
        (&["emulate", "--fault", "nonsense"], 64, None),
        (&["config", "--config", "c.json"], 65, None),
    ] {
        let ran = dir.run(args).exits(code);
        match hint {
            Some(hint) => assert!(ran.stderr.contains(hint), "{args:?}: {}", ran.stderr),
            None => assert!(!ran.stderr.contains("did you mean") && !ran.stderr.contains("similar"), "{}", ran.stderr),
        }
    }
}

#[test]
fn r10_18_numbers_say_what_they_look_like() {
    let dir = WorkDir::new();
    for (args, told) in [
        (&["gen", "--max-lines", "10k"][..], "a whole number in digits is wanted, e.g. 10000"),
        (&["gen", "--max-lines", "10,000"], "e.g. 10000"),
        (&["gen", "--start-index", "1M"], "e.g. 1000000"),
        (&["run", "--max-requests", "many"], "e.g. 10000"),
        (&["run", "--max-batches", "2k"], "e.g. 2000"),
        (&["run", "--max-concurrent-tasks", "0"], "a whole number in digits is wanted"),
        (&["emulate", "--port", "http"], "a whole number in digits is wanted"),
        (&["emulate", "--seed", "x"], "a whole number in digits is wanted"),
    ] {
        let ran = dir.run(args).exits(64);
        assert!(ran.stderr.contains(told), "{args:?}: {}", ran.stderr);
    }
}

/// An analysis of a trial had `"min": "1"`: the message named neither the file nor the key.
#[test]
fn r10_18_errors_in_an_analysis_name_the_file_and_the_key() {
    let dir = WorkDir::new();
    for (json, told) in [
        (r#"{"name":"q","field":"f","rule":{"type":"integer","min":"1","max":5}}"#, "`rule`: "),
        (r#"{"name":"q","field":"f","rule":{"type":"number"}}"#, "`rule`: unknown variant `number`"),
        (r#"{"name":"q","field":"f","rule":{"type":"integer","max":5}}"#, "`rule`: missing field `min`"),
        (r#"{"name":"q","field":"f","images":"no","rule":{"type":"integer","min":1,"max":5}}"#, "`images`: "),
        (r#"{"name":"q","feild":"f","rule":{"type":"integer","min":1,"max":5}}"#, ": unknown field `feild`"),
        (r#"{"name":"q","rule":{"type":"integer","min":1,"max":5}}"#, ": missing field `field`"),
        (r#"{"name":"q","field":"f","rule":{"type":"label"}}"#, "`rule`: this rule needs a `reference` file"),
        (r#"{"name":"q","field":"f","rule":{"type":"integer","min":1,"max":5},"max_tokens":0}"#, "`max_tokens` is 0"),
        (
            r#"{"name":"p","field":"f","rule":{"type":"integer","min":1,"max":5}}"#,
            ": the folder is `q` but `name` is `p`",
        ),
        (r#"{"name":"q","field":"f","rule":{"type":"label"},"reference":{"file":"no.json"}}"#, "its `reference` "),
        ("{", ": EOF while parsing"),
    ] {
        dir.write("an/q/analysis.json", json).write("an/q/prompt.txt", "{{content}}");
        let ran = dir.pipe("{\"content\":\"a\"}\n", &["gen", "--analyses=an", "--only=q"]).exits(65);
        let told = format!("an/q/analysis.json: {}", told.trim_start_matches(": "));
        assert!(ran.stderr.contains(&told), "{json}:\n{}", ran.stderr);
    }
}

/// A trial asked OpenAI for `glm-4-air`.
#[test]
fn r10_18_another_provider_needs_a_model() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\",\"image_urls\":[\"https://x/1.png\"]}\n");
    for verb in [&["gen", "posts.jsonl"][..], &["run", "posts.jsonl", "-o", "o", "-d", "w", "--emulate"]] {
        let ran = dir.run(&[verb, &["--provider", "openai"]].concat()).exits(64);
        assert!(ran.stderr.contains("no model of openai is named") && ran.stderr.contains("--model"), "{}", ran.stderr);
    }
    assert!(!dir.exists("w"));
    let one = dir.run(&["gen", "posts.jsonl", "--provider=openai", "--model=gpt-x", "--only=topic_analysis"]).exits(0);
    assert!(one.text().contains("\"model\":\"gpt-x\"") && !one.text().contains("glm"), "{}", one.text());
    dir.write("c.json", r#"{"batch":{"provider":"openai","model":"gpt-y"}}"#);
    let ran = dir.run(&["gen", "posts.jsonl", "--config=c.json", "--only=topic_analysis"]).exits(0);
    assert!(ran.text().contains("gpt-y"), "{}", ran.text());
}

/// A cloned folder with a `config.json` and no flags had the key sent to a stranger.
#[test]
fn r11_1_a_config_that_was_found_may_not_send_the_key_elsewhere() {
    const POST: &str = "{\"content\":\"a\"}\n";
    let dir = WorkDir::new();
    dir.write("posts.jsonl", POST);
    for (config, told) in [
        (
            r#"{"batch":{"base_url":"https://evil.example/v4"}}"#,
            "`batch.base_url` would send the key of zhipu to evil.example",
        ),
        (r#"{"batch":{"base_url":"http://127.0.0.1:9/v4"}}"#, "the key of zhipu to 127.0.0.1:9"),
        (
            r#"{"batch":{"provider":"openai","base_url":"https://evil.example/v1"}}"#,
            "the key of openai to evil.example",
        ),
        // A server of another provider is another server.
        (
            r#"{"batch":{"provider":"openai","base_url":"https://open.bigmodel.cn/v1"}}"#,
            "the key of openai to open.bigmodel.cn",
        ),
        (r#"{"batch":{"base_url":"https://open.bigmodel.cn.evil.example/"}}"#, "to open.bigmodel.cn.evil.example"),
        (r#"{"batch":{"base_url":"http://open.bigmodel.cn/api/paas/v4"}}"#, "to open.bigmodel.cn"),
        (
            r#"{"batch":{},"api":{"base_url":"https://evil.example/v4"}}"#,
            "`api.base_url` would send the key of zhipu to evil.example",
        ),
    ] {
        for file in ["config.json", "batch/config.json"] {
            dir.write(file, config);
            for verb in [&["config"][..], &["run", "posts.jsonl", "-o", "o", "-d", "w"], &["doctor"]] {
                let mut command = dir.command(verb);
                command.env("ZHIPUAI_API_KEY", "some.key").env("OPENAI_API_KEY", "some-key");
                let ran = crate::workdir::Ran::of(command.output().expect("it starts")).exits(65);
                let fix = format!("fix: if you trust this file, name it: --config {file}\n");
                assert!(ran.stderr.contains(&format!("config {file} was found here")), "{}", ran.stderr);
                assert!(ran.stderr.contains(told) && ran.stderr.ends_with(&fix), "{told}: {}", ran.stderr);
            }
            std::fs::remove_file(dir.join(file)).expect("removed");
        }
    }
    assert!(!dir.exists("w") && !dir.exists("batch/temp"));
}

/// The same: `data_dir: "/"`, and outputs anywhere.
#[test]
fn r11_1_a_config_that_was_found_may_not_lead_out_of_the_folder_around_it() {
    let outside = WorkDir::new();
    let dir = WorkDir::new();
    std::os::unix::fs::symlink(outside.path(), dir.join("link")).expect("linked");
    std::os::unix::fs::symlink(outside.join("new.json"), dir.join("dangling.json")).expect("linked");
    for (section, key) in [
        ("paths", "data_dir"),
        ("paths", "enhanced_output"),
        ("paths", "work_dir"),
        ("paths", "temp_dir"),
        ("files", "blog_data"),
        ("files", "topics"),
        ("files", "sentiment_attributes"),
        ("files", "publisher_objects"),
        ("files", "enhanced_output"),
    ] {
        for path in ["/", "/etc/passwd", "../../x", "../x/../../y", "../link/x", "../link", "../dangling.json"] {
            let config = serde_json::json!({"batch": {}, section: {key: path}});
            dir.write("batch/config.json", config.to_string());
            let ran = dir.run(&["config"]).exits(65);
            let told = format!("`{section}.{key}` leads to /");
            assert!(ran.stderr.contains(&told) && ran.stderr.contains("which is outside"), "{path}: {}", ran.stderr);
            assert!(ran.stderr.contains("--config batch/config.json"), "{}", ran.stderr);
        }
    }
    // All at once, and no line of a file's own.
    let config = r#"{"batch":{"base_url":"https://evil.example"},"paths":{"data_dir":"/","enhanced_output":"/a\nzbatch: next: rm"}}"#;
    dir.write("batch/config.json", config);
    let ran = dir.run(&["config"]).exits(65);
    for told in [
        "\n  `batch.base_url` would",
        "\n  `paths.data_dir` leads to /, ",
        "\n  `paths.enhanced_output` leads to /a\\nzbatch",
    ] {
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
    }
}

/// Who did nothing wrong is not stopped, and who names the file is trusted.
#[test]
fn r11_1_a_found_config_works_within_its_folder_and_a_named_one_everywhere() {
    let dir = WorkDir::new();
    dir.write("data/topics.json", r#"[{"parent_topic":"民生","sub_topics":["停电"]}]"#);
    let only = "--only=topic_analysis";
    for config in [
        r#"{"batch":{"base_url":"https://open.bigmodel.cn/api/paas/v4/"},"paths":{"data_dir":"../data"}}"#,
        r#"{"batch":{"base_url":"https://api.z.ai/api/paas/v4"},"paths":{"enhanced_output":"../out/./new.json"}}"#,
        r#"{"batch":{"provider":"openai","model":"m"},"paths":{"work_dir":"../w"}}"#,
        r#"{"batch":{"provider":"groq","model":"m","base_url":"https://api.groq.com/openai/v1"}}"#,
        r#"{"api":{"base_url":"https://open.bigmodel.cn/api/paas/v4"},"batch":{},"files":{"topics":"../data/topics.json"}}"#,
    ] {
        dir.write("batch/config.json", config);
        dir.run(&["config", only]).exits(0);
    }
    let wide = r#"{"batch":{"base_url":"https://mine.example/v4"},"paths":{"enhanced_output":"/tmp/x.json"}}"#;
    dir.write("config.json", wide);
    std::fs::remove_dir_all(dir.join("batch")).expect("removed");
    dir.run(&["config", only]).exits(65);
    let ran = dir.run(&["config", only, "--config", "config.json"]).exits(0);
    assert_eq!(row(ran.text(), "batch.base_url").0, "https://mine.example/v4");
    assert_eq!(row(ran.text(), "paths.enhanced_output").0, "/tmp/x.json");
    let mut command = dir.command(&["config", only]);
    crate::workdir::Ran::of(command.env("ZBATCH_CONFIG", "config.json").output().expect("it starts")).exits(0);
}

/// `--provider` with a config of another provider: the key of the one would go to the other.
#[test]
fn r11_1_a_base_url_in_a_config_is_for_the_provider_of_the_config() {
    let dir = WorkDir::new();
    dir.write("c.json", r#"{"batch":{"base_url":"https://mine.example/v4"}}"#);
    let ran = dir.run(&["config", "--config=c.json", "--provider=openai"]).exits(64);
    for told in ["the base URL in c.json is for zhipu, and --provider is openai", "--base-url"] {
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    dir.run(&["config", "--config=c.json", "--provider=openai", "--base-url=https://flag/v1"]).exits(0);
    dir.write("config.json", r#"{"batch":{"base_url":"https://open.bigmodel.cn/api/paas/v4"}}"#);
    dir.run(&["config", "--provider=openai"]).exits(64);
    dir.run(&["config", "--provider=zhipu"]).exits(0);
}

/// An audit had a dot file replaced by posts: a config named it as the output.
#[test]
fn r11_1_an_output_that_only_a_config_names_is_replaced_if_it_holds_posts() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"a\"}\n");
    let run = |name: &str, more: &[&str]| {
        dir.write("config.json", format!(r#"{{"batch":{{}},"paths":{{"enhanced_output":"{name}"}}}}"#));
        let args = ["run", "posts.jsonl", "--emulate", "--new", "-d", "w", "--only=sentiment_polarity"];
        dir.run(&[&args[..], more].concat())
    };
    for (name, text) in [
        ("profile", "export PATH=/bin\n"),
        ("settings.json", "{\"editor\":\"vi\"}"),
        ("pretty.json", "{\n  \"content\": 1\n}\n"),
        ("list.json", "[1,2]"),
        ("names.json", "[{\"name\":\"x\"}]"),
        ("bytes", "\u{0}\u{1}"),
        ("half.json", "{\"content\":"),
    ] {
        dir.write(name, text);
        let ran = run(name, &[]).exits(65);
        assert!(ran.stderr.contains(&format!("{name} is there and holds no posts")), "{}", ran.stderr);
        assert!(ran.stderr.contains("-o") && ran.stderr.contains("--force"), "{}", ran.stderr);
        assert_eq!(dir.read(name), text);
        assert!(!dir.exists("w"), "nothing was begun");
    }
    for (name, text) in [
        ("empty", ""),
        ("none.json", "[\n]\n"),
        ("lines.jsonl", "{\"content\":\"b\"}\n{\"content\":\"c\"}\n"),
        ("array.json", "\u{feff}[\n{\"id\":1,\n \"sentiment_polarity\":null}]"),
    ] {
        dir.write(name, text);
        run(name, &[]).exits(0);
        // And what is ours, compressed or not, is replaced again.
        run(name, &[]).exits(0);
        assert!(dir.read(name).contains("\"content\":\"a\",\"sentiment_polarity\":"), "{name}");
    }
    for name in ["out.jsonl.gz", "out.json.zst"] {
        run(name, &[]).exits(0);
        run(name, &[]).exits(0);
    }
    run("profile", &["--force"]).exits(0);
    assert!(dir.read("profile").contains("sentiment_polarity"));
    // A flag names what the user wants.
    run("bytes", &["-o", "settings.json"]).exits(0);
    assert!(dir.read("settings.json").contains("sentiment_polarity"));
}
