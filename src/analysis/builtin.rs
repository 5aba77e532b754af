//! The six analyses and their reference data, embedded, so that the binary alone does the whole job.

macro_rules! folder {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../data/analyses/", $name, "/analysis.json")),
            include_str!(concat!("../../data/analyses/", $name, "/prompt.txt")),
            include_str!(concat!("../../data/analyses/", $name, "/examples.jsonl")),
        )
    };
}

macro_rules! reference {
    ($file:literal) => {
        ($file, include_str!(concat!("../../data/", $file)))
    };
}

/// Name, `analysis.json`, `prompt.txt`, `examples.jsonl`; in the order in which requests are rendered and fields are added.
pub const ANALYSES: [(&str, &str, &str, &str); 6] = [
    folder!("sentiment_polarity"),
    folder!("sentiment_attribute"),
    folder!("topic_analysis"),
    folder!("publisher_analysis"),
    folder!("belief_system"),
    folder!("publisher_decision"),
];

pub const REFERENCES: [(&str, &str); 5] = [
    reference!("sentiment_attributes.json"),
    reference!("topics.json"),
    reference!("publisher_objects.json"),
    reference!("believe_system_common.json"),
    reference!("publisher_decision.json"),
];
