//! The provider: upload a chunk, create its batch, look at it, download its results.
//!
//! | file | holds |
//! |---|---|
//! | `client.rs` | [`Client`]: what all calls share, from the request to the error |
//! | `upload.rs`, `batches.rs`, `download.rs`, `listing.rs` | the calls; `form.rs`: the form of an upload |
//! | `dialect.rs` | [`Dialect`]: how providers differ, as values |
//! | `batch.rs`, `ids.rs` | a batch and ids, as a server gives them |
//! | `error.rs`, `class.rs`, `retry.rs`, `waits.rs` | what a call can end with, when it is made again, what a job waits for |
//! | `transport.rs`, `address.rs`, `proxies.rs`, `certificates.rs` | the way to the server |
//! | `body.rs` | the body of a reply, unpacked under bounds |
//! | `key.rs`, `redact.rs` | the key, and how it is kept out of every text |
//!
//! Every body has a bound. Calls that may be repeated are repeated here; a create is sent once, and its failure says whether
//! there may be a batch ([`CreateError`]).

mod address;
mod batch;
mod batches;
mod body;
mod certificates;
mod class;
mod client;
mod dialect;
mod download;
mod error;
mod form;
mod ids;
mod key;
mod listing;
mod proxies;
mod redact;
mod retry;
mod transport;
mod upload;
mod waits;

pub use address::{host_of, is_same_server};
pub use batch::{Batch, BatchStatus, MARK, RequestCounts};
pub use class::Class;
pub use client::{Client, ClientSettings};
pub use dialect::Dialect;
pub use download::Download;
pub use error::{ApiError, CreateError};
pub use ids::{BatchId, FileId};
pub use key::Key;
pub use listing::Listing;
pub use transport::Transport;

#[cfg(test)]
mod tests;
