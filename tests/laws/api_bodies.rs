//! Bodies of a server: reading is total, a create is sent once, an error is fit to be shown, a download is what came.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, body::Body, http::Response};
use zbatch::{
    error::Error,
    flow::rows::FileMark,
    folder::Entry,
    provider::{ApiError, Client, ClientSettings, CreateError, Dialect, FileId, Key},
};

const KEY: &str = "idididididididid.secretsecretsecret";
const STATUSES: [u16; 12] = [200, 200, 201, 204, 302, 400, 401, 404, 409, 429, 500, 503];
const ENCODINGS: [&str; 4] = ["", "", "gzip", "zstd"];
const KINDS: [&str; 3] = ["application/json", "text/html", "application/octet-stream"];

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let Some((&[status, encoding, kind], body)) = data.split_first_chunk::<3>() else { return };
    let pick = |byte: u8, of: usize| usize::from(byte) % of;
    let status = STATUSES.get(pick(status, STATUSES.len())).copied().unwrap_or(200);
    let encoding = ENCODINGS.get(pick(encoding, ENCODINGS.len())).copied().unwrap_or_default();
    let kind = KINDS.get(pick(kind, KINDS.len())).copied().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(ask(status, encoding, kind, body));
}

async fn ask(status: u16, encoding: &'static str, kind: &'static str, body: &[u8]) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, served) = (Arc::clone(&asked), Arc::new(Mutex::new(body.to_vec())));
    let router = Router::new().fallback(async move || {
        count.fetch_add(1, Ordering::Relaxed);
        let body = served.lock().expect("unpoisoned").clone();
        let response = Response::builder().status(status).header("Content-Type", kind);
        response.header("Content-Encoding", encoding).body(Body::from(body)).expect("a response")
    });
    let dialect = Dialect::find("zhipu").expect("known");
    let key = Key::new(KEY).expect("a key");
    let settings = ClientSettings { dialect, base_url: None, key, ca_cert: None, direct: Some(router) };
    let client = Client::tried_once(settings).expect("a client");
    let (batch, file) = ("batch_1".parse().expect("an id"), "file_1".parse::<FileId>().expect("an id"));

    let created = client.create(&file, &[]).await;
    assert_eq!(asked.load(Ordering::Relaxed), 1, "a create is sent once");
    if let Ok(batch) = &created {
        super::is_harmless(batch.id.as_str());
        super::is_harmless(batch.status.as_str());
        batch.errors.iter().for_each(|error| super::is_harmless(error));
        assert!((200..300).contains(&status));
    }
    if let Err(CreateError::Refused(_)) = &created {
        assert!((200..500).contains(&status), "a server in trouble says nothing for certain");
    }
    shown(created.as_ref().err().map(CreateError::error));
    let seen = client.batch(&batch).await;
    assert_eq!(seen.is_ok(), created.is_ok(), "one reader for both");
    shown(seen.as_ref().err());
    shown(client.cancel(&batch).await.as_ref().err());
    shown(client.delete(&file).await.as_ref().err());
    let before = asked.load(Ordering::Relaxed);
    shown(client.find_batches(|_| true).await.as_ref().err());
    assert!(asked.load(Ordering::Relaxed) <= before + 2, "a listing that repeats itself has ended");

    let path = super::scratch("chunk.jsonl");
    super::write(&path, b"{}\n");
    let uploaded = client.upload(&Entry::of(&path).expect("opened"), "chunk.jsonl").await;
    if let Ok(id) = &uploaded {
        super::is_harmless(id.as_str());
    }
    shown(uploaded.as_ref().err());
    let to = super::scratch("results.jsonl");
    let downloaded = client.download(&file, &Entry::of(&to).expect("opened")).await;
    if let Ok(download) = &downloaded {
        assert!(download.complete && status == 200);
        if encoding.is_empty() {
            assert_eq!(download.bytes, body.len() as u64);
            let mark = FileMark::of(&Entry::of(&to).expect("opened")).expect("read");
            assert_eq!(mark.blake3, blake3::hash(body).to_hex().as_str());
        }
    }
    shown(downloaded.as_ref().err());
}

#[track_caller]
fn shown(error: Option<&ApiError>) {
    let Some(error) = error else { return };
    let text = Error::from(error.clone()).to_string();
    super::is_harmless(&text);
    assert!(!text.contains(KEY) && !text.contains("secretsecretsecret"), "{text}");
}
