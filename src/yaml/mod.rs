//! YAML as kubectl reads it, strictly, with the place of every value.
//!
//! In: the text of a manifest or config file, hostile or not. Out: documents as trees of [`Node`]s, and typed
//! values from them with every field that no type knows. Bounded in depth and in nodes, aliases expanded or not.
//! Scalars mean what `sigs.k8s.io/yaml` makes of them (YAML 1.1: `yes` is true, `0644` is octal), because that is
//! what the same manifest means in a cluster. Knows nothing of Kubernetes' types.

mod build;
mod decode;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use build::parse;
pub use decode::{Decoded, UnknownField, decode};

/// Levels of nesting; the deepest Kubernetes type has fewer than thirty.
pub const MAX_DEPTH: u32 = 100;

/// Values of one document with aliases expanded. A 10 MiB file of the shortest values stays below it; an alias
/// bomb does not.
pub const MAX_NODES: u64 = 4_000_000;

/// Where something is in a text, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    /// `line:column`, as compilers write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it is. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its first character.
    pub place: Place,
    /// What it is.
    pub value: Value,
    /// Nodes in it, itself included, aliases expanded.
    weight: u64,
    /// Levels below it.
    depth: u32,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `null`, `~`.
    Null,
    /// `true`, `yes`, `on` and their opposites.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A whole number above `i64::MAX`.
    Unsigned(u64),
    /// Any other number.
    Float(f64),
    /// Text.
    String(Arc<str>),
    /// A list.
    Sequence(Arc<[Node]>),
    /// Fields in the order written, keys unique.
    Mapping(Arc<[(Key, Node)]>),
}

/// The name of a field and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its first character.
    pub place: Place,
    /// The name.
    pub name: Arc<str>,
}

impl Node {
    /// The value of a field, when this is a mapping that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        let Value::Mapping(fields) = &self.value else { return None };
        fields.iter().find(|(key, _)| &*key.name == name).map(|(_, node)| node)
    }

    /// The text, when this is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Why a text is not acceptable. Never quotes values: they may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub message: YamlProblem,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlProblem {
    /// It's no YAML.
    #[error("yaml: {info}")]
    Syntax {
        /// The parser's words.
        info: String,
    },
    /// A key is there twice.
    #[error("strict decoding error: key \"{key}\" already set in map")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A list, a mapping or nothing as key.
    #[error("yaml: a key must be a string")]
    KeyNotScalar,
    /// An alias to no anchor before it.
    #[error("yaml: unknown anchor referenced, or an anchor that contains itself")]
    UnknownAlias,
    /// `<<` of something else than mappings.
    #[error("yaml: map merge requires map or sequence of maps as the value")]
    BadMerge,
    /// A tag that JSON has no type for.
    #[error("yaml: unsupported tag \"{tag}\"")]
    UnsupportedTag {
        /// The tag.
        tag: String,
    },
    /// Nested beyond [`MAX_DEPTH`].
    #[error("yaml: nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More than [`MAX_NODES`], counting what aliases stand for.
    #[error("yaml: document contains excessive aliasing or more than {MAX_NODES} values")]
    TooLarge,
    /// The value is not what its field takes.
    #[error("{path}: {problem}")]
    Type {
        /// The field, such as `spec.containers[0].image`.
        path: String,
        /// What it should have been.
        problem: String,
    },
}
