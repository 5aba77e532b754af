//! The order of the source: no circle between files, no import from a room above, no verb that imports from a verb.
//!
//! The imports are read from the text: every path that begins with `crate::`, `super::` or `self::` outside comments and tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The rooms from below. A module imports from its own room and from those above it in this list, which are below it in the house.
/// The longest name that fits counts.
const ROOMS: [(&str, &[&str]); 13] = [
    ("ground", &["text", "json", "units", "shell", "blocking", "error", "threads", "drill"]),
    ("flags and stderr", &["cli", "console", "progress"]),
    ("files", &["folder", "lines"]),
    ("signals", &["stop"]),
    ("questions", &["analysis"]),
    ("stages", &["flow"]),
    ("provider", &["provider"]),
    ("settings", &["settings"]),
    ("journal and report", &["journal", "report"]),
    ("work directory", &["workdir", "snapshots"]),
    ("jobs", &["jobs"]),
    ("emulator", &["emulator"]),
    ("verbs", &["cmd"]),
];

/// Files of `cmd` that are no verbs: what several verbs share.
const SHARED: [&str; 8] = [
    "cmd/cutting",
    "cmd/mod",
    "cmd/next",
    "cmd/outputs",
    "cmd/records",
    "cmd/remote",
    "cmd/request_settings",
    "cmd/source",
];

/// Imports that the rules forbid and that stand for a while: from, to, and why.
const EXCEPTIONS: [(&str, &str, &str); 1] =
    [("analysis/examples", "flow/answers", "an example's answer is judged by its rule when the set is loaded")];

/// The files of the source, by module path: `flow/posts` for `src/flow/posts.rs`, `flow/mod` for `src/flow/mod.rs`.
type Files = BTreeMap<String, String>;

/// An import: the importing and the imported file.
type Import = (String, String);

#[expect(clippy::disallowed_methods, reason = "the source is as large as it is")]
fn read_files(dir: &Path, prefix: &str, files: &mut Files) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        if path.is_dir() {
            read_files(&path, &format!("{prefix}{name}/"), files);
        } else if path.extension().is_some_and(|ending| ending == "rs") && name != "tests" {
            files.insert(format!("{prefix}{name}"), std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// The text without comments, and without the tests at its end.
fn product_code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Every path of `text` that begins with `crate`, `super` or `self`; of `a::{b, c::d}` one for each leaf.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for first in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(first) {
            let (before, rest) = text.split_at(at);
            let before = before.chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                read_tree(rest, &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// Reads `a::b`, or `a::{b, c}`, at the start of `text`, below `stem`; returns the text after it.
fn read_tree<'t>(mut text: &'t str, stem: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'t str {
    let depth = stem.len();
    loop {
        text = text.trim_start();
        if let Some(mut inner) = text.strip_prefix('{') {
            loop {
                inner = read_tree(inner, stem, found).trim_start();
                match inner.strip_prefix(',') {
                    Some(rest) if !rest.trim_start().starts_with('}') => inner = rest,
                    Some(rest) => inner = rest.trim_start(),
                    None => break,
                }
                if inner.starts_with('}') {
                    break;
                }
            }
            text = inner.strip_prefix('}').unwrap_or(inner);
            break;
        }
        let name = text.strip_prefix("r#").unwrap_or(text);
        let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
        let (name, rest) = name.split_at(end);
        stem.push(name.to_owned());
        text = rest;
        match text
            .strip_prefix("::")
            .filter(|rest| rest.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '{'))
        {
            Some(rest) => text = rest,
            None => {
                found.push(stem.clone());
                let rest = text.trim_start();
                text = rest.strip_prefix("as ").map_or(text, |alias| {
                    alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_' || c == ' ')
                });
                break;
            }
        }
    }
    stem.truncate(depth);
    text
}

/// Where a name that a `mod.rs` exports from a child stands: `("flow/mod", "Fault")` → `flow/faults`.
fn exports(files: &Files) -> BTreeMap<(String, String), String> {
    let mut exports = BTreeMap::new();
    for (file, text) in files {
        let Some(room) = file.strip_suffix("/mod") else { continue };
        for tree in product_code(text).split("pub use ").skip(1) {
            let mut found = Vec::new();
            read_tree(tree, &mut Vec::new(), &mut found);
            for path in found {
                let path: Vec<String> = path.into_iter().filter(|part| part != "self").collect();
                if let [child, .., name] = path.as_slice()
                    && files.contains_key(&format!("{room}/{child}"))
                {
                    exports.insert((file.clone(), name.clone()), format!("{room}/{child}"));
                }
            }
        }
    }
    exports
}

/// The file that a path means.
fn target(file: &str, path: &[String], files: &Files, exports: &BTreeMap<(String, String), String>) -> Option<String> {
    let mut at: Vec<&str> = file.strip_suffix("/mod").unwrap_or(file).split('/').collect();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => at.clear(),
        "super" => {}
        _ => return None,
    }
    while let Some((part, after)) = rest.split_first().filter(|(part, _)| ["crate", "super"].contains(&part.as_str())) {
        if part == "super" {
            at.pop();
        }
        rest = after;
    }
    let mut found = None;
    loop {
        let here = at.join("/");
        for known in [here.clone(), format!("{here}/mod")] {
            if files.contains_key(&known) {
                found = Some(known);
            }
        }
        let Some((next, after)) = rest.split_first() else { break };
        if let Some(child) = found.as_ref().and_then(|found| exports.get(&(found.clone(), next.clone()))) {
            return Some(child.clone());
        }
        at.push(next);
        if !files.keys().any(|file| *file == at.join("/") || file.starts_with(&(at.join("/") + "/"))) {
            break;
        }
        rest = after;
    }
    found
}

/// The house of a file: `foo.rs` and all in `foo/` are one.
fn house(file: &str, files: &Files) -> String {
    let parents = file.match_indices('/').map(|(at, _)| file.split_at(at).0);
    parents.into_iter().find(|parent| files.contains_key(*parent)).unwrap_or(file).to_owned()
}

/// The room of a file, by its number from below.
fn room(file: &str) -> Option<usize> {
    let name = file.strip_suffix("/mod").unwrap_or(file);
    let fits = |module: &str| name == module || name.starts_with(&format!("{module}/"));
    let all = ROOMS.iter().enumerate().flat_map(|(at, (_, modules))| modules.iter().map(move |module| (at, *module)));
    all.filter(|(_, module)| fits(module)).max_by_key(|(_, module)| module.len()).map(|(at, _)| at)
}

/// All imports between different houses. A `mod.rs` and its children are not counted among each other.
fn imports(files: &Files) -> BTreeSet<Import> {
    let exports = exports(files);
    let mut imports = BTreeSet::new();
    for (file, text) in files.iter().filter(|(file, _)| !["lib", "main"].contains(&file.as_str())) {
        for path in paths(&product_code(text)) {
            let Some(target) = target(file, &path, files, &exports) else { continue };
            let is_parent = |one: &str, other: &str| {
                one.strip_suffix("mod")
                    .is_some_and(|room| other.strip_prefix(room).is_some_and(|name| !name.contains('/')))
            };
            let (from, to) = (house(file, files), house(&target, files));
            if from != to && to != "lib" && !is_parent(&from, &to) && !is_parent(&to, &from) {
                imports.insert((from, to));
            }
        }
    }
    imports
}

/// A circle of imports, as a path that ends where it began.
fn circle(imports: &BTreeSet<Import>) -> Option<Vec<String>> {
    let mut left = imports.clone();
    // What imports nothing that is left is in no circle.
    loop {
        let importers: BTreeSet<String> = left.iter().map(|(from, _)| from.clone()).collect();
        let before = left.len();
        left.retain(|(_, to)| importers.contains(to));
        if left.len() == before {
            break;
        }
    }
    let mut way = vec![left.first()?.0.clone()];
    loop {
        let last = way.last()?.clone();
        let (_, next) = left.iter().find(|(from, _)| *from == last)?;
        if let Some(at) = way.iter().position(|house| house == next) {
            way.push(next.clone());
            return Some(way.split_off(at));
        }
        way.push(next.clone());
    }
}

/// What is wrong with the order of these files.
fn problems(files: &Files, exceptions: &[(&str, &str, &str)]) -> Vec<String> {
    let mut problems = Vec::new();
    let houses: BTreeSet<String> = files.keys().map(|file| house(file, files)).collect();
    for file in houses.iter().filter(|file| room(file).is_none() && !["lib", "main"].contains(&file.as_str())) {
        problems.push(format!("{file} is in no room: name it in ROOMS"));
    }
    let mut imports = imports(files);
    for (from, to, _) in exceptions {
        // A file of a house names the house.
        if !imports.remove(&((*from).to_owned(), (*to).to_owned())) {
            problems.push(format!("{from} does not import {to} any more: take it out of EXCEPTIONS"));
        }
    }
    for (from, to) in &imports {
        if room(from) < room(to) {
            let name = |file: &str| room(file).and_then(|at| ROOMS.get(at)).map_or("no room", |(name, _)| name);
            problems.push(format!("{from} ({}) imports {to} ({}), which is above it", name(from), name(to)));
        }
        let is_verb = |file: &str| file.starts_with("cmd/") && !SHARED.contains(&file);
        if from.starts_with("cmd/") && is_verb(to) {
            problems.push(format!("{from} imports from the verb {to}"));
        }
    }
    while let Some(circle) = circle(&imports) {
        // Another circle may be behind it: its last import counts no more.
        if let [.., from, to] = circle.as_slice() {
            imports.remove(&(from.clone(), to.clone()));
        }
        problems.push(format!("a circle: {}", circle.join(" → ")));
    }
    problems
}

fn source() -> Files {
    let mut files = Files::new();
    read_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    files
}

#[test]
fn the_source_is_in_order() {
    let files = source();
    let found = imports(&files);
    assert!(found.len() > 200, "only {} imports were recognised", found.len());
    let problems = problems(&files, &EXCEPTIONS);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Each of these would pass if the check saw nothing.
#[test]
fn the_check_sees_what_is_out_of_order() {
    let check = |texts: &[(&str, &str)]| {
        let files: Files = texts.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        problems(&files, &[]).join("; ")
    };
    let up = "error (ground) imports flow/faults (stages), which is above it";
    assert_eq!(check(&[("error", "use crate::flow::faults::short;"), ("flow/faults", "")]), up);
    assert_eq!(check(&[("error", "fn f() { crate::flow::faults::short() }"), ("flow/faults", "")]), up);
    let exporting = ("flow/mod", "pub use self::{faults::{Fault, FaultKind}, posts as p};");
    assert_eq!(
        check(&[("error", "use crate::{json, flow::{Fault}};"), exporting, ("flow/faults", ""), ("json", "")]),
        up
    );
    assert_eq!(
        check(&[
            ("flow/posts", "use super::{\n    Fault, rows::{self, A as B},\n};"),
            ("flow/rows", "use super::posts::Post;")
        ]),
        "a circle: flow/posts → flow/rows → flow/posts"
    );
    assert_eq!(
        check(&[("lines/a", "use super::b::X;"), ("lines/b", "use super::c::X;"), ("lines/c", "use super::a::X;")]),
        "a circle: lines/a → lines/b → lines/c → lines/a"
    );
    assert_eq!(
        check(&[("cmd/run", ""), ("cmd/run/join", "use crate::cmd::r#gen::cut;"), ("cmd/gen", "")]),
        "cmd/run imports from the verb cmd/gen"
    );
    assert_eq!(check(&[("utils", "")]), "utils is in no room: name it in ROOMS");
    let gone = problems(&Files::new(), &[("cmd/run", "cmd/gen", "")]);
    assert_eq!(gone, ["cmd/run does not import cmd/gen any more: take it out of EXCEPTIONS"]);
    // One house, a comment, a test, and a module that sees its mod.rs are in order.
    let good = [
        ("cmd/run", "mod join;\nuse self::join::Join;"),
        ("cmd/run/join", "use super::Run;\n// use crate::cmd::gen::cut;"),
        ("flow/mod", "pub mod posts;"),
        ("flow/posts", "use super::PostIndex;\n#[cfg(test)]\nmod tests {\n    use crate::cmd::run::Run;\n}"),
    ];
    assert_eq!(check(&good), "");
}
