//! Lines of a results file: a row is touched only by a line that carries its id, and then by that line alone.

use serde_json::{Map, Value};
use zbatch::flow::{
    CustomId, FaultKind,
    answers::{AnswerReader, Outcome},
    tally::Tally,
};

/// What one line came to, in owned words: row, analysis, and the value or the kind and detail of the fault.
type Read = (Option<u64>, Option<String>, Result<Vec<u8>, (FaultKind, String)>);

fn read(reader: &mut AnswerReader<'_>, tally: &mut Tally, line: &[u8]) -> Read {
    let set = super::set();
    let outcome = reader.read(line);
    tally.count(&outcome);
    match outcome {
        Outcome::Answer { index, analysis, value, .. } => {
            let analysis = set.list.get(analysis).expect("it is in the set");
            (Some(index.0), Some(analysis.name.clone()), Ok(value.to_vec()))
        }
        Outcome::Fault { index, name, fault, analysis, .. } => {
            assert!(analysis.is_none() || index.is_some());
            let row = index.map(|index| index.0);
            (row, name.map(std::borrow::Cow::into_owned), Err((fault.kind, fault.detail)))
        }
    }
}

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let set = super::set();
    // A line never holds a line feed: that is how it became one.
    for line in data.split(|byte| *byte == b'\n') {
        let mut tally = Tally::new(set.list.len());
        let mut reader = AnswerReader::new(set);
        let first = read(&mut reader, &mut tally, line);
        let counted = tally.analyses.iter().map(|counts| counts.rows).sum::<u64>();
        assert_eq!(counted, u64::from(first.1.as_deref().is_some_and(|name| set.find(name).is_some())));
        // Neither what was read before nor white space around it changes anything.
        assert_eq!(read(&mut reader, &mut tally, line), first);
        assert_eq!(read(&mut reader, &mut tally, &[b" \t", line, b" \r"].concat()).0, first.0);

        let (row, name, outcome) = first;
        match &outcome {
            Ok(value) => {
                let name = name.as_deref().expect("an answer has a name");
                super::answer_ladder::is_acceptable(set.find(name).expect("in the set"), value);
            }
            Err((kind, detail)) => {
                super::is_harmless(detail);
                assert!(!detail.contains('\n') && detail.chars().count() < 1000, "{detail}");
                let may_be_unplaced = matches!(kind, FaultKind::UnknownId | FaultKind::BadLine);
                assert!(row.is_some() || may_be_unplaced, "{detail}");
            }
        }
        // serde_json's own idea of the line, where it has one.
        if let Ok(object) = serde_json::from_slice::<Map<String, Value>>(line) {
            let id = object.get("custom_id").and_then(Value::as_str);
            let parsed = id.and_then(CustomId::parse);
            assert_eq!(row, parsed.map(|id| id.index.0));
            assert_eq!(name.as_deref(), parsed.map(|id| id.analysis));
            if id.is_none() {
                assert!(matches!(outcome, Err((FaultKind::BadLine, _))));
            }
            let unfolded = |value: &Value| {
                let object = value.as_str().and_then(|text| serde_json::from_str(text).ok());
                object.unwrap_or_else(|| value.clone())
            };
            let content = object.get("response").and_then(|response| {
                let body = unfolded(unfolded(response).get("body")?);
                let content = body.get("choices")?.get(0)?.get("message")?.get("content")?.clone();
                (content.is_string() || content.is_array()).then_some(content)
            });
            assert!(outcome.is_err() || content.is_some(), "an answer was read where there is no text");
        }
    }
}
