//! Journals that older versions wrote (`docs/reliability.md` S3).

use serde_json::Value;

use crate::workdir::{WorkDir, repository};

#[expect(clippy::disallowed_methods, reason = "small files of a test")]
fn fixture(name: &str) -> String {
    std::fs::read_to_string(repository().join("fixtures/journals").join(name)).expect(name)
}

/// Every value that `then` has, `now` has too.
fn check_same(then: &Value, now: &Value, what: &str) {
    match then {
        Value::Object(map) => map.iter().for_each(|(key, then)| check_same(then, &now[key], &format!("{what}.{key}"))),
        then => assert_eq!(now, then, "{what}"),
    }
}

/// `every-event.status.jsonl` holds what `status --json` of that version said after each line of its journal.
#[test]
fn s3_a_journal_of_an_older_version_adds_up_to_what_it_did() {
    let (journal, golden) = (fixture("every-event.jsonl"), fixture("every-event.status.jsonl"));
    let dir = WorkDir::new();
    let mut so_far = String::new();
    for (line, then) in journal.lines().zip(golden.lines()) {
        so_far += line;
        so_far.push('\n');
        let then: Value = serde_json::from_str(then).expect("JSON");
        dir.write("w/journal.jsonl", &so_far);
        let now = dir.run(&["status", "--json", "-d", "w"]).json_lines().remove(0);
        let chunks = now["chunks"].as_array().expect("chunks").iter();
        let chunk = chunks.clone().find(|chunk| chunk["chunk"] == then["chunk"]["chunk"]).unwrap_or(&Value::Null);
        let what = format!("line {}, {}", then["line"], then["event"]);
        check_same(&then["chunk"], chunk, &what);
        for key in ["state", "counts", "batches_created", "requests_submitted", "rows"] {
            check_same(&then[key], &now[key], &format!("{what}: {key}"));
        }
    }
    assert_eq!(golden.lines().count(), journal.lines().count());
}
