//! One YAML file as sections whose keys are taken one by one. Whatever does not fit is noted with
//! file and dotted key and replaced by the default, so that one look at a file finds all its
//! problems; keys that nobody took are problems too. Knows nothing of what keys mean. Only this
//! file names `serde_yaml`. Used by `check` and `settings`.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use super::Problem;

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, file: &Path, key: impl Into<String>, message: impl Into<String>) {
        let problem = Problem { file: file.into(), key: key.into(), message: message.into() };
        self.0.borrow_mut().push(problem);
    }
    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A mapping of a file. Dropping it notes the keys that nobody took.
#[derive(Debug)]
pub(super) struct Section<'a> {
    file: PathBuf,
    /// Dotted path of the mapping itself; empty at the top.
    path: String,
    left: Mapping,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// Reads `root/file`. `None`: not there or not YAML, which is noted.
    pub(super) fn read(root: &Path, file: &Path, problems: &'a Problems) -> Option<Self> {
        let text = match std::fs::read_to_string(root.join(file)) {
            Ok(text) => text,
            Err(error) => {
                problems.add(file, "", format!("cannot be read: {error}"));
                return None;
            }
        };
        match serde_yaml::from_str::<Value>(&text) {
            Ok(value) => Some(Self::new(file, String::new(), value, problems)),
            Err(error) => {
                problems.add(file, "", format!("is not YAML: {error}"));
                None
            }
        }
    }

    /// A section in which nothing is set.
    pub(super) fn empty(file: &Path, problems: &'a Problems) -> Self {
        Self::new(file, String::new(), Value::Null, problems)
    }

    fn new(file: &Path, path: String, value: Value, problems: &'a Problems) -> Self {
        let left = match value {
            Value::Mapping(mapping) => mapping,
            Value::Null => Mapping::new(),
            _ => {
                problems.add(file, path.as_str(), "must be a mapping of keys to values");
                Mapping::new()
            }
        };
        Self { file: file.into(), path, left, known: Vec::new(), problems }
    }

    /// Notes a problem with one of this section's keys.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.problems.add(&self.file, self.dotted(key), message);
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Value {
        self.known.push(key);
        self.left.remove(key).unwrap_or_default()
    }

    /// A value of any type; `None` when it is not set or does not fit.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key);
        if value.is_null() {
            return None;
        }
        serde_yaml::from_value(value).map_err(|error| self.problem(key, error.to_string())).ok()
    }

    /// A value of any type that has a default.
    pub(super) fn value<T: DeserializeOwned>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A number within bounds, if one is set.
    pub(super) fn optional_number<T>(
        &mut self,
        key: &'static str,
        allowed: &RangeInclusive<T>,
    ) -> Option<T>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        let number = self.optional::<T>(key)?;
        if allowed.contains(&number) {
            return Some(number);
        }
        let (least, most) = (allowed.start(), allowed.end());
        self.problem(key, format!("is {number}; {least} to {most} is allowed"));
        None
    }

    /// A number within bounds.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        default: T,
        allowed: &RangeInclusive<T>,
    ) -> T
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        self.optional_number(key, allowed).unwrap_or(default)
    }

    /// Seconds, up to a day.
    pub(super) fn seconds(&mut self, key: &'static str, default: f64) -> Duration {
        Duration::from_secs_f64(self.number(key, default, &(0.0..=86_400.0)))
    }

    /// A value that must be there; `wanted` says what fits.
    pub(super) fn required<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        wanted: &str,
    ) -> Option<T> {
        let value = self.take(key);
        if value.is_null() {
            self.problem(key, format!("is missing; {wanted}"));
            return None;
        }
        let fault = |error| self.problem(key, format!("{error}; {wanted}"));
        serde_yaml::from_value(value).map_err(fault).ok()
    }

    /// A text that must be there and not be blank.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let text = self.required::<String>(key, "a text is needed")?;
        if text.trim().is_empty() {
            self.problem(key, "is blank; a text is needed");
            return None;
        }
        Some(text)
    }

    /// A mapping below this one; empty when it is not set.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let value = self.take(key);
        Self::new(&self.file, self.dotted(key), value, self.problems)
    }

    /// A word, or a mapping with more to say; `None` when neither is there.
    pub(super) fn word_or_section(&mut self, key: &'static str) -> Option<Result<String, Self>> {
        match self.take(key) {
            Value::Null => None,
            Value::String(word) => Some(Ok(word)),
            value => Some(Err(Self::new(&self.file, self.dotted(key), value, self.problems))),
        }
    }

    /// Whether a key has a value that nobody took yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(|value| !value.is_null())
    }

    /// A list whose items are a name or a mapping with more to say. A name becomes a mapping of
    /// `name` alone.
    pub(super) fn named_items(&mut self, key: &'static str) -> Vec<Self> {
        let path = self.dotted(key);
        let items = match self.take(key) {
            Value::Null => Vec::new(),
            Value::Sequence(items) => items,
            _ => {
                self.problem(key, "must be a list");
                Vec::new()
            }
        };
        let section = |(index, item)| {
            let item = match item {
                Value::String(name) => {
                    Value::Mapping(Mapping::from_iter([("name".into(), Value::String(name))]))
                }
                other => other,
            };
            Self::new(&self.file, format!("{path}[{index}]"), item, self.problems)
        };
        items.into_iter().enumerate().map(section).collect()
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for key in std::mem::take(&mut self.left).keys() {
            let key = match key {
                Value::String(key) => key.clone(),
                other => format!("{other:?}"),
            };
            self.problem(&key, format!("is not known; allowed: {}", self.known.join(", ")));
        }
    }
}
