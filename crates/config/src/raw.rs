//! One YAML file as sections whose keys are taken one by one. Whatever does not fit is noted with
//! file and dotted key and replaced by the default, so that one look at a file finds all its
//! problems; keys that nobody took are problems too. Each key that is taken can be noted with its
//! default and what is allowed, which is what the reference of keys is made of. Knows nothing of
//! what keys mean. Only this file names `serde_yaml`. Used by `check`, `settings` and `keys`.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use super::{Key, KeyDefault, Problem};

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: RefCell<Vec<Problem>>,
    /// What should be known although nothing is wrong.
    warnings: RefCell<Vec<Problem>>,
    /// The keys that were taken, where somebody wants to know them.
    taken: Option<RefCell<Vec<Key>>>,
}

impl Problems {
    /// Notes every key that is taken, too.
    pub(super) fn with_keys() -> Self {
        Self { taken: Some(RefCell::default()), ..Self::default() }
    }
    pub(super) fn add(&self, file: &Path, key: impl Into<String>, message: impl Into<String>) {
        let problem = Problem { file: file.into(), key: key.into(), message: message.into() };
        self.found.borrow_mut().push(problem);
    }
    pub(super) fn warnings(&self) -> Vec<Problem> {
        self.warnings.borrow().clone()
    }
    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.found.into_inner()
    }
    /// Empty without [`Problems::with_keys`].
    pub(super) fn into_keys(self) -> Vec<Key> {
        self.taken.map(RefCell::into_inner).unwrap_or_default()
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

    /// A section of this text.
    pub(super) fn parse(file: &Path, text: &str, problems: &'a Problems) -> Self {
        let value = serde_yaml::from_str(text).unwrap_or_else(|error| {
            problems.add(file, "", format!("is not YAML: {error}"));
            Value::Null
        });
        Self::new(file, String::new(), value, problems)
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

    /// A key of earlier versions: a file that has it still opens, with a warning that says why the
    /// key is ignored.
    pub(super) fn retired(&mut self, key: &str, why: &str) {
        if self.left.remove(key).is_some() {
            let message = format!("has no effect any more: {why}; take the line out");
            let key = self.dotted(key);
            let warning = Problem { file: self.file.clone(), key, message };
            self.problems.warnings.borrow_mut().push(warning);
        }
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Value {
        self.known.push(key);
        self.left.remove(key).unwrap_or_default()
    }

    /// Notes a key for the reference of keys.
    fn note<T>(&self, key: &str, describe: impl FnOnce() -> (KeyDefault, String)) {
        let Some(taken) = &self.problems.taken else { return };
        let (default, allowed) = describe();
        let kind = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
        let key = self.dotted(key);
        taken.borrow_mut().push(Key { file: self.file.clone(), key, default, allowed, kind });
    }

    /// A value of any type; `None` when it is not set or does not fit.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        self.note::<T>(key, || (KeyDefault::Absent, words::<T>()));
        self.fitting(key)
    }

    /// A value that stands for a `T` and is read by the caller; `None` when it is not set.
    pub(super) fn untyped<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
    ) -> Option<serde_json::Value> {
        self.note::<T>(key, || (KeyDefault::Absent, words::<T>()));
        self.fitting(key)
    }

    fn fitting<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key);
        if value.is_null() {
            return None;
        }
        serde_yaml::from_value(value).map_err(|error| self.problem(key, error.to_string())).ok()
    }

    /// A value of any type that has a default.
    pub(super) fn value<T>(&mut self, key: &'static str, default: T) -> T
    where
        T: DeserializeOwned + Serialize,
    {
        self.note::<T>(key, || (KeyDefault::Value(shown(&default)), words::<T>()));
        self.fitting(key).unwrap_or(default)
    }

    /// A value of more than one type: `default` and `allowed` in words.
    pub(super) fn mixed<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        default: &str,
        allowed: &str,
    ) -> Option<T> {
        self.note::<T>(key, || (KeyDefault::Value(default.to_owned()), allowed.to_owned()));
        self.fitting(key)
    }

    /// Likewise without a default.
    pub(super) fn mixed_optional<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        allowed: &str,
    ) -> Option<T> {
        self.note::<T>(key, || (KeyDefault::Absent, allowed.to_owned()));
        self.fitting(key)
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
        self.note::<T>(key, || (KeyDefault::Absent, range(allowed)));
        self.within(key, allowed)
    }

    fn within<T>(&mut self, key: &'static str, allowed: &RangeInclusive<T>) -> Option<T>
    where
        T: DeserializeOwned + PartialOrd + Display,
    {
        let number = self.fitting::<T>(key)?;
        if allowed.contains(&number) {
            return Some(number);
        }
        self.problem(key, format!("is {number}; {} is allowed", range(allowed)));
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
        self.note::<T>(key, || (KeyDefault::Value(default.to_string()), range(allowed)));
        self.within(key, allowed).unwrap_or(default)
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
        self.note::<T>(key, || (KeyDefault::Required, wanted.to_owned()));
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
        self.note::<Self>(key, || (KeyDefault::Absent, "keys below".to_owned()));
        let value = self.take(key);
        Self::new(&self.file, self.dotted(key), value, self.problems)
    }

    /// A mapping below this one, or a word that is its `name`.
    pub(super) fn named_section(&mut self, key: &'static str) -> Self {
        self.note::<Self>(key, || (KeyDefault::Absent, "keys below".to_owned()));
        let value = named(self.take(key));
        Self::new(&self.file, self.dotted(key), value, self.problems)
    }

    /// The keys of a mapping, or `None` when there is the word that is also the default, or nothing.
    /// `allowed` is all that may be there, in words.
    pub(super) fn word_or_section(
        &mut self,
        key: &'static str,
        default: &str,
        allowed: &str,
    ) -> Option<Self> {
        self.note::<String>(key, || (KeyDefault::Value(default.to_owned()), allowed.to_owned()));
        match self.take(key) {
            Value::Null => None,
            Value::String(word) => {
                if word != default {
                    self.problem(key, format!("is {word:?}; {allowed} is allowed"));
                }
                None
            }
            value => Some(Self::new(&self.file, self.dotted(key), value, self.problems)),
        }
    }

    /// Takes a key that has this word, so that nobody else does.
    pub(super) fn takes_word(&mut self, key: &'static str, word: &str) -> bool {
        let has_word = self.left.get(key).is_some_and(|value| value.as_str() == Some(word));
        if has_word {
            self.take(key);
        }
        has_word
    }

    /// Whether a key has a value that nobody took yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(|value| !value.is_null())
    }

    /// Takes a key that is not known any more; whether it was there.
    pub(super) fn forget(&mut self, key: &str) -> bool {
        self.left.remove(key).is_some()
    }

    /// A list whose items are a name or a mapping with more to say. A name becomes a mapping of
    /// `name` alone.
    pub(super) fn named_items(&mut self, key: &'static str) -> Vec<Self> {
        let path = self.dotted(key);
        self.note::<Vec<Self>>(key, || (KeyDefault::Absent, "a list of names or mappings".into()));
        let items = match self.take(key) {
            Value::Null => Vec::new(),
            Value::Sequence(items) => items,
            _ => {
                self.problem(key, "must be a list");
                Vec::new()
            }
        };
        let section = |(index, item)| {
            Self::new(&self.file, format!("{path}[{index}]"), named(item), self.problems)
        };
        items.into_iter().enumerate().map(section).collect()
    }
}

/// A word as a mapping of `name` alone.
fn named(value: Value) -> Value {
    match value {
        Value::String(name) => {
            Value::Mapping(Mapping::from_iter([("name".into(), Value::String(name))]))
        }
        other => other,
    }
}

/// How the bounds of a number read.
fn range<T: Display>(allowed: &RangeInclusive<T>) -> String {
    format!("{} to {}", allowed.start(), allowed.end())
}

/// A default as YAML has it on one line.
fn shown<T: Serialize>(default: &T) -> String {
    match serde_yaml::to_value(default) {
        Ok(Value::String(text)) => text,
        Ok(Value::Sequence(items)) => {
            format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        other => {
            serde_yaml::to_string(&other.unwrap_or_default()).unwrap_or_default().trim().to_owned()
        }
    }
}

/// What a type takes, as its deserializer says when it gets something else.
fn words<T: DeserializeOwned>() -> String {
    let nothing = Value::String(String::new());
    let Err(error) = serde_yaml::from_value::<T>(nothing) else { return "a text".to_owned() };
    let text = error.to_string();
    let wanted = text.rsplit_once("expected ").map_or(text.as_str(), |(_, wanted)| wanted);
    wanted.trim_start_matches("one of ").replace('`', "")
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
