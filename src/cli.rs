//! The command line as it is typed: clap structs and nothing else. `settings::resolve` turns them into
//! checked values; parsing touches no file and no network. A flag's doc comment is its help.

use std::{ffi::OsString, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum, parser::ValueSource};
use serde::{Deserialize, Serialize};

use crate::units::{MaxFaults, parse_bytes, parse_count, parse_duration, parse_interval, parse_max_faults};

#[derive(Debug, Parser)]
#[command(name = "zbatch", version, about, long_about = LONG_ABOUT, max_term_width = 100, subcommand_required = true)]
#[command(after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub output: Verbosity,
}

const LONG_ABOUT: &str = "\
Labels ten thousand to a hundred million texts with a language model through
a Batch API: half price, streamed, resumable, in constant memory.

  zbatch gen posts.jsonl | head -1                    look at a request
  zbatch run posts.jsonl -o enhanced.jsonl --emulate  no key, no network
  zbatch run posts.jsonl -o enhanced.jsonl            for real: it needs a key

Posts come in as JSON Lines or one JSON array, plain or gz, zst, bz2, xz.
Data goes to stdout, all else to stderr. gen, parse and merge are filters; the
other verbs work in a directory (-d), can be killed, and go on when run again.";

const EXIT_CODES: &str = "\
Exit codes:
  0    finished
  1    finished and written, but more rows went wrong than --max-faults allows
  64   wrong flags or arguments
  65   bad input, configuration or work directory
  69   the provider cannot be reached, or refuses for account, quota or model
  74   the system refused: a file, the disk, or a limit of the process
  75   something remains to be done: the same command goes on
  77   no key, a wrong key, or no permission
  101  a bug in zbatch: please report it
  129, 130, 143  ended by a signal: SIGHUP, SIGINT (Ctrl-C), SIGTERM";

#[derive(Debug, Subcommand)]
pub enum Verb {
    Gen(GenArgs),
    Chunk(ChunkArgs),
    Parse(ParseArgs),
    Merge(MergeArgs),
    Submit(SubmitArgs),
    Fetch(FetchArgs),
    Run(Box<RunArgs>),
    Status(StatusArgs),
    Verify(VerifyArgs),
    Cancel(CancelArgs),
    Clean(CleanArgs),
    Doctor(DoctorArgs),
    Emulate(EmulateArgs),
    Config(ConfigArgs),
}

/// The flags and arguments that stood on the command line, with their values as they were typed: what a next command
/// repeats. It stands first in its verb's struct, since the fields after it take their values out of clap's matches.
#[derive(Clone, Debug, Default)]
pub struct Typed(pub Vec<(String, Vec<OsString>)>);

impl FromArgMatches for Typed {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let typed = matches.ids().filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
        let values = |id: &str| matches.try_get_raw(id).ok().flatten().into_iter().flatten().map(OsString::from);
        Ok(Self(typed.map(|id| (id.to_string(), values(id.as_str()).collect())).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Typed {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

#[derive(Clone, Debug, Args)]
pub struct Verbosity {
    /// Say only what stopped it: no notes, and faults only in the exit code
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice for every call to the provider
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// How progress is shown on stderr; auto: bars on a terminal, plain lines otherwise
    #[arg(long, global = true, value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    Auto,
    Plain,
    Json,
    None,
}

/// Where settings and analyses come from.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Analyses")]
pub struct SourceArgs {
    /// Config file [default: $ZBATCH_CONFIG, ./batch/config.json, ./config.json]
    ///
    /// A file that was found, not named by this flag or $ZBATCH_CONFIG, may not send the key to another server than its
    /// provider's own, and its paths may not lead out of the folder around its own. To name it says that you trust it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Reference data and local images [default: ./data if it is there, else the embedded data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// More analyses: one folder each; the same name replaces a built-in one
    #[arg(long, value_name = "DIR")]
    pub analyses: Option<PathBuf>,
    /// Only these analyses, by name
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub only: Vec<String>,
}

/// Whom to ask.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Provider")]
pub struct ModelArgs {
    /// Model for posts without images [default: glm-4-air]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Model for posts with images [default: glm-4v-plus]
    #[arg(long, value_name = "MODEL")]
    pub multimodal_model: Option<String>,
    #[command(flatten)]
    pub provider: ProviderArgs,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Provider")]
pub struct ProviderArgs {
    /// zhipu, openai, dashscope, siliconflow, moonshot or groq [default: zhipu]
    ///
    /// Assumed and not verified: the limits of moonshot and groq files (100 MB), dashscope's window (24h),
    /// siliconflow's extra status `in_queue`. A provider's own limits stay in force with another --base-url.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Base URL of the API, with or without a trailing slash; https, or http on a loopback address
    ///
    /// Proxies are taken from the environment: HTTPS_PROXY, else ALL_PROXY (http:// and https:// proxies, also with
    /// USER:PASSWORD@), and NO_PROXY for hosts that are reached directly; each also in lower case. A loopback address is
    /// always reached directly.
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
}

/// Far beyond any input, and far enough below what a `u64` holds that no index overflows.
const LAST_START: u64 = 1_000_000_000_000_000_000;

fn parse_start(text: &str) -> Result<u64, String> {
    parse_count(text).and_then(|n| if n <= LAST_START { Ok(n) } else { Err(format!("the last one is {LAST_START}")) })
}

/// How posts are read.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Longest line; a longer one is a fault, skipped in constant memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_line: u64,
    /// Index of the first post, for a partition of a larger input
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_start)]
    pub start_index: u64,
}

/// Which rows are asked for.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Rows")]
pub struct RowArgs {
    /// Ask only for fields that are absent or null in a post
    #[arg(long)]
    pub missing: bool,
    /// A faults file: leave out its rows that will not get better (blocked, prompt_too_long, too_large, bad_post, bad_request)
    ///
    /// A row that the provider refused for an image is asked again without its images. May be given several times,
    /// once for each round before.
    #[arg(long, value_name = "FILE")]
    pub skip: Vec<PathBuf>,
    /// Which image URLs are passed on to the provider, whose servers then fetch them
    #[arg(long, value_enum, default_value_t = ImageUrls::All)]
    pub image_urls: ImageUrls,
    /// What a post that cannot be read does
    #[arg(long, value_enum, default_value_t = OnBadPost::Fault)]
    pub on_bad_post: OnBadPost,
    /// Exit 65 if the input has another number of posts, readable or not; `run` and `gen -d` then leave nothing that could be paid for
    #[arg(long, value_name = "N", value_parser = parse_count::<u64>)]
    pub expect_posts: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnBadPost {
    #[default]
    Fault,
    Stop,
}

/// A URL that is passed on is fetched by the model's server: it tells others what is looked at, and from where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageUrls {
    /// None: images below the data dir only
    None,
    Https,
    /// http and https
    #[default]
    All,
}

/// What happens to rows that went wrong.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Faults")]
pub struct FaultArgs {
    /// Write every fault here, one JSON object a line [default: count them, show the first five]
    ///
    /// It holds texts of posts and answers: a new file is readable by you alone (mode 0600).
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// Exit 1 if more rows than this went wrong: a number or a percentage
    #[arg(long, value_name = "N|P%", default_value = "0", value_parser = parse_max_faults)]
    pub max_faults: MaxFaults,
    /// Write the report here, as JSON; a new file has mode 0600
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Where chunks are cut.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Chunks")]
pub struct LimitArgs {
    /// Most lines in a chunk file [default: 10000]
    #[arg(long, value_name = "N", value_parser = parse_count::<NonZeroU32>)]
    pub max_lines: Option<NonZeroU32>,
    /// Most bytes in a chunk file, e.g. 100MB or 64MiB [default: 500MB; the provider's cap binds when it is smaller]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Work directory")]
pub struct WorkArgs {
    /// Work directory [default: paths.work_dir, `temp` beside the config found, or ./batch/temp]
    #[arg(short = 'd', long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Go on in a work directory that was copied, restored or moved; make sure first that no other copy of it is used any more
    #[arg(long)]
    pub moved: bool,
}

/// A work directory that is only read.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Work directory")]
pub struct ReadWorkArgs {
    /// Work directory [default: paths.work_dir, `temp` beside the config found, or ./batch/temp]
    #[arg(short = 'd', long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
}

/// How the joiner uses memory.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Memory for answers that wait for their posts; the rest of them is spilled to --tmp-dir
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = parse_bytes)]
    pub memory: u64,
    /// Directory for what is spilled [default: $TMPDIR or /tmp; for run the work directory]
    #[arg(long, value_name = "DIR")]
    pub tmp_dir: Option<PathBuf>,
}

/// How posts are written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Output file, `-` for stdout; .gz and .zst compress; may name the input (if a post cannot be read, FILE.partial is
    /// written and the input stays)
    ///
    /// A new file is readable by you alone (mode 0600); one that is replaced keeps its mode and owner. Files in the work
    /// directory are refused, and in a shared directory such as /tmp the files, links and pipes of other users. While rows
    /// remain (exit 69, 75 or 77), run writes FILE.partial, and FILE stays as it is.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// One array or JSON Lines [default: by the output's name, lines on stdout]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Jsonl,
}

/// How the provider is reached.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Provider")]
pub struct RemoteArgs {
    /// File that holds the key (mode 0600) [default: the provider's variable, e.g. ZHIPUAI_API_KEY]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// One more root certificate (PEM) to trust
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// Time between looks at the batches, e.g. 250ms or 60s [default: 60s]
    #[arg(long, value_name = "DUR", value_parser = parse_interval)]
    pub poll_interval: Option<Duration>,
    /// Stop waiting after this long (batches run on; exit 75)
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How long a provider that cannot be reached, or is in trouble, is waited for while batches run [default: 24h]
    ///
    /// Before the first batch, and with --no-wait, a call that fails ends the command after a few tries.
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub patience: Option<Duration>,
    /// Do what can be done now, then stop (exit 75 if something remains)
    #[arg(long)]
    pub no_wait: bool,
    /// Keep a chunk's request file after its batch has ended
    #[arg(long)]
    pub keep_requests: bool,
    /// Keep a batch's files at the provider after they were downloaded
    #[arg(long)]
    pub keep_remote: bool,
}

/// What may be spent.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Money")]
pub struct SpendArgs {
    /// Most batches that run at one time [default: 3]
    #[arg(long, value_name = "N", value_parser = parse_count::<NonZeroU32>)]
    pub max_concurrent_tasks: Option<NonZeroU32>,
    /// How long a create without an answer is looked for before it is sent again [default: 120s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub settle: Option<Duration>,
    /// What to do after a create without a clear answer whose batch no listing shows
    #[arg(long, value_enum, default_value_t = OnAmbiguous::Recreate)]
    pub on_ambiguous: OnAmbiguous,
    /// After `zbatch cancel`: create batches again for what has none
    #[arg(long)]
    pub resume: bool,
    /// Refuse before the first create if the work directory would take more batches than this; every create that was
    /// sent counts, over all commands, unless it was refused
    #[arg(long, value_name = "N", value_parser = parse_count::<u64>)]
    pub max_batches: Option<u64>,
    /// Refuse before the first create if the work directory would take more requests than this; counted in the same way
    #[arg(long, value_name = "N", value_parser = parse_count::<u64>)]
    pub max_requests: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnAmbiguous {
    /// Create it once more if complete listings prove that there is no batch; the second time hold it, with exit 75
    #[default]
    Recreate,
    /// Hold it at once
    Hold,
    /// You have looked at the provider's console, and there is no batch: create held chunks once more
    Again,
}

/// Render request lines from posts, as a filter or into chunk files
///
/// Examples:
///   cat posts.jsonl | zbatch gen | head -1
///   zbatch gen posts.json.gz --only topic_analysis -o requests.jsonl
///   zbatch gen -d work posts.jsonl        chunk files, for zbatch submit -d work
///   zbatch gen --missing enhanced.jsonl   only what is still absent or null
///
/// Memory: at most 32 MiB for lines up to 1 MiB, at any number of posts.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct GenArgs {
    /// Posts: JSON Lines or one JSON array, plain or compressed; `-` or nothing: stdin
    pub posts: Option<PathBuf>,
    /// Cut into chunk files in this work directory instead of writing lines
    #[arg(short = 'd', long, value_name = "DIR", conflicts_with = "output")]
    pub work_dir: Option<PathBuf>,
    /// Request lines go here, `-` for stdout; .gz and .zst compress; a new file has mode 0600
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// With -d: move another input's or configuration's contents to DIR.old-N first
    #[arg(long, requires = "work_dir")]
    pub new: bool,
    /// With -d: go on in a work directory that was copied, restored or moved; make sure first that no other copy of it is used any more
    #[arg(long, requires = "work_dir")]
    pub moved: bool,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub rows: RowArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// Cut request lines that came from elsewhere into chunk files
///
/// Examples:
///   zbatch gen posts.jsonl | jq -c '.body.max_tokens=64' | zbatch chunk -d work
///
/// Memory: at most 32 MiB for lines up to 1 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ChunkArgs {
    /// Request lines; `-` or nothing: stdin
    pub requests: Option<PathBuf>,
    #[command(flatten)]
    pub work: WorkArgs,
    /// Move another input's or configuration's contents to DIR.old-N first
    #[arg(long)]
    pub new: bool,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Longest line; a longer one is a fault, skipped in constant memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_line: u64,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// Judge result lines: one answer or fault a line, in order
///
/// Examples:
///   zbatch parse results/*.jsonl > answers.jsonl
///   zbatch fetch -d work -o - | zbatch parse |
///     zbatch merge posts.jsonl - > enhanced.jsonl
///
/// Memory: at most 32 MiB for lines up to 1 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ParseArgs {
    /// Result files, plain or compressed; `-` or nothing: stdin
    pub results: Vec<PathBuf>,
    /// Answers go here, `-` for stdout; .gz and .zst compress; a new file has mode 0600
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Longest line; a longer one is a fault, skipped in constant memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_line: u64,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// Join answers to posts: the posts, in their order, with the analyses' fields
///
/// Examples:
///   zbatch merge posts.jsonl answers.jsonl -o enhanced.json
///   zbatch parse results/*.jsonl | zbatch merge posts.jsonl - > enhanced.jsonl
///
/// Memory: at most 256 MiB at any number of posts and answers (--memory).
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct MergeArgs {
    #[command(flatten)]
    pub typed: Typed,
    /// Posts: JSON Lines or one JSON array, plain or compressed; `-`: stdin
    pub posts: PathBuf,
    /// Answer files, in any order; `-` or nothing: stdin
    pub answers: Vec<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// Upload chunks and create their batches; ends when every chunk has one
///
/// Examples:
///   zbatch submit -d work
///   zbatch submit -d work --no-wait       as many as may run now, for a cron job
///   zbatch submit -d work --max-batches 10
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub typed: Typed,
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    #[command(flatten)]
    pub spend: SpendArgs,
}

/// Wait for the batches, download and verify their results
///
/// Examples:
///   zbatch fetch -d work
///   zbatch fetch -d work -o - | zbatch parse |
///     zbatch merge posts.jsonl - > enhanced.jsonl
///   zbatch fetch -d work --again failed
///   zbatch fetch --batch batch_1,batch_2 -o - > results.jsonl
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct FetchArgs {
    #[command(flatten)]
    pub typed: Typed,
    #[command(flatten)]
    pub work: WorkArgs,
    /// Also write every verified result line here, `-` for stdout; .gz and .zst compress; a new file has mode 0600
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Download these chunks again, or `failed`: those whose download failed or came short, as every fetch does
    #[arg(long, value_name = "CHUNK", num_args = 1..)]
    pub again: Vec<String>,
    /// Write the results of these batches to -o [default: stdout]; any tool may have made them, and no work directory is needed
    #[arg(long, value_name = "ID,...", value_delimiter = ',', conflicts_with_all = ["again", "work_dir"])]
    pub batch: Vec<String>,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Do the whole job: posts in, enhanced posts out; the same command resumes
///
/// Examples:
///   zbatch run posts.jsonl -o enhanced.jsonl --emulate     no key, no network
///   zbatch run posts.jsonl -o enhanced.jsonl -d work
///   cat posts.jsonl | zbatch run - -o enhanced.json
///   zbatch run --missing enhanced.jsonl -o round2.jsonl -d work2
///
/// Memory: at most 256 MiB at any number of posts (--memory).
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    #[command(flatten)]
    pub typed: Typed,
    /// Posts, plain or compressed; `-`: stdin, spooled [default: {data_dir}/posts.json]
    pub posts: Option<PathBuf>,
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Move another input's or configuration's contents to DIR.old-N first
    #[arg(long)]
    pub new: bool,
    /// Replace the output that the config names even if it is a file without posts; with -o it means nothing
    #[arg(long)]
    pub force: bool,
    /// Ask the embedded emulator instead of a provider: no key, no network, invented answers
    #[arg(long)]
    pub emulate: bool,
    #[command(flatten)]
    pub emulator: EmulatorArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    #[command(flatten)]
    pub spend: SpendArgs,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub rows: RowArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// Show where work directories stand; reads their journals, safe while jobs run
///
/// Examples:
///   zbatch status -d work
///   zbatch status -d work --json | jq .chunks
///   zbatch status -d work --watch
///   zbatch status jobs/*                   one line each, with ages
///   zbatch status -q -d work --exit-code >/dev/null || echo "not finished"
///
/// One directory is shown chunk by chunk, several in one line each, with the days
/// until the provider deletes results where it documents them (zhipu: 30 days).
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct StatusArgs {
    /// Work directories, as -d
    pub dirs: Vec<PathBuf>,
    /// Work directory, may be given several times [default: paths.work_dir, `temp` beside the config found, or ./batch/temp]
    #[arg(short = 'd', long = "work-dir", value_name = "DIR")]
    pub work_dirs: Vec<PathBuf>,
    /// One JSON object a directory on stdout, each on one line
    #[arg(long)]
    pub json: bool,
    /// Show again whenever something changed, until all is done
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Exit 0 if all is finished; 75 if something remains; 1 if it is finished and rows were refused, absent or lost; 65 if a directory cannot be read
    #[arg(long)]
    pub exit_code: bool,
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Check a work directory against its journal, offline; writes nothing, takes no lock
///
/// Examples:
///   zbatch verify -d work
///   zbatch verify -d work --repair    what a flipped byte in the journal needs
///   zbatch verify -d work || zbatch fetch -d work
///
/// One line a problem on stdout (WHERE: WHAT: HOW TO MEND IT), and exit 65 if there
/// is one. Checked: each line of the journal; length and hash of the chunk files
/// that a batch still needs, of both result files of each fetched chunk, and of the
/// kept posts; the indexes of each chunk; and that its rows are answered, refused or
/// absent as counted when they were fetched. A torn last line of the journal and
/// files that are not the job's are notes on stderr. While another process works
/// there, what it changes meanwhile is looked at again, and never a problem by itself.
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub work: ReadWorkArgs,
    /// First put a damaged end of the journal aside, as journal.jsonl.bad-N (takes the lock)
    ///
    /// The same command as before then goes on: it finds the batches in the provider's list before it creates any,
    /// takes the results that are here, and cuts again what was cut. Nothing is paid twice.
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub source: SourceArgs,
}

/// Cancel the batches that run; what was finished is still fetched and merged
///
/// Examples:
///   zbatch cancel -d work && zbatch fetch -d work
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CancelArgs {
    #[command(flatten)]
    pub typed: Typed,
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Clean up after a finished job, at the provider and in its work directory
///
/// Examples:
///   zbatch clean -d work --dry-run
///   zbatch clean -d work
///   zbatch clean -d work --compress        results become work/results.jsonl.zst
///   zbatch clean -d work1 -d work2 --all   nothing of these jobs is left
///
/// The directory is verified first, as by `verify`. Refused (exit 75) while a batch
/// may run, rows remain to be fetched, or chunks have no batch. At the provider it
/// deletes the files of the job's batches, and of batches that carry its mark and
/// are not in its journal. Here it removes request files, half-written files and
/// the state of `run --emulate`. Results, journal and kept posts stay, so that
/// `fetch`, `verify` and `run` still work, unless --compress or --all is given.
/// Files that zbatch did not make are left. Each step is one line on stdout.
///
/// Memory: at most 64 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CleanArgs {
    /// Work directory; may be given several times
    #[arg(short = 'd', long = "work-dir", value_name = "DIR", required = true)]
    pub work_dirs: Vec<PathBuf>,
    /// The directory was moved or restored, and no other copy of it is used any more
    #[arg(long)]
    pub moved: bool,
    /// Say what would be done, and do none of it
    #[arg(long)]
    pub dry_run: bool,
    /// Write all results into results.jsonl.zst in the directory (`zbatch parse` reads it), and remove all else but kept posts
    #[arg(long, conflicts_with = "all")]
    pub compress: bool,
    /// Remove everything of the job, also results, kept posts and the journal: it cannot be gone on with
    #[arg(long)]
    pub all: bool,
    /// Only on this machine: nothing is asked of the provider, and no key is needed
    #[arg(long)]
    pub local: bool,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// File that holds the key (mode 0600) [default: the provider's variable, e.g. ZHIPUAI_API_KEY]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// One more root certificate (PEM) to trust
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
}

/// Try out, on one-line batches, whether the provider does what zbatch assumes
///
/// Examples:
///   zbatch doctor
///   zbatch doctor --json > findings.jsonl
///   zbatch doctor --provider openai --model gpt-4o-mini   three short requests are billed
///   zbatch doctor --orphans -d work1 -d work2   what no directory knows; deletes nothing
///
/// One line a finding on stdout: `as assumed`, `differs`, `noted` (nothing is built
/// on it) or `not measured`. It uploads four files of one line, creates three
/// batches of one request each, and at the end cancels and deletes what is left of them,
/// also when it is stopped. Exit 0: nothing differs; 1: something differs; 75: not all
/// could be measured before --timeout. A call that the server does not have is `not measured`.
///
/// Memory: at most 32 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// Model that is asked [default: one that is free at the provider, glm-4-flash for zhipu]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// File that holds the key (mode 0600) [default: the provider's variable, e.g. ZHIPUAI_API_KEY]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// One more root certificate (PEM) to trust
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// Time between looks at the batches
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_interval)]
    pub poll_interval: Duration,
    /// How long a create without an answer is looked for: a batch must be listed within this time [default: 120s]
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub settle: Option<Duration>,
    /// Stop waiting after this long, and clean up
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = parse_duration)]
    pub timeout: Duration,
    /// List batches and files of the account that carry zbatch's mark and belong to no work directory given
    #[arg(long)]
    pub orphans: bool,
    /// With --orphans: a work directory whose batches and files are left out; may be given several times
    #[arg(short = 'd', long = "work-dir", value_name = "DIR", requires = "orphans")]
    pub work_dirs: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Serve the Batch API locally: for tests, or in front of a model server of yours
///
/// Examples:
///   zbatch emulate --port 8900 &   the base URL is the first line on stdout
///   ZHIPUAI_API_KEY=any zbatch run posts.jsonl -o out.jsonl \
///     --base-url http://127.0.0.1:8900/api/paas/v4
///   zbatch emulate --upstream http://127.0.0.1:8080/v1   answers of a chat server
///
/// With --upstream, clients need the key that it shows on stderr at each start.
///
/// Only programs on this machine are answered, under 127.0.0.1 or localhost.
///
/// Memory: at most 64 MiB; files are on disk (--state).
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct EmulateArgs {
    /// Port on 127.0.0.1; 0 picks a free one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_count::<u16>)]
    pub port: u16,
    /// Directory of the server's files and state, kept between runs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub emulator: EmulatorArgs,
}

/// How the emulator behaves.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Emulator")]
pub struct EmulatorArgs {
    /// Time a batch takes
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    pub latency: Option<Duration>,
    /// Answers depend on this and the request line only [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_count::<u64>)]
    pub seed: Option<u64>,
    /// What goes wrong, e.g. invalid=1% or rate_limit=3; may be given several times; `zbatch emulate --help` has the list
    #[arg(long, value_name = "SPEC")]
    pub fault: Vec<String>,
    /// OpenAI-style chat server that answers each line (key from ZBATCH_UPSTREAM_KEY)
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
}

impl EmulatorArgs {
    /// A flag of these that was typed, if one was.
    pub fn typed(&self) -> Option<&'static str> {
        [
            ("--upstream", self.upstream.is_some()),
            ("--fault", !self.fault.is_empty()),
            ("--latency", self.latency.is_some()),
            ("--seed", self.seed.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, typed)| typed.then_some(flag))
    }
}

/// Show what is in force and where each value came from
///
/// Examples:
///   zbatch config
///   zbatch config --config batch/config.json
///
/// Memory: at most 32 MiB.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub work: ReadWorkArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
}
