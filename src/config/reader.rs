//! Reads keys one by one, remembers every problem and every key that was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use foldhash::fast::FixedState;
use jiff::SignedDuration;
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use super::environment;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or the variable.
    pub place: String,
    /// The key, where it is about one.
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

/// Everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            match problem.key.as_str() {
                "" => write!(f, "{}: {}", problem.place, problem.what)?,
                key => write!(f, "{}: {key}: {}", problem.place, problem.what)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

pub(super) struct Reader {
    file: Figment,
    file_name: String,
    environment: BTreeMap<String, (String, String)>,
    asked: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn open(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        let (file, file_name) = match path {
            None => (Figment::new(), "defaults".to_owned()),
            Some(path) => (Figment::from(Toml::string(&read_file(path)?)), path.display().to_string()),
        };
        if let Err(error) = file.extract::<Dict>() {
            let what = unquoted(&error.to_string());
            return Err(ConfigErrors(vec![Problem { place: file_name, key: String::new(), what }]));
        }
        Ok(Self {
            file,
            file_name,
            environment: environment::overrides(),
            asked: BTreeSet::new(),
            problems: Vec::new(),
        })
    }

    /// A value of the file's type, or the text of a variable.
    pub(super) fn get<T: DeserializeOwned + FromStr>(&mut self, key: &str, default: T) -> T {
        self.asked.insert(key.to_owned());
        if let Some((_, text)) = self.environment.get(key).cloned() {
            return text.trim().parse().unwrap_or_else(|_| {
                self.problem(key, format!("{text:?} is no {}", kind_of::<T>()));
                default
            });
        }
        let Some(value) = self.file_value(key) else { return default };
        match value.deserialize::<T>() {
            Ok(value) => value,
            Err(error) => {
                self.problem(key, format!("{error}"));
                default
            }
        }
    }

    pub(super) fn within<T>(&mut self, key: &str, default: T, range: std::ops::RangeInclusive<T>) -> T
    where
        T: DeserializeOwned + FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let value = self.get(key, default);
        if range.contains(&value) {
            return value;
        }
        self.problem(key, format!("{value} is out of bounds: give {} to {}", range.start(), range.end()));
        default
    }

    /// A duration such as "500ms", "30s" or "2m".
    pub(super) fn duration(&mut self, key: &str, default: &str) -> Duration {
        let text: String = self.get(key, default.to_owned());
        match parse_duration(&text) {
            Some(duration) => duration,
            None => {
                self.problem(
                    key,
                    format!("{text:?} is no duration: give a positive one such as \"500ms\", \"30s\" or \"2m\""),
                );
                parse_duration(default).unwrap_or_default()
            }
        }
    }

    /// A list of texts in the file; a comma-separated one in a variable.
    pub(super) fn list(&mut self, key: &str, default: &[&str]) -> Vec<String> {
        self.asked.insert(key.to_owned());
        if let Some((_, text)) = self.environment.get(key) {
            return text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect();
        }
        self.structured(key).unwrap_or_else(|| default.iter().map(|item| (*item).to_owned()).collect())
    }

    /// A value that only a file can hold.
    pub(super) fn structured<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        self.asked.insert(key.to_owned());
        match self.file_value(key)?.deserialize::<T>() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, format!("{error}"));
                None
            }
        }
    }

    /// The content of the file that `key` names.
    pub(super) fn file(&mut self, key: &str) -> Option<String> {
        let path: String = self.get(key, String::new());
        if path.is_empty() {
            return None;
        }
        match std::fs::read_to_string(&path) {
            Ok(content) => Some(content),
            Err(error) => {
                self.problem(key, format!("{path}: {error}"));
                None
            }
        }
    }

    /// A secret from `key`, or from the file that `<key>_file` names.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        let file_key = format!("{key}_file");
        let path: String = self.get(&file_key, String::new());
        let text = self.unrepeated(key);
        if path.is_empty() {
            return (!text.is_empty()).then(|| SecretString::from(text));
        }
        match std::fs::read_to_string(&path) {
            Ok(content) => Some(SecretString::from(content.trim().to_owned())),
            Err(error) => {
                self.problem(&file_key, format!("{path}: {error}"));
                None
            }
        }
    }

    /// A text that no message repeats, whatever is wrong with it.
    fn unrepeated(&mut self, key: &str) -> String {
        self.asked.insert(key.to_owned());
        if let Some((_, text)) = self.environment.get(key) {
            return text.trim().to_owned();
        }
        match self.file_value(key) {
            Some(Value::String(_, text)) => text,
            Some(_) => {
                self.problem(key, "must be a text in quotes".to_owned());
                String::new()
            }
            None => String::new(),
        }
    }

    /// A secret that must be there.
    pub(super) fn required_secret(&mut self, key: &str, example: &str) -> SecretString {
        let before = self.problems.len();
        self.secret(key).unwrap_or_else(|| {
            if self.problems.len() == before {
                let variable = environment::variable_for(key);
                let what =
                    format!("is missing: set {variable} (e.g. {example}), or {variable}_FILE, or {key} in the file");
                self.problem(key, what);
            }
            SecretString::from(String::new())
        })
    }

    pub(super) fn problem(&mut self, key: &str, what: String) {
        let place = match self.environment.get(key) {
            Some((variable, _)) => variable.clone(),
            None => self.file_name.clone(),
        };
        self.problems.push(Problem { place, key: key.to_owned(), what });
    }

    /// What was given for each key, hashed: enough to see what another reading has changed. Or all problems, keys that nobody asked
    /// for included.
    pub(super) fn finish(mut self) -> Result<BTreeMap<String, u64>, ConfigErrors> {
        let mut given = BTreeSet::new();
        if let Ok(dict) = self.file.extract::<Dict>() {
            flatten("", &dict, &self.asked, &mut given);
        }
        given.extend(self.environment.keys().cloned());
        for key in given.difference(&self.asked).cloned().collect::<Vec<_>>() {
            let best = self.asked.iter().max_by(|a, b| similarity(a, &key).total_cmp(&similarity(b, &key))).cloned();
            let hint = best.filter(|b| similarity(b, &key) > 0.8).map_or_else(
                || "remove it; `onceflow help environment` lists the keys".to_owned(),
                |best| format!("did you mean {best}?"),
            );
            self.problem(&key, format!("there is no such key: {hint}"));
        }
        if self.problems.is_empty() { Ok(self.given()) } else { Err(ConfigErrors(self.problems)) }
    }

    fn given(&self) -> BTreeMap<String, u64> {
        let text = |key: &str| match self.environment.get(key) {
            Some((_, text)) => Some(text.clone()),
            None => self.file_value(key).and_then(|value| serde_json::to_string(&value).ok()),
        };
        let hashed = |key: &String| Some((key.clone(), FixedState::default().hash_one(text(key)?)));
        self.asked.iter().filter_map(hashed).collect()
    }

    fn file_value(&self, key: &str) -> Option<Value> {
        self.file.find_value(key).ok()
    }
}

fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("can't be read: {error}");
        ConfigErrors(vec![Problem { place: path.display().to_string(), key: String::new(), what }])
    })
}

/// The parser's words without the line that it can't read: it may hold a password.
fn unquoted(error: &str) -> String {
    let said = error.lines().map(str::trim).filter(|line| !line.is_empty() && !is_quote(line));
    said.collect::<Vec<_>>().join(": ")
}

/// `2 | url = "…` and the marks below it.
fn is_quote(line: &str) -> bool {
    line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|')
}

fn flatten(prefix: &str, dict: &Dict, asked: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    for (key, value) in dict {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) if !asked.contains(&path) => flatten(&path, inner, asked, found),
            _ => {
                found.insert(path);
            }
        }
    }
}

fn similarity(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

fn parse_duration(text: &str) -> Option<Duration> {
    let signed: SignedDuration = text.trim().parse().ok()?;
    Duration::try_from(signed).ok().filter(|d| !d.is_zero())
}

fn kind_of<T>() -> &'static str {
    match std::any::type_name::<T>() {
        "bool" => "true or false",
        "alloc::string::String" => "text",
        _ => "number in range",
    }
}
