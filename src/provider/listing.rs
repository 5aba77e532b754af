//! Finds batches and files of the account by paging through a listing to its end. A batch that is overlooked here may be paid
//! for twice (`docs/reliability.md` M1).

use std::collections::HashSet;

use http::Method;
use serde_json::Value;

use super::{
    ApiError, Batch, Class, Client, FileId,
    address::percent_escape,
    client::{Payload, unreadable},
    ids::parse_id,
};
use crate::drill::{self, Guard};

/// Most objects that a page holds.
const PAGE: usize = 100;
/// Accounts hold 1,000 files; a listing of more than a million batches has no end.
pub(super) const MAX_PAGES: usize = 10_000;
/// One create makes one batch; a server that lists more than this many for it invents them.
pub(super) const MAX_FOUND: usize = 1000;

/// The objects that were wanted, out of a listing.
#[derive(Clone, Debug)]
pub struct Listing<T> {
    pub found: Vec<T>,
    /// The listing was read to its end: an object that is not in it does not exist, if the provider lists what exists.
    pub complete: bool,
}

/// One page: its objects with their ids, and whether the server says that more follow.
struct Page<T> {
    objects: Vec<(String, T)>,
    more: Option<bool>,
}

impl Client {
    /// The batches of the account that are wanted.
    pub async fn find_batches(&self, wanted: impl Fn(&Batch) -> bool) -> Result<Listing<Batch>, ApiError> {
        let read = |batch: &Value| {
            let batch = Batch::parse(batch, self.0.dialect, &self.0.key)?;
            Some((batch.id.to_string(), batch))
        };
        self.find("list the batches", "batches?", read, wanted).await
    }

    /// Whether the listing of the account's input files shows a file.
    pub async fn lists_file(&self, file: &FileId) -> Result<bool, ApiError> {
        Ok(!self.find_files(|id, _| id == file).await?.is_empty())
    }

    /// The account's input files that are wanted, by id and name. A name is as the server gave it: compare it, do not show it.
    pub async fn find_files(&self, wanted: impl Fn(&FileId, &str) -> bool) -> Result<Vec<(FileId, String)>, ApiError> {
        let read = |file: &Value| {
            let id: FileId = parse_id(file.get("id"), &self.0.key)?;
            let name = file.get("filename").and_then(Value::as_str).unwrap_or_default().to_owned();
            Some((id.to_string(), (id, name)))
        };
        let wanted = |(id, name): &(FileId, String)| wanted(id, name);
        Ok(self.find("list the files", "files?purpose=batch&", read, wanted).await?.found)
    }

    /// Pages to the end of a listing. `read` gives an object with its id.
    async fn find<T>(
        &self,
        call: &'static str,
        listing: &str,
        read: impl Fn(&Value) -> Option<(String, T)>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<Listing<T>, ApiError> {
        let endless = |why: String| ApiError::new(call, Class::Reply, why);
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut path = format!("{listing}limit={PAGE}");
        for _ in 0..MAX_PAGES {
            let Page { objects, more } = self.page(call, &path, &read).await?;
            let is_full = objects.len() >= PAGE;
            let last = objects.last().map(|(id, _)| id.clone());
            let seen_before = seen.len();
            for (id, object) in objects {
                if seen.insert(digest(&id)) && wanted(&object) {
                    found.push(object);
                }
            }
            if seen.len() > MAX_PAGES * PAGE || found.len() > MAX_FOUND {
                let why = format!("the listing has {} objects, {} of them this one", seen.len(), found.len());
                return Err(endless(why));
            }
            let brought_new = seen.len() > seen_before;
            match last {
                Some(last) if more != Some(false) && brought_new && !drill::without(Guard::Paging) => {
                    path = format!("{listing}limit={PAGE}&after={}", percent_escape(&last));
                }
                // A page that is shown again is no end if the server says, or may mean, that more follow.
                Some(_) => return Ok(Listing { found, complete: more == Some(false) || more.is_none() && !is_full }),
                None => return Ok(Listing { found, complete: true }),
            }
        }
        Err(endless(format!("the listing does not end after {MAX_PAGES} pages")))
    }

    async fn page<T>(
        &self,
        call: &'static str,
        path: &str,
        read: &impl Fn(&Value) -> Option<(String, T)>,
    ) -> Result<Page<T>, ApiError> {
        self.repeat(|| async {
            let body = self.ask(call, Method::GET, path, Payload::None).await?;
            read_page(&body, read).ok_or_else(|| unreadable(call, "the listing cannot be read"))
        })
        .await
    }
}

/// `None`: one of the objects cannot be read.
fn read_page<T>(body: &Value, read: &impl Fn(&Value) -> Option<(String, T)>) -> Option<Page<T>> {
    // Some servers wrap the list in `data` once more.
    let body = body.get("data").filter(|inner| inner.is_object()).unwrap_or(body);
    let objects = match body.get("data")? {
        Value::Array(list) => list.iter().map(read).collect::<Option<Vec<_>>>()?,
        Value::Null => Vec::new(),
        _ => return None,
    };
    Some(Page { objects, more: body.get("has_more").and_then(Value::as_bool) })
}

/// What is kept of an id that was seen: a million of them must fit.
fn digest(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    hash.as_bytes().iter().take(8).fold(0, |digest, byte| (digest << 8) | u64::from(*byte))
}
