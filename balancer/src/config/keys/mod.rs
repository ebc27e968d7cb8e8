//! Every configuration key: type and range, default and help.
//!
//! The parser follows [`KEYS`]; the table in `docs/configuration.md` and `balancer.toml.example` are rendered from it.
//! `BALANCER_BLESS=1 cargo test -p balancer --lib config::keys` writes both anew.

mod render;
mod table;

use std::fmt;

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeValue, ValueDeserializer},
};

pub use self::{
    render::{example, markdown},
    table::{KEYS, REMOVED},
};

#[derive(Debug)]
pub struct Key {
    /// Table and name, such as `api.port`.
    pub name: &'static str,
    pub kind: Kind,
    pub default: DefaultValue,
    /// One line of help.
    pub help: &'static str,
}

/// The values that a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// An integer from the first to the second.
    Whole(u32, u32),
    /// A number from the first to the second, with or without a fraction.
    Number(f64, f64),
    /// A number above 0, up to this.
    Positive(f64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A string of this form; the form is checked where the section is read.
    Text(&'static str),
    /// A list of strings of this form.
    List(&'static str),
    /// Tables that have keys of their own.
    Tables,
}

/// The default of a key. Values are TOML text.
#[derive(Clone, Copy, Debug)]
pub enum DefaultValue {
    Value(&'static str),
    /// Taken from where the words say, or else the value.
    Or(&'static str, &'static str),
    /// Taken from where the words say; the value is an example.
    Derived(&'static str, &'static str),
    /// The key must be there; the value is an example.
    Required(&'static str),
}

impl Key {
    /// The key called `name`.
    ///
    /// # Panics
    /// [`KEYS`] does not hold it.
    pub(super) fn named(name: &str) -> &'static Self {
        let key = KEYS.iter().find(|key| key.name == name);
        key.unwrap_or_else(|| panic!("{name} is missing in the table of keys"))
    }

    /// The default, where it is a value.
    pub(super) fn default<T: DeserializeOwned>(&self) -> Option<T> {
        let (DefaultValue::Value(value) | DefaultValue::Or(_, value)) = self.default else { return None };
        T::deserialize(ValueDeserializer::parse(value).ok()?).ok()
    }

    /// Advice for an error message.
    pub(super) fn advice(&self) -> String {
        match self.kind {
            Kind::Text(_) | Kind::List(_) => format!("write {}, such as {}", self.kind, self.default.value()),
            Kind::Tables => format!("write a [[{}]] table for each", self.name),
            Kind::Flag | Kind::Whole(..) | Kind::Number(..) | Kind::Positive(_) | Kind::Choice(_) => {
                format!("write {}", self.kind)
            }
        }
    }
}

impl DefaultValue {
    /// The default value, or an example.
    fn value(self) -> &'static str {
        match self {
            Self::Value(value) | Self::Or(_, value) | Self::Derived(_, value) | Self::Required(value) => {
                value
            }
        }
    }
}

impl Kind {
    /// Whether `value` is of this type and within its range.
    pub(super) fn accepts(self, value: &Spanned<DeValue<'_>>) -> bool {
        match self {
            Self::Flag => value.get_ref().is_bool(),
            Self::Whole(least, most) => {
                read(value).is_some_and(|number: i64| (i64::from(least)..=i64::from(most)).contains(&number))
            }
            Self::Number(least, most) => {
                read(value).is_some_and(|number: f64| (least..=most).contains(&number))
            }
            Self::Positive(most) => read(value).is_some_and(|number: f64| number > 0.0 && number <= most),
            Self::Choice(words) => value.get_ref().as_str().is_some_and(|word| words.contains(&word)),
            Self::Text(_) => value.get_ref().is_str(),
            Self::List(_) => read::<Vec<String>>(value).is_some(),
            Self::Tables => value.get_ref().is_array(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("true or false"),
            Self::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Number(least, most) => write!(f, "a number from {least} to {most}"),
            Self::Positive(most) => write!(f, "a number above 0, up to {most}"),
            Self::Choice(words) => {
                for (index, word) in words.iter().enumerate() {
                    let before =
                        ["", ", ", " or "][usize::from(index > 0) + usize::from(index + 1 == words.len())];
                    write!(f, "{before}{word:?}")?;
                }
                Ok(())
            }
            Self::Text(form) => f.write_str(form),
            Self::List(form) => write!(f, "a list of {form}"),
            Self::Tables => f.write_str("tables"),
        }
    }
}

/// `value` as a `T`, if it is one.
pub(super) fn read<T: DeserializeOwned>(value: &Spanned<DeValue<'_>>) -> Option<T> {
    T::deserialize(ValueDeserializer::from(value.clone())).ok()
}
