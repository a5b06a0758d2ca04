//! YAML with the places of its parts, read as Kubernetes reads it.
//!
//! Kubernetes' parser follows YAML 1.1 in what a bare word means: `yes` is true, `0644` is octal, `1_000` is a number.
//! Other parsers differ, so words are never written anew: additions are put into the text, at the places found here.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

/// No manifest is nested deeper.
const DEEPEST: usize = 100;

/// Why a text is not YAML that Kubernetes would take.
#[derive(Debug, thiserror::Error)]
pub(super) enum YamlError {
    #[error("{0}")]
    Syntax(#[from] saphyr_parser::ScanError),
    #[error("it is nested more than {DEEPEST} deep")]
    TooDeep,
    #[error("it ends in the middle")]
    Unfinished,
    #[error("it uses an anchor within itself")]
    Recursive,
}

/// A part of a document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The offset of its first byte.
    pub(super) start: usize,
    /// The offset after its last byte; for lists and maps in block style, somewhere before what follows.
    pub(super) end: usize,
    /// A list or a map in flow style: `[1, 2]`.
    pub(super) flow: bool,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A word or a text; `bare` without quotes, whose meaning is then looked up.
    Scalar {
        text: String,
        bare: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Reads one document; `None` if it is empty.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, YamlError> {
        let mut reader = Reader {
            events: Parser::new_from_str(text),
            offsets: text.char_indices().map(|(at, _)| at).chain([text.len()]).collect(),
            anchors: HashMap::new(),
        };
        loop {
            match reader.next()? {
                (Event::StreamEnd, _) => return Ok(None),
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (event, span) => {
                    let root = reader.node(event, span, 0)?;
                    // What follows must be right too.
                    while !matches!(reader.next()?, (Event::StreamEnd, _)) {}
                    return Ok(Some(root));
                }
            }
        }
    }

    /// What it means.
    pub(super) fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar { text, bare: true } => meaning(text),
            Kind::Scalar { text, bare: false } => Value::String(text.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Kind::Map(entries) => {
                let mut fields = Map::new();
                let (merged, own): (Vec<_>, Vec<_>) = entries.iter().partition(|(key, _)| key.is_merge());
                for (key, value) in own {
                    fields.insert(key.name().to_owned(), value.value());
                }
                for (_, value) in merged {
                    value.merge_into(&mut fields);
                }
                Value::Object(fields)
            }
        }
    }

    /// The text of a key.
    pub(super) fn name(&self) -> &str {
        if let Kind::Scalar { text, .. } = &self.kind { text } else { "" }
    }

    /// The field of a map, or the numbered item of a list.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Scalar { .. } => None,
            Kind::List(items) => items.get(name.parse::<usize>().ok()?),
            Kind::Map(entries) => entries.iter().find(|(key, _)| key.name() == name).map(|(_, value)| value),
        }
    }

    fn is_merge(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, bare: true } if text == "<<")
    }

    /// Adds the fields of a map, or of each map in a list, where there are none.
    fn merge_into(&self, fields: &mut Map<String, Value>) {
        match &self.kind {
            Kind::Scalar { .. } => {}
            Kind::List(items) => items.iter().for_each(|item| item.merge_into(fields)),
            Kind::Map(_) => {
                if let Value::Object(more) = self.value() {
                    for (key, value) in more {
                        fields.entry(key).or_insert(value);
                    }
                }
            }
        }
    }
}

/// What a bare word means to Kubernetes.
pub(super) fn meaning(word: &str) -> Value {
    match word {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(word).unwrap_or_else(|| Value::String(word.to_owned())),
    }
}

fn number(word: &str) -> Option<Value> {
    if !word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = word.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let radixes = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8), ("", 10)];
    let whole = radixes.into_iter().find_map(|(prefix, radix)| {
        let digits =
            digits.strip_prefix(prefix).filter(|digits| digits.starts_with(|c: char| c.is_ascii_hexdigit()))?;
        let digits = format!("{sign}{digits}");
        let signed = i64::from_str_radix(&digits, radix).ok().map(Value::from);
        signed.or_else(|| u64::from_str_radix(&digits, radix).ok().map(Value::from))
    });
    let fraction = || {
        let numeric = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
        plain.parse::<f64>().ok().filter(|_| numeric).map(Value::from)
    };
    whole.or_else(fraction)
}

/// Builds nodes of a parser's events.
struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Where each character begins: the parser counts characters.
    offsets: Vec<usize>,
    anchors: HashMap<usize, Node>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        Ok(self.events.next().ok_or(YamlError::Unfinished)??)
    }

    fn offset(&self, character: usize) -> usize {
        self.offsets.get(character).or(self.offsets.last()).copied().unwrap_or_default()
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, YamlError> {
        if depth > DEEPEST {
            return Err(YamlError::TooDeep);
        }
        let start = self.offset(span.start.index());
        let mut end = self.offset(span.end.index());
        let mut flow = false;
        let (anchor, kind) = match event {
            Event::Alias(anchor) => return self.anchors.get(&anchor).cloned().ok_or(YamlError::Recursive),
            Event::Scalar(text, style, anchor, tag) => {
                let bare = style == ScalarStyle::Plain && tag.is_none_or(|tag| tag.suffix != "str");
                (anchor, Kind::Scalar { text: text.into_owned(), bare })
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, span) => {
                            // Only the flow style has something that ends it.
                            (end, flow) = (self.offset(span.end.index()), !span.is_empty());
                            break;
                        }
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                (anchor, Kind::List(items))
            }
            Event::MappingStart(anchor, _) => {
                let mut entries = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, span) => {
                            // Only the flow style has something that ends it.
                            (end, flow) = (self.offset(span.end.index()), !span.is_empty());
                            break;
                        }
                        (event, span) => {
                            let key = self.node(event, span, depth + 1)?;
                            let (event, span) = self.next()?;
                            entries.push((key, self.node(event, span, depth + 1)?));
                        }
                    }
                }
                (anchor, Kind::Map(entries))
            }
            _ => return Err(YamlError::Unfinished),
        };
        let node = Node { start, end, flow, kind };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        Node::parse(text).expect("it is YAML").map_or(Value::Null, |root| root.value())
    }

    #[test]
    fn bare_words_mean_what_kubernetes_takes_them_for() {
        for (word, meant) in [
            ("yes", json!(true)),
            ("off", json!(false)),
            ("0644", json!(420)),
            ("-0x1f", json!(-31)),
            ("0b11", json!(3)),
            ("0o17", json!(15)),
            ("1_000", json!(1000)),
            ("0", json!(0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("~", json!(null)),
            ("", json!(null)),
            ("0899", json!(899)),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.1:80", json!("10.0.0.1:80")),
            ("12:30:45", json!("12:30:45")),
            (".inf", json!(".inf")),
            ("-", json!("-")),
            ("yEs", json!("yEs")),
        ] {
            assert_eq!(meaning(word), meant, "{word}");
        }
    }

    #[test]
    fn quotes_and_tags_make_text_of_words() {
        assert_eq!(value("[yes, 'yes', \"0644\", !!str 1]"), json!([true, "yes", "0644", "1"]));
        assert_eq!(value("1: yes"), json!({"1": true}));
    }

    #[test]
    fn anchors_and_merge_keys_are_resolved() {
        let text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 4}, *a]}\nd: *a\n";
        let a = json!({"x": 1, "y": 2});
        assert_eq!(value(text), json!({"a": a, "b": {"x": 1, "y": 3}, "c": {"x": 4, "y": 2}, "d": a}));
    }

    #[test]
    fn what_is_not_yaml_is_an_error() {
        for text in ["a: [", "a: b: c", "*a", "&a [*a]", "a: 1\nb", &"[".repeat(5_000)] {
            assert!(Node::parse(text).is_err(), "{text}");
        }
    }
}
