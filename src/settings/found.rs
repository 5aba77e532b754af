//! What a config file may not do that was found in the current directory, and that the user did not name: whoever made the
//! folder wrote it. It may not send the key or the posts to a server that is not its provider's own, and may not lead out of
//! the folder around its own.

use std::path::{Path, PathBuf};

use super::{PROVIDER, file::ConfigFile};
use crate::{
    error::{Error, Result},
    folder::directory,
    lines::place::resolve,
    provider::{Dialect, host_of},
    shell,
    text::escape_control,
};

/// # Errors
/// [`crate::error::Kind::Input`] with all that it may not do, by key.
pub fn check(path: &Path, file: &ConfigFile) -> Result<()> {
    let folder = resolve(directory(path))?;
    let around = folder.parent().unwrap_or(&folder);
    let mut wrong = Vec::new();
    for (key, text) in &file.texts {
        let why = match key.split_once('.') {
            Some(("paths" | "files", name)) => leads_out(path, file, name, text, around)?,
            Some((_, "base_url")) => goes_elsewhere(file, text),
            _ => None,
        };
        wrong.extend(why.map(|why| format!("`{key}` {why}")));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = path.display().to_string();
    let what = format!("config {shown} was found here and not named, so it may not do this");
    Err(Error::input(what)
        .lines(wrong)
        .fix(format!("if you trust this file, name it: --config {}", shell::word(&shown))))
}

/// The provider's key belongs to the provider's own servers.
fn goes_elsewhere(file: &ConfigFile, base_url: &str) -> Option<String> {
    let provider = file.batch.provider.as_deref().unwrap_or(PROVIDER);
    let dialect = Dialect::find(provider).ok()?;
    // The address itself is not shown: people put keys into URLs.
    let host = host_of(base_url).unwrap_or_else(|| "an address that cannot be read".to_owned());
    (!dialect.owns(base_url)).then(|| format!("would send the key of {provider} to {host}"))
}

/// A path of the old scripts (`files`) may also be one in the data dir.
fn leads_out(path: &Path, file: &ConfigFile, name: &str, text: &str, around: &Path) -> Result<Option<String>> {
    let beside = directory(path);
    let mut places = vec![beside.join(text)];
    if !matches!(name, "data_dir" | "enhanced_output" | "work_dir" | "temp_dir") {
        let data_dir = file.paths.data_dir.as_ref().map_or(PathBuf::from("data"), |dir| beside.join(dir));
        places.push(data_dir.join(text));
    }
    for place in places {
        let to = resolve(&place)?;
        if !to.starts_with(around) {
            let shown = |path: &Path| escape_control(&path.display().to_string());
            return Ok(Some(format!("leads to {}, which is outside {}", shown(&to), shown(around))));
        }
    }
    Ok(None)
}
