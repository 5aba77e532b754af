//! Where a path leads. Links are followed one by one, so that each can be looked at: in a directory where everybody may
//! write, a link that somebody else left would send an output to a file of the user's.

use std::{
    ffi::OsString,
    fs::Metadata,
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use crate::error::{Error, Kind, Result};

/// A link to a link to a link …: where the system gives up too.
pub(super) const MAX_LINKS: usize = 40;
/// Mode bits of a directory in which everybody may make files, and each may remove only his own.
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;

/// The path without links and `..`. What is not there yet stays as it is written.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    walk(path, |_, _| Ok(()))
}

/// Refuses a path that leads through a link, to a pipe or to a file that another user left in a shared directory. The
/// kernel does the same where `fs.protected_symlinks`, `fs.protected_fifos` and `fs.protected_regular` are on.
pub fn refuse_planted(path: &Path) -> Result<()> {
    let user = rustix::process::geteuid().as_raw();
    let check = |at: &Path, meta: &Metadata| {
        let Some(dir) = at.parent().and_then(|dir| std::fs::symlink_metadata(dir).ok()) else { return Ok(()) };
        match planted(meta, &dir, user) {
            Some(what) => Err(refusal(path, at, meta.uid(), what)),
            None => Ok(()),
        }
    };
    walk(path, check).map(drop)
}

fn refusal(path: &Path, at: &Path, owner: u32, what: &str) -> Error {
    let dir = at.parent().unwrap_or(at).display();
    let what = format!(
        "cannot write {}: {} is {what} of another user (number {owner}), and everybody can write to {dir}",
        path.display(),
        at.display()
    );
    Error::new(Kind::Io, what).fix("name an output in a directory of your own")
}

/// What an entry of a shared directory is, if neither `user` nor the directory's owner made it.
fn planted(entry: &Metadata, dir: &Metadata, user: u32) -> Option<&'static str> {
    let is_shared = dir.mode() & STICKY != 0 && dir.mode() & OTHERS_WRITE != 0;
    if !is_shared || entry.uid() == user || entry.uid() == dir.uid() {
        return None;
    }
    let kind = entry.file_type();
    match () {
        () if kind.is_symlink() => Some("a link"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_file() => Some("a file"),
        () => None,
    }
}

/// Shows every part of the path that is there, links before they are followed, to `look`.
fn walk(path: &Path, mut look: impl FnMut(&Path, &Metadata) -> Result<()>) -> Result<PathBuf> {
    let fail = |e: &io::Error| Error::io("look for", path, e);
    let mut real = if path.is_absolute() { PathBuf::new() } else { std::env::current_dir().map_err(|e| fail(&e))? };
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        // The root takes the place of all before it.
        real.push(&part);
        let Ok(meta) = std::fs::symlink_metadata(&real) else { continue };
        look(&real, &meta)?;
        if meta.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::new(Kind::Io, format!("cannot write {}: too many symbolic links", path.display())));
            }
            let to = std::fs::read_link(&real).map_err(|e| fail(&e))?;
            real.pop();
            rest.extend(parts(&to));
        }
    }
    Ok(real)
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let named = path.components().filter(|part| *part != Component::CurDir);
    named.rev().map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::lines::output::write_whole;

    #[test]
    fn r11_1_links_and_parents_are_resolved_as_the_system_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = std::fs::canonicalize(dir.path()).expect("there");
        std::fs::create_dir_all(root.join("a/b")).expect("made");
        symlink("a/b", root.join("link")).expect("linked");
        symlink("../gone/x", root.join("a/dangling")).expect("linked");
        for (path, to) in [
            ("link/../c", "a/c"),
            ("./a//b/.", "a/b"),
            ("a/dangling", "gone/x"),
            ("none/../more/x", "more/x"),
            ("link", "a/b"),
        ] {
            assert_eq!(resolve(&root.join(path)).expect(path), root.join(to), "{path}");
        }
        symlink("b", root.join("loop")).expect("linked");
        symlink("loop", root.join("b")).expect("linked");
        let error = resolve(&root.join("loop")).expect_err("endless");
        assert!(error.to_string().contains("too many symbolic links"), "{error}");
    }

    #[test]
    fn r11_4_only_what_others_left_in_a_shared_directory_is_planted() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        write_whole(&file, b"").expect("written");
        symlink("file", &link).expect("linked");
        let look = |path: &Path| std::fs::symlink_metadata(path).expect("there");
        let (owner, other) = (look(&file).uid(), look(&file).uid() + 1);
        let mut expected = [Some("a file"), Some("a link")].into_iter();
        for (mode, is_shared) in [(0o777, false), (0o1775, false), (0o1777, true)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).expect("set");
            // What the directory's owner put there is trusted.
            assert_eq!(planted(&look(&file), &look(dir.path()), other), None, "{mode:o}");
            if std::os::unix::fs::chown(dir.path(), Some(other), None).is_err() {
                eprintln!("skipped: only root can give the directory to another user");
                return;
            }
            let shared = look(dir.path());
            assert_eq!(planted(&look(&file), &shared, owner), None, "{mode:o}: it is the user's own");
            for entry in [&file, &link] {
                let expected = if is_shared { expected.next().expect("two") } else { None };
                assert_eq!(planted(&look(entry), &shared, other + 1), expected, "{mode:o}");
            }
            std::os::unix::fs::chown(dir.path(), Some(owner), None).expect("given back");
        }
    }
}
