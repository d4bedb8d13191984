//! The values of a section: what each key may hold, and what is said when it holds something else.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::near::nearest;
use super::{At, Faults, Section};
use crate::config::secret::Secret;
use crate::config::units::{parse_duration, parse_size, show_duration, show_size};

impl Section<'_, '_> {
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
pub(super) fn describe(value: &DeValue<'_>) -> String {
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
