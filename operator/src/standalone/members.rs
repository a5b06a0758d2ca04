//! The members file: who belongs to the pool when no Kubernetes says so.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::planner::Role;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its name, once in the file.
    pub name: String,
    /// Where its sidecar accepts clients and peers, `host:port`.
    pub address: String,
    /// Where its sidecar takes control requests, `host:port`.
    pub control: String,
    /// Its share of the keys, 1 to 64.
    #[serde(default = "one")]
    pub weight: u8,
    /// `app`, or `router` for a sidecar without one.
    #[serde(default)]
    pub role: Role,
}

fn one() -> u8 {
    1
}

/// Why a members file was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// It is empty: perhaps somebody is still writing it.
    #[error("it is empty; write [] for a pool without members")]
    Empty,
    /// It is not a list of members.
    #[error("{0}")]
    Syntax(String),
    /// A value is wrong.
    #[error("line {line}: {field} {value:?} {want}")]
    Value {
        /// Where it stands.
        line: usize,
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What would be right.
        want: &'static str,
    },
}

/// Reads a members file.
pub fn parse(text: &str) -> Result<Vec<Listed>, MembersError> {
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---";
    if text.lines().all(blank) {
        return Err(MembersError::Empty);
    }
    let members: Vec<Listed> = serde_yaml::from_str(text).map_err(|error| MembersError::Syntax(error.to_string()))?;
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for member in &members {
        let refused = |field, value: &str, nth, want| {
            Err(MembersError::Value { line: line_of(text, value, nth), field, value: value.to_owned(), want })
        };
        if member.name.is_empty() || member.name.contains(char::is_whitespace) {
            return refused("name", &member.name, 0, "is not a name; write one word");
        }
        if !names.insert(&member.name) {
            return refused("name", &member.name, 1, "is listed twice; each member has its own name");
        }
        for (field, address) in [("address", &member.address), ("control", &member.control)] {
            if !is_address(address) {
                return refused(field, address, 0, "is not an address; write host:port, for example 127.0.0.1:8000");
            }
            if !addresses.insert(address) {
                return refused(field, address, 1, "is listed twice; each port belongs to one member");
            }
        }
        if !(1..=ring::rendezvous::MAX_WEIGHT).contains(&member.weight) {
            return refused("weight", &member.weight.to_string(), 0, "is out of range; write 1 to 64");
        }
    }
    Ok(members)
}

fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let host = v6.map_or(named, |v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    host && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// The line of a value's nth appearance, counted from 1; the last one when there are fewer.
fn line_of(text: &str, value: &str, nth: usize) -> usize {
    let part_of_word = |c: char| c.is_alphanumeric() || "-._:".contains(c);
    let stands_in = |line: &str| {
        line.match_indices(value).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + value.len()..].chars().next();
            !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
        })
    };
    let mut lines = text.lines().enumerate().filter(|(_, line)| stands_in(line)).map(|(index, _)| index + 1);
    let found: Vec<usize> = lines.by_ref().take(nth + 1).collect();
    found.last().copied().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_needs_a_name_and_two_addresses() {
        let text = "- {name: a, address: 127.0.0.1:8000, control: 127.0.0.1:8001}
- name: r
  address: \"[::1]:8000\"
  control: router.example.com:8001
  role: router
  weight: 3
";
        let members = parse(text).unwrap();
        assert_eq!((members[0].weight, members[0].role), (1, Role::App));
        assert_eq!((members[1].weight, members[1].role), (3, Role::Router));
        assert_eq!(parse("[]").unwrap(), []);
    }

    #[test]
    fn a_file_that_is_being_written_is_not_an_empty_pool() {
        for text in ["", "\n", "# members\n", "---\n"] {
            assert_eq!(parse(text), Err(MembersError::Empty), "{text:?}");
        }
    }

    #[test]
    fn an_error_names_the_line_and_the_value() {
        let good = "- {name: server-1, address: 127.0.0.1:8000, control: 127.0.0.1:8001}\n";
        for (line, says) in [
            ("- {name: server-1, address: h:1, control: h:2}", "line 2: name \"server-1\" is listed twice"),
            (
                "- {name: b, address: 127.0.0.1:8000, control: h:2}",
                "line 2: address \"127.0.0.1:8000\" is listed twice",
            ),
            ("- {name: b, address: localhost, control: h:2}", "line 2: address \"localhost\" is not an address"),
            ("- {name: b, address: h:1, control: h:70000}", "line 2: control \"h:70000\" is not an address"),
            ("- {name: b, address: h:1, control: h:2, weight: 65}", "line 2: weight \"65\" is out of range"),
            ("- {name: b, address: h:1}", "missing field `control` at line 2"),
            ("- {name: b, address: h:1, control: h:2, colour: red}", "unknown field `colour`"),
            ("- {name: b, address: h:1, control: h:2, role: db}", "unknown variant `db`, expected `app` or `router`"),
            ("- {name: b, address", "line 2"),
        ] {
            let refused = parse(&format!("{good}{line}\n")).unwrap_err().to_string();
            assert!(refused.contains(says), "{line}: {refused}");
        }
    }
}
