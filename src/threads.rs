//! Threads, and what is said where the system gives none: `std::thread::spawn` and tokio panic then.

use std::{
    io,
    os::fd::AsFd as _,
    sync::mpsc::channel,
    thread::{Builder, JoinHandle, Scope, ScopedJoinHandle},
    time::Duration,
};

use crate::error::{Error, Kind, Result};

/// Open files that the async runtime and its first connections take.
const FILES: usize = 12;
/// Looks at whether threads have ended, and the pause between two.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(1);

pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().spawn(work).map_err(|e| no_thread(&e))
}

/// The same with a stack of so many bytes.
pub fn spawn_with_stack<T: Send + 'static>(
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new().stack_size(stack).spawn(work).map_err(|e| no_thread(&e))
}

pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|e| no_thread(&e))
}

fn no_thread(e: &io::Error) -> Error {
    Error::new(Kind::Io, format!("the system gives no more threads: {e}"))
        .fix("raise the limit on processes (`ulimit -u`, or pids of the container), and run the same command again")
}

/// Proves that so many more threads and some open files can be had, before an async runtime is begun: it would panic, or wait
/// for ever for a thread that does not come.
///
/// # Errors
/// The limits of the process or its container are too low.
pub fn check_room(threads: usize) -> Result<()> {
    let before = running();
    let files = (0..FILES).map(|_| io::stderr().as_fd().try_clone_to_owned()).collect::<io::Result<Vec<_>>>();
    let files = files.map_err(|e| {
        Error::new(Kind::Io, format!("{FILES} more files cannot be opened: {e}"))
            .fix("raise the limit on open files, e.g. `ulimit -n 256`, and run the same command again")
    })?;
    drop(files);
    // All of them at once: each waits until the last has begun.
    std::thread::scope(|scope| -> Result<()> {
        let mut held = Vec::new();
        for _ in 0..threads {
            let (hold, released) = channel::<()>();
            spawn_scoped(scope, move || released.recv().is_ok())?;
            held.push(hold);
        }
        Ok(())
    })?;
    // The system counts a thread for a moment longer than its end takes.
    for _ in 0..LOOKS {
        if running() <= before {
            break;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Threads of this process; 0 where the system does not tell.
fn running() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
