//! Reads a system description: syntax, then every value, then the tables.
//!
//! A wrong description gives a message that names the field, its value and what is allowed.

mod check;
mod emit;
pub mod file;

pub use emit::emit;

use file::Description;

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is no TOML, or a field is missing, unknown or of another type; the text says where.
    Syntax(String),
    /// A field's value is not allowed.
    Value {
        /// The field, with the unit or guest it belongs to.
        field: String,
        /// Its value.
        value: String,
        /// What is allowed, and why.
        allowed: String,
    },
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syntax(text) => f.write_str(text.trim_end()),
            Self::Value { field, value, allowed } => {
                write!(f, "{field} = {value} is wrong: allowed is {allowed}")
            }
        }
    }
}

impl std::error::Error for Wrong {}

/// Names the file that a description builds upon, beside it.
const BASE: &str = "base";

/// The file that the description in `text` says it builds upon, if it does.
pub fn base(text: &str) -> Result<Option<String>, Wrong> {
    match table(text)?.remove(BASE) {
        None => Ok(None),
        Some(toml::Value::String(name)) => Ok(Some(name)),
        Some(other) => Err(Wrong::Value {
            field: BASE.into(),
            value: format!("({})", other.type_str()),
            allowed: "the name of a description in the same folder".into(),
        }),
    }
}

/// The checked description in `texts`, of which each builds upon the one before it: each table that
/// it has takes the place of the former one of that name.
pub fn parse_over<T: AsRef<str>>(texts: &[T]) -> Result<Description, Wrong> {
    let mut whole = toml::Table::new();
    for (place, text) in texts.iter().enumerate() {
        let mut own = table(text.as_ref())?;
        if place > 0 {
            own.remove(BASE);
        }
        whole.extend(own);
    }
    let description: Description = whole.try_into().map_err(syntax)?;
    check::check(&description)?;
    Ok(description)
}

fn table(text: &str) -> Result<toml::Table, Wrong> {
    toml::from_str(text).map_err(syntax)
}

fn syntax(error: toml::de::Error) -> Wrong {
    Wrong::Syntax(error.to_string())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
