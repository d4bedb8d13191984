//! Reads one TOML file value by value, so that every fault of it is reported and not only the first.
//!
//! Owns: the text, its line numbers, the faults found so far. Never does: stop at a fault, or know what a key means.
//! (A derived deserializer would end at the first unknown key and could not say what to write instead.)

mod near;
mod values;

use std::fmt::Display;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

pub(super) use self::near::nearest;
use self::values::describe;

/// A file's name and text, with what is needed to turn byte offsets into lines.
pub(super) struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
    newlines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            text,
            newlines: memchr::memchr_iter(b'\n', text.as_bytes()).collect(),
        }
    }

    /// The line, from 1, that holds this byte.
    pub fn line(&self, offset: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < offset) + 1
    }
}

/// Something read, and the line where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub line: usize,
}

/// Faults and warnings found so far.
#[derive(Default)]
pub(super) struct Faults {
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
}

/// Makes the form that errors and warnings have.
pub(super) fn fault(
    file: &str,
    line: usize,
    key: &str,
    problem: impl Display,
    way_out: impl Display,
) -> ConfigError {
    ConfigError {
        file: file.to_owned(),
        line: Some(line),
        key: key.to_owned(),
        problem: problem.to_string(),
        way_out: way_out.to_string(),
    }
}

/// One table of the file. Every key that is asked for counts as known; [`Section::finish`] refuses the others.
pub(super) struct Section<'s, 'i> {
    source: &'s Source<'s>,
    /// `general`, `databases`, `listeners.tls`.
    pub path: String,
    pub line: usize,
    table: &'s DeTable<'i>,
    known: Vec<&'static str>,
}

impl<'s, 'i> Section<'s, 'i> {
    pub fn new(
        source: &'s Source<'s>,
        path: impl Into<String>,
        line: usize,
        table: &'s DeTable<'i>,
    ) -> Self {
        Self {
            source,
            path: path.into(),
            line,
            table,
            known: Vec::new(),
        }
    }

    pub fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Reports a fault at a key's line.
    pub fn refuse(
        &self,
        faults: &mut Faults,
        line: usize,
        key: &str,
        problem: impl Display,
        way_out: impl Display,
    ) {
        faults.errors.push(self.fault(line, key, problem, way_out));
    }

    /// A fault or warning of this section.
    pub fn fault(
        &self,
        line: usize,
        key: &str,
        problem: impl Display,
        way_out: impl Display,
    ) -> ConfigError {
        fault(self.source.name, line, &self.key(key), problem, way_out)
    }

    /// Reports a key that must be there.
    pub fn missing(&self, faults: &mut Faults, key: &str, way_out: impl Display) {
        self.refuse(faults, self.line, key, "is missing", way_out);
    }

    /// Whether the key stands in the file, without reading it.
    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Whether the key holds `""`.
    pub fn is_empty_string(&self, key: &str) -> bool {
        self.table
            .get(key)
            .is_some_and(|value| value.get_ref().as_str() == Some(""))
    }

    /// The line of a key, or of the section if the key is not there.
    pub fn line_of(&self, key: &str) -> usize {
        self.table
            .get(key)
            .map_or(self.line, |value| self.source.line(value.span().start))
    }

    fn take(&mut self, key: &'static str) -> Option<(&'s DeValue<'i>, usize)> {
        self.known.push(key);
        let value = self.table.get(key)?;
        Some((value.get_ref(), self.source.line(value.span().start)))
    }

    /// A table inside this one.
    pub fn table(&mut self, faults: &mut Faults, key: &'static str) -> Option<Section<'s, 'i>> {
        let (value, line) = self.take(key)?;
        match value.as_table() {
            Some(table) => Some(Section::new(self.source, self.key(key), line, table)),
            None => {
                let problem = format!("{} is not a table", describe(value));
                self.refuse(
                    faults,
                    line,
                    key,
                    problem,
                    format!("write [{}]", self.key(key)),
                );
                None
            }
        }
    }

    /// The tables of `[[key]]`.
    pub fn tables(&mut self, faults: &mut Faults, key: &'static str) -> Vec<Section<'s, 'i>> {
        let Some((value, line)) = self.take(key) else {
            return Vec::new();
        };
        let Some(items) = value.as_array() else {
            let problem = format!("{} is not a list of tables", describe(value));
            self.refuse(
                faults,
                line,
                key,
                problem,
                format!("write [[{}]]", self.key(key)),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            let line = self.source.line(item.span().start);
            match item.get_ref().as_table() {
                Some(table) => {
                    sections.push(Section::new(self.source, self.key(key), line, table));
                }
                None => {
                    let problem = format!("{} is not a table", describe(item.get_ref()));
                    self.refuse(
                        faults,
                        line,
                        key,
                        problem,
                        format!("write [[{}]]", self.key(key)),
                    );
                }
            }
        }
        sections
    }

    /// Refuses the keys that nobody asked for. `foreign` says what a key of another program is, if it is one.
    pub fn finish(self, faults: &mut Faults, foreign: impl Fn(&str) -> Option<&'static str>) {
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let way_out = match (foreign(name), nearest(name, &self.known)) {
                (Some(hint), _) => hint.to_owned(),
                (None, Some(known)) => format!("did you mean \"{known}\"?"),
                (None, None) => format!("known here are {}", self.known.join(", ")),
            };
            let line = self.source.line(key.span().start);
            self.refuse(faults, line, name, "unknown key", way_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one() {
        let source = Source::new("f", "a\nb\n\nc");
        assert_eq!([0, 1, 2, 4, 5].map(|at| source.line(at)), [1, 1, 2, 3, 4]);
    }
}
