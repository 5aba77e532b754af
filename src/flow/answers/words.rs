//! The words that zbatch knows (`data/answers.json`): how an answer is introduced, what its key may be called, how
//! nothing, a number and a reason are said. What an answer may look like is a list of what is allowed, and this is it.

use std::sync::LazyLock;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;

use super::{
    Asked,
    wrapping::{closes, trim},
};
use crate::analysis::AnswerRule;

/// An introduction has at most so many words.
const LONGEST: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    #[serde(rename = "about")]
    _about: String,
    introductions: Introductions,
    neutral_keys: FxHashSet<String>,
    nothing: Nothing,
    reasons: Vec<String>,
    causes: Vec<String>,
    reason_keys: FxHashSet<String>,
    comments: FxHashSet<String>,
    farewells: FxHashSet<String>,
    points: Vec<String>,
    numbers: FxHashMap<String, i64>,
    tags: FxHashSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Introductions {
    leads: Vec<String>,
    names: Vec<String>,
    things: Vec<String>,
    links: Vec<String>,
    verdicts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {
    words: Vec<String>,
    fits: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Lead,
    Name,
    /// What this answer may be called, whatever the list says.
    Own,
    Thing,
    Link,
    Verdict,
    Nothing,
    Fit,
    Reason,
    Cause,
}

#[derive(Debug)]
pub(super) struct Words {
    /// By their first character; longer ones first.
    words: FxHashMap<char, Vec<(String, Class)>>,
    keys: FxHashSet<String>,
    reason_keys: FxHashSet<String>,
    comments: FxHashSet<String>,
    tags: FxHashSet<String>,
    farewells: FxHashSet<String>,
    pub points: Vec<String>,
    numbers: FxHashMap<String, i64>,
}

/// How the text before a block ends, which tells whether the block may be the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing is there, or its sentence has ended.
    End,
    Introduction,
    /// A colon or a comma: it introduces something, and nobody knows what.
    Open,
    /// A heading, or half a sentence.
    Other,
}

static WORDS: LazyLock<Words> =
    LazyLock::new(|| match serde_json::from_str(include_str!("../../../data/answers.json")) {
        Ok(data) => Words::new(data),
        Err(e) => unreachable!("data/answers.json, which is part of the program: {e}"),
    });

pub(super) fn words() -> &'static Words {
    &WORDS
}

/// What the answer may be called: the name of its analysis, its field, and the keys of its rule.
pub(super) fn own_names(asked: Asked<'_>) -> impl Iterator<Item = &str> {
    let keys = match asked.rule {
        AnswerRule::Integer { keys, .. } => keys.as_slice(),
        _ => &[],
    };
    asked.names.into_iter().chain(keys.iter().map(String::as_str)).filter(|name| !name.is_empty())
}

impl Words {
    fn new(data: Data) -> Self {
        let mut tags = data.tags;
        tags.extend(data.neutral_keys.iter().cloned());
        tags.extend(data.introductions.names.iter().chain(&data.introductions.things).cloned());
        let mut words: FxHashMap<char, Vec<(String, Class)>> = FxHashMap::default();
        let Introductions { leads, names, things, links, verdicts } = data.introductions;
        let classes = [
            (Class::Lead, leads),
            (Class::Name, names),
            (Class::Thing, things),
            (Class::Link, links),
            (Class::Verdict, verdicts),
            (Class::Nothing, data.nothing.words),
            (Class::Fit, data.nothing.fits),
            (Class::Reason, data.reasons),
            (Class::Cause, data.causes),
        ];
        for (class, list) in classes {
            for word in list {
                let Some(first) = word.chars().next() else { continue };
                words.entry(first).or_default().push((word, class));
            }
        }
        words.values_mut().for_each(|list| list.sort_by_key(|(word, _)| std::cmp::Reverse(word.len())));
        let Data { neutral_keys: keys, reason_keys, comments, farewells, points, numbers, .. } = data;
        Self { words, keys, reason_keys, comments, tags, farewells, points, numbers }
    }

    /// The longest known word of these classes at the beginning, and what follows it.
    fn take<'t>(&self, text: &'t str, classes: &[Class], asked: Option<Asked<'_>>) -> Option<(Class, &'t str)> {
        let first = text.chars().next()?.to_ascii_lowercase();
        let list = self.words.get(&first).into_iter().flatten().filter(|(_, class)| classes.contains(class));
        let known = list.filter_map(|(word, class)| Some((*class, after_word(text, word)?))).next();
        let own = asked.into_iter().flat_map(own_names).filter_map(|name| after_name(text, name));
        own.map(|rest| (Class::Own, rest)).chain(known).min_by_key(|(_, rest)| rest.len())
    }

    /// Whether these words begin a reason, which may follow an answer.
    /// A noun such as `reason` is followed by a colon or a link, or stands alone: `依据不足` is no reason but a doubt.
    pub fn is_reason(&self, text: &str) -> bool {
        let Some((class, rest)) = self.take(skip_marks(text), &[Class::Reason, Class::Cause], None) else {
            return false;
        };
        let rest = rest.trim_start_matches(is_mark);
        class == Class::Cause
            || rest.is_empty()
            || rest.starts_with([':', '：'])
            || self.take(rest, &[Class::Link], None).is_some()
    }

    /// The few comments that models write beside an element; any other may take it back.
    pub fn is_comment(&self, text: &str) -> bool {
        self.comments.contains(&*text.trim().to_lowercase())
    }

    /// A courtesy after the answer.
    pub fn is_farewell(&self, text: &str) -> bool {
        self.farewells.contains(&*text.trim_end_matches(closes).to_lowercase())
    }

    pub fn is_key(&self, key: &str) -> bool {
        self.keys.contains(&*key.to_lowercase())
    }

    /// A key that may stand beside a neutral one.
    pub fn is_reason_key(&self, key: &str) -> bool {
        self.take(key, &[Class::Reason], None).is_some_and(|(_, rest)| rest.is_empty())
            || self.reason_keys.contains(&*key.to_lowercase())
    }

    pub fn is_tag(&self, name: &str) -> bool {
        self.tags.contains(&*name.to_lowercase())
    }

    /// `none`, `no complaints`, `没有合适的主题`: nothing else, and of what may be none only what is asked for.
    pub fn says_nothing(&self, text: &str, asked: Asked<'_>) -> bool {
        let text = trim(text.trim_end_matches(closes));
        let Some((_, mut rest)) = self.take(text, &[Class::Nothing], None) else { return false };
        let mut is_named = rest.is_empty();
        while let Some((class, after)) = self.take(rest.trim_start(), &[Class::Fit, Class::Thing], Some(asked)) {
            is_named = matches!(class, Class::Own | Class::Thing);
            rest = after;
        }
        is_named && rest.is_empty()
    }

    /// Gives `read` what follows each introduction that this sentence begins with, shortest first, until it takes one.
    pub fn introduced<T>(
        &self,
        sentence: &str,
        asked: Asked<'_>,
        read: &mut dyn FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        const SPACING: [char; 5] = [':', '：', ',', '，', '='];
        const CLOSERS: [char; 9] = ['*', '_', '`', '】', '」', '』', '”', '"', '）'];
        const CLASSES: [Class; 5] = [Class::Lead, Class::Name, Class::Thing, Class::Link, Class::Verdict];
        let (mut names, mut leads, mut links) = (false, false, false);
        let mut rest = sentence;
        for _ in 0..LONGEST {
            let (class, after) = self.take(skip_marks(rest), &CLASSES, Some(asked))?;
            rest = after;
            match class {
                Class::Lead => leads = true,
                // `Is the answer 3` asks.
                Class::Link if !(names || leads) => return None,
                Class::Link => links = true,
                _ => names = true,
            }
            if !(names || leads && links) {
                continue;
            }
            let spaced = |c: char| c.is_whitespace() || SPACING.contains(&c);
            let value = rest.trim_start_matches(spaced);
            let bare = value.trim_start_matches(|c| spaced(c) || CLOSERS.contains(&c));
            let between = rest.get(..rest.len() - bare.len()).unwrap_or_default();
            let is_apart = match class {
                Class::Own | Class::Link | Class::Verdict => true,
                // `选择3` and `回答学生` may say something else.
                Class::Name => bare.is_empty() || !between.is_empty(),
                // `Topic 3` and `Class A` are names of things.
                _ => bare.is_empty() || links || between.contains([':', '：', '=', '】']),
            };
            if !is_apart {
                continue;
            }
            let found = read(value).or_else(|| if bare.len() < value.len() { read(bare) } else { None });
            if found.is_some() {
                return found;
            }
        }
        None
    }

    pub fn context(&self, sentence: &str, asked: Asked<'_>, before: Before) -> Before {
        let is_blank = |rest: &str| skip_marks(rest).trim_start_matches(closes).is_empty().then_some(());
        let is_introduction = self.introduced(sentence, asked, &mut |rest| is_blank(rest)).is_some();
        let last = sentence.trim_end_matches(is_mark).chars().next_back();
        match last {
            _ if is_introduction && before != Before::Open => Before::Introduction,
            Some(':' | '：' | ',' | '，' | '、' | '-' | '—') => Before::Open,
            _ if is_introduction => Before::Open,
            Some('.') if ABBREVIATIONS.iter().any(|short| sentence.trim_end_matches(is_mark).ends_with(short)) => {
                Before::Open
            }
            Some('。' | '！' | '!' | '？' | '?' | '.') => Before::End,
            _ => Before::Other,
        }
    }

    /// A number word: `三`, `二十五`, `three`, `twenty-five`.
    pub fn number(&self, text: &str) -> Option<i64> {
        /// No number word is longer, in bytes.
        const LONGEST_NUMBER: usize = 24;
        if text.len() > LONGEST_NUMBER {
            return None;
        }
        let text = text.to_lowercase();
        let value = |word: &str| self.numbers.get(word).copied();
        let digit = |word: &str| value(word).filter(|digit| (1..10).contains(digit));
        let tens = || {
            let (tens, ones) = text.split_once('十')?;
            let tens = if tens.is_empty() { 1 } else { digit(tens)? };
            Some(10 * tens + if ones.is_empty() { 0 } else { digit(ones)? })
        };
        let spelt = || {
            let (tens, ones) = text.split_once(['-', ' '])?;
            Some(value(tens).filter(|tens| (20..100).contains(tens))? + digit(ones)?)
        };
        value(&text).or_else(tens).or_else(spelt)
    }
}

/// What ends in a full stop and does not end its sentence.
const ABBREVIATIONS: [&str; 4] = ["e.g.", "i.e.", "cf.", "vs."];

/// What may stand around the words of an introduction. A `>` quotes somebody else.
fn is_mark(c: char) -> bool {
    c.is_whitespace() || "*_#`\"'“”‘’「」『』【】[]（）()".contains(c)
}

fn skip_marks(text: &str) -> &str {
    text.trim_start_matches(|c| is_mark(c) || matches!(c, ':' | '：' | ',' | '，' | '-'))
}

pub(super) fn ends_sentence(c: char) -> bool {
    matches!(c, '。' | '！' | '!' | '？' | '?' | '；' | ';' | '…')
}

/// What follows a word that the text begins with. A word of letters ends where the letters do.
fn after_word<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let (begin, rest) = text.split_at_checked(word.len())?;
    (begin.eq_ignore_ascii_case(word) && is_apart(word, rest)).then_some(rest)
}

fn is_apart(word: &str, rest: &str) -> bool {
    !word.ends_with(|c: char| c.is_ascii_alphanumeric())
        || !rest.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '\''))
}

/// As [`after_word`] for a name: `complaints` is `Complaint`, too, and `publisher_decision` `publisher decision`.
fn after_name<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let stem = name.strip_suffix('s').unwrap_or(name);
    let mut rest = text.chars();
    for c in stem.chars() {
        let same = rest.next()?.to_ascii_lowercase();
        if same != c.to_ascii_lowercase() && !(c == '_' && same == ' ') {
            return None;
        }
    }
    let rest = rest.as_str();
    let rest = rest.strip_prefix(['s', 'S']).unwrap_or(rest);
    is_apart(name, rest).then_some(rest)
}
