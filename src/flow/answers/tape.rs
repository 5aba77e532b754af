//! A JSON value as a flat list of nodes, in buffers that are used again. Bounded: an answer is small, and a text
//! that is not is no answer.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// An answer with more values than this is none.
const MAX_NODES: usize = 4096;
/// Bytes of all its strings.
const MAX_TEXT: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Node {
    /// Bytes of [`Tape::texts`].
    Text {
        start: usize,
        end: usize,
    },
    Number(Number),
    Null,
    /// `end`: the node after its last one.
    List {
        end: usize,
    },
    /// Key, value, key, value.
    Map {
        end: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(i64),
    /// With a fraction, or too large.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Tape {
    nodes: Vec<Node>,
    texts: String,
}

impl Tape {
    /// Reads one JSON value; `false` if the text is not one.
    pub fn read(&mut self, text: &str) -> bool {
        self.clear();
        self.append(text)
    }

    /// Reads objects one after another, with or without commas, as one array; `false` if there are not several.
    pub fn read_run<'t>(&mut self, objects: impl Iterator<Item = &'t str>) -> bool {
        self.clear();
        self.nodes.push(Node::List { end: 0 });
        let mut count = 0;
        for object in objects {
            if !self.append(object) {
                return false;
            }
            count += 1;
        }
        self.close(0, |end| Node::List { end });
        count > 1
    }

    fn clear(&mut self) {
        self.nodes.clear();
        self.texts.clear();
    }

    fn append(&mut self, text: &str) -> bool {
        let mut json = serde_json::Deserializer::from_str(text);
        Value(self).deserialize(&mut json).is_ok() && json.end().is_ok()
    }

    fn close(&mut self, at: usize, node: impl FnOnce(usize) -> Node) {
        let end = self.nodes.len();
        if let Some(open) = self.nodes.get_mut(at) {
            *open = node(end);
        }
    }

    pub fn node(&self, at: usize) -> Option<Node> {
        self.nodes.get(at).copied()
    }

    /// A string's text; empty for anything else.
    pub fn text(&self, at: usize) -> &str {
        match self.node(at) {
            Some(Node::Text { start, end }) => self.texts.get(start..end).unwrap_or_default(),
            _ => "",
        }
    }

    pub fn is_map(&self, at: usize) -> bool {
        matches!(self.node(at), Some(Node::Map { .. }))
    }

    pub fn is_list(&self, at: usize) -> bool {
        matches!(self.node(at), Some(Node::List { .. }))
    }

    /// The places of a list's elements, or of a map's keys and values.
    pub fn elements(&self, at: usize) -> impl Iterator<Item = usize> {
        let end = match self.node(at) {
            Some(Node::List { end } | Node::Map { end }) => end,
            _ => 0,
        };
        let mut next = at + 1;
        std::iter::from_fn(move || {
            let this = (next < end).then_some(next)?;
            next = match self.node(this) {
                Some(Node::List { end } | Node::Map { end }) => end,
                _ => this + 1,
            };
            Some(this)
        })
    }

    /// The keys of a map, each with the place of its value.
    pub fn entries(&self, at: usize) -> impl Iterator<Item = (&str, usize)> {
        let mut places = self.elements(at);
        std::iter::from_fn(move || Some((self.text(places.next()?), places.next()?)))
    }
}

/// Reads a value onto the tape.
struct Value<'t>(&'t mut Tape);

impl Value<'_> {
    fn push<E: serde::de::Error>(self, node: Node) -> Result<(), E> {
        if self.0.nodes.len() >= MAX_NODES {
            return Err(E::custom("too many values"));
        }
        self.0.nodes.push(node);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.push(Node::Null)
    }

    /// The labels of a boolean rule are these words.
    fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<(), E> {
        self.visit_str(if truth { "true" } else { "false" })
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.push(Node::Number(Number::Whole(number)))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.push(Node::Number(i64::try_from(number).map_or(Number::Other, Number::Whole)))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        /// Below it every whole float is exact.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        let whole = (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64);
        self.push(Node::Number(whole.map_or(Number::Other, Number::Whole)))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let start = self.0.texts.len();
        let end = start + text.len();
        if end > MAX_TEXT {
            return Err(E::custom("too much text"));
        }
        self.0.texts.push_str(text);
        self.push(Node::Text { start, end })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let tape = self.0;
        let at = tape.nodes.len();
        Value(tape).push::<A::Error>(Node::List { end: 0 })?;
        while elements.next_element_seed(Value(tape))?.is_some() {}
        tape.close(at, |end| Node::List { end });
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let tape = self.0;
        let at = tape.nodes.len();
        Value(tape).push::<A::Error>(Node::Map { end: 0 })?;
        while map.next_key_seed(Value(tape))?.is_some() {
            map.next_value_seed(Value(tape))?;
        }
        tape.close(at, |end| Node::Map { end });
        Ok(())
    }
}
