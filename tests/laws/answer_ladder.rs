//! The text of an answer: what is accepted is acceptable to the rule, and is the same when it is read again.

use serde_json::Value;
use zbatch::{
    analysis::{AnswerRule, LabelSet},
    flow::{
        FaultKind,
        answers::{Judged, Rung, judge},
    },
};

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for (at, analysis) in super::set().list.iter().enumerate() {
        let mut out = b"kept".to_vec();
        let judged = judge(analysis, text, &mut out);
        let value = out.strip_prefix(b"kept").expect("what was there stays");
        match judged {
            Ok(_) => {
                is_acceptable(at, value);
                let mut again = Vec::new();
                let value_text = std::str::from_utf8(value).expect("UTF-8");
                assert_eq!(
                    judge(analysis, value_text, &mut again),
                    Ok(Judged { rung: Rung::Strict, unknown_labels: 0 })
                );
                assert_eq!(again, value);
            }
            Err(fault) => {
                assert!(value.is_empty(), "a fault leaves nothing behind");
                let kinds = [FaultKind::Empty, FaultKind::Unreadable, FaultKind::NotAccepted];
                assert!(kinds.contains(&fault.kind));
                super::is_harmless(&fault.detail);
                assert!(!fault.detail.contains('\n') && fault.detail.chars().count() < 1000, "{}", fault.detail);
            }
        }
    }
}

/// The value fits its rule, as someone would check who knows only the rule.
#[track_caller]
pub fn is_acceptable(analysis: usize, value: &[u8]) {
    let rule = &super::set().list.get(analysis).expect("in the set").rule;
    let value: Value = serde_json::from_slice(value).expect("JSON");
    let known = |labels: &LabelSet, value: &Value| value.as_str().is_some_and(|name| labels.find(name).is_some());
    let list = || value.as_array().expect("an array");
    let differ =
        |list: &[Value]| list.iter().enumerate().all(|(at, one)| list.iter().take(at).all(|other| other != one));
    match rule {
        AnswerRule::Integer { min, max, .. } => assert!(value.as_i64().is_some_and(|n| (*min..=*max).contains(&n))),
        AnswerRule::Label { labels } => assert!(known(labels, &value)),
        AnswerRule::Labels { labels, min, max } => {
            assert!((*min..=*max).contains(&list().len()) && differ(list()));
            assert!(list().iter().all(|label| known(labels, label)));
        }
        AnswerRule::Pairs { parent, child, child_list, tree, min, max } => {
            assert!((*min..=*max).contains(&list().len()) && differ(list()));
            for pair in list() {
                let pair = pair.as_object().expect("an object");
                assert_eq!(pair.len(), 2);
                let of = pair.get(parent).and_then(Value::as_str).and_then(|name| tree.children_of(name));
                let of = of.expect("a known parent");
                let child = pair.get(child).expect("a child");
                match child.as_array() {
                    Some(children) => {
                        assert!(*child_list && !children.is_empty() && differ(children));
                        assert!(children.iter().all(|child| known(of, child)));
                    }
                    None => assert!(!child_list && known(of, child)),
                }
            }
        }
    }
}
