//! zbatch labels posts with a language model through a Batch API.
//!
//! ```text
//! posts ─► requests ─► chunks ─► jobs ─► results ─► answers ─► enhanced posts
//!          one line    ≤ 10,000  upload,  one line    judged by   post + answers,
//!          per post ×  lines     create,  per request the rule of in the order of
//!          analysis    each      poll     any order   its analysis the posts
//! ```
//!
//! # What always holds
//!
//! 1. A line never meets the async runtime; only chunks do.
//! 2. Memory does not depend on the number of posts.
//! 3. A post's own bytes are copied. Only fields of analyses are added or replaced.
//! 4. Of what we send, only `custom_id` must come back from the provider unharmed.
//! 5. What may cost money is in the journal, synced, before it is asked for.
//! 6. A file is there whole or not at all: written aside, synced, renamed.
//! 7. Data goes to stdout, everything else to stderr, the key to neither.
//!
//! # The modules, as a post meets them
//!
//! | module | yields |
//! |---|---|
//! | [`cli`], [`settings`] | what was typed; what is in force, and from where |
//! | [`analysis`] | the questions: prompts made ready, rules with their labels, the names of the post's fields that they use |
//! | [`lines`] | blocks of whole lines from any input, files that appear whole, [`lines::pool`] and [`lines::worker`], which work on other threads and keep the order, and [`lines::form`] and [`lines::flaw`], which say what is wrong with an input |
//! | [`flow::posts`], [`flow::columns`] | posts with their index, given here and nowhere else; which fields of the prompts any post has |
//! | [`flow::requests`], [`flow::images`] | request lines |
//! | [`flow::chunks`], [`flow::rows`] | chunks: which request goes into which, their files, the check that the input is the same; the indexes that each holds |
//! | [`jobs`] over [`provider`] | batches, then verified result files; the one async stage |
//! | [`flow::results`], [`flow::refusals`] | the text of an answer, or why there is none; what a provider's words about a row mean |
//! | [`flow::answers`] | a value that its rule accepts, or a fault |
//! | [`flow::kept_faults`] | faults of posts and requests, kept from the cut until the posts are written |
//! | [`flow::shards`] | answers in the order of the posts, sorted in bounded memory |
//! | [`flow::enhanced`] | a post with its fields |
//! | [`flow::faults`], [`flow::tally`], [`report`] | what went wrong with rows, line by line and counted |
//! | [`workdir`], [`journal`], [`snapshots`] | the state of a job: its directory, with the check of all its files ([`mod@workdir::check`]) and its results ([`mod@workdir::results`]); its log; copies for older tools |
//! | [`folder`] | a directory that is held open: files below it by name, no link followed |
//! | [`cmd`] | the verbs: one file each, made of the above |
//! | [`emulator`] | a provider of our own |
//! | [`blocking`], [`threads`], [`drill`] | file work beside the async runtime; threads that may not be had; kills and missing guards, for tests |
//! | [`stop`] | signals and the deadline |
//! | [`error`], [`console`], [`progress`], [`units`], [`shell`] | what stops a verb; what is said on stderr; how far one is; sizes and times as typed; words of commands that are offered |
//! | [`text`], [`json`] | foreign text made safe to show, the nearest word; JSON as text: its escapes, its white space, what is wrong with it |
//!
//! Imports go downwards: `tests/structure.rs` names the rooms in their order, and fails on a circle between two files, on an
//! import from a room above, and on a verb that imports from a verb.
//!
//! # Architecture of `run`
//!
//! The filters `gen` and `merge` are one thread that reads a block, works on it, writes, and reads the next; `parse` hands its
//! blocks to workers and writes them in order. Compressed data has a thread of its own, both ways, and so have chunk files:
//! [`flow::chunks::Chunks`] makes requests and hashes them, its [`lines::worker::Worker`] copies and syncs.
//!
//! Stages are pulled: `Posts::next` lends a place of the input, `Requests::of` gives the requests of a post, and `Chunks::next`
//! reads on until a chunk is durable and in the journal. `run` reads the posts three times (once more when it resumes: before
//! anything new is paid for, the input must be the one that was cut), and the second time overlaps everything:
//!
//! ```text
//!  1. plan    count chunks, requests and bytes; nothing is created yet
//!
//!  2. stream of chunks ──[1 place]──► jobs: one task ────[16 places]──► results thread
//!     posts → chunk files             ≤ 3 batches (default),         result files → answers → shards
//!     + journal                       ≤ 4 chunks wait, + journal        ≤ --memory, then a temp file
//!
//!  3. join    the posts once more, with their answers and the faults of the cut: enhanced posts, faults, report
//! ```
//!
//! Both channels carry a chunk's *place*, its number in the journal; the bytes are on disk. The next chunk is cut, on a blocking
//! thread of the runtime, when fewer than `CUT_AHEAD` places wait, and [`jobs::jobs`] takes none while four chunks wait for a
//! slot (`WAITING`): so there are never many more chunk files than `--max-concurrent-tasks` batches need. The jobs are one
//! stream on the main thread with a future for each chunk; file work goes to the runtime's blocking threads. When sixteen
//! fetched chunks are unread ([`jobs::UNREAD`]), further downloads wait for the results thread. That thread owns the shards and
//! hands them over to the join when it ends. The three share only the journal, behind a mutex that is never held across an await.
//!
//! A signal or a deadline reaches the jobs, and the join, as a [`stop::Stop`]. The jobs drop the receiver of the cut chunks, and
//! no more are pulled; they drop the sender of the other channel, which ends the results thread.

pub mod analysis;
pub mod blocking;
pub mod cli;
pub mod cmd;
pub mod console;
pub mod drill;
pub mod emulator;
pub mod error;
pub mod flow;
pub mod folder;
pub mod jobs;
pub mod journal;
pub mod json;
pub mod lines;
pub mod progress;
pub mod provider;
pub mod report;
pub mod settings;
pub mod shell;
pub mod snapshots;
pub mod stop;
pub mod text;
pub mod threads;
pub mod units;
pub mod workdir;
