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

/// The checked description in `text`.
pub fn parse(text: &str) -> Result<Description, Wrong> {
    let description: Description =
        toml::from_str(text).map_err(|error| Wrong::Syntax(error.to_string()))?;
    check::check(&description)?;
    Ok(description)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
