//! From trees to typed values, by serde, with every unknown field and the path of every mistake.
//!
//! In: a [`Node`] and a type. Out: the value, and the fields that the type does not have, for the caller to refuse.
//! Recursion is bounded by the depth of the tree, which [`super::parse`] bounds.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::{Key, Node, Place, Value, YamlError, YamlProblem};

/// A decoded value.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded<T> {
    /// The value.
    pub value: T,
    /// Fields that its type does not have, in the order written.
    pub unknown: Vec<UnknownField>,
}

/// A field no type knows. Displayed as kubectl's strict validation words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown field \"{path}\"")]
pub struct UnknownField {
    /// Such as `spec.containers[0].foo`.
    pub path: String,
    /// Its key.
    pub place: Place,
}

/// Decodes a tree as a `T`.
///
/// # Errors
/// The first value that is not what its field takes.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<Decoded<T>, YamlError> {
    let unknown = RefCell::default();
    let root = At { node, path: Path::Root, key_place: node.place, unknown: &unknown, numbers: Numbers::AreNumbers };
    match T::deserialize(root) {
        Ok(value) => Ok(Decoded { value, unknown: unknown.into_inner() }),
        Err(problem) => Err(YamlError {
            place: problem.place.unwrap_or(node.place),
            message: YamlProblem::Type { path: problem.path, problem: problem.text },
        }),
    }
}

/// A field's path, as a list towards the root; on the stack.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Whether numbers may stand for text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbers {
    AreNumbers,
    /// Inside a `Quantity`: `cpu: 1` is as good as `cpu: "1"`.
    AreText,
}

/// A node being decoded.
#[derive(Clone, Copy)]
struct At<'a> {
    node: &'a Node,
    path: Path<'a>,
    key_place: Place,
    unknown: &'a RefCell<Vec<UnknownField>>,
    numbers: Numbers,
}

impl At<'_> {
    /// Gives an error this node's place, unless it has one from further in.
    fn locate(&self, mut problem: Problem) -> Problem {
        if problem.place.is_none() {
            problem.place = Some(self.node.place);
            problem.path = match self.path {
                Path::Root => "(root)".to_owned(),
                path => path.to_string(),
            };
        }
        problem
    }

    fn mismatch<'de, V: Visitor<'de>>(&self, visitor: &V) -> Problem {
        let found = match &self.node.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Integer(value) => Unexpected::Signed(*value),
            Value::Unsigned(value) => Unexpected::Unsigned(*value),
            Value::Float(value) => Unexpected::Float(*value),
            Value::String(text) => Unexpected::Str(text),
            Value::Sequence(_) => Unexpected::Seq,
            Value::Mapping(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, visitor)
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items { at: self, items: items.iter().enumerate() }),
            Value::Mapping(fields) => visitor.visit_map(Fields { at: self, fields: fields.iter(), value: None }),
        }
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            // `1.0` and `1e3` are whole numbers in JSON too; beyond 2^53 they would be guesses.
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => visitor.visit_i64(value as i64),
            _ => self.any(visitor),
        }
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(value) if self.numbers == Numbers::AreText => visitor.visit_string(value.to_string()),
            Value::Unsigned(value) if self.numbers == Numbers::AreText => visitor.visit_string(value.to_string()),
            Value::Float(value) if self.numbers == Numbers::AreText => visitor.visit_string(value.to_string()),
            _ => {
                let mut problem = self.mismatch(&visitor);
                if matches!(self.node.value, Value::Bool(_) | Value::Integer(_) | Value::Unsigned(_) | Value::Float(_))
                {
                    problem.text += " (put it in quotes)";
                }
                Err(problem)
            }
        }
    }

    fn fields<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Mapping(_) => self.any(visitor),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn items<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Sequence(_) => self.any(visitor),
            _ => Err(self.mismatch(&visitor)),
        }
    }
}

macro_rules! forward {
    ($($method:ident => $to:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.$to(visitor).map_err(|problem| self.locate(problem))
        })*
    };
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Problem;

    forward! {
        deserialize_any => any, deserialize_bool => any, deserialize_f32 => any, deserialize_f64 => any,
        deserialize_i8 => integer, deserialize_i16 => integer, deserialize_i32 => integer, deserialize_i64 => integer,
        deserialize_u8 => integer, deserialize_u16 => integer, deserialize_u32 => integer, deserialize_u64 => integer,
        deserialize_char => text, deserialize_str => text, deserialize_string => text, deserialize_bytes => text,
        deserialize_byte_buf => text, deserialize_unit => any, deserialize_seq => items, deserialize_map => fields,
        deserialize_identifier => text,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self).map_err(|problem| self.locate(problem)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &str, visitor: V) -> Result<V::Value, Problem> {
        let numbers = if name == "Quantity" { Numbers::AreText } else { self.numbers };
        visitor.visit_newtype_struct(Self { numbers, ..self }).map_err(|problem| self.locate(problem))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.fields(visitor).map_err(|problem| self.locate(problem))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::String(text) => visitor.visit_enum(Word(text)),
            _ => Err(self.mismatch(&visitor)),
        }
        .map_err(|problem| self.locate(problem))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.unknown.borrow_mut().push(UnknownField { path: self.path.to_string(), place: self.key_place });
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &str, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &str,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.deserialize_seq(visitor)
    }
}

struct Items<'a> {
    at: At<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path::Item(&self.at.path, index);
        seed.deserialize(At { node, path, key_place: node.place, ..self.at }).map(Some)
    }
}

struct Fields<'a> {
    at: At<'a>,
    fields: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a (Key, Node)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.value = self.fields.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: StrDeserializer<'_, Problem> = (&*key.name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, node) = self.value.take().ok_or_else(|| Problem::new("a value was asked for before its key"))?;
        let path = Path::Field(&self.at.path, &key.name);
        seed.deserialize(At { node, path, key_place: key.place, ..self.at })
    }
}

/// An enum's variant by name.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Problem;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Problem> {
        let name: StrDeserializer<'_, Problem> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Problem;

    fn unit_variant(self) -> Result<(), Problem> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Problem> {
        Err(Problem::new("expected a word without a value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, Problem> {
        Err(Problem::new("expected a word without a value"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Problem> {
        Err(Problem::new("expected a word without a value"))
    }
}

/// A mistake on its way to the place it belongs to.
#[derive(Debug)]
struct Problem {
    place: Option<Place>,
    path: String,
    text: String,
}

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self { place: None, path: String::new(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        // Kinds, never values: the field may be one of a Secret.
        let found = match found {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a whole number",
            Unexpected::Float(_) => "a decimal number",
            Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a string",
            Unexpected::Unit | Unexpected::Option => "null",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a mapping",
            _ => "something else",
        };
        Self::new(format!("expected {}, found {found}", kind(expected)))
    }

    fn invalid_value(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("invalid value: expected {}", kind(expected)))
    }

    fn unknown_variant(_variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unsupported value: supported values: {}", expected.join(", ")))
    }
}

/// What a type is called in a manifest.
fn kind(expected: &dyn Expected) -> String {
    let name = expected.to_string();
    match name.as_str() {
        "i8" | "u8" | "i16" | "u16" => "a whole number".to_owned(),
        "i32" => "a whole number (32 bits)".to_owned(),
        "i64" => "a whole number (64 bits)".to_owned(),
        "u32" | "u64" | "usize" => "a whole number that is not negative".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        _ => name,
    }
}
