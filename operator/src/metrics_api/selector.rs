//! A label selector as it stands in a query: `tier=a,stage in (x, y),!old`.

use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

/// Reads a selector; an empty one selects everything. An error says what a requirement should look like.
pub fn read(text: &str) -> Result<Selector, String> {
    let parts = requirements(text);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).map(requirement).collect()
}

/// Splits at commas outside parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let at_comma = |letter: char| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    };
    text.split(at_comma).collect()
}

fn requirement(part: &str) -> Result<Expression, String> {
    let wrong =
        || format!("{part:?} is no requirement; write key, !key, key=value, key!=value or key in (value, value)");
    let word = |word: &str| {
        let word = word.trim();
        let good = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
        good.then(|| word.to_owned()).ok_or_else(wrong)
    };
    let key = |key: &str| word(key).and_then(|key| if key.is_empty() { Err(wrong()) } else { Ok(key) });
    if let Some(name) = part.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(name)?));
    }
    if let Some((name, value)) = part.split_once("!=") {
        return Ok(Expression::NotEqual(key(name)?, word(value)?));
    }
    if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Expression::Equal(key(name)?, word(value)?));
    }
    let Some((name, rest)) = part.split_once(char::is_whitespace) else { return Ok(Expression::Exists(key(part)?)) };
    let values = |rest: &str| -> Result<BTreeSet<String>, String> {
        let inside = rest.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).ok_or_else(wrong)?;
        inside.split(',').map(word).collect()
    };
    let rest = rest.trim_start();
    match (rest.strip_prefix("in"), rest.strip_prefix("notin")) {
        (Some(rest), _) => Ok(Expression::In(key(name)?, values(rest)?)),
        (_, Some(rest)) => Ok(Expression::NotIn(key(name)?, values(rest)?)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_requirement_is_read() {
        let cases = [
            ("", ""),
            ("a", "a"),
            ("!a", "!a"),
            ("a=b", "a=b"),
            ("a == b", "a=b"),
            ("a!=b", "a!=b"),
            ("a in (y, x),example.com/b", "a in (x,y),example.com/b"),
            ("a notin (x)", "a notin (x)"),
        ];
        for (text, read_as) in cases {
            assert_eq!(read(text).unwrap().to_string(), read_as, "{text}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_named() {
        for text in ["a in b", "=b", "a b", "a=b c", "a in (b", "!"] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("{text:?} is no requirement")), "{error}");
        }
    }
}
