//! Finds the elements of one JSON array in a stream of bytes, without parsing them: it counts brackets and knows
//! strings. Whether an element is valid JSON is for its reader to say; here the array itself is checked.
//! Line breaks between the tokens of an element are left out, so that an element is one line; nothing else changes.

/// What is kept of a line over the limit.
pub const HEAD_BYTES: usize = 512;

/// One complete element.
#[derive(Debug)]
pub struct Element<'a> {
    pub bytes: &'a [u8],
    pub place: Position,
    pub too_long: bool,
}

/// A position in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes from the start of the decompressed input.
    pub offset: u64,
    /// Line number, from 1.
    pub number: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// After `[`: a value or `]`.
    First,
    /// After a comma: a value.
    Value,
    /// After a value: `,` or `]`.
    After,
    /// In a value, outside its strings.
    Tokens,
    /// In a string.
    Text,
    /// After a backslash in a string.
    Escape,
    Done,
}

/// Holds the unfinished element, and no more of it than the limit.
#[derive(Debug)]
pub struct ArraySplitter {
    state: State,
    depth: u64,
    element: Vec<u8>,
    begin: Position,
    too_long: bool,
    max_line: usize,
}

impl ArraySplitter {
    pub fn new(max_line: usize) -> Self {
        Self {
            state: State::Start,
            depth: 0,
            element: Vec::new(),
            begin: Position::default(),
            too_long: false,
            max_line,
        }
    }

    /// The closing bracket was seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes all of `bytes`, which begin at `place`, and emits each element that ends in them.
    ///
    /// # Errors
    /// What is wrong with the array; `place` is then where.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        place: &mut Position,
        mut emit: impl FnMut(Element<'_>),
    ) -> Result<(), String> {
        let base = place.offset;
        // Start of the bytes that are to be copied in one piece.
        let mut run = 0;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            place.offset = base + at as u64;
            match self.state {
                State::Text => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let Some(next) = memchr::memchr2(b'"', b'\\', rest) else {
                        break;
                    };
                    at += next + 1;
                    if rest.get(next) == Some(&b'\\') {
                        self.state = State::Escape;
                    } else {
                        self.state = State::Tokens;
                        if self.depth == 0 {
                            self.end(bytes.get(run..at).unwrap_or_default(), &mut emit);
                        }
                    }
                }
                State::Escape => {
                    self.state = State::Text;
                    at += 1;
                }
                State::Tokens => match byte {
                    b'"' => {
                        self.state = State::Text;
                        at += 1;
                    }
                    b'{' | b'[' => {
                        self.depth += 1;
                        at += 1;
                    }
                    b'}' | b']' if self.depth > 0 => {
                        self.depth -= 1;
                        at += 1;
                        if self.depth == 0 {
                            self.end(bytes.get(run..at).unwrap_or_default(), &mut emit);
                        }
                    }
                    b'\n' | b'\r' if self.depth > 0 => {
                        self.keep(bytes.get(run..at).unwrap_or_default());
                        place.number += u64::from(byte == b'\n');
                        at += 1;
                        run = at;
                    }
                    // A number or word has no bracket of its own: what follows it ends it.
                    b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 => {
                        self.end(bytes.get(run..at).unwrap_or_default(), &mut emit);
                    }
                    _ => at += 1,
                },
                State::Start | State::First | State::Value | State::After | State::Done => {
                    self.between(byte, *place)?;
                    if matches!(self.state, State::Tokens) {
                        run = at;
                    } else {
                        place.number += u64::from(byte == b'\n');
                        at += 1;
                    }
                }
            }
        }
        if matches!(self.state, State::Tokens | State::Text | State::Escape) {
            self.keep(bytes.get(run..).unwrap_or_default());
        }
        place.offset = base + bytes.len() as u64;
        Ok(())
    }

    /// A byte that belongs to the array itself, or the first of a value (which is not taken).
    fn between(&mut self, byte: u8, place: Position) -> Result<(), String> {
        self.state = match (self.state, byte) {
            (state, b' ' | b'\t' | b'\n' | b'\r') => state,
            // Padding of the file.
            (State::Done, 0) => State::Done,
            (State::Start, b'[') => State::First,
            (State::First | State::After, b']') => State::Done,
            (State::After, b',') => State::Value,
            (State::First | State::Value, b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.begin = place;
                State::Tokens
            }
            (State::Done, _) => return Err("something follows the end of the array".to_owned()),
            (State::After, _) => return Err("`,` or `]` is missing after a post".to_owned()),
            (State::Value, b']') => return Err("a comma, and then no post".to_owned()),
            _ => return Err("no JSON value begins here".to_owned()),
        };
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.too_long {
            let room = HEAD_BYTES.saturating_sub(self.element.len());
            self.element.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            return;
        }
        self.element.extend_from_slice(bytes);
        if self.element.len() > self.max_line {
            self.too_long = true;
            self.element.truncate(HEAD_BYTES);
            self.element.shrink_to(HEAD_BYTES);
        }
    }

    fn end(&mut self, last: &[u8], emit: &mut impl FnMut(Element<'_>)) {
        if self.element.is_empty() && last.len() <= self.max_line {
            emit(Element { bytes: last, place: self.begin, too_long: false });
        } else {
            self.keep(last);
            emit(Element { bytes: &self.element, place: self.begin, too_long: self.too_long });
        }
        self.element.clear();
        self.too_long = false;
        self.state = State::After;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(input: &[u8], piece: usize) -> Result<Vec<String>, (String, Position)> {
        let mut splitter = ArraySplitter::new(1 << 20);
        let mut place = Position { offset: 0, number: 1 };
        let mut elements = Vec::new();
        for bytes in input.chunks(piece) {
            splitter
                .feed(bytes, &mut place, |e| elements.push(String::from_utf8_lossy(e.bytes).into_owned()))
                .map_err(|what| (what, place))?;
        }
        if splitter.is_done() { Ok(elements) } else { Err(("not ended".to_owned(), place)) }
    }

    #[test]
    fn elements_are_cut_wherever_the_reads_end() {
        let input = b" [ {\"a\": \"]},\\\"\\\\\",\r\n \"b\":[1,\n[2]] } ,3,\"x,]\"\n, null,{},[]\n]\n";
        for piece in 1..input.len() {
            assert_eq!(
                split(input, piece).as_deref(),
                Ok(&["{\"a\": \"]},\\\"\\\\\", \"b\":[1,[2]] }", "3", "\"x,]\"", "null", "{}", "[]"]
                    .map(str::to_owned)[..]),
                "{piece}"
            );
        }
        assert_eq!(split(b"[]", 1), Ok(vec![]));
    }

    #[test]
    fn what_is_no_array() {
        for (input, offset) in [(&b"[1 2]"[..], 3), (b"[1,]", 3), (b"[,1]", 1), (b"[1]x", 3), (b"[}", 1), (b"[1}", 2)] {
            let (_, place) = split(input, 64).expect_err("refused");
            assert_eq!(place.offset, offset, "{}", String::from_utf8_lossy(input));
        }
        assert!(split(b"[{\"a\":1}", 64).is_err());
    }

    proptest! {
        #[test]
        fn splitting_agrees_with_serde(texts in proptest::collection::vec(".*", 0..8), piece in 1usize..40) {
            let values: Vec<serde_json::Value> = texts.iter().map(|t| serde_json::json!({ t.clone(): [t, {"k": t}] })).collect();
            let pretty = serde_json::to_string_pretty(&values).expect("serialises");
            let elements = split(pretty.as_bytes(), piece).expect("an array");
            let back: Vec<serde_json::Value> = elements.iter().map(|e| serde_json::from_str(e).expect("valid")).collect();
            prop_assert_eq!(back, values);
            prop_assert!(elements.iter().all(|e| !e.contains('\n')));
        }
    }
}
