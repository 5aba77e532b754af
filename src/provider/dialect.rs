//! How providers differ, as values. A provider is one constant here.
//!
//! `docs/providers.md` says where each value comes from, and which values are not verified.

use super::{Class, address::origin_of};
use crate::{
    error::{Error, Result},
    text::did_you_mean,
};

/// One provider's API.
#[derive(Debug)]
pub struct Dialect {
    pub name: &'static str,
    /// Without a trailing slash.
    pub base_url: &'static str,
    /// Base URLs of the same provider for other countries: its key may go there too.
    pub other_base_urls: &'static [&'static str],
    /// The environment variable that may hold another base URL.
    pub base_url_variable: Option<&'static str>,
    /// The base path under which the emulator speaks this dialect.
    pub emulated_path: &'static str,
    /// The `url` of a request line and the `endpoint` of a batch, which must be equal.
    pub line_url: &'static str,
    /// Sent as `completion_window` if there is one.
    pub completion_window: Option<&'static str>,
    /// Most request lines in a file.
    pub max_lines: u64,
    /// Largest file.
    pub max_bytes: u64,
    /// `auto_delete_input_file` is known here and would be true unless sent as false.
    pub sends_auto_delete: bool,
    /// Status words of its own that mean: running.
    pub running_words: &'static [&'static str],
    /// Environment variables that may hold the key; the first one that is set wins.
    pub key_variables: &'static [&'static str],
    /// Most requests that may be queued, by model in lower case.
    pub queue_limits: &'static [(&'static str, u64)],
    /// Models that the provider takes for batches; empty: not known. The list changes, so it is used for a warning only.
    pub batch_models: &'static [&'static str],
    /// Days that the provider keeps files and results, if they are known.
    pub kept_days: Option<u64>,
    /// A model that costs nothing, for `doctor`.
    pub free_model: Option<&'static str>,
    /// The meaning of its business codes.
    pub codes: &'static [(&'static str, Class)],
}

const COMPATIBLE: &str = "/v1/chat/completions";

const ZHIPU: Dialect = Dialect {
    name: "zhipu",
    base_url: "https://open.bigmodel.cn/api/paas/v4",
    other_base_urls: &["https://api.z.ai/api/paas/v4"],
    base_url_variable: Some("ZHIPUAI_BASE_URL"),
    emulated_path: "/api/paas/v4",
    line_url: "/v4/chat/completions",
    completion_window: None,
    max_lines: 50_000,
    max_bytes: 100_000_000,
    sends_auto_delete: true,
    running_words: &[],
    key_variables: &["ZHIPUAI_API_KEY", "ZAI_API_KEY", "ZHIPU_API_KEY"],
    queue_limits: ZHIPU_QUEUES,
    batch_models: ZHIPU_MODELS,
    kept_days: Some(30),
    free_model: Some("glm-4-flash"),
    codes: ZHIPU_CODES,
};

const OPENAI: Dialect = Dialect {
    name: "openai",
    base_url: "https://api.openai.com/v1",
    other_base_urls: &[],
    base_url_variable: None,
    emulated_path: "/v1",
    line_url: COMPATIBLE,
    completion_window: Some("24h"),
    max_lines: 50_000,
    max_bytes: 200_000_000,
    sends_auto_delete: false,
    running_words: &[],
    key_variables: &["OPENAI_API_KEY"],
    queue_limits: &[],
    batch_models: &[],
    kept_days: None,
    free_model: None,
    codes: COMPATIBLE_CODES,
};

const DASHSCOPE: Dialect = Dialect {
    name: "dashscope",
    base_url: "https://dashscope.aliyuncs.com/compatible-mode/v1",
    max_bytes: 500_000_000,
    key_variables: &["DASHSCOPE_API_KEY"],
    ..OPENAI
};

const SILICONFLOW: Dialect = Dialect {
    name: "siliconflow",
    base_url: "https://api.siliconflow.cn/v1",
    max_lines: 5_000,
    max_bytes: 1_000_000_000,
    running_words: &["in_queue"],
    key_variables: &["SILICONFLOW_API_KEY"],
    ..OPENAI
};

const MOONSHOT: Dialect = Dialect {
    name: "moonshot",
    base_url: "https://api.moonshot.cn/v1",
    max_bytes: 100_000_000,
    key_variables: &["MOONSHOT_API_KEY"],
    ..OPENAI
};

const GROQ: Dialect = Dialect {
    name: "groq",
    base_url: "https://api.groq.com/openai/v1",
    max_bytes: 100_000_000,
    key_variables: &["GROQ_API_KEY"],
    ..OPENAI
};

const ZHIPU_QUEUES: &[(&str, u64)] = &[
    ("glm-4-air-250414", 2_000_000),
    ("glm-4-flashx-250414", 2_000_000),
    ("glm-4-plus", 2_000_000),
    ("embedding-2", 2_000_000),
    ("embedding-3", 2_000_000),
    ("glm-4", 500_000),
    ("glm-4-0520", 500_000),
    ("glm-4-long", 200_000),
    ("glm-4v", 10_000),
    ("glm-4v-plus", 10_000),
    ("glm-4v-plus-0111", 10_000),
    ("cogview-4-250304", 10_000),
    ("cogview-3-plus", 10_000),
    ("cogvideox-2", 10_000),
];

const ZHIPU_MODELS: &[&str] = &[
    "glm-5.1",
    "glm-5-turbo",
    "glm-4",
    "glm-4-0520",
    "glm-4-plus",
    "glm-4-plus-0111",
    "glm-4-long",
    "glm-4-air",
    "glm-4-air-0111",
    "glm-4-air-250414",
    "glm-4-flash",
    "glm-4-flashx-250414",
    "glm-3-turbo",
    "glm-4v",
    "glm-4v-plus",
    "glm-4v-plus-0111",
    "glm-5v-turbo",
    "cogview-3",
    "cogview-3-plus",
    "cogview-4-250304",
    "embedding-2",
    "embedding-3",
    "cogvideox",
    "cogvideox-2",
];

const ZHIPU_CODES: &[(&str, Class)] = &[
    ("500", Class::Transient),
    ("1120", Class::Transient),
    ("1230", Class::Transient),
    ("1231", Class::Transient),
    ("1234", Class::Transient),
    ("1302", Class::RateLimited),
    ("1303", Class::RateLimited),
    ("1305", Class::RateLimited),
    ("1312", Class::RateLimited),
    ("1313", Class::RateLimited),
    ("1000", Class::Key),
    ("1001", Class::Key),
    ("1002", Class::Key),
    ("1003", Class::Key),
    ("1004", Class::Key),
    ("1100", Class::Account),
    ("1110", Class::Account),
    ("1111", Class::Account),
    ("1112", Class::Account),
    ("1113", Class::Account),
    ("1121", Class::Account),
    ("1304", Class::Account),
    ("1308", Class::Account),
    ("1309", Class::Account),
    ("1310", Class::Account),
    ("1311", Class::Account),
    ("1211", Class::Model),
    ("1212", Class::Model),
    ("1220", Class::Model),
    ("1221", Class::Model),
    ("1222", Class::Model),
    ("1200", Class::BadRequest),
    ("1210", Class::BadRequest),
    ("1213", Class::BadRequest),
    ("1214", Class::BadRequest),
    ("1215", Class::BadRequest),
    ("1261", Class::BadRequest),
    ("1300", Class::BadRequest),
    ("1301", Class::BadRequest),
];

/// Codes of OpenAI and of providers with the same API, in lower case.
const COMPATIBLE_CODES: &[(&str, Class)] = &[
    ("invalid_api_key", Class::Key),
    ("invalidapikey", Class::Key),
    ("invalid_authentication_error", Class::Key),
    ("insufficient_quota", Class::Account),
    ("billing_hard_limit_reached", Class::Account),
    ("billing_not_active", Class::Account),
    ("account_deactivated", Class::Account),
    ("exceeded_current_quota_error", Class::Account),
    ("arrearage", Class::Account),
    ("model_not_found", Class::Model),
    ("rate_limit_exceeded", Class::RateLimited),
    ("rate_limit_reached_error", Class::RateLimited),
    ("engine_overloaded_error", Class::RateLimited),
];

impl Dialect {
    pub const ALL: [&'static Self; 6] = [&ZHIPU, &OPENAI, &DASHSCOPE, &SILICONFLOW, &MOONSHOT, &GROQ];

    /// # Errors
    /// [`crate::error::Kind::Usage`], naming the nearest, for an unknown name.
    pub fn find(name: &str) -> Result<&'static Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name == name).ok_or_else(|| {
            let names = Self::ALL.map(|dialect| dialect.name);
            Error::usage(format!("unknown provider {name:?}")).fix(format!(
                "{}Known: {}; another server of the same API: --base-url",
                did_you_mean(name, &names),
                names.join(", ")
            ))
        })
    }

    /// The address is on one of the provider's own servers.
    pub fn owns(&self, base_url: &str) -> bool {
        let own = std::iter::once(&self.base_url).chain(self.other_base_urls);
        origin_of(base_url).is_some_and(|origin| own.into_iter().any(|own| origin_of(own).as_ref() == Some(&origin)))
    }

    /// Most requests of `model` that may be queued; `None`: not known.
    pub fn queue_limit(&self, model: &str) -> Option<u64> {
        self.queue_limits.iter().find(|(name, _)| name.eq_ignore_ascii_case(model)).map(|(_, limit)| *limit)
    }

    /// `model` is on the list of batch models, or there is no list.
    pub fn lists_model(&self, model: &str) -> bool {
        self.batch_models.is_empty() || self.batch_models.iter().any(|name| name.eq_ignore_ascii_case(model))
    }

    /// The meaning of a business code; `None` for an unknown one.
    pub(super) fn class_of(&self, code: &str) -> Option<Class> {
        self.codes.iter().find(|(known, _)| known.eq_ignore_ascii_case(code)).map(|(_, class)| *class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_gets_the_nearest() {
        assert_eq!(Dialect::find("zhipu").expect("known").max_bytes, 100_000_000);
        let error = Dialect::find("zipu").expect_err("unknown");
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        assert!(error.to_string().contains("did you mean `zhipu`?"), "{error}");
    }

    #[test]
    fn r11_1_a_provider_owns_its_origins() {
        for (provider, url, owned) in [
            ("zhipu", "https://open.bigmodel.cn/api/paas/v4", true),
            ("zhipu", "https://OPEN.bigmodel.cn:443/other/", true),
            ("zhipu", "https://api.z.ai/api/paas/v4", true),
            ("zhipu", "http://open.bigmodel.cn/api/paas/v4", false),
            ("zhipu", "https://open.bigmodel.cn:8443/api/paas/v4", false),
            ("zhipu", "https://open.bigmodel.cn.evil.example/", false),
            ("zhipu", "https://open.bigmodel.cn@evil.example/", false),
            ("zhipu", "https://api.openai.com/v1", false),
            ("zhipu", "http://127.0.0.1:8900/api/paas/v4", false),
            ("zhipu", "nonsense", false),
            ("openai", "https://api.openai.com/v1", true),
            ("openai", "https://open.bigmodel.cn/api/paas/v4", false),
        ] {
            assert_eq!(Dialect::find(provider).expect("known").owns(url), owned, "{provider} {url}");
        }
    }

    #[test]
    fn models_are_found_in_any_case() {
        assert_eq!(ZHIPU.queue_limit("GLM-4V-Plus"), Some(10_000));
        assert_eq!(ZHIPU.queue_limit("glm-9"), None);
        assert!(ZHIPU.lists_model("glm-4-air") && !ZHIPU.lists_model("glm-5.2"));
        assert!(OPENAI.lists_model("anything"));
    }

    #[test]
    fn no_two_providers_share_a_key_variable() {
        let mut variables: Vec<_> = Dialect::ALL.iter().flat_map(|dialect| dialect.key_variables).collect();
        let all = variables.len();
        variables.sort_unstable();
        variables.dedup();
        assert_eq!(variables.len(), all);
    }
}
