//! Errors that name a field, worded as apimachinery's `field.Error`.
//!
//! In: a path such as `spec.containers[0].name` and what is wrong with it. Out: the sentence an API server
//! would have answered. Does not decide what is wrong (`validation`).

use std::fmt;

/// A path to a field of an object: `spec.containers[0].volumeMounts[1].name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The path of a top-level field.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// A field of this field.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    /// An element of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// An entry of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The field must be given.
    #[error("{path}: Required value{}", suffix(.detail))]
    Required {
        /// Which field.
        path: Path,
        /// More words, or none.
        detail: String,
    },
    /// The value cannot be used.
    #[error("{path}: Invalid value: {value}: {detail}")]
    Invalid {
        /// Which field.
        path: Path,
        /// The value as Go prints it: strings quoted, numbers not.
        value: String,
        /// What is wrong.
        detail: String,
    },
    /// The value is not one of those that exist.
    #[error("{path}: Unsupported value: {value:?}: supported values: {}", quoted_list(.supported))]
    NotSupported {
        /// Which field.
        path: Path,
        /// The value.
        value: String,
        /// Those that exist.
        supported: Vec<String>,
    },
    /// The value refers to something that is not there.
    #[error("{path}: Not found: {value:?}")]
    NotFound {
        /// Which field.
        path: Path,
        /// The value.
        value: String,
    },
    /// The value is there a second time.
    #[error("{path}: Duplicate value: {value:?}")]
    Duplicate {
        /// Which field.
        path: Path,
        /// The value.
        value: String,
    },
    /// The field may not be set.
    #[error("{path}: Forbidden: {detail}")]
    Forbidden {
        /// Which field.
        path: Path,
        /// Why.
        detail: String,
    },
}

fn suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn quoted_list(values: &[String]) -> String {
    values.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ")
}

/// Collects what is wrong with an object.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// The field is missing.
    pub fn required(&mut self, path: Path) {
        self.0.push(FieldError::Required { path, detail: String::new() });
    }

    /// The field is missing, and why it must be there.
    pub fn required_because(&mut self, path: Path, detail: impl Into<String>) {
        self.0.push(FieldError::Required { path, detail: detail.into() });
    }

    /// A string value is wrong.
    pub fn invalid(&mut self, path: Path, value: &str, detail: impl Into<String>) {
        self.0.push(FieldError::Invalid { path, value: format!("{value:?}"), detail: detail.into() });
    }

    /// A number or other unquoted value is wrong.
    pub fn invalid_number(&mut self, path: Path, value: impl fmt::Display, detail: impl Into<String>) {
        self.0.push(FieldError::Invalid { path, value: value.to_string(), detail: detail.into() });
    }

    /// The value is not one of `supported`.
    pub fn not_supported(&mut self, path: Path, value: &str, supported: &[&str]) {
        let supported = supported.iter().map(|&s| s.to_owned()).collect();
        self.0.push(FieldError::NotSupported { path, value: value.to_owned(), supported });
    }

    /// What the value names is not there.
    pub fn not_found(&mut self, path: Path, value: &str) {
        self.0.push(FieldError::NotFound { path, value: value.to_owned() });
    }

    /// The value was used before.
    pub fn duplicate(&mut self, path: Path, value: &str) {
        self.0.push(FieldError::Duplicate { path, value: value.to_owned() });
    }

    /// The field may not be set here.
    pub fn forbidden(&mut self, path: Path, detail: impl Into<String>) {
        self.0.push(FieldError::Forbidden { path, detail: detail.into() });
    }

    /// How many were found so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The errors in the order they were found.
    #[must_use]
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Several errors as Go's `ErrorList` prints them: one alone, more in brackets.
#[must_use]
pub fn join(errors: &[FieldError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_those_of_the_api_server() {
        let path = || Path::new("spec").child("containers").index(0).child("name");
        let mut errors = Errors::default();
        errors.required(path());
        errors.invalid(path(), "A", "bad");
        errors.invalid_number(path(), 70000, "must be between 1 and 65535, inclusive");
        errors.not_supported(path(), "x", &["a", "b"]);
        errors.not_found(path(), "x");
        errors.duplicate(path(), "x");
        errors.forbidden(path(), "no");
        let texts: Vec<_> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.containers[0].name: Required value",
                "spec.containers[0].name: Invalid value: \"A\": bad",
                "spec.containers[0].name: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].name: Unsupported value: \"x\": supported values: \"a\", \"b\"",
                "spec.containers[0].name: Not found: \"x\"",
                "spec.containers[0].name: Duplicate value: \"x\"",
                "spec.containers[0].name: Forbidden: no",
            ]
        );
    }
}
