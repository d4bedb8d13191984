//! Reads one TOML file value by value, so that every fault of it is reported and not only the first.
//!
//! Owns: the text, its line numbers, the faults found so far. Never does: stop at a fault, or know what a key means.
//! (A derived deserializer would end at the first unknown key and could not say what to write instead.)

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::secret::Secret;
use super::units::{parse_duration, parse_size, show_duration, show_size};

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

    pub fn string(&mut self, faults: &mut Faults, key: &'static str) -> Option<At<String>> {
        let (value, line) = self.take(key)?;
        match value.as_str() {
            Some(text) if text.contains('\0') => {
                self.refuse(faults, line, key, "holds a NUL byte", "remove it");
                None
            }
            Some(text) => Some(At {
                value: text.to_owned(),
                line,
            }),
            None => {
                let problem = format!("{} stands where a string is expected", describe(value));
                self.refuse(faults, line, key, problem, "write it in quotes");
                None
            }
        }
    }

    /// A string that says something; an empty one counts as absent.
    pub fn text(&mut self, faults: &mut Faults, key: &'static str) -> Option<At<String>> {
        self.string(faults, key).filter(|at| !at.value.is_empty())
    }

    /// A string that no message may show; an empty one counts as absent.
    pub fn secret(&mut self, faults: &mut Faults, key: &'static str) -> Option<At<Secret>> {
        let (value, line) = self.take(key)?;
        match value.as_str() {
            Some("") => None,
            Some(text) if text.contains('\0') => {
                self.refuse(faults, line, key, "holds a NUL byte", "remove it");
                None
            }
            Some(text) => Some(At {
                value: Secret::new(text),
                line,
            }),
            None => {
                self.refuse(faults, line, key, "is not a string", "write it in quotes");
                None
            }
        }
    }

    pub fn boolean(&mut self, faults: &mut Faults, key: &'static str, default: bool) -> bool {
        let Some((value, line)) = self.take(key) else {
            return default;
        };
        value.as_bool().unwrap_or_else(|| {
            let problem = format!("{} is not true or false", describe(value));
            self.refuse(
                faults,
                line,
                key,
                problem,
                "write true or false without quotes",
            );
            default
        })
    }

    pub fn integer(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<At<u64>> {
        let (value, line) = self.take(key)?;
        let (low, high) = (range.start(), range.end());
        let number = match integer_of(value) {
            Some(number) if number >= i128::from(*low) && number <= i128::from(*high) => number,
            Some(number) => {
                let problem = format!("{number} is not between {low} and {high}");
                self.refuse(faults, line, key, problem, format!("write e.g. {low}"));
                return None;
            }
            None => {
                let problem = format!("{} is not a whole number", describe(value));
                self.refuse(faults, line, key, problem, "write digits without quotes");
                return None;
            }
        };
        u64::try_from(number).ok().map(|value| At { value, line })
    }

    /// A share between 0.0 and 1.0.
    pub fn share(&mut self, faults: &mut Faults, key: &'static str) -> Option<f64> {
        let (value, line) = self.take(key)?;
        let number = match value {
            DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
            DeValue::Integer(_) => integer_of(value).map(|number| number as f64),
            _ => None,
        };
        let way_out = "write e.g. 0.1 for 10 %";
        match number {
            Some(share) if (0.0..=1.0).contains(&share) => Some(share),
            Some(_) => {
                let problem = format!("{} is not between 0.0 and 1.0", show_number(value));
                self.refuse(faults, line, key, problem, way_out);
                None
            }
            None => {
                let problem = format!("{} is not a number between 0.0 and 1.0", describe(value));
                self.refuse(faults, line, key, problem, way_out);
                None
            }
        }
    }

    pub fn duration(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.measured(faults, key, default, &range, &DURATION)
    }

    pub fn size(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        self.measured(faults, key, default, &range, &SIZE)
    }

    fn measured<T: PartialOrd + Copy>(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        default: T,
        range: &RangeInclusive<T>,
        measure: &Measure<T>,
    ) -> T {
        let show = measure.show;
        let Some((value, line)) = self.take(key) else {
            return default;
        };
        let example = format!("write e.g. \"{}\"", show(default));
        let Some(text) = value.as_str() else {
            let (problem, way_out) = match integer_of(value) {
                Some(number) => (
                    format!("{number} has no unit"),
                    (measure.with_unit)(number.to_string()),
                ),
                None => (
                    format!("{} is not a {}", describe(value), measure.noun),
                    example,
                ),
            };
            self.refuse(faults, line, key, problem, way_out);
            return default;
        };
        match (measure.parse)(text) {
            Ok(value) if range.contains(&value) => value,
            Ok(value) => {
                let (low, high) = (show(*range.start()), show(*range.end()));
                let problem = format!("{} is not between {low} and {high}", show(value));
                self.refuse(faults, line, key, problem, example);
                default
            }
            Err(problem) => {
                let way_out = format!("{example}; units are {}", measure.units);
                self.refuse(faults, line, key, problem, way_out);
                default
            }
        }
    }

    /// One of several words.
    pub fn word<T>(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        words: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<At<T>> {
        let at = self.string(faults, key)?;
        if let Some(value) = parse(&at.value) {
            return Some(At {
                value,
                line: at.line,
            });
        }
        let way_out = match nearest(&at.value, words) {
            Some(word) => format!("did you mean \"{word}\"? ({})", words.join(" | ")),
            None => format!("write one of {}", words.join(" | ")),
        };
        let problem = format!("{:?} is not known", at.value);
        self.refuse(faults, at.line, key, problem, way_out);
        None
    }

    /// A list of CPU ids, or the word `"all"` as `None` inside.
    pub fn cpu_list(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
    ) -> Option<At<Option<Vec<usize>>>> {
        let (value, line) = self.take(key)?;
        let way_out = "write \"all\" or a list of CPU ids, e.g. [0, 1]";
        if value.as_str() == Some("all") {
            return Some(At { value: None, line });
        }
        let Some(items) = value.as_array() else {
            let problem = format!("{} is not a list of CPU ids", describe(value));
            self.refuse(faults, line, key, problem, way_out);
            return None;
        };
        let mut list = Vec::new();
        for item in items.iter() {
            match integer_of(item.get_ref()).and_then(|number| usize::try_from(number).ok()) {
                Some(cpu) => list.push(cpu),
                None => {
                    let problem = format!("{} is not a CPU id", describe(item.get_ref()));
                    let line = self.source.line(item.span().start);
                    self.refuse(faults, line, key, problem, way_out);
                    return None;
                }
            }
        }
        Some(At {
            value: Some(list),
            line,
        })
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

/// A value with a unit: how it is read, shown and asked for.
struct Measure<T> {
    noun: &'static str,
    units: &'static str,
    /// The way out for a bare number.
    with_unit: fn(String) -> String,
    parse: fn(&str) -> Result<T, String>,
    show: fn(T) -> String,
}

const DURATION: Measure<Duration> = Measure {
    noun: "duration",
    units: "us, ms, s, m, h",
    with_unit: |number| format!("write \"{number}ms\" or \"{number}s\""),
    parse: parse_duration,
    show: show_duration,
};

const SIZE: Measure<usize> = Measure {
    noun: "size",
    units: "B, KiB, MiB, GiB, KB, MB, GB",
    with_unit: |number| format!("write \"{number}B\", \"{number}KiB\" or \"{number}MiB\""),
    parse: parse_size,
    show: show_size,
};

/// A value in words, without showing strings that may be secrets in the wrong place.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.len() <= 40 => format!("the string {:?}", text.as_ref()),
        DeValue::String(_) => "a long string".to_owned(),
        DeValue::Integer(_) | DeValue::Float(_) => format!("the number {}", show_number(value)),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn show_number(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => match number.as_str() {
            text if text.contains("nan") => "NaN".to_owned(),
            text => text.to_owned(),
        },
        _ => String::new(),
    }
}

fn integer_of(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    // Longer than any number that could be meant; i128 holds what is left, so "out of range" can be said of it.
    i128::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}

/// The word that a typing error most likely meant: at most a third of its letters differ.
pub(super) fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    // A key may be as long as the file; no typing error is.
    if word.len() > 64 {
        return None;
    }
    words
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(word.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes, row by row.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_finds_its_key_and_nonsense_finds_none() {
        let keys = ["mirror_queue", "mirror_exposure", "pace"];
        assert_eq!(nearest("miror_exposure", &keys), Some("mirror_exposure"));
        assert_eq!(nearest("pase", &keys), Some("pace"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest(&"x".repeat(100_000), &keys), None);
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source::new("f", "a\nb\n\nc");
        assert_eq!([0, 1, 2, 4, 5].map(|at| source.line(at)), [1, 1, 2, 3, 4]);
    }
}
