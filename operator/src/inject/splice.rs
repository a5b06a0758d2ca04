//! Additions put into the text of a YAML document, so that all else in it stays as its author wrote it: comments, order,
//! quotes.

use json_patch::AddOperation;
use json_patch::jsonptr::Pointer;
use serde_json::Value;

use super::yaml::{Kind, Node, meaning};

/// Makes additions to a document that is `before`, in its text where possible.
///
/// The result is read again: if it does not say what it should (an addition below an alias changes two places), the
/// document is written anew. `None` if an addition has no place at all.
pub(super) fn apply(text: &str, before: &Value, edits: &[AddOperation]) -> Option<String> {
    let mut after = before.clone();
    let operations = edits.iter().cloned().map(json_patch::PatchOperation::Add).collect::<Vec<_>>();
    json_patch::patch(&mut after, &operations).ok()?;

    let in_place = edits.iter().try_fold(text.to_owned(), |text, edit| add(&text, &edit.path, &edit.value));
    let says_so = |text: &String| Node::parse(text).is_ok_and(|root| root.is_some_and(|root| root.value() == after));
    Some(in_place.filter(says_so).unwrap_or_else(|| {
        let mut text = String::new();
        write_block(&mut text, &after, 0);
        text.push('\n');
        text
    }))
}

/// Makes one addition; `None` where it cannot be made in place.
fn add(text: &str, path: &Pointer, value: &Value) -> Option<String> {
    let root = Node::parse(text).ok()??;
    let (parent, last) = path.split_back()?;
    let parent = parent.tokens().try_fold(&root, |node, token| node.child(&token.decoded()))?;
    let last = last.decoded();
    let flow = parent.flow;
    let column = column(text, parent)?;
    let rendered = |is_item: bool| {
        let mut rendered = String::new();
        match (is_item, flow) {
            (true, true) => return value.to_string(),
            (false, true) => return format!("{}: {value}", Value::from(last.as_ref())),
            (true, false) => write_item(&mut rendered, value, column),
            (false, false) => write_field(&mut rendered, &last, value, column),
        }
        rendered
    };
    let (range, addition) = match &parent.kind {
        Kind::Map(fields) => match fields.iter().find(|(key, _)| key.name() == last) {
            Some((key, old)) => (key.start..field_end(text, key, old)?, rendered(false)),
            None => put_last(text, parent, flow, column, fields.is_empty(), &rendered(false))?,
        },
        Kind::List(items) if last == "-" => put_last(text, parent, flow, column, items.is_empty(), &rendered(true))?,
        Kind::Scalar { .. } | Kind::List(_) => return None,
    };
    let mut text = text.to_owned();
    text.replace_range(range, &addition);
    Some(text)
}

/// Where an addition to a list or map goes, and with what around it.
fn put_last(
    text: &str,
    parent: &Node,
    flow: bool,
    column: usize,
    empty: bool,
    addition: &str,
) -> Option<(std::ops::Range<usize>, String)> {
    if flow {
        let at = text[..parent.end.checked_sub(1)?].trim_end().len();
        return Some((at..at, format!("{}{addition}", if empty { "" } else { ", " })));
    }
    let last = end(text, parent)?;
    let line_end = text[last..].find('\n').map_or(text.len(), |length| last + length);
    Some((line_end..line_end, format!("\n{}{addition}", " ".repeat(column))))
}

/// How far the entries of a list or map are indented.
fn column(text: &str, node: &Node) -> Option<usize> {
    let first = match &node.kind {
        Kind::List(items) if !node.flow => text[..items.first()?.start].trim_end().strip_suffix('-')?.len(),
        Kind::Map(fields) if !node.flow => fields.first()?.0.start,
        _ => node.start,
    };
    Some(text[..first].chars().rev().take_while(|c| *c != '\n').count())
}

/// The end of a node's own text, without what follows it.
fn end(text: &str, node: &Node) -> Option<usize> {
    match &node.kind {
        Kind::List(items) if !node.flow => end(text, items.last()?),
        Kind::Map(fields) if !node.flow => fields.last().and_then(|(key, value)| field_end(text, key, value)),
        _ => Some(text[..node.end].trim_end().len()),
    }
}

fn field_end(text: &str, key: &Node, value: &Node) -> Option<usize> {
    let nothing = matches!(&value.kind, Kind::Scalar { text, bare: true } if text.is_empty());
    if nothing { text[key.end..].find(':').map(|colon| key.end + colon + 1) } else { end(text, value) }
}

/// Writes a value on lines of its own, the first without its indentation.
fn write_block(text: &mut String, value: &Value, indent: usize) {
    let break_line = |text: &mut String| {
        text.push('\n');
        text.push_str(&" ".repeat(indent));
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            // A name first, as people write it.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| name.as_str() != "name");
            for (index, (name, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    break_line(text);
                }
                write_field(text, name, value, indent);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    break_line(text);
                }
                write_item(text, item, indent);
            }
        }
        Value::String(string) if is_bare(string) => text.push_str(string),
        // JSON is YAML, and leaves nothing to interpret.
        value => text.push_str(&value.to_string()),
    }
}

fn write_field(text: &mut String, name: &str, value: &Value, indent: usize) {
    write_block(text, &Value::from(name), indent);
    text.push(':');
    let below = match value {
        Value::Object(fields) if !fields.is_empty() => indent + 2,
        Value::Array(items) if !items.is_empty() => indent,
        _ => {
            text.push(' ');
            return write_block(text, value, indent);
        }
    };
    text.push('\n');
    text.push_str(&" ".repeat(below));
    write_block(text, value, below);
}

fn write_item(text: &mut String, item: &Value, indent: usize) {
    text.push_str("- ");
    write_block(text, item, indent + 2);
}

/// Whether a text needs no quotes, whoever reads it.
fn is_bare(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '$' | '_');
    let rest = |c: char| first(c) || c.is_ascii_digit() || matches!(c, '.' | ':' | '-' | '(' | ')');
    text.starts_with(first) && text.chars().all(rest) && !text.ends_with(':') && meaning(text).is_string()
}

#[cfg(test)]
mod tests {
    use json_patch::jsonptr::PointerBuf;
    use serde_json::json;

    use super::*;

    fn added(text: &str, path: &str, value: Value) -> String {
        let before = Node::parse(text).expect("it is YAML").expect("it is not empty").value();
        let path = PointerBuf::parse(path).expect("it is a pointer");
        apply(text, &before, &[AddOperation { path, value }]).expect("there is such a place")
    }

    #[test]
    fn additions_leave_comments_order_and_quotes_as_they_were() {
        for (before, path, value, after) in [
            ("b: 'x' # c\na: 0644\n# end\n", "/c", json!(1), "b: 'x' # c\na: 0644\nc: 1\n# end\n"),
            ("a:\n- {b: 1} # one\n# end\nb: yes", "/a/-", json!("yes"), "a:\n- {b: 1} # one\n- \"yes\"\n# end\nb: yes"),
            (
                "a:\n  - x: 1\n    y: |\n      t\n\nb: 2\n",
                "/a/0/z",
                json!([3]),
                "a:\n  - x: 1\n    y: |\n      t\n    z:\n    - 3\n\nb: 2\n",
            ),
            ("a:\n  - x: 1\n", "/a/-", json!({"c": 1, "name": "m"}), "a:\n  - x: 1\n  - name: m\n    c: 1\n"),
            ("é: {x: 1}\n", "/é/y", json!("é"), "é: {x: 1, \"y\": \"é\"}\n"),
            ("a: {}\nb: [ ]\n", "/b/-", json!({"c": []}), "a: {}\nb: [{\"c\":[]} ]\n"),
            ("a: 30 # s\nb: 1\n", "/a", json!(90), "a: 90 # s\nb: 1\n"),
            ("a:\n  b:\n    c: 1\n  d: 2\n", "/a/b", json!({"e": {}}), "a:\n  b:\n    e: {}\n  d: 2\n"),
            ("a:\nb: 1", "/a", json!(["x"]), "a:\n- x\nb: 1"),
            ("{\"a\": [\n  1\n]}", "/a/-", json!(2), "{\"a\": [\n  1, 2\n]}"),
        ] {
            assert_eq!(added(before, path, value), after, "{before}");
        }
    }

    #[test]
    fn a_document_in_which_no_place_can_be_changed_alone_is_written_anew() {
        for text in ["a: &a\n  x: [1]\nb: *a\n", "a: {x: [1]}\nb:\n  <<: {x: [1]}\n"] {
            let after = added(text, "/b/x/-", json!(2));
            let value = Node::parse(&after).expect("it is YAML").expect("it is not empty").value();
            assert_eq!(value, json!({"a": {"x": [1]}, "b": {"x": [1, 2]}}), "{after}");
        }
    }

    #[test]
    fn an_addition_without_a_place_is_none() {
        let path = PointerBuf::parse("/a/b/c").expect("it is a pointer");
        assert_eq!(apply("a: {}", &json!({"a": {}}), &[AddOperation { path, value: json!(1) }]), None);
    }
}
