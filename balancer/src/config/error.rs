//! Errors in the configuration. Each names the place, the key and the value, and a value to write instead.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub struct ConfigError {
    pub(super) file: PathBuf,
    pub(super) place: Option<Place>,
    pub(super) message: String,
    /// The user may not read the file.
    pub(super) is_forbidden: bool,
}

#[derive(Debug)]
pub(super) struct Place {
    line: usize,
    column: usize,
    source: String,
}

impl Place {
    fn of(offset: usize, text: &str) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            source: text[start..].lines().next().unwrap_or_default().to_owned(),
        }
    }
}

impl ConfigError {
    /// Whether this user may not read the file.
    pub fn is_forbidden(&self) -> bool {
        self.is_forbidden
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Place { line, column, source }) = &self.place else {
            return write!(f, "{}: {}", self.file.display(), self.message);
        };
        write!(f, "{}:{line}:{column}: {}", self.file.display(), self.message)?;
        if source.trim().is_empty() {
            return Ok(());
        }
        write!(f, "\n  {line} | {source}\n  {:width$} | {:>column$}", "", "^", width = line.to_string().len())
    }
}

/// An error in the text of a file, before the file's name is known.
pub(super) struct Fault {
    pub(super) span: Option<Range<usize>>,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span: Some(span), message: message.into() }
    }

    /// The error for users, where `text` is the content of `file`.
    pub(super) fn in_file(self, file: &Path, text: &str) -> ConfigError {
        let place = self.span.map(|span| Place::of(span.start, text));
        ConfigError { file: file.to_path_buf(), place, message: self.message, is_forbidden: false }
    }
}

impl From<toml::de::Error> for Fault {
    fn from(error: toml::de::Error) -> Self {
        Self { span: error.span(), message: error.message().to_owned() }
    }
}
