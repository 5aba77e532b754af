//! The images of posts, from files of one byte to 5 MB, through every verb that renders or sends them: byte for byte, in
//! bounded memory, over sockets and after kills; which paths and texts name an image, and what is said of those that do not.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use zbatch::emulator::ledger;

use crate::{
    bombs::measure,
    server::Server,
    workdir::{Ran, WorkDir},
};

const ONE: &str = "--only=sentiment_polarity";
const MIB: u64 = 1 << 20;

/// A JPEG file by its first bytes; no two sizes share their contents.
fn photo(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut photo: Vec<u8> = std::iter::repeat_with(&mut next).take(bytes).collect();
    let magic = [0xff, 0xd8, 0xff, 0xe0];
    let head = magic.len().min(bytes);
    photo[..head].copy_from_slice(&magic[..head]);
    photo
}

/// A data dir with photos of these sizes, and a post a list; the reference files that a data dir must have.
fn album(dir: &WorkDir, posts: &[Vec<usize>]) {
    data_dir(dir);
    for bytes in posts.iter().flatten() {
        dir.write(&format!("data/photos/{bytes}.jpg"), photo(*bytes));
    }
    let post = |(at, sizes): (usize, &Vec<usize>)| {
        let urls: Vec<String> = sizes.iter().map(|bytes| format!("photos/{bytes}.jpg")).collect();
        json!({"content": format!("第{at}条，谢谢"), "image_urls": urls}).to_string() + "\n"
    };
    dir.write("posts.jsonl", posts.iter().enumerate().map(post).collect::<String>());
}

fn data_dir(dir: &WorkDir) {
    dir.write("data/topics.json", r#"[{"parent_topic":"a","sub_topics":["b"]}]"#)
        .write("data/sentiment_attributes.json", r#"["a"]"#)
        .write("data/publisher_objects.json", r#"["a"]"#);
}

/// Takes the data URLs of request lines apart without a JSON parser, which would hold each line twice: the photos of each
/// post, by its index.
fn photos_in(requests: &[u8], into: &mut BTreeMap<u64, Vec<Vec<u8>>>) {
    let head = b"\"data:image/jpeg;base64,";
    for line in requests.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let id = line.split(|b| *b == b'"').nth(3).expect("a custom_id");
        let index = std::str::from_utf8(id).expect("UTF-8").rsplit_once('_').expect("an index").1;
        let photos = memchr::memmem::find_iter(line, head).map(|at| {
            let url = &line[at + head.len()..];
            let end = url.iter().position(|b| *b == b'"').expect("a closing quote");
            STANDARD.decode(&url[..end]).expect("base64")
        });
        assert!(into.insert(index.parse().expect("a number"), photos.collect()).is_none(), "{index} is there twice");
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's files")]
fn photos_in_files(folder: &Path) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("listed") {
        photos_in(&std::fs::read(entry.expect("an entry").path()).expect("read"), &mut found);
    }
    found
}

/// The photos of these posts, as they are on disk.
#[track_caller]
fn same_photos(seen: &BTreeMap<u64, Vec<Vec<u8>>>, posts: &[Vec<usize>], how: &str) {
    assert_eq!(seen.len(), posts.len(), "{how}");
    for (at, sizes) in posts.iter().enumerate() {
        let lengths: Vec<usize> = seen[&(at as u64)].iter().map(Vec::len).collect();
        assert_eq!(lengths, *sizes, "{how}: post {at}");
        for (photo_there, bytes) in seen[&(at as u64)].iter().zip(sizes) {
            assert!(*photo_there == photo(*bytes), "{how}: post {at}, a photo of {bytes} bytes");
        }
    }
}

/// One photo a post around each size at which a buffer or a piece ends, five of the largest in one post, and many small ones.
fn sizes() -> Vec<Vec<usize>> {
    let piece = 128 << 10;
    let edges = [4, 5, 6, 7, 97_000, piece * 3 / 4 - 1, piece * 3 / 4, piece * 3 / 4 + 1, piece - 1, piece, piece + 1];
    let large = [1_000_003, 4_999_999, 5_000_000];
    let one_each = edges.into_iter().chain(large).map(|bytes| vec![bytes]);
    let several = [vec![5_000_000; 5], vec![4, 97_000, 5, 1_000_003, 6]];
    // Each of these fits into a piece, and their sum does not.
    one_each.chain(several).chain((0..60).map(|n| vec![4_000 + n])).collect()
}

/// Seen with photos: any image over about 97 kB, and small ones across a piece of 128 KiB, ended `run` and `gen -d` with 74,
/// "failed to write whole buffer".
#[test]
fn r10_0_an_image_of_any_size_goes_through_every_verb() {
    let dir = WorkDir::new();
    let posts = sizes();
    album(&dir, &posts);
    let args = |args: &[&'static str]| [args, &["posts.jsonl", ONE, "--data-dir=data"]].concat();
    let mut seen = BTreeMap::new();
    let rendered = dir.run(&args(&["gen"])).exits(0).stdout;
    photos_in(&rendered, &mut seen);
    same_photos(&seen, &posts, "gen");
    dir.run(&args(&["gen", "-d", "cut"])).exits(0);
    same_photos(&photos_in_files(&dir.join("cut/requests")), &posts, "gen -d");
    dir.pipe(&rendered, &["chunk", "-d", "chunked"]).exits(0);
    same_photos(&photos_in_files(&dir.join("chunked/requests")), &posts, "chunk");
    dir.run(&args(&["run", "-d", "w", "-o", "out.jsonl", "--emulate", "--keep-requests"])).exits(0);
    same_photos(&photos_in_files(&dir.join("w/requests")), &posts, "run");
    assert_eq!(dir.read("out.jsonl").matches(r#""sentiment_polarity":"#).count(), posts.len());
}

/// Less than a JPEG's four first bytes, and more than the provider takes: the post is asked about without.
#[test]
fn r10_0_images_beyond_both_ends_are_faults() {
    let dir = WorkDir::new();
    album(&dir, &[vec![1], vec![3], vec![4], vec![5_000_000], vec![5_000_001]]);
    dir.write("data/photos/0.jpg", "");
    dir.write("posts.jsonl", dir.read("posts.jsonl") + r#"{"content":"a","image_urls":["photos/0.jpg"]}"#);
    let ran = dir.run(&["gen", "posts.jsonl", ONE, "--data-dir=data", "--faults=f.jsonl"]).exits(1);
    let mut seen = BTreeMap::new();
    photos_in(&ran.stdout, &mut seen);
    let counts: Vec<usize> = seen.values().map(Vec::len).collect();
    assert_eq!(counts, [0, 0, 1, 1, 0, 0]);
    let said: Vec<String> = dir.read("f.jsonl").lines().map(str::to_owned).collect();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(
        said[0].contains("neither a JPEG nor a PNG") && said[2].contains("5000001 bytes; the limit is 5000000"),
        "{said:?}"
    );
    assert!(said[3].contains("it is empty"), "{said:?}");
}

/// What the provider got is what was cut, and each chunk was paid for once, whenever the client was killed.
#[test]
fn r10_0_images_go_over_sockets_and_a_killed_run_writes_the_same() {
    let dir = WorkDir::new();
    let posts: Vec<Vec<usize>> =
        (0..24).map(|n| vec![300_000 + n, 97_000 + n, 4 + n, 1_500_000 + n, 131_072 + n]).collect();
    album(&dir, &posts);
    let job = |work: &'static str, out: &'static str| {
        ["run", "posts.jsonl", "-d", work, "-o", out, ONE, "--data-dir=data", "--max-lines=5", "--keep-requests"]
    };
    dir.run(&[&job("golden", "golden.jsonl")[..], &["--emulate"]].concat()).exits(0);

    let server = Server::start(&dir, &dir.join("server"), &["--latency=50ms"]);
    let command = || {
        let mut command = dir.command(&job("w", "out.jsonl"));
        command.args(["--base-url", &server.base, "--poll-interval=20ms", "--keep-remote"]);
        command.env("ZHIPUAI_API_KEY", "some.key").stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    for wait in [30, 110, 190, 270, 350, 430] {
        let mut child = command().spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    Ran::of(command().output().expect("it starts")).exits(0);
    assert_eq!(dir.read("out.jsonl"), dir.read("golden.jsonl"));
    let created = ledger::read(&dir.join("server")).expect("a ledger").by_content;
    assert_eq!((created.len(), created.values().sum::<u64>()), (5, 5), "one create a chunk");
    let cut = photos_in_files(&dir.join("w/requests"));
    same_photos(&cut, &posts, "after kills");
    let hashes = |folder: &str| -> Vec<blake3::Hash> {
        let files = std::fs::read_dir(dir.join(folder)).expect("listed").map(|entry| entry.expect("an entry").path());
        files.map(|path| hash(&path)).collect()
    };
    let uploaded = hashes("server/files");
    assert!(hashes("w/requests").iter().all(|chunk| uploaded.contains(chunk)), "the files as they were cut");
}

fn hash(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).expect("opens")).expect("read");
    hasher.finalize()
}

/// 5 × 4 MB a post: 27 MB a request line, 80 MB a chunk file. `make bombs` takes 1,000 posts, 27 GB of request lines, of which
/// few are on disk at any time.
#[test]
fn r10_0_posts_with_five_large_images_take_bounded_memory() {
    let posts: usize = std::env::var("ZBATCH_IMAGE_POSTS").map_or(24, |text| text.parse().expect("a number of posts"));
    let dir = WorkDir::new();
    album(&dir, &[]);
    for n in 0..5 {
        dir.write(&format!("data/{n}.jpg"), photo(4_000_000 - n));
    }
    let link = |post: usize, n: usize| {
        std::fs::hard_link(dir.join(&format!("data/{n}.jpg")), dir.join(&format!("data/{post}_{n}.jpg")))
            .expect("linked");
        format!("{post}_{n}.jpg")
    };
    let lines = (0..posts).map(|post| {
        let urls: Vec<String> = (0..5).map(|n| link(post, n)).collect();
        json!({"content": format!("第{post}条"), "image_urls": urls}).to_string() + "\n"
    });
    dir.write("posts.jsonl", lines.collect::<String>());
    let args = ["posts.jsonl", ONE, "--data-dir=data"];
    for (verb, bound) in [
        (&["gen", "-o", "/dev/null"][..], 32 * MIB),
        (&["run", "-d", "w", "-o", "out.jsonl", "--emulate", "--poll-interval=10ms"], 256 * MIB),
    ] {
        let began = Instant::now();
        let (ran, peak) = measure(dir.command(&[verb, &args].concat()), |_| Ok(()));
        ran.exits(0);
        println!("{}: {posts} posts, {} MiB, {:.0?}", verb[0], peak / MIB, began.elapsed());
        assert!(peak > MIB && peak <= bound, "{}: {} MiB", verb[0], peak / MIB);
    }
    assert_eq!(dir.read("out.jsonl").matches(r#""sentiment_polarity":"#).count(), posts);
    assert_eq!(std::fs::read_dir(dir.join("w/requests")).expect("listed").count(), 0);
}

/// What each `image_urls` of a post became: its image parts, with the bytes of a data URL replaced by their number, and the
/// faults of the post.
fn shown(dir: &WorkDir, lists: &[Value], more: &[&str]) -> Vec<(Vec<String>, Vec<String>)> {
    let posts = lists.iter().map(|list| json!({"content": "a", "image_urls": list}).to_string() + "\n");
    dir.write("posts.jsonl", posts.collect::<String>());
    let args = [&["gen", "posts.jsonl", ONE, "--faults=f.jsonl", "--max-faults=99"], more].concat();
    let ran = dir.run(&args).exits(0);
    let faults: Vec<Value> =
        dir.read("f.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let part = |part: &Value| {
        let url = part["image_url"]["url"].as_str()?;
        let bytes = url.split_once(";base64,").map(|(_, text)| STANDARD.decode(text).expect("base64").len());
        Some(bytes.map_or_else(|| url.to_owned(), |bytes| format!("{bytes} bytes")))
    };
    let row = |(index, line): (usize, Value)| {
        let parts = line["body"]["messages"][0]["content"].as_array().cloned().unwrap_or_default();
        let of_row = faults.iter().filter(|fault| fault["index"] == json!(index));
        assert!(of_row.clone().all(|fault| fault["kind"] == "image"));
        let details = of_row.map(|fault| fault["detail"].as_str().expect("a detail").to_owned());
        (parts.iter().filter_map(part).collect(), details.collect())
    };
    ran.json_lines().into_iter().enumerate().map(row).collect()
}

#[track_caller]
fn check(shown: &[(Vec<String>, Vec<String>)], wanted: &[(Value, &[&str], &str)]) {
    for ((images, faults), (list, wanted, says)) in shown.iter().zip(wanted) {
        assert_eq!(images, wanted, "{list}: {faults:?}");
        let says_it = if says.is_empty() { faults.is_empty() } else { faults.iter().any(|fault| fault.contains(says)) };
        assert!(says_it, "{list}: {faults:?}, not `{says}`");
    }
}

/// Seen in posts of scrapers: absolute paths, the data dir's own name before the path, and `\` from Windows.
#[test]
fn r10_0_paths_that_lead_into_the_data_dir_are_found() {
    let dir = WorkDir::new();
    album(&dir, &[vec![7, 8, 9]]);
    dir.write("data/data/photos/8.jpg", photo(18))
        .write(r"data/odd\name.jpg", photo(19))
        .write("outside.jpg", photo(20));
    dir.write("data/photos/a b.jpg", photo(21)).write("database/7.jpg", photo(22));
    std::os::unix::fs::symlink("data", dir.join("linked")).expect("linked");
    let absolute = |name: &str| json!([dir.join(name).display().to_string()]);
    let paths: &[(Value, &[&str], &str)] = &[
        (json!(["photos/7.jpg"]), &["7 bytes"], ""),
        (json!(["data/photos/7.jpg"]), &["7 bytes"], ""),
        (json!(["./data/./photos/7.jpg"]), &["7 bytes"], ""),
        // As it is written comes first.
        (json!(["data/photos/8.jpg"]), &["18 bytes"], ""),
        (json!([r"odd\name.jpg"]), &["19 bytes"], ""),
        (
            json!([r"photos\7.jpg", r"data\photos\9.jpg", r".\data\photos\9.jpg"]),
            &["7 bytes", "9 bytes", "9 bytes"],
            "",
        ),
        (json!([" photos/7.jpg\t", "photos/a b.jpg "]), &["7 bytes", "21 bytes"], ""),
        (absolute("data/photos/9.jpg"), &["9 bytes"], ""),
        (absolute("linked/photos/9.jpg"), &["9 bytes"], ""),
        (absolute("data/../outside.jpg"), &[], "it leads out of the data dir"),
        (absolute("outside.jpg"), &[], "it leads out of the data dir"),
        (absolute("database/7.jpg"), &[], "it leads out of the data dir"),
        (json!(["data/../outside.jpg"]), &[], "it leads out of the data dir"),
        (json!(["data/../../outside.jpg"]), &[], "it leads out of the data dir"),
        (json!([r"..\outside.jpg"]), &[], "it leads out of the data dir"),
        (json!([r"C:\photos\7.jpg", "photos/70.jpg"]), &[], "there is no such file below the data dir"),
    ];
    let lists: Vec<Value> = paths.iter().map(|(list, ..)| list.clone()).collect();
    check(&shown(&dir, &lists, &["--data-dir=linked"]), paths);
    // Under the name that it was given, too.
    let linked: &[(Value, &[&str], &str)] = &[(json!(["linked/photos/9.jpg"]), &["9 bytes"], "")];
    check(&shown(&dir, &[linked[0].0.clone()], &["--data-dir=./linked/"]), linked);
}

/// Seen in posts: GIF and WebP files under any name; the provider takes JPEG and PNG.
#[test]
fn r10_0_other_formats_are_refused_by_name() {
    let dir = WorkDir::new();
    data_dir(&dir);
    let formats: [(&[u8], &str); 9] = [
        (b"GIF89a\x01\0\x01\0\0\0\0;", "it is a GIF file; only JPEG and PNG images are sent"),
        (b"RIFF\x1a\0\0\0WEBPVP8L", "it is a WebP file"),
        (b"BM6\0\0\0", "it is a BMP file"),
        (b"II*\0\x08\0\0\0", "it is a TIFF file"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "it is an AVIF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIF file"),
        (b"<!DOCTYPE html><title>404", "it is a page of HTML"),
        (b"", "it is empty"),
        (b"x", "it is neither a JPEG nor a PNG file"),
    ];
    for (at, (bytes, _)) in formats.iter().enumerate() {
        dir.write(&format!("data/{at}.jpg"), bytes);
    }
    let wanted: Vec<(Value, &[&str], &str)> =
        formats.iter().enumerate().map(|(at, (_, says))| (json!(format!("{at}.jpg")), &[][..], *says)).collect();
    let lists: Vec<Value> = wanted.iter().map(|(list, ..)| list.clone()).collect();
    check(&shown(&dir, &lists, &["--data-dir=data"]), &wanted);
}

/// Seen where posts went through a CSV file or a database: the list as text.
#[test]
fn r10_14_image_urls_as_text_are_read_where_they_can_mean_one_thing_only() {
    let dir = WorkDir::new();
    album(&dir, &[vec![7, 8]]);
    dir.write("data/one,two.jpg", photo(30));
    let wanted: &[(Value, &[&str], &str)] = &[
        (json!(""), &[], ""),
        (json!("  "), &[], ""),
        (json!("photos/7.jpg"), &["7 bytes"], ""),
        (json!(" photos/7.jpg\n"), &["7 bytes"], ""),
        (json!("https://x/1.jpg "), &["https://x/1.jpg"], ""),
        (json!(r#"["photos/7.jpg", "https://x/1.jpg"]"#), &["7 bytes", "https://x/1.jpg"], ""),
        (json!(r#" ["photos\\7.jpg"] "#), &["7 bytes"], ""),
        (json!("[]"), &[], ""),
        (json!("photos/7.jpg,photos/8.jpg"), &["7 bytes", "8 bytes"], ""),
        (json!("photos/7.jpg; photos/8.jpg;"), &["7 bytes", "8 bytes"], ""),
        (json!("https://x/1.jpg,https://x/2"), &["https://x/1.jpg", "https://x/2"], ""),
        (json!("https://x/1 https://x/2"), &["https://x/1", "https://x/2"], ""),
        (json!("https://x/1.jpg?p=resize,w_100"), &["https://x/1.jpg?p=resize,w_100"], ""),
        (json!("one,two.jpg"), &["30 bytes"], ""),
        (json!("//img.example/1.jpg"), &["https://img.example/1.jpg"], ""),
        (
            json!(["//img.example:8443/1.jpg", "HTTPS://X/2.JPG"]),
            &["https://img.example:8443/1.jpg", "HTTPS://X/2.JPG"],
            "",
        ),
        (json!("ftp://x/1.jpg"), &[], "ftp URLs are not fetched; give an http(s) URL, or a path below the data dir"),
        (json!(["file:///photos/7.jpg"]), &[], "file URLs are not fetched"),
        (json!("['photos/7.jpg', 'photos/8.jpg']"), &[], "it begins like a list, and is no JSON array"),
        (json!("https://x/1,b.jpg"), &[], "it may be one image or several; write a JSON array"),
        (json!("photos/7.jpg,photos/70.jpg"), &["7 bytes"], "photos/70.jpg: there is no such file"),
        (json!(7), &[], "image_urls is neither an array nor a string"),
        (json!({"large": "https://x/1.jpg"}), &[], "image_urls is neither an array nor a string"),
        (json!([{"url": "https://x/1.jpg"}]), &[], "element 0 is not a string"),
        (json!(null), &[], ""),
    ];
    let lists: Vec<Value> = wanted.iter().map(|(list, ..)| list.clone()).collect();
    check(&shown(&dir, &lists, &["--data-dir=data"]), wanted);
}

/// A text is as long as a line may be.
#[test]
fn r10_14_long_texts_are_not_held_as_lists() {
    let dir = WorkDir::new();
    let bytes = 20 * MIB;
    for piece in ["a,", "a.jpg,", "https://x/1,", r#"[\"a\","#, "a"] {
        let feed = move |out: &mut dyn Write| {
            out.write_all(b"{\"content\":\"a\",\"image_urls\":\"")?;
            let pieces = piece.repeat(10_000);
            for _ in 0..bytes / pieces.len() as u64 {
                out.write_all(pieces.as_bytes())?;
            }
            out.write_all(b"\"}\n")
        };
        let (ran, peak) = measure(dir.command(&["gen", "-q", ONE, "--max-faults=99"]), feed);
        assert_eq!(ran.exits(0).json_lines().len(), 1);
        assert!(peak <= 36 * MIB + 3 * bytes, "{piece}: {} MiB", peak / MIB);
    }
}

/// Who passes a URL on lets the model's server fetch it.
#[test]
fn r10_0_image_urls_are_passed_on_as_far_as_the_flag_says() {
    let dir = WorkDir::new();
    album(&dir, &[vec![7]]);
    let list =
        [json!(["http://x/1.jpg", "https://x/2.jpg", "//img.x/3.jpg", "photos/7.jpg", "data:image/png;base64,AAAA"])];
    for (flag, passed) in [
        ("--image-urls=all", &["http://x/1.jpg", "https://x/2.jpg", "https://img.x/3.jpg"][..]),
        ("--image-urls=https", &["https://x/2.jpg", "https://img.x/3.jpg"]),
        ("--image-urls=none", &[]),
    ] {
        let (images, faults) = shown(&dir, &list, &["--data-dir=data", flag]).remove(0);
        assert_eq!(images, [passed, &["7 bytes", "3 bytes"]].concat(), "{flag}");
        assert!(faults.is_empty(), "who left them out knows: {faults:?}");
        let said = dir.run(&["gen", "posts.jsonl", ONE, "--data-dir=data", flag]).exits(0).stderr;
        let wanted = match 3 - passed.len() {
            0 => String::new(),
            1 => "zbatch: 1 image URL left out by --image-urls\n".to_owned(),
            n => format!("zbatch: {n} image URLs left out by --image-urls\n"),
        };
        assert_eq!(said, wanted, "{flag}");
    }
    dir.run(&["gen", "posts.jsonl", "--image-urls=some"]).exits(64);
    // It decides the requests, so a directory belongs to one of the three; a journal without it means all.
    let cut = |flag: &str| dir.run(&["gen", "posts.jsonl", "-d", "w", ONE, "--data-dir=data", flag]);
    cut("--image-urls=https").exits(0);
    let ran = cut("--image-urls=all").exits(0);
    assert!(ran.stderr.contains(r#"its `image_urls` is "https"; now it is "all"; no batch was"#), "{}", ran.stderr);
    cut("--image-urls=https").exits(0);
    let journal = dir.read("w/journal.jsonl").replace(r#","image_urls":"https""#, "");
    assert!(!journal.contains("image_urls"), "{journal}");
    dir.write_journal(&journal);
    assert!(!cut("--image-urls=all").exits(0).stderr.contains("now it is"));
}

/// Seen with a provider that could not fetch a URL: every round asked with the same image again.
#[test]
fn r10_14_a_row_that_was_refused_for_its_image_is_asked_without_images() {
    let dir = WorkDir::new();
    let two = "--only=sentiment_polarity,topic_analysis";
    let post = r#"{"content":"a","image_urls":["https://x/1.jpg"]}"#;
    dir.write("posts.jsonl", format!("{post}\n{post}\n{post}\n"));
    // The first was refused by the provider; the second is an image of the post that we did not find ourselves.
    dir.write(
        "f.jsonl",
        r#"{"index":0,"analysis":"sentiment_polarity","kind":"image","detail":"400: the image cannot be fetched"}
{"index":1,"kind":"image","detail":"none.png: there is no such file below the data dir"}
{"index":2,"analysis":"topic_analysis","kind":"blocked","detail":"unsafe"}
"#,
    );
    let args = ["gen", "posts.jsonl", two, "--skip", "f.jsonl"];
    let ran = dir.run(&args).exits(0);
    let rows: Vec<(String, String, bool)> = ran
        .json_lines()
        .iter()
        .map(|line| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            (text(&line["custom_id"]), text(&line["body"]["model"]), line.to_string().contains("https://x/1.jpg"))
        })
        .collect();
    let row = |id: &str, model: &str, image: bool| (id.to_owned(), model.to_owned(), image);
    assert_eq!(
        rows,
        [
            row("sentiment_polarity_0000", "glm-4-air", false),
            row("topic_analysis_0000", "glm-4v-plus", true),
            row("sentiment_polarity_0001", "glm-4v-plus", true),
            row("topic_analysis_0001", "glm-4v-plus", true),
            row("sentiment_polarity_0002", "glm-4v-plus", true),
        ]
    );
    for says in ["1 row left out by --skip", "1 row asked without images, which the provider refused (--skip)"] {
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    // It decides the requests.
    dir.run(&["gen", "posts.jsonl", two, "-d", "w", "--skip", "f.jsonl"]).exits(0);
    dir.write("g.jsonl", dir.read("f.jsonl").replace("\"index\":0", "\"index\":1"));
    let ran = dir.run(&["gen", "posts.jsonl", two, "-d", "w", "--skip", "g.jsonl"]).exits(0);
    assert!(ran.stderr.contains("its `skip` is") && ran.stderr.contains("cut anew"), "{}", ran.stderr);
}

/// The same through two rounds: the provider refuses the row, and the command that the report ends with gets its answer.
#[test]
fn r10_14_the_next_round_gets_the_answer_of_a_row_that_was_refused_for_its_image() {
    let dir = WorkDir::new();
    album(&dir, &[vec![7], vec![8]]);
    let bad = json!({"content": "第2条，谢谢", "image_urls": ["data:image/png;base64,AAAA"]});
    dir.write("posts.jsonl", format!("{}{bad}\n", dir.read("posts.jsonl")));
    let args = ["run", "posts.jsonl", "-d", "w", "-o", "out.jsonl", "--emulate", ONE, "--data-dir=data"];
    dir.run(&[&args[..], &["--faults=f.jsonl"]].concat()).exits(1);
    let fault: Value = serde_json::from_str(&dir.read("f.jsonl")).expect("one fault");
    assert_eq!((&fault["index"], &fault["analysis"]), (&json!(2), &json!("sentiment_polarity")), "{fault}");
    assert!(fault["detail"].as_str().is_some_and(|detail| detail.contains("图片输入格式/解析错误")), "{fault}");
    dir.write("f.jsonl", dir.read("f.jsonl").replace(r#""kind":"provider""#, r#""kind":"image""#));
    let report: Value = serde_json::from_str(&dir.read("w/integration_report.json")).expect("JSON");
    let next = report["next_command"].as_str().expect("a command").to_owned();
    assert!(next.contains("--skip f.jsonl"), "{next}");
    let ran = dir.run(&next.split(' ').skip(1).collect::<Vec<_>>()).exits(0);
    assert!(ran.stderr.contains("1 row asked without images, which the provider refused (--skip)"), "{}", ran.stderr);
    let second: Value = serde_json::from_str(&dir.read("w-round2/integration_report.json")).expect("JSON");
    assert_eq!(second["batches"]["requests"], 1);
    assert_eq!(dir.read("out.round2.jsonl").matches(r#""sentiment_polarity":null"#).count(), 0);
}
