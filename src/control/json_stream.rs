//! One JSON object with a list that may be too long for memory: its members before, the elements as they come, its
//! members after.
//!
//! Knows commas. Does not know what the members are.

use std::io::{self, Write};

use serde::Serialize;

/// An object under construction.
pub(super) struct JsonStream<'a> {
    out: &'a mut dyn Write,
    members: usize,
    elements: Option<usize>,
}

impl<'a> JsonStream<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Self { out, members: 0, elements: None })
    }

    /// A member; ends the list, if one was begun.
    pub(super) fn member(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.name(name)?;
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }

    /// Begins the list `name`: elements follow.
    pub(super) fn list(&mut self, name: &str) -> io::Result<()> {
        self.name(name)?;
        self.elements = Some(0);
        self.out.write_all(b"[")
    }

    pub(super) fn element(&mut self, value: &impl Serialize) -> io::Result<()> {
        if let Some(elements) = &mut self.elements {
            self.out.write_all(if *elements == 0 { b"\n    " } else { b",\n    " })?;
            *elements += 1;
        }
        serde_json::to_writer(&mut *self.out, value)?;
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.end_list()?;
        self.out.write_all(b"\n}\n")
    }

    fn name(&mut self, name: &str) -> io::Result<()> {
        self.end_list()?;
        self.out.write_all(if self.members == 0 { b"\n  " } else { b",\n  " })?;
        self.members += 1;
        serde_json::to_writer(&mut *self.out, name)?;
        self.out.write_all(b": ")
    }

    fn end_list(&mut self) -> io::Result<()> {
        match self.elements.take() {
            Some(0) => self.out.write_all(b"]"),
            Some(_) => self.out.write_all(b"\n  ]"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_streamed_parses() {
        let mut out = Vec::new();
        let mut stream = JsonStream::new(&mut out).unwrap();
        stream.member("a", &1).unwrap();
        stream.list("empty").unwrap();
        stream.list("some").unwrap();
        stream.element(&"x\"y").unwrap();
        stream.element(&2).unwrap();
        stream.member("b", &true).unwrap();
        stream.finish().unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value, serde_json::json!({"a": 1, "empty": [], "some": ["x\"y", 2], "b": true}));
    }
}
