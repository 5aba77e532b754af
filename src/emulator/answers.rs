//! What the emulated model says. A small honest rule: labels whose characters occur in the post, a short list of
//! good and bad words for numbers, else a draw. It depends on the seed and the request line only.

use std::fmt::Write as _;

use serde_json::json;

use super::{faults::LineKey, guess::Guess};
use crate::analysis::{Analysis, AnalysisSet, AnswerRule};

/// What our prompts put around the post.
const OPEN: &str = "<博文>";
const CLOSE: &str = "</博文>";
const GOOD: [&str; 14] =
    ["谢", "喜", "赞", "棒", "感动", "开心", "支持", "加油", "希望", "平安", "好吃", "满意", "love", "great"];
const BAD: [&str; 16] = [
    "骂", "怒", "差", "烂", "失望", "投诉", "骗", "害怕", "难过", "担心", "恶心", "垃圾", "退款", "呵呵", "bad", "hate",
];
/// Of a hundred answers, so many are bare and so many in a fence; the others have words around.
const BARE: u64 = 60;
const FENCED: u64 = 30;

/// The answer to a question, acceptable to its rule. `None`: the analysis is not one of these, and the prompt does not
/// say what it wants.
pub fn answer(analyses: &AnalysisSet, custom_id: &str, text: &str, line: &LineKey) -> Option<String> {
    let post = post_of(text);
    match analysis_of(analyses, custom_id) {
        Some(analysis) => Some(dress(&value(&analysis.rule, post, line), &analysis.rule, line)),
        None => {
            let prompt = text.rsplit_once(OPEN).map_or(text, |(before, _)| before);
            Guess::of(prompt).map(|guess| guessed(&guess, post, line))
        }
    }
}

/// What is said to a prompt that does not say what it wants.
pub fn echo(text: &str) -> String {
    format!("收到：{}", post_of(text).chars().take(20).collect::<String>())
}

fn guessed(guess: &Guess, post: &str, line: &LineKey) -> String {
    match guess {
        Guess::Integer { min, max } => integer(*min, *max, post, line).to_string(),
        Guess::Label { labels } => best(labels, post, line, 1).first().copied().unwrap_or_default().to_owned(),
        Guess::Labels { labels } => json!(best(labels, post, line, 1)).to_string(),
        Guess::Pairs { parent, child, child_list, tree } => {
            let of_family = |(name, children): &(String, Vec<String>)| {
                let label = best(children, post, line, 1).first().copied().unwrap_or_default().to_owned();
                (likeness(&label, post), name.clone(), label)
            };
            let families = tree.iter().map(of_family);
            let Some((_, name, label)) = families.max_by(|a, b| a.0.total_cmp(&b.0)) else { return "[]".to_owned() };
            let label = if *child_list { json!([label]) } else { json!(label) };
            json!([{parent.as_str(): name, child.as_str(): label}]).to_string()
        }
    }
}

/// An answer that no rule accepts.
pub fn unacceptable(analyses: &AnalysisSet, custom_id: &str, line: &LineKey) -> String {
    let refusal = || "抱歉，这条内容我不便判断。".to_owned();
    let Some(analysis) = analysis_of(analyses, custom_id).filter(|_| !line.draw("refusal").is_multiple_of(4)) else {
        return refusal();
    };
    match &analysis.rule {
        AnswerRule::Integer { max, .. } => max.saturating_add(4).to_string(),
        AnswerRule::Label { .. } => "不在候选之列".to_owned(),
        AnswerRule::Labels { .. } => json!(["不在候选之列"]).to_string(),
        AnswerRule::Pairs { parent, child, child_list, .. } => {
            let none = if *child_list { json!(["不在候选之列"]) } else { json!("不在候选之列") };
            json!([{parent.as_str(): "不在候选之列", child.as_str(): none}]).to_string()
        }
    }
}

/// The analysis that the id names: `{analysis}_{index}`.
fn analysis_of<'a>(analyses: &'a AnalysisSet, custom_id: &str) -> Option<&'a Analysis> {
    let (name, _) = custom_id.rsplit_once('_')?;
    analyses.list.iter().find(|analysis| analysis.name == name)
}

/// The post within a prompt: after the last tag, which the prompt's own examples come before.
fn post_of(text: &str) -> &str {
    let after = text.rsplit_once(OPEN).map_or(text, |(_, after)| after);
    after.split_once(CLOSE).map_or(after, |(post, _)| post).trim()
}

/// The bare answer: JSON, or for one label its name.
fn value(rule: &AnswerRule, post: &str, line: &LineKey) -> String {
    match rule {
        AnswerRule::Integer { min, max, .. } => integer(*min, *max, post, line).to_string(),
        AnswerRule::Label { labels } => {
            best(labels.names(), post, line, 1).first().copied().unwrap_or_default().to_owned()
        }
        AnswerRule::Labels { labels, min, max } => {
            let most = labels.names().len().min(*max);
            json!(best(labels.names(), post, line, how_many(line, (*min).max(1), most))).to_string()
        }
        AnswerRule::Pairs { parent, child, child_list, tree, min, max } => {
            let mut pairs: Vec<(f64, u64, &str, &str)> = Vec::new();
            let mut lot = line.lot();
            for (name, children) in tree.parents.names().iter().zip(&tree.children) {
                let family = likeness(name, post) / 2.0;
                pairs.extend(
                    children
                        .names()
                        .iter()
                        .map(|child| (likeness(child, post) + family, lot.turn(), name.as_str(), child.as_str())),
                );
            }
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let nothing = pairs.first().is_none_or(|best| best.0 == 0.0) && *min == 0;
            let count = if nothing {
                usize::from(line.draw("some").is_multiple_of(3))
            } else {
                how_many(line, (*min).max(1), *max)
            };
            let mut chosen: Vec<(&str, Vec<&str>)> = Vec::new();
            for (.., name, label) in pairs {
                if chosen.len() >= count.min(*max) {
                    break;
                }
                match chosen.iter_mut().find(|(known, _)| *child_list && *known == name) {
                    Some((_, labels)) if labels.len() < 2 => labels.push(label),
                    Some(_) => {}
                    None => chosen.push((name, vec![label])),
                }
            }
            let objects = chosen.iter().map(|(name, labels)| {
                let labels = if *child_list { json!(labels) } else { json!(labels.first()) };
                json!({parent.as_str(): name, child.as_str(): labels})
            });
            serde_json::Value::from_iter(objects).to_string()
        }
    }
}

fn integer(min: i64, max: i64, post: &str, line: &LineKey) -> i64 {
    let count = |words: &[&str]| words.iter().filter(|word| post.contains(**word)).count();
    let (good, bad) = (count(&GOOD), count(&BAD));
    let middle = min.saturating_add_unsigned(max.abs_diff(min) / 2);
    let strong = 1 + i64::from(good.abs_diff(bad) > 1 || post.contains(['！', '!']));
    let value = match good.cmp(&bad) {
        std::cmp::Ordering::Greater => middle.saturating_add(strong),
        std::cmp::Ordering::Less => middle.saturating_sub(strong),
        std::cmp::Ordering::Equal => match line.draw("mood") % 10 {
            0 | 1 => middle.saturating_sub(1),
            2 | 3 => middle.saturating_add(1),
            _ => middle,
        },
    };
    value.clamp(min, max)
}

/// One most of the time.
fn how_many(line: &LineKey, min: usize, max: usize) -> usize {
    let more = match line.draw("how many") % 10 {
        0 => 2,
        1..=3 => 1,
        _ => 0,
    };
    min.saturating_add(more).min(max.max(min))
}

/// The labels most like the post, a draw among equals.
fn best<'a>(labels: &'a [String], post: &str, line: &LineKey, count: usize) -> Vec<&'a str> {
    let mut lot = line.lot();
    let mut ranked: Vec<(f64, u64, &str)> =
        labels.iter().map(|label| (likeness(label, post), lot.turn(), label.as_str())).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.into_iter().take(count).map(|(.., label)| label).collect()
}

/// The share of the label's pairs of neighbouring characters that occur in the post.
#[expect(clippy::cast_precision_loss, reason = "a label is short")]
fn likeness(label: &str, post: &str) -> f64 {
    let (mut pairs, mut found) = (0_usize, 0_usize);
    for (at, first) in label.char_indices() {
        let rest = label.get(at + first.len_utf8()..).unwrap_or_default();
        let Some(second) = rest.chars().next() else { break };
        let end = at + first.len_utf8() + second.len_utf8();
        pairs += 1;
        found += usize::from(label.get(at..end).is_some_and(|pair| post.contains(pair)));
    }
    if pairs == 0 { f64::from(u8::from(post.contains(label))) } else { found as f64 / pairs as f64 }
}

/// As models write it: bare, in a code fence, or with a sentence around a fence.
fn dress(value: &str, rule: &AnswerRule, line: &LineKey) -> String {
    let manner = line.draw("manner") % 100;
    if manner < BARE {
        return value.to_owned();
    }
    let inner = match rule {
        AnswerRule::Integer { keys, .. } => match keys.first() {
            Some(key) => format!("{{{}: {value}}}", json!(key)),
            None => value.to_owned(),
        },
        AnswerRule::Label { .. } => json!(value).to_string(),
        AnswerRule::Labels { .. } | AnswerRule::Pairs { .. } => value.to_owned(),
    };
    let mut text = String::new();
    if manner >= BARE + FENCED {
        text.push_str("根据博文内容，结果如下：\n");
    }
    let _infallible = write!(text, "```json\n{inner}\n```");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Sources;

    fn key(line: &str) -> LineKey {
        LineKey::finish(LineKey::hasher(7).update(line.as_bytes()))
    }

    /// The value within an answer, however it is dressed.
    fn undressed(text: &str) -> serde_json::Value {
        let inner = text.split_once("```json\n").map_or(text, |(_, rest)| rest.trim_end_matches("```"));
        serde_json::from_str(inner).unwrap_or_else(|_| json!(text))
    }

    #[test]
    fn answers_are_acceptable_to_their_rules() {
        let set = AnalysisSet::load(&Sources::default()).expect("embedded data");
        let posts = ["三号桥那边冲锋舟不够，洪涝救援急需支援！", "早安", "", "食堂的饭太差了，失望，要投诉", "谢谢！"];
        for analysis in &set.list {
            for (n, post) in posts.iter().cycle().take(200).enumerate() {
                let id = format!("{}_{n:04}", analysis.name);
                let text = answer(&set, &id, &format!("例：<博文>别的</博文>\n<博文>\n{post}\n</博文>"), &key(&id))
                    .expect("known");
                let value = undressed(&text);
                let good = match &analysis.rule {
                    AnswerRule::Integer { min, max, keys } => {
                        let number = keys.iter().find_map(|key| value.get(key)).unwrap_or(&value);
                        number.as_i64().is_some_and(|number| (*min..=*max).contains(&number))
                    }
                    AnswerRule::Label { labels } => value.as_str().is_some_and(|label| labels.find(label).is_some()),
                    AnswerRule::Labels { labels, min, max } => value.as_array().is_some_and(|list| {
                        (*min..=*max).contains(&list.len())
                            && list.iter().all(|label| label.as_str().is_some_and(|l| labels.find(l).is_some()))
                    }),
                    AnswerRule::Pairs { parent, child, child_list, tree, min, max } => {
                        value.as_array().is_some_and(|list| {
                            (*min..=*max).contains(&list.len())
                                && list.iter().all(|pair| {
                                    let children = pair[parent].as_str().and_then(|name| tree.children_of(name));
                                    let known = |label: &serde_json::Value| {
                                        children.is_some_and(|c| label.as_str().is_some_and(|l| c.find(l).is_some()))
                                    };
                                    match pair[child].as_array() {
                                        Some(labels) => *child_list && !labels.is_empty() && labels.iter().all(known),
                                        None => !child_list && known(&pair[child]),
                                    }
                                })
                        })
                    }
                };
                assert!(good, "{id}: {text}");
            }
        }
    }

    #[test]
    fn the_post_is_what_decides() {
        let set = AnalysisSet::load(&Sources::default()).expect("embedded data");
        let say = |id: &str, post: &str| {
            undressed(&answer(&set, id, &format!("<博文>\n{post}\n</博文>"), &key(id)).unwrap_or_default())
        };
        assert_eq!(say("publisher_analysis_0001", "我是一名退休人员"), json!("退休人员"));
        assert_eq!(say("topic_analysis_0001", "洪涝救援")[0]["sub_topic"], json!("洪涝救援"));
        assert_eq!(say("unknown_0001", "你好"), json!(""));
        assert_eq!(echo("<博文>你好</博文>"), "收到：你好");
    }

    #[test]
    fn manners_are_in_proportion() {
        let set = AnalysisSet::load(&Sources::default()).expect("embedded data");
        let all: Vec<String> = (0..500)
            .map(|n| format!("topic_analysis_{n:04}"))
            .filter_map(|id| answer(&set, &id, "<博文>地铁</博文>", &key(&id)))
            .collect();
        let count = |test: fn(&String) -> bool| all.iter().filter(|text| test(text)).count();
        assert!((250..350).contains(&count(|text| text.starts_with('['))));
        assert!((110..190).contains(&count(|text| text.starts_with("```json"))));
        assert!((25..80).contains(&count(|text| text.starts_with('根'))));
    }
}
