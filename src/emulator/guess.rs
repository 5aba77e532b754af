//! The rule of a prompt whose analysis the emulator does not have (`zbatch emulate` without `--analyses`): what the prompt
//! lists is what it asks for. Nothing is guessed where nothing is listed.

/// What a prompt asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Guess {
    Integer { min: i64, max: i64 },
    Label { labels: Vec<String> },
    Labels { labels: Vec<String> },
    Pairs { parent: String, child: String, child_list: bool, tree: Vec<(String, Vec<String>)> },
}

/// A longer bullet is a sentence.
const LABEL_CHARS: usize = 40;
/// Words that ask for several labels.
const LIST_WORDS: [&str; 6] = ["数组", "列表", "array", "a list", "JSON list", "[\""];
/// No scale goes further.
const MOST_STEPS: i64 = 1000;

impl Guess {
    /// `prompt`: its instructions, if possible without the post.
    pub fn of(prompt: &str) -> Option<Self> {
        let Some(labels) = bullets(prompt) else {
            return scale(prompt).map(|(min, max)| Self::Integer { min, max });
        };
        let family = |label: &String| {
            let (parent, children) = label.split_once('：')?;
            Some((parent.to_owned(), children.split('、').map(str::to_owned).collect()))
        };
        if let Some(tree) = labels.iter().map(family).collect::<Option<Vec<_>>>() {
            let (parent, (child, child_list)) = keys(prompt)?;
            return Some(Self::Pairs { parent, child, child_list, tree });
        }
        Some(if LIST_WORDS.iter().any(|word| prompt.contains(word)) {
            Self::Labels { labels }
        } else {
            Self::Label { labels }
        })
    }
}

/// The first block of two or more lines `- LABEL`, as `{{labels}}` writes them; parents with their children may be long.
fn bullets(prompt: &str) -> Option<Vec<String>> {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.contains(['。', '!', '！'])
            && (label.contains('：') || label.chars().count() <= LABEL_CHARS)
    };
    let mut block = Vec::new();
    for line in prompt.lines().chain([""]) {
        match line.strip_prefix("- ").map(str::trim).filter(|label| is_label(label)) {
            Some(label) => block.push(label.to_owned()),
            None if block.len() >= 2 => return Some(block),
            None => block.clear(),
        }
    }
    None
}

/// A range that begins at 0 or 1, as scales do: `1–5`, `1 到 5`, `0 to 10`.
fn scale(prompt: &str) -> Option<(i64, i64)> {
    const BETWEEN: [&str; 9] = ["–", "—", "-", "~", "～", "到", "至", "to", "and"];
    prompt.match_indices(['0', '1']).find_map(|(at, digit)| {
        let (before, after) = (prompt.get(..at)?, prompt.get(at + 1..)?);
        // A part of a longer number, or of a date.
        if before.ends_with(|c: char| c.is_ascii_digit() || "-/.:".contains(c)) {
            return None;
        }
        let between = after.trim_start();
        let end = BETWEEN.iter().find_map(|word| between.strip_prefix(word))?.trim_start();
        let end = end.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        let start = i64::from(digit == "1");
        (end > start && end <= MOST_STEPS).then_some((start, end))
    })
}

/// The first two keys of an object that the prompt shows, and whether the second one's value is an array.
fn keys(prompt: &str) -> Option<(String, (String, bool))> {
    let mut parts = prompt.split('"').skip(1).step_by(2).zip(prompt.split('"').skip(2).step_by(2));
    let mut key = || parts.find_map(|(key, after)| Some((key.to_owned(), after.trim_start().strip_prefix(':')?)));
    let (parent, _) = key()?;
    let (child, after) = key()?;
    Some((parent, (child, after.trim_start().starts_with('['))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_21_what_a_prompt_lists_is_what_it_asks_for() {
        let labels = || vec!["急".to_owned(), "不急".to_owned()];
        let family = |name: &str| (name.to_owned(), vec!["x".to_owned(), "y".to_owned()]);
        let pairs = |child_list| Guess::Pairs {
            parent: "p".to_owned(),
            child: "c".to_owned(),
            child_list,
            tree: vec![family("甲"), family("乙")],
        };
        for (prompt, guess) in [
            ("级别：\n- 急\n- 不急\n\n要点：\n- 只选一个，用原词。\n", Some(Guess::Label { labels: labels() })),
            ("Answer with a JSON array.\n- 急\n- 不急", Some(Guess::Labels { labels: labels() })),
            ("- 只选一个。\n- 不要解释。\n打分，1–5", Some(Guess::Integer { min: 1, max: 5 })),
            ("from 0 to 10", Some(Guess::Integer { min: 0, max: 10 })),
            ("2026-08-12 发布，给 1 到 5 分", Some(Guess::Integer { min: 1, max: 5 })),
            ("- 甲：x、y\n- 乙：x、y\n例：[{\"p\": \"甲\", \"c\": \"x\"}]", Some(pairs(false))),
            ("- 甲：x、y\n- 乙：x、y\n例：[{\"p\": \"甲\", \"c\": [\"x\"]}]", Some(pairs(true))),
            ("- 甲：x、y\n- 乙：x、y\n", None),
            ("Is this post about floods?", None),
            ("call 12345678901234567890", None),
        ] {
            assert_eq!(Guess::of(prompt), guess, "{prompt}");
        }
    }
}
