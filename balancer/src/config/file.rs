//! The text of a configuration file: TOML values and their places, checked against the table of keys.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::Fault,
    keys::{self, KEYS, Key, Kind, REMOVED},
};

pub(super) struct File<'a> {
    text: &'a str,
    tables: DeTable<'a>,
}

impl<'a> File<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Fault> {
        Ok(Self { text, tables: DeTable::parse(text)?.into_inner() })
    }

    /// Refuses tables that [`KEYS`] does not have.
    pub(super) fn check_tables(&self) -> Result<(), Fault> {
        refuse_unknown("", &self.tables)
    }

    /// Every unknown key, and every value that its key does not take.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = unknown("", &self.tables);
        for (name, value) in &self.tables {
            let Some(values) = value.get_ref().as_table() else { continue };
            faults.extend(self.faults_in(name.get_ref(), values));
        }
        faults
    }

    fn faults_in(&self, name: &str, values: &DeTable<'_>) -> Vec<Fault> {
        let mut faults = unknown(name, values);
        for (key, value) in values {
            let key = format!("{name}.{}", key.get_ref());
            let Some(known) = KEYS.iter().find(|known| known.name == key) else { continue };
            if !known.kind.accepts(value) {
                faults.push(not_allowed(self.text, known, value));
                continue;
            }
            let tables = value.get_ref().as_array().filter(|_| matches!(known.kind, Kind::Tables));
            for values in tables.into_iter().flatten().filter_map(|table| table.get_ref().as_table()) {
                faults.extend(self.faults_in(&key, values));
            }
        }
        faults
    }

    /// The table `name`; without one all its keys are absent.
    pub(super) fn table(&self, name: &'static str) -> Result<Table<'_>, Fault> {
        match self.tables.get(name) {
            Some(values) => Table::new(self.text, name, values),
            None => Ok(Table { text: self.text, span: None, values: None }),
        }
    }
}

/// A table of the file. Keys are named in full, such as `api.port`.
pub(super) struct Table<'a> {
    text: &'a str,
    span: Option<Range<usize>>,
    values: Option<&'a DeTable<'a>>,
}

impl<'a> Table<'a> {
    fn new(text: &'a str, name: &str, value: &'a Spanned<DeValue<'a>>) -> Result<Self, Fault> {
        let span = value.span();
        let Some(values) = value.get_ref().as_table() else {
            return Err(Fault::at(
                span,
                format!("{name}: this is not a table; write its keys below [{name}]"),
            ));
        };
        refuse_unknown(name, values)?;
        Ok(Self { text, span: Some(span), values: Some(values) })
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.values?.get(key.rsplit('.').next()?)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A sentence for each key that has gone.
    pub(super) fn warnings(&self) -> Vec<String> {
        let found = REMOVED.iter().filter(|(key, _)| self.has(key));
        found.map(|(key, instead)| format!("{key} has no effect: {instead}")).collect()
    }

    pub(super) fn find<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match keys::read(value) {
            Some(read) if Key::named(key).kind.accepts(value) => Ok(Some(read)),
            _ => Err(self.not_allowed(key, value)),
        }
    }

    /// The value of `key` in the file, or else its default.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<T, Fault> {
        let found = self.find(key)?.or_else(|| Key::named(key).default());
        found.ok_or_else(|| self.fault(key, format!("missing; {}", Key::named(key).advice())))
    }

    /// The tables of the list `key`.
    pub(super) fn tables(&self, key: &str) -> Result<Vec<Table<'a>>, Fault> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let list = value.get_ref().as_array().ok_or_else(|| self.not_allowed(key, value))?;
        list.iter().map(|table| Self::new(self.text, key, table)).collect()
    }

    /// An error at `key`, or at its table where the key is absent.
    pub(super) fn fault(&self, key: &str, message: impl std::fmt::Display) -> Fault {
        let span = self.value(key).map(Spanned::span).or_else(|| self.span.clone());
        Fault { span, message: format!("{key}: {message}") }
    }

    fn not_allowed(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Fault {
        not_allowed(self.text, Key::named(key), value)
    }
}

fn not_allowed(text: &str, key: &Key, value: &Spanned<DeValue<'_>>) -> Fault {
    let list = value.get_ref().is_array() || value.get_ref().is_table();
    let written = if list { "this" } else { text.get(value.span()).unwrap_or("this") };
    Fault::at(value.span(), format!("{}: {written} is not allowed; {}", key.name, key.advice()))
}

/// Refuses the first of `values` that is no key of the table `name`.
fn refuse_unknown(name: &str, values: &DeTable<'_>) -> Result<(), Fault> {
    let first =
        unknown(name, values).into_iter().min_by_key(|fault| fault.span.as_ref().map(|span| span.start));
    first.map_or(Ok(()), Err)
}

/// Those of `values` that are no keys of the table `name`.
fn unknown(name: &str, values: &DeTable<'_>) -> Vec<Fault> {
    let below = |key: &'static str| match name {
        "" => Some(key),
        _ => key.strip_prefix(name)?.strip_prefix('.'),
    };
    let mut known: Vec<_> = KEYS.iter().filter_map(|key| below(key.name)?.split('.').next()).collect();
    known.dedup();
    let removed = |key: &str| REMOVED.iter().any(|(name, _)| below(name) == Some(key));
    let unknown =
        values.keys().filter(|key| !known.contains(&key.get_ref().as_ref()) && !removed(key.get_ref()));
    let place =
        if name.is_empty() { "the file has the tables".to_owned() } else { format!("[{name}] takes") };
    let fault = |key: &Spanned<std::borrow::Cow<'_, str>>| {
        let message = format!("unknown key `{}`; {place} {}", key.get_ref(), known.join(", "));
        Fault::at(key.span(), message)
    };
    unknown.map(fault).collect()
}
