//! The names of the post's fields that prompts place or analyses need. A prompt is compiled with the numbers of its fields, and
//! a post is read with the same numbers, so that no name is compared for each request.

/// The field names that matter, each with its [`Slot`].
#[derive(Debug, Default)]
pub struct Fields {
    names: Vec<String>,
    /// The names that prompts ask about: an object with none of them is no post.
    asked: Vec<String>,
}

/// A field's number in [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Fields {
    /// The slot of a name, made if it is new.
    pub fn slot(&mut self, name: &str) -> Slot {
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        // 65,536 different fields in prompts that a person wrote do not occur; the last slot is shared then.
        Slot(u16::try_from(at).unwrap_or(u16::MAX))
    }

    /// Notes that a prompt asks about this field.
    pub fn ask(&mut self, slot: Slot) {
        let name = self.name(slot).to_owned();
        if !self.asked.contains(&name) {
            self.asked.push(name);
        }
    }

    /// The names of all fields that prompts ask about.
    pub fn asked(&self) -> &[String] {
        &self.asked
    }

    pub fn name(&self, slot: Slot) -> &str {
        self.names.get(usize::from(slot.0)).map_or("", String::as_str)
    }

    /// The slot of a name that has one.
    pub fn find(&self, name: &str) -> Option<Slot> {
        let at = self.names.iter().position(|known| known == name)?;
        u16::try_from(at).ok().map(Slot)
    }
}
