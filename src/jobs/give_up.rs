//! How a chunk's life ends early: by a signal, an error, or since it is left to another command.

use super::{Jobs, TOLD_CHUNKS};
use crate::{
    error::Error,
    flow::chunks::Chunk,
    provider::{ApiError, Class},
};

/// Chunks given up one after another because their upload or create was refused as wrong, before no other is tried.
const REFUSED_CHUNKS: u32 = 3;
/// Why a chunk's life ends before its results are here.
#[derive(Debug)]
pub(super) enum Halt {
    /// The rest is left to another command, or to a later turn. If something is wrong, it has been said.
    Left,
    /// The journal or the disk failed: no job can go on.
    Broken(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// Which creates an error makes pointless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closes {
    /// None but that of its own chunk.
    Nothing,
    /// Those under the chunk's model.
    Model,
    AllCreates,
}

impl Jobs<'_> {
    /// Waits for a part of a life unless a signal or the deadline asks for the end.
    pub(super) async fn unless_stopped<T>(&self, part: impl Future<Output = T>) -> Result<T, Halt> {
        self.stop.run(part).await.map_err(|_| Halt::Left)
    }

    /// Gives the rest of a chunk's life up, and says why. The first error is told again at the end, and there with its advice.
    pub(super) fn give_up(&self, chunk: &Chunk, closes: Closes, error: impl Into<Error>) -> Halt {
        let error = error.into();
        let mut end = self.end.borrow_mut();
        match closes {
            Closes::Nothing => {}
            Closes::Model => {
                end.refused_model = Some(chunk.model.clone());
                self.slots.close_model(&chunk.model);
            }
            Closes::AllCreates => self.slots.close(),
        }
        let id = chunk.id.to_string();
        let told = if end.left == 0 { error.line() } else { error.parts().0 };
        let told = if told.starts_with(&id) { told } else { format!("{id}: {told}") };
        end.left = end.left.saturating_add(1);
        match end.left {
            1 => self.progress.note(told),
            2..=TOLD_CHUNKS => self.progress.always(told),
            _ => self.progress.detail(told),
        }
        end.trouble.get_or_insert(error);
        Halt::Left
    }

    /// Gives a chunk up whose upload or create was refused. The first chunks may be bad in their own way; all of them are not.
    pub(super) fn give_up_refused(&self, chunk: &Chunk, error: ApiError) -> Halt {
        let mut closes = closes_after(&error);
        if closes == Closes::Nothing {
            self.refused.set(self.refused.get() + 1);
            if self.refused.get() >= REFUSED_CHUNKS {
                closes = Closes::AllCreates;
            }
        }
        self.give_up(chunk, closes, error)
    }
}

/// The creates that an error on the way to a batch makes pointless. An error on the way from a batch to its results closes none:
/// creates go on where only downloads fail.
pub(super) fn closes_after(error: &ApiError) -> Closes {
    match error.class {
        _ if error.is_too_large() => Closes::AllCreates,
        Class::Model => Closes::Model,
        Class::BadRequest | Class::NotFound => Closes::Nothing,
        Class::Key
        | Class::Account
        | Class::RateLimited
        | Class::Transient
        | Class::Unreachable
        | Class::Reply
        | Class::Redirect
        | Class::Certificate
        | Class::Proxy
        | Class::Io => Closes::AllCreates,
    }
}
