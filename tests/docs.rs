//! What the documents tell people to type exists, and what they link to is there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use zbatch::{cli::Cli, flow::FaultKind, provider::Dialect};

use crate::workdir::{WorkDir, repository};

const DOCUMENTS: [&str; 9] = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/formats.md",
    "docs/providers.md",
    "docs/reliability.md",
    "examples/pocketflow/README.md",
    "fixtures/README.md",
];

#[expect(clippy::disallowed_methods, reason = "the repository's own small files")]
pub fn text(name: &str) -> String {
    let path = repository().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every `--flag` of a text, without `cargo`'s and `git`'s.
fn flags(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.contains("cargo "));
    let words = lines.flat_map(|line| line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')));
    words
        .filter(|word| word.strip_prefix("--").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_flag_and_verb_in_the_documents_exists() {
    let mut cli = Cli::command();
    cli.build();
    let mut known: BTreeSet<String> = ["--help", "--version"].map(str::to_owned).into();
    let mut verbs = BTreeSet::new();
    for verb in cli.get_subcommands() {
        verbs.insert(verb.get_name().to_owned());
        known.extend(verb.get_arguments().filter_map(|a| a.get_long()).map(|long| format!("--{long}")));
    }
    for document in DOCUMENTS {
        let text = text(document);
        let unknown: Vec<String> = flags(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{document}: {unknown:?}");
        for line in text.lines().filter(|line| line.starts_with("    ")) {
            for call in line.split(" zbatch ").skip(1) {
                let verb = call.split_whitespace().next().unwrap_or_default();
                assert!(verbs.contains(verb) || verb.starts_with('-') || verb == "VERB", "{document}: {line}");
            }
        }
    }
}

#[test]
fn both_readmes_say_the_same_commands_flags_and_settings() {
    let (english, chinese) = (text("README.md"), text("README.zh-CN.md"));
    assert_eq!(flags(&english), flags(&chinese));
    // Commands without their comments; JSON and templates as they are.
    let shown = |text: &str| -> Vec<String> {
        let mut fenced = false;
        let kept = text.lines().filter(|line| {
            fenced ^= line.starts_with("```");
            fenced || line.starts_with("    ")
        });
        kept.map(|line| line.split(" # ").next().unwrap_or_default().trim_end().to_owned()).collect()
    };
    assert_eq!(shown(&english), shown(&chinese));
    let headings = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
    assert_eq!(headings(&english), headings(&chinese));
}

/// Whoever renames a test that proves a promise says so there too.
#[test]
fn every_test_that_the_page_on_reliability_names_exists() {
    let mut sources = String::new();
    let mut folders = vec![repository().join("src"), repository().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &text(path.to_str().expect("UTF-8"));
            }
        }
    }
    let page = text("docs/reliability.md");
    let (_, proofs) = page.split_once("## How it is tested").expect("that part");
    let names: Vec<&str> = proofs.split('`').filter(|name| name.contains('_') && !name.contains(' ')).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}()")), "{name}");
    }
}

#[test]
fn every_kind_of_fault_is_explained() {
    let formats = text("docs/formats.md");
    for kind in FaultKind::ALL {
        assert!(formats.contains(&format!("| `{}` |", kind.as_str())), "{}", kind.as_str());
    }
}

/// Every key of a report, and every file that a job leaves, is explained.
#[test]
fn what_a_run_leaves_is_explained() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", "{\"content\":\"谢谢\"}\n");
    let piped = ["run", "-", "-o", "out.jsonl", "-d", "work", "--emulate", "--fault", "invalid=100%"];
    let ran = dir.pipe(dir.read("posts.jsonl"), &piped);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let formats = text("docs/formats.md");
    let mut unknown = BTreeSet::new();
    // Below these the keys are names of analyses, fields, kinds and statuses, or a fault line.
    const NAMES: [&str; 5] = ["analyses", "field_completeness", "faults", "unplaced_faults", "by_status"];
    fn walk(value: &serde_json::Value, named: bool, each: &mut impl FnMut(&str)) {
        let Some(map) = value.as_object() else { return };
        for (key, value) in map {
            if !named {
                each(key);
            }
            walk(value, !named && NAMES.contains(&key.as_str()), each);
        }
    }
    let report = serde_json::from_str(&dir.read("work/integration_report.json")).expect("JSON");
    walk(&report, false, &mut |key| {
        if !formats.contains(key) {
            unknown.insert(key.to_owned());
        }
    });
    for entry in std::fs::read_dir(dir.join("work")).expect("listed") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        if !formats.contains(&format!("`{name}")) {
            unknown.insert(name);
        }
    }
    assert!(unknown.is_empty(), "docs/formats.md: {unknown:?}");
}

#[test]
fn links_lead_somewhere() {
    for document in DOCUMENTS {
        for (at, link) in text(document).split("](").skip(1).enumerate() {
            let target = link.split(')').next().unwrap_or_default();
            if target.starts_with("http") {
                continue;
            }
            let here: PathBuf = repository().join(document);
            let path = here.parent().expect("in a folder").join(target);
            assert!(path.exists(), "{document}, link {at}: {target}");
        }
    }
}

#[test]
fn the_shown_analysis_is_the_one_in_examples() {
    let analysis = text("examples/analyses/urgency/analysis.json");
    for readme in ["README.md", "README.zh-CN.md"] {
        assert!(text(readme).contains(&analysis), "{readme}");
    }
}

/// Every value that differs between providers is on the page about them, with its source.
#[test]
fn the_page_on_providers_has_their_values() {
    let page = text("docs/providers.md");
    let grouped = |number: u64| {
        let digits = number.to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).expect("digits")).collect();
        groups.join(",")
    };
    for dialect in Dialect::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", dialect.name))).expect(dialect.name);
        let values = [dialect.base_url.to_owned(), grouped(dialect.max_lines), grouped(dialect.max_bytes)];
        let words = dialect.key_variables.iter().chain(&dialect.completion_window).map(|word| format!("`{word}`"));
        for value in values.into_iter().chain(words) {
            assert!(row.contains(&value), "{}: {value}", dialect.name);
        }
        for word in dialect.running_words.iter().chain([&dialect.line_url]).chain(dialect.other_base_urls) {
            assert!(page.contains(&format!("`{word}`")), "{}: {word}", dialect.name);
        }
    }
}

/// The files of the repository that hold text: without what Git, Cargo and the demo keep here.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    const NOT_OURS: [&str; 6] = [".git", "target", "batch", "corpus", "node_modules", "__pycache__"];
    const TEXTS: [&str; 7] = ["md", "rs", "py", "toml", "json", "txt", "yml"];
    for entry in std::fs::read_dir(folder).expect("listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        let is_demo = name == "work" || name == "demo" && folder == repository();
        if path.is_dir() {
            if !NOT_OURS.contains(&name) && !is_demo {
                sources(&path, found);
            }
        } else if matches!(name, "Makefile" | "run") || path.extension().is_some_and(|e| TEXTS.iter().any(|t| e == *t))
        {
            found.push(path);
        }
    }
}

/// A Markdown document that a comment, a test or a page names is a file of the repository: its path begins at the root, or in the
/// folder of the file that names it.
#[test]
fn every_document_that_is_cited_is_here() {
    let mut files = Vec::new();
    sources(repository(), &mut files);
    assert!(files.len() > 100, "{} files", files.len());
    let mut missing = BTreeSet::new();
    for file in files {
        let shown = file.strip_prefix(repository()).expect("below it").display().to_string();
        let folder = file.parent().expect("in a folder");
        let text = text(&shown);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "./_-:".contains(c)));
        for word in words.filter_map(|word| {
            word.trim_end_matches(['.', ':', '-']).strip_suffix(".md").filter(|name| !name.is_empty())
        }) {
            let cited = format!("{word}.md");
            let is_here = [repository(), folder].iter().any(|from| from.join(&cited).is_file());
            if !is_here && !cited.contains("://") {
                missing.insert(format!("{shown} cites {cited}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A path of the repository in backticks exists. `NAME` and `…` stand for a name.
#[test]
fn every_path_in_the_documents_exists() {
    const FOLDERS: [&str; 6] = ["src/", "tests/", "docs/", "fixtures/", "examples/", "data/analyses/"];
    let mut missing = BTreeSet::new();
    let mut count = 0;
    for document in DOCUMENTS.into_iter().chain(["docs/performance.md"]) {
        for path in text(document).split(['`', ' ', '\n']) {
            let is_path =
                FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains("NAME") && path.is_ascii();
            if is_path && !path.contains(['(', ')', '*', ':']) {
                count += 1;
                let here = repository().join(path.trim_end_matches([',', '.', ';']));
                if !here.exists() {
                    missing.insert(format!("{document}: {path}"));
                }
            }
        }
    }
    assert!(count > 20, "{count} paths");
    assert!(missing.is_empty(), "{missing:#?}");
}
