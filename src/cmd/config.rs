//! What is in force and where it came from.

use super::Ended;
use crate::{
    cli::ConfigArgs,
    console::Console,
    error::Result,
    lines::output::Output,
    provider::Dialect,
    settings::{Config, Origin, PROVIDER, Sourced},
    text::escape_control,
};

pub fn run(args: &ConfigArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let models = config.models(&args.model)?;
    let dialect = Dialect::find(&models.provider.value)?;
    let mut rows: Vec<(&str, String, String)> = Vec::new();
    let mut row = |key: &'static str, value: String, origin: &dyn std::fmt::Display| {
        rows.push((key, value, origin.to_string()));
    };
    fn text<T: std::fmt::Display>(it: &Sourced<T>) -> String {
        it.value.to_string()
    }
    let file = config.path().map_or("none".to_owned(), |path| path.display().to_string());
    row("config file", file, &"");
    for (key, model) in [("batch.model", &models.model), ("batch.multimodal_model", &models.multimodal_model)] {
        let is_named = model.origin != Origin::Default || dialect.name == PROVIDER;
        row(key, if is_named { text(model) } else { "none (--model)".to_owned() }, &model.origin);
    }
    row("batch.temperature", text(&models.temperature), &models.temperature.origin);
    row("batch.provider", text(&models.provider), &models.provider.origin);
    match &models.base_url {
        Some(url) => row("batch.base_url", url.value.clone(), &url.origin),
        None => row("batch.base_url", dialect.base_url.to_owned(), &"provider"),
    }
    let concurrent = config.max_concurrent(None);
    row("batch.max_concurrent_tasks", text(&concurrent), &concurrent.origin);
    let poll = config.poll_interval(None);
    row("batch.poll_interval", format!("{:?}", poll.value), &poll.origin);
    let lines = config.max_lines(args.limits.max_lines);
    row("batch.max_lines", capped(lines.value, dialect.max_lines, dialect), &lines.origin);
    let bytes = config.max_bytes(args.limits.max_bytes);
    row("batch.max_bytes", capped(bytes.value, dialect.max_bytes, dialect), &bytes.origin);
    let keep = config.keep_remote(false);
    row("batch.keep_remote", text(&keep), &keep.origin);
    if let Some(timeout) = config.timeout(None) {
        row("batch.task_timeout", format!("{:?}", timeout.value), &timeout.origin);
    }
    match config.data_dir(args.source.data_dir.as_deref())? {
        Some(dir) => row("paths.data_dir", dir.value.display().to_string(), &dir.origin),
        None => row("paths.data_dir", "embedded data".to_owned(), &"default"),
    }
    if let Some(posts) = config.posts(args.source.data_dir.as_deref())? {
        row("posts", posts.value.display().to_string(), &posts.origin);
    }
    let output = config.enhanced_output();
    row("paths.enhanced_output", output.value.display().to_string(), &output.origin);
    let work = config.work_dir(args.work.work_dir.as_deref());
    row("paths.work_dir", work.value.display().to_string(), &work.origin);
    let set = config.analyses(&args.source)?;
    row("analyses", set.names().join(", "), &"");
    let key = dialect.key_variables.iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    match key {
        Some(name) => row("key", "set".to_owned(), &format_args!("${name}")),
        None => row("key", format!("not set ({})", dialect.key_variables.join(", ")), &""),
    }
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or_default().min(48);
    let mut stdout = Output::create(None)?;
    for (key, value, origin) in &rows {
        let line = format!("{key:26} {value:width$}  {origin}");
        stdout.put(escape_control(line.trim_end()).as_bytes())?;
        stdout.put(b"\n")?;
    }
    stdout.commit()?;
    for note in &set.notes {
        console.note(note);
    }
    Ok(Ended::Finished)
}

fn capped(value: u64, cap: u64, dialect: &Dialect) -> String {
    if value > cap { format!("{value}, but {} takes {cap}", dialect.name) } else { value.to_string() }
}
