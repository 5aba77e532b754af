//! The errors of calls to the provider, and what each class of error means.
//!
//! The business code of the body decides first and the HTTP status second: an empty wallet arrives as 429 too
//! (`docs/reliability.md` M4). Text of a server is redacted, escaped and cut before an [`ApiError`] keeps it (K1, H3).

use std::{fmt, time::Duration};

use serde_json::Value;

use super::{Class, Dialect, Key};
use crate::{
    error::{Error, Kind},
    text::escape_control,
};

/// The only call that follows redirects.
pub(super) const DOWNLOAD: &str = "download a file";
const MESSAGE_CHARS: usize = 300;
const CODE_CHARS: usize = 64;

pub(super) const UPLOAD: &str = "upload a file";
pub(super) const CREATE: &str = "create a batch";
pub(super) const CANCEL: &str = "cancel a batch";
const CALLS_WITH_A_MODEL: [&str; 2] = [UPLOAD, CREATE];
/// Calls by POST. Every other call is a GET or a DELETE, where 404 and 410 mean that the object does not exist.
const POSTS: [&str; 3] = [UPLOAD, CREATE, CANCEL];

/// Codes and phrases, in lower case, that mean: the account's queue at the provider is full. Each was seen in a report: `token_limit_exceeded` and "Enqueued token limit reached … try again once some in_progress batches have been
/// completed" at OpenAI (openai-python issue 2084), "Enqueued request limit reached" there too (its forum, topic 1002388),
/// "the number of enqueued tokens has surpassed …" at Azure (its Q&A, 2285577), `too_many_tasks` (`docs/reliability.md` M6).
const FULL_QUEUE: [&str; 6] = [
    "token_limit_exceeded",
    "enqueued token limit",
    "enqueued request limit",
    "number of enqueued tokens has surpassed",
    "once some in_progress batches have been completed",
    "too_many_tasks",
];

/// Why a call failed.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The call, e.g. `create a batch`.
    pub call: &'static str,
    pub status: Option<u16>,
    /// The business code of the body.
    pub code: Option<String>,
    pub message: String,
    pub class: Class,
    /// The wait that the server asks for.
    pub retry_after: Option<Duration>,
    /// The server says whether another try makes sense (`x-should-retry`).
    pub(super) should_retry: Option<bool>,
    /// The body was an error object of the API, not a page of a gateway.
    pub(super) readable: bool,
    /// Something may have reached the server.
    pub(super) sent: bool,
    /// The reply was a success with an object, but the batch could not be read from it.
    pub(super) made: bool,
}

impl ApiError {
    /// An error that the client found itself.
    pub(super) fn new(call: &'static str, class: Class, message: impl Into<String>) -> Self {
        Self {
            call,
            status: None,
            code: None,
            message: message.into(),
            class,
            retry_after: None,
            should_retry: None,
            readable: false,
            sent: true,
            made: false,
        }
    }

    /// The server takes no file of this size. The next file is as large.
    pub fn is_too_large(&self) -> bool {
        self.call == UPLOAD && matches!(self.status, Some(413 | 435))
    }

    /// The account's queue is full: the same call succeeds when one of its batches has ended (`docs/reliability.md` M6).
    pub fn says_full_queue(&self) -> bool {
        says_full_queue(self.code.as_deref().unwrap_or_default()) || says_full_queue(&self.message)
    }

    /// The same call may succeed later (`docs/reliability.md` N3). For a create that holds only if it was certainly refused.
    pub fn is_retryable(&self) -> bool {
        match (self.class, self.should_retry) {
            (Class::Io | Class::Reply | Class::Key | Class::Account, _) => false,
            (Class::Redirect | Class::Certificate | Class::Proxy, _) => false,
            (_, Some(said)) => said,
            (class, None) => matches!(class, Class::RateLimited | Class::Transient | Class::Unreachable),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        match (self.status, &self.code) {
            (Some(status), Some(code)) => write!(f, "HTTP {status}, code {code}: ")?,
            (Some(status), None) => write!(f, "HTTP {status}: ")?,
            (None, Some(code)) => write!(f, "code {code}: ")?,
            (None, None) => {}
        }
        f.write_str(if self.message.is_empty() { "no explanation was given" } else { &self.message })
    }
}

impl std::error::Error for ApiError {}

const SMALLER_FILES: &str =
    "cut smaller files with --max-bytes, e.g. 50MB; a work directory without a batch takes it without --new";
const RESULTS_ELSEWHERE: &str = "the results stay at the provider; ask it for https links, or name a --base-url that \
                                 serves the files itself, and run the same command again";
const OWN_CERTIFICATE: &str = "if the server is yours, name its certificate, or that of its CA, with --ca-cert FILE";
const PROXY_PASSWORD: &str = "put the user name and password into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT), or the \
                              provider's host into NO_PROXY";

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        let (kind, fix) = match error.class {
            Class::Key => (Kind::Key, Some("check the key, the base URL it belongs to, and what the account may use")),
            Class::Account => (Kind::Unavailable, Some("mend the account's balance, quota or plan, then run it again")),
            _ if error.is_too_large() => (Kind::Input, Some(SMALLER_FILES)),
            Class::Model => (Kind::Unavailable, Some("choose a model that the provider takes for batches")),
            Class::BadRequest => (Kind::Input, None),
            Class::NotFound => (Kind::Unavailable, None),
            Class::Redirect if error.call == DOWNLOAD => (Kind::Unavailable, Some(RESULTS_ELSEWHERE)),
            Class::Reply | Class::Redirect => (Kind::Unavailable, Some("check --base-url")),
            Class::Certificate => (Kind::Unavailable, Some(OWN_CERTIFICATE)),
            Class::Proxy => (Kind::Unavailable, Some(PROXY_PASSWORD)),
            Class::RateLimited | Class::Transient | Class::Unreachable => {
                (Kind::Unavailable, Some("run the same command again later; it goes on where it stopped"))
            }
            Class::Io => (Kind::Io, None),
        };
        let whole = Self::new(kind, error.to_string());
        match fix {
            Some(fix) => whole.fix(fix),
            None => whole,
        }
    }
}

/// Why a create failed. The variant decides whether another create may be sent (`docs/reliability.md` M1).
#[derive(Clone, Debug)]
pub enum CreateError {
    /// The server said no, and why: there is no batch.
    Refused(ApiError),
    /// Nothing reached the server: there is no batch.
    NotSent(ApiError),
    /// A 4xx whose body is no error of the API, such as a gateway's page: there is no batch, unless a listing shows it.
    Denied(ApiError),
    /// The server said yes but did not name the batch: the chunk is never created again.
    Made(ApiError),
    /// There may be a batch: look for it in the listing first.
    Ambiguous(ApiError),
}

impl CreateError {
    pub fn error(&self) -> &ApiError {
        match self {
            Self::Refused(error)
            | Self::NotSent(error)
            | Self::Denied(error)
            | Self::Made(error)
            | Self::Ambiguous(error) => error,
        }
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl std::error::Error for CreateError {}

/// Text of a server for a message: without the key, without control characters, at most `most` characters.
pub(super) fn harmless(key: &Key, text: &str, most: usize) -> String {
    // The key is taken out first: a key that is cut or escaped would no longer be found.
    let text = key.redact(text);
    let text = escape_control(text.trim());
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// A message of a server, or of the network about a server.
pub(super) fn harmless_message(key: &Key, text: &str) -> String {
    harmless(key, text, MESSAGE_CHARS)
}

/// The error object in a body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorObject {
    pub code: Option<String>,
    pub message: String,
}

/// Looks for an error in a body of any status: `{"error":{…}}`, `{"error":"text"}`, and at the top
/// `{"code","message"}` or `{"code","msg"}` unless the wanted object came with them.
pub(super) fn find_error(body: &Value) -> Option<ErrorObject> {
    let object = body.as_object()?;
    match object.get("error") {
        Some(Value::Object(error)) => {
            let message = text(error.get("message").or_else(|| error.get("msg"))).unwrap_or_default();
            // OpenAI's `code` may be null while its `type` holds the same word.
            let code = text(error.get("code")).or_else(|| text(error.get("type")));
            return (code.is_some() || !message.is_empty()).then_some(ErrorObject { code, message });
        }
        Some(Value::String(error)) if !error.is_empty() => {
            let message = match text(object.get("message").or_else(|| object.get("msg"))) {
                Some(more) => format!("{error}: {more}"),
                None => error.clone(),
            };
            return Some(ErrorObject { code: text(object.get("code")), message });
        }
        _ => {}
    }
    if object.contains_key("id") || ["data", "job"].iter().any(|key| object.get(*key).is_some_and(|v| !v.is_null())) {
        return None;
    }
    let code = text(object.get("code"))?;
    let message = text(object.get("message").or_else(|| object.get("msg")))?;
    // Some gateways say "success" in the same words.
    (!matches!(code.as_str(), "0" | "200" | "20000")).then_some(ErrorObject { code: Some(code), message })
}

/// A string that is not empty, or a number.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Makes an error of a reply. `object` is the error object of its body; `page` is a body without one.
pub(super) fn from_reply(
    call: &'static str,
    dialect: &Dialect,
    key: &Key,
    status: http::StatusCode,
    object: Option<ErrorObject>,
    page: &[u8],
) -> ApiError {
    let readable = object.is_some();
    let ErrorObject { code, message } = object.unwrap_or_else(|| ErrorObject { code: None, message: page_text(page) });
    let by_status = match class_of(status) {
        Class::Key if tells_of_balance(code.as_deref(), &message) => Class::Account,
        by_status => by_status,
    };
    let class = match code.as_deref().and_then(|code| dialect.class_of(code)) {
        _ if by_status == Class::NotFound && !POSTS.contains(&call) => Class::NotFound,
        // A parameter names an object that does not exist: the status says more than the code.
        Some(Class::BadRequest) | None if by_status == Class::NotFound => Class::NotFound,
        // Only an upload and a create name a model that the user can change.
        Some(Class::Model) if !CALLS_WITH_A_MODEL.contains(&call) => by_status,
        by_code => by_code.unwrap_or(by_status),
    };
    ApiError {
        status: Some(status.as_u16()),
        code: code.map(|code| harmless(key, &code, CODE_CHARS)),
        message: harmless_message(key, &message),
        readable,
        ..ApiError::new(call, class, "")
    }
}

/// Words for an empty wallet in a 401 or 403, in lower case (`docs/reliability.md` M4).
const BALANCE_WORDS: &[&str] = &[
    // DeepSeek and sub2api; as code too.
    "insufficient balance",
    "insufficient_balance",
    "insufficient account balance",
    // SiliconFlow and AiHubMix: "your (paid) balance is insufficient".
    "balance is insufficient",
    "balance is not enough",
    // Anthropic: "your credit balance is too low"; OpenRouter: "insufficient credits".
    "credit balance",
    "insufficient credit",
    // OpenAI and Moonshot: "you exceeded your current quota, please check your plan and billing details".
    "exceeded your current quota",
    "insufficient_quota",
    "insufficient quota",
    "billing",
    // one-api and new-api.
    "insufficient_user_quota",
    "quota is not enough",
    // DashScope and Volcengine.
    "arrear",
    "overdue",
    "payment required",
    "余额不足",
    "余额已用",
    "额度不足",
    "额度已用",
    "额度失败",
    "配额不足",
    "欠费",
    "充值",
];

fn tells_of_balance(code: Option<&str>, message: &str) -> bool {
    let said = format!("{} {message}", code.unwrap_or_default()).to_lowercase();
    BALANCE_WORDS.iter().any(|word| said.contains(word))
}

/// The class by status, for a reply without a known business code.
fn class_of(status: http::StatusCode) -> Class {
    match status.as_u16() {
        401 | 403 | 434 => Class::Key,
        402 => Class::Account,
        407 => Class::Proxy,
        404 | 410 => Class::NotFound,
        429 => Class::RateLimited,
        // A full or broken disk. `Client::read_refusal` knows whether it is the disk of this machine.
        507 => Class::Io,
        // A 2xx gets here only with a body that is not the wanted one.
        408 | 409 | 425 | 100..=299 | 500..=599 => Class::Transient,
        300..=399 => Class::Redirect,
        _ => Class::BadRequest,
    }
}

/// The words of a body that is no JSON: a gateway's page, without its tags.
fn page_text(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(page.get(..PAGE_BYTES).unwrap_or(page));
    if !page.trim_start().starts_with('<') {
        return page.into_owned();
    }
    let mut text = String::new();
    let mut in_tag = false;
    for c in page.chars() {
        match c {
            '<' => in_tag = true,
            '>' => {
                in_tag = false;
                text.push(' ');
            }
            c if !in_tag => text.push(c),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes of a page that are searched for words.
const PAGE_BYTES: usize = 8 << 10;

/// The words mean: the account's queue at the provider is full.
pub(super) fn says_full_queue(words: &str) -> bool {
    let words = words.to_lowercase();
    FULL_QUEUE.iter().any(|phrase| words.contains(phrase))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(status: u16, body: &str) -> ApiError {
        let zhipu = Dialect::find("zhipu").expect("known");
        let key = Key::new("idididididid.secretsecretsecret").expect("a key");
        let told = serde_json::from_str(body).ok().as_ref().and_then(find_error);
        let status = http::StatusCode::from_u16(status).expect("a status");
        from_reply(CREATE, zhipu, &key, status, told, body.as_bytes())
    }

    /// Of a file that was deleted, and a batch that was gone, a provider said that its account was in arrears.
    #[test]
    fn r11_9b_404_of_a_get_or_delete_means_not_there_whatever_the_code() {
        let zhipu = Dialect::find("zhipu").expect("known");
        let key = Key::new("idididididid.secretsecretsecret").expect("a key");
        let class = |call, status, code: &str| {
            let told = Some(ErrorObject { code: Some(code.to_owned()), message: "no".to_owned() });
            let status = http::StatusCode::from_u16(status).expect("a status");
            from_reply(call, zhipu, &key, status, told, &[]).class
        };
        for code in ["1220", "1221", "1222", "1211", "1210", "1113", "1001", "1302", "500", "model_not_found", "x"] {
            for status in [404, 410] {
                for call in [DOWNLOAD, "look at a batch", "delete a file", "list the batches"] {
                    assert_eq!(class(call, status, code), Class::NotFound, "{call}: {status}, {code}");
                }
            }
        }
        assert_eq!(class(CREATE, 404, "1222"), Class::Model, "there the model may be the wrong one");
        assert_eq!(class(CREATE, 404, "1113"), Class::Account);
    }

    #[test]
    fn the_code_speaks_first_and_the_status_second() {
        for (status, body, class) in [
            (401, r#"{"error":{"code":"1001","message":"no key"}}"#, Class::Key),
            (429, r#"{"error":{"code":"1113","message":"arrears"}}"#, Class::Account),
            (429, r#"{"error":{"code":1113,"message":"arrears"}}"#, Class::Account),
            (200, r#"{"code":1112,"msg":"locked"}"#, Class::Account),
            (429, r#"{"error":{"code":"1308","message":"used up until 18:00"}}"#, Class::Account),
            (429, r#"{"error":{"code":"1302","message":"slow"}}"#, Class::RateLimited),
            (429, r#"{"error":{"code":"1305","message":"busy"}}"#, Class::RateLimited),
            (429, "", Class::RateLimited),
            (400, r#"{"error":{"code":"1210","message":"model"}}"#, Class::BadRequest),
            (400, r#"{"error":{"code":"1211","message":"model"}}"#, Class::Model),
            (400, r#"{"code":"1234","message":"network"}"#, Class::Transient),
            (500, r#"{"error":{"code":"1234","message":"network"}}"#, Class::Transient),
            (404, r#"{"error":"Not Found"}"#, Class::NotFound),
            (404, r#"{"error":{"code":"1210","message":"no such file"}}"#, Class::NotFound),
            (404, r#"{"error":{"code":"1113","message":"arrears"}}"#, Class::Account),
            (434, r#"{"error":{"code":"x","message":"?"}}"#, Class::Key),
            (435, r#"{"error":{"message":"too large"}}"#, Class::BadRequest),
            (403, "<html><body>Forbidden</body></html>", Class::Key),
            (408, "", Class::Transient),
            (409, "", Class::Transient),
            (425, "", Class::Transient),
            (502, "<html>", Class::Transient),
            (302, "", Class::Redirect),
            (407, "", Class::Proxy),
        ] {
            assert_eq!(error(status, body).class, class, "{status} {body}");
        }
    }

    #[test]
    fn what_stops_creates_is_not_tried_again() {
        for code in ["1113", "1112", "1121", "1304", "1308", "1309", "1310", "1311", "1001"] {
            let error = error(429, &json!({"error": {"code": code, "message": "no"}}).to_string());
            assert!(!error.is_retryable(), "{code}");
        }
        for status in [401, 403, 434] {
            assert_eq!(error(status, "").class, Class::Key, "{status}");
        }
        for status in [408, 409, 425, 429, 500, 502, 503, 200] {
            assert!(error(status, "").is_retryable(), "{status}");
        }
        for status in [400, 404, 413, 435, 302] {
            assert!(!error(status, "").is_retryable(), "{status}");
        }
    }

    #[test]
    fn errors_are_told_from_successes() {
        for (body, told) in [
            (json!({"error": {"code": "1", "message": "m"}}), true),
            (json!({"error": {"type": "t", "code": null}}), true),
            (json!({"error": "m"}), true),
            (json!({"code": 500, "msg": "m"}), true),
            (json!({"code": "x", "message": "m", "data": null}), true),
            (json!({"code": 20000, "message": "Ok", "data": {"id": "f"}}), false),
            (json!({"code": 200, "msg": "ok"}), false),
            (json!({"id": "b", "status": "failed", "error": null}), false),
            (json!({"error": {}}), false),
            (json!([1]), false),
        ] {
            assert_eq!(find_error(&body).is_some(), told, "{body}");
        }
    }

    #[test]
    fn a_message_is_short_harmless_and_without_the_key() {
        let long = "字".repeat(1000);
        let shown = error(400, &json!({"error": {"code": "\u{1b}[2J", "message": long}}).to_string());
        assert_eq!(shown.message.chars().count(), MESSAGE_CHARS + 1);
        assert_eq!(shown.code.as_deref(), Some("\\u{1b}[2J"));
        // The key lies across the cut.
        let echo = format!("{}idididididid.secretsecretsecret", "x".repeat(MESSAGE_CHARS - 10));
        let shown = error(401, &json!({"error": {"code": "1001", "message": echo}}).to_string());
        assert!(!shown.to_string().contains("idididi"), "{shown}");
        assert_eq!(error(502, "<html><b>Bad\nGateway</b>").message, "Bad Gateway");
        assert_eq!(error(502, "").to_string(), "create a batch: HTTP 502: no explanation was given");
    }

    #[test]
    fn exit_codes_follow_the_class() {
        let kind = |class| Error::from(ApiError::new("try", class, "m")).kind();
        assert_eq!(kind(Class::Key), Kind::Key);
        assert_eq!(kind(Class::Account), Kind::Unavailable);
        assert_eq!(kind(Class::Model), Kind::Unavailable);
        assert_eq!(kind(Class::Unreachable), Kind::Unavailable);
        assert_eq!(kind(Class::BadRequest), Kind::Input);
        assert_eq!(kind(Class::Io), Kind::Io);
    }
}
