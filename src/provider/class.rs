//! Classes of failed calls, whatever the provider calls them.

/// The class decides what the caller does next: try again, stop, or blame one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No permission, or a key that is missing, wrong or expired.
    Key,
    /// Billing, quota or plan.
    Account,
    /// The model is unknown, withdrawn or not in the plan.
    Model,
    /// The request or the uploaded file is wrong; sending it again cannot help.
    BadRequest,
    NotFound,
    /// Too many or too frequent requests, or an overloaded model.
    RateLimited,
    /// The server's trouble, or a reply that could not be read.
    Transient,
    /// The network: no connection, no reply, or a broken reply.
    Unreachable,
    /// A reply that the client refuses: too large, or a listing without end.
    Reply,
    /// A redirect that is not followed: of a call with the key, or of a download to a forbidden address.
    Redirect,
    /// The server's certificate is not trusted.
    Certificate,
    /// The proxy wants a password, or another one.
    Proxy,
    /// A file on this machine.
    Io,
}
