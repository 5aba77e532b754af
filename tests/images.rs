//! The images of posts, from files of one byte to 5 MB, through every verb that renders or sends them: byte for byte, in
//! bounded memory, over sockets and after kills; which paths and texts name an image, and what is said of those that do not.
#![expect(clippy::indexing_slicing, reason = "a test may panic, and so may what it calls")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
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
