//! File work, away from the threads of the async runtime.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs work that may wait for a disk. On a runtime of one thread it is done in place: nothing else could go on meanwhile,
/// and the same program takes the same steps in the same order each time, which the simulator lives on.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // A panic goes on where it can be seen.
        Err(lost) => match lost.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down drops work, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}
