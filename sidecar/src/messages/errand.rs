//! What a sidecar is asked to do with a message, in the query of the request: a peer's proof covers it.

use std::time::Duration;

use ring::notice::MessageKind;

use super::HOLD;
use crate::registry::Role;

/// A message's kind, and as whom it is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// How it is sent.
    pub kind: MessageKind,
    /// As whom.
    pub role: Role,
}

impl Errand {
    /// As a query.
    pub fn to_query(self) -> String {
        let kind = kind_name(self.kind);
        match self.role {
            Role::Owner { away, left } => format!("kind={kind}&role=owner&away={away}&left={}", left.as_millis()),
            // For whoever does not know the difference it is the owner.
            Role::Successor { away, left } => {
                format!("kind={kind}&role=owner&away={away}&left={}&held=true", left.as_millis())
            }
            Role::Fallback { left } => format!("kind={kind}&role=fallback&left={}", left.as_millis()),
            Role::Previous => format!("kind={kind}&role=previous"),
            Role::Heir { away, left } => format!("kind={kind}&role=heir&away={away}&left={}", left.as_millis()),
            Role::Hearer => format!("kind={kind}&role=hearer"),
        }
    }

    /// From a query.
    pub fn from_query(query: &str) -> Option<Self> {
        let value = |name| values(query).find_map(|(other, value)| (other == name).then_some(value));
        let left = || Some(Duration::from_millis(value("left")?.parse().ok()?).min(HOLD));
        let away = || value("away")?.parse().ok();
        let role = match value("role")? {
            "owner" if value("held") == Some("true") => Role::Successor { away: away()?, left: left()? },
            "owner" => Role::Owner { away: away()?, left: left()? },
            "fallback" => Role::Fallback { left: left()? },
            "previous" => Role::Previous,
            "hearer" => Role::Hearer,
            "heir" => Role::Heir { away: away()?, left: left()? },
            _ => return None,
        };
        Some(Self { kind: broadcast_kind(query)?, role })
    }
}

/// The kind of a message for everybody, which a query says alone.
pub fn broadcast_kind(query: &str) -> Option<MessageKind> {
    let kind = values(query).find_map(|(name, value)| (name == "kind").then_some(value))?;
    [MessageKind::Text, MessageKind::Binary].into_iter().find(|each| kind_name(*each) == kind)
}

/// A kind's name in a query.
pub const fn kind_name(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Text => "text",
        MessageKind::Binary => "binary",
    }
}

fn values(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_is_read_as_it_was_written() {
        let left = Duration::from_millis(19_500);
        for role in [
            Role::Owner { away: 3, left },
            Role::Successor { away: 3, left },
            Role::Fallback { left },
            Role::Previous,
            Role::Hearer,
            Role::Heir { away: 3, left },
        ] {
            for kind in [MessageKind::Text, MessageKind::Binary] {
                let errand = Errand { kind, role };
                assert_eq!(Errand::from_query(&errand.to_query()), Some(errand));
            }
        }
    }

    #[test]
    fn what_says_too_little_or_something_else_is_no_errand() {
        for query in ["", "kind=text", "kind=text&role=owner&away=1", "kind=text&role=king", "kind=smoke&role=previous"]
        {
            assert_eq!(Errand::from_query(query), None, "{query}");
        }
        let long = Errand::from_query("kind=text&role=fallback&left=99999999").expect("an errand");
        assert_eq!(long.role, Role::Fallback { left: HOLD }, "nothing is held for longer");
    }
}
