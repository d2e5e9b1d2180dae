//! From text to trees: documents, anchors, merge keys, limits.
//!
//! In: text. Out: one [`Node`] per document that holds something. Uses saphyr's event parser; keeps a stack of its
//! own instead of recursing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Key, MAX_DEPTH, MAX_NODES, Node, Place, Value, YamlError, YamlProblem, scalar};

/// Parses all documents of a text; empty ones are left out.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError {
            place: place(error.marker()),
            message: YamlProblem::Syntax { info: error.info().to_owned() },
        })?;
        builder.event(event, span)?;
    }
    Ok(builder.documents)
}

fn place(marker: &saphyr_parser::Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Collection>,
    anchors: HashMap<usize, Node>,
}

/// A list or mapping whose end is still to come.
struct Collection {
    place: Place,
    anchor: usize,
    content: Content,
    weight: u64,
    depth: u32,
}

enum Content {
    Sequence(Vec<Node>),
    Mapping { fields: Vec<(Key, Node)>, seen: HashSet<Arc<str>>, merged: Vec<Node>, next: NextInMapping },
}

enum NextInMapping {
    Key,
    Value(Key),
    MergeValue,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let place = place(&span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar_value(&text, style, tag.as_deref(), place)?;
                let plain_key = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                let node = Node { place, value, weight: 1, depth: 0 };
                self.finish(node, anchor, plain_key)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = Node { place, ..node.clone() };
                    self.finish(node, 0, false)
                }
                None => Err(YamlError { place, message: YamlProblem::UnknownAlias }),
            },
            Event::SequenceStart(anchor, tag) => {
                collection_tag(tag.as_deref(), "seq", place)?;
                self.open(place, anchor, Content::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                collection_tag(tag.as_deref(), "map", place)?;
                let (fields, seen, merged) = (Vec::new(), HashSet::new(), Vec::new());
                self.open(place, anchor, Content::Mapping { fields, seen, merged, next: NextInMapping::Key })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(collection) = self.open.pop() else { return Ok(()) };
                let (anchor, node) = (collection.anchor, collection.into_node()?);
                self.finish(node, anchor, false)
            }
        }
    }

    fn open(&mut self, place: Place, anchor: usize, content: Content) -> Result<(), YamlError> {
        if self.open.len() >= MAX_DEPTH as usize {
            return Err(YamlError { place, message: YamlProblem::TooDeep });
        }
        self.open.push(Collection { place, anchor, content, weight: 1, depth: 0 });
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, is_merge_key: bool) -> Result<(), YamlError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let levels = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        let Some(parent) = self.open.last_mut() else {
            // Anchors end with their document.
            self.anchors.clear();
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        parent.weight = parent.weight.saturating_add(node.weight);
        parent.depth = parent.depth.max(node.depth + 1);
        if parent.weight > MAX_NODES {
            return Err(YamlError { place: node.place, message: YamlProblem::TooLarge });
        }
        if levels.saturating_add(node.depth) > MAX_DEPTH {
            return Err(YamlError { place: node.place, message: YamlProblem::TooDeep });
        }
        parent.add(node, is_merge_key)
    }
}

impl Collection {
    fn add(&mut self, node: Node, is_merge_key: bool) -> Result<(), YamlError> {
        match &mut self.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping { fields, seen, merged, next } => match std::mem::replace(next, NextInMapping::Key) {
                NextInMapping::Key if is_merge_key => *next = NextInMapping::MergeValue,
                NextInMapping::Key => {
                    let key = key(&node)?;
                    if !seen.insert(key.name.clone()) {
                        let message = YamlProblem::DuplicateKey { key: key.name.to_string() };
                        return Err(YamlError { place: key.place, message });
                    }
                    *next = NextInMapping::Value(key);
                }
                NextInMapping::Value(key) => fields.push((key, node)),
                NextInMapping::MergeValue => match &node.value {
                    Value::Mapping(_) => merged.push(node),
                    Value::Sequence(items) => merged.extend(items.iter().cloned()),
                    _ => return Err(YamlError { place: node.place, message: YamlProblem::BadMerge }),
                },
            },
        }
        Ok(())
    }

    fn into_node(self) -> Result<Node, YamlError> {
        let value = match self.content {
            Content::Sequence(items) => Value::Sequence(items.into()),
            Content::Mapping { mut fields, mut seen, merged, .. } => {
                // What is written beats what is merged, an earlier merge beats a later one.
                for source in merged {
                    let Value::Mapping(more) = &source.value else {
                        return Err(YamlError { place: source.place, message: YamlProblem::BadMerge });
                    };
                    fields.extend(more.iter().filter(|(key, _)| seen.insert(key.name.clone())).cloned());
                }
                Value::Mapping(fields.into())
            }
        };
        Ok(Node { place: self.place, value, weight: self.weight, depth: self.depth })
    }
}

/// Keys are strings in JSON; other scalars are written as such, as `sigs.k8s.io/yaml` does.
fn key(node: &Node) -> Result<Key, YamlError> {
    let name: Arc<str> = match &node.value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string().into(),
        Value::Integer(value) => value.to_string().into(),
        Value::Unsigned(value) => value.to_string().into(),
        Value::Float(value) => value.to_string().into(),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) => {
            return Err(YamlError { place: node.place, message: YamlProblem::KeyNotScalar });
        }
    };
    Ok(Key { place: node.place, name })
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>, place: Place) -> Result<Value, YamlError> {
    match tag {
        None if style == ScalarStyle::Plain => Ok(scalar::resolve(text)),
        None => Ok(Value::String(text.into())),
        Some(tag) if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "str" | "timestamp") => {
            Ok(Value::String(text.into()))
        }
        Some(tag) if tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "int" | "float" | "bool" | "null") => {
            Ok(scalar::resolve(text))
        }
        Some(tag) => Err(unsupported(tag, place)),
    }
}

fn collection_tag(tag: Option<&Tag>, expected: &str, place: Place) -> Result<(), YamlError> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == expected => Ok(()),
        Some(tag) => Err(unsupported(tag, place)),
    }
}

fn unsupported(tag: &Tag, place: Place) -> YamlError {
    YamlError { place, message: YamlProblem::UnsupportedTag { tag: format!("{}{}", tag.handle, tag.suffix) } }
}
