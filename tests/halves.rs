//! Inputs that are not whole: nothing is made of their beginning as if it were all.

use crate::workdir::WorkDir;

const POLARITY: &str = "--only=sentiment_polarity";
const TWO: &str = "{\"content\":\"第一条\"}\n{\"content\":\"第二条\"}\n";
const CUT: &str = "the last line ends in the middle (line 3, byte 48)";

/// Places at which a copy may stand still.
fn beginnings() -> Vec<Vec<u8>> {
    let whole = "{\"content\":\"第三条\",\"likes\":1.5,\"x\":null,\"y\":[-2,\"\\u597d\"]}".as_bytes();
    (1..whole.len()).map(|end| [TWO.as_bytes(), whole.split_at(end).0].concat()).collect()
}

#[test]
fn r11_9g_a_last_line_that_is_cut_off_is_refused() {
    let dir = WorkDir::new();
    assert_eq!(TWO.len(), 48, "the byte that is told");
    for posts in beginnings() {
        dir.write("posts.jsonl", &posts);
        let ran = dir.run(&["gen", "posts.jsonl", POLARITY, "-o", "o.jsonl"]).exits(65);
        assert!(ran.stderr.contains(CUT), "{}: {}", String::from_utf8_lossy(&posts), ran.stderr);
        assert!(!dir.exists("o.jsonl"));
    }
    let ran = dir.run(&["gen", "posts.jsonl", POLARITY]).exits(65);
    assert!(ran.stderr.contains("is the file still being written"), "{}", ran.stderr);
    assert_eq!(ran.text().lines().count(), 2, "a filter has written what came before");
    assert!(ran.stderr.contains("(`echo >> posts.jsonl`)"), "{}", ran.stderr);
    dir.run(&["run", "posts.jsonl", POLARITY, "-o", "out.jsonl", "-d", "w", "--emulate"]).exits(65);
    assert!(!dir.exists("out.jsonl") && !dir.read("w/journal.jsonl").contains("\"intent\""));
    // Chunks that were cut before it stay, and the rest of the input goes on after them.
    dir.run(&["gen", "-d", "g", "posts.jsonl", POLARITY, "--max-lines", "1"]).exits(65);
    assert!(!dir.read("g/journal.jsonl").contains("\"event\":\"posts\""), "the input has no end yet");
    dir.write("answers.jsonl", "");
    dir.run(&["merge", "posts.jsonl", "answers.jsonl", "-o", "m.jsonl"]).exits(65);
    let ran = dir.pipe(dir.read("posts.jsonl"), &["run", "-", "-o", "p.jsonl", "-d", "p", "--emulate", POLARITY]);
    assert!(ran.exits(65).stderr.contains("stdin: the last line ends"));
    // The same commands, once the rest has come.
    dir.write("posts.jsonl", format!("{TWO}{{\"content\":\"第三条\"}}"));
    dir.run(&["run", "posts.jsonl", POLARITY, "-o", "out.jsonl", "-d", "w", "--emulate"]).exits(0);
    assert_eq!(dir.read("out.jsonl").lines().count(), 3, "a last line needs no line feed");
    dir.run(&["gen", "-d", "g", "posts.jsonl", POLARITY, "--max-lines", "1"]).exits(0);
    dir.pipe(dir.read("posts.jsonl"), &["run", "-", "-o", "p.jsonl", "-d", "p", "--emulate", POLARITY]).exits(0);
}

/// Whatever else is wrong with a last line is one bad post, as before; so is one that a line feed ends.
#[test]
fn r11_9g_a_last_line_that_is_only_bad_is_one_fault() {
    let dir = WorkDir::new();
    for last in [
        "{\"content\":\"a\n",
        "hello",
        "7",
        "{\"content\":\"a\"} x",
        "{\"content\":\"a\",}",
        "[1",
        "{'content'",
        "{\"a\":.5}",
    ] {
        dir.write("posts.jsonl", format!("{TWO}{last}"));
        let ran = dir.run(&["gen", "posts.jsonl", POLARITY]);
        assert_eq!((ran.code, ran.text().lines().count()), (Some(1), 2), "{last}: {}", ran.stderr);
    }
}

#[test]
fn r11_9g_requests_that_are_cut_off_are_refused() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", TWO);
    let requests = dir.run(&["gen", "posts.jsonl", POLARITY]).exits(0).text().to_owned();
    dir.write("requests.jsonl", requests.as_bytes().split_at(requests.len() - 9).0);
    let ran = dir.run(&["chunk", "-d", "w", "requests.jsonl"]).exits(65);
    assert!(ran.stderr.contains("the last line ends in the middle (line 2, byte "), "{}", ran.stderr);
    assert!(!dir.read("w/journal.jsonl").contains("\"event\":\"posts\""), "the input has no end yet");
    dir.write("requests.jsonl", &requests);
    dir.run(&["chunk", "-d", "w", "requests.jsonl"]).exits(0);
}

#[test]
fn r11_9g_another_number_of_posts_is_refused() {
    let dir = WorkDir::new();
    dir.write("posts.jsonl", TWO);
    let told = "posts.jsonl: it has 2 posts, and --expect-posts says 3";
    let jobs: [&[&str]; 3] = [
        &["gen", "posts.jsonl", POLARITY, "-o", "o.jsonl", "--expect-posts"],
        &["gen", "-d", "g", "posts.jsonl", POLARITY, "--max-lines", "1", "--expect-posts"],
        &["run", "posts.jsonl", POLARITY, "-o", "out.jsonl", "-d", "w", "--emulate", "--expect-posts"],
    ];
    for job in jobs {
        let ran = dir.run(&[job, &["3"]].concat()).exits(65);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    assert!(!dir.exists("o.jsonl") && !dir.exists("out.jsonl") && !dir.exists("g/journal.jsonl"));
    assert!(!dir.read("w/journal.jsonl").contains("\"intent\""), "nothing was created");
    for job in jobs {
        dir.run(&[job, &["2"]].concat()).exits(0);
    }
}
