//! How the tables before a placement's are written: each by what differs from the one above it.
//!
//! They differ in a few slots. Whole, each would take as much room as the first, also when packed: gzip looks back 32 KiB,
//! and a table of thousands of slots is larger. A ConfigMap holds 1 MiB.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_PREDECESSORS, Predecessor, Slot, SlotId, Table};
use crate::{KeyHasher, Version};

/// The most tables that are read, more than any operator keeps: a few bytes each must not become gigabytes.
const MOST: usize = 4 * MAX_PREDECESSORS;

/// A table as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written<H, S> {
    term: u64,
    epoch: u64,
    #[serde(default)]
    hasher: H,
    /// Its slots; if `without` is there, only those that the table above does not have like this.
    slots: Vec<S>,
    /// The slots of the table above that this one does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    without: Option<Vec<SlotId>>,
}

/// Tables to be written below another one.
#[derive(Clone, Copy)]
pub(super) struct Below<'a> {
    pub above: Option<&'a Table>,
    pub tables: &'a [Predecessor],
}

impl Serialize for Below<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let above = std::iter::once(self.above).chain(self.tables.iter().map(|table| Some(&table.table)));
        to.collect_seq(self.tables.iter().zip(above).map(|(table, above)| write(table, above)))
    }
}

/// Tables as they were read: they say what differs from one that is still to be read.
#[derive(Default)]
pub(super) struct Unknown(Vec<Written<KeyHasher, Slot>>);

impl<'de> Deserialize<'de> for Unknown {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let all = Vec::deserialize(from)?;
        if all.len() > MOST {
            return Err(D::Error::custom(format!("{} tables; at most {MOST} are read", all.len())));
        }
        Ok(Self(all))
    }
}

impl Unknown {
    pub(super) fn below(self, above: Option<&Table>) -> Vec<Predecessor> {
        let mut tables: Vec<Predecessor> = Vec::with_capacity(self.0.len());
        for Written { term, epoch, hasher, slots, without } in self.0 {
            let above = tables.last().map(|above| &above.table).or(above);
            let slots = match (without, above) {
                (Some(without), Some(above)) => change(&above.slots, slots, &without),
                _ => slots,
            };
            tables.push(Predecessor { version: Version { term, epoch }, table: Table { hasher, slots } });
        }
        tables
    }
}

/// Writes tables, the first of them whole.
pub fn serialize<S: Serializer>(tables: &[Predecessor], to: S) -> Result<S::Ok, S::Error> {
    Below { above: None, tables }.serialize(to)
}

/// Reads tables of which the first is whole.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Predecessor>, D::Error> {
    Ok(Unknown::deserialize(from)?.below(None))
}

fn write<'a>(predecessor: &'a Predecessor, above: Option<&Table>) -> Written<&'a KeyHasher, &'a Slot> {
    let Predecessor { version: Version { term, epoch }, table } = predecessor;
    let written = |slots, without| Written { term: *term, epoch: *epoch, hasher: &table.hasher, slots, without };
    // Differences are by id. In another order, which only tests use, a table is written whole.
    let Some(above) = above.filter(|above| is_ascending(above) && is_ascending(table)) else {
        return written(table.slots.iter().collect(), None);
    };
    let known: BTreeMap<SlotId, &Slot> = above.slots.iter().map(|slot| (slot.id, slot)).collect();
    let own: BTreeSet<SlotId> = table.slots.iter().map(|slot| slot.id).collect();
    let other = table.slots.iter().filter(|slot| known.get(&slot.id) != Some(slot)).collect();
    written(other, Some(known.into_keys().filter(|id| !own.contains(id)).collect()))
}

fn change(above: &[Slot], other: Vec<Slot>, without: &[SlotId]) -> Vec<Slot> {
    let without: BTreeSet<SlotId> = without.iter().copied().collect();
    let mut slots: Vec<Slot> = above.iter().filter(|slot| !without.contains(&slot.id)).cloned().collect();
    slots.extend(other);
    // Two ascending runs, which is what the sort looks for. Of two that share an id the later one counts.
    slots.sort_by_key(|slot| slot.id);
    slots.dedup_by(|later, earlier| {
        let same = later.id == earlier.id;
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
    slots
}

fn is_ascending(table: &Table) -> bool {
    table.slots.is_sorted_by(|one, next| one.id < next.id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Holder;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct List(#[serde(with = "super")] Vec<Predecessor>);

    fn table(epoch: u64, slots: &[(u32, u8)]) -> Predecessor {
        let holder = |pod: u8| {
            let uid = format!("pod-{pod}");
            (pod > 0).then(|| Holder { name: uid.clone(), uid, address: format!("10.0.0.{pod}:7480") }.into())
        };
        let slots = slots.iter().map(|(id, pod)| Slot { id: SlotId(*id), weight: 1, holder: holder(*pod) }).collect();
        Predecessor { version: Version { term: 1, epoch }, table: Table { slots, ..Table::default() } }
    }

    #[test]
    fn a_table_is_written_as_what_differs_from_the_one_above() {
        let list = List(vec![table(7, &[(0, 1), (1, 2), (3, 4)]), table(6, &[(0, 1), (1, 5), (2, 3)])]);
        let written = serde_json::to_value(&list).unwrap();
        assert_eq!(written[0]["slots"].as_array().unwrap().len(), 3);
        assert_eq!(written[1]["slots"].as_array().unwrap().len(), 2, "{written}");
        assert_eq!(written[1]["without"], serde_json::json!([3]));
        assert_eq!(serde_json::from_value::<List>(written).unwrap(), list);
    }

    #[test]
    fn whole_tables_are_read_too() {
        let whole = serde_json::json!([
            {"term": 1, "epoch": 7, "slots": [{"id": 0}, {"id": 1}]},
            {"term": 1, "epoch": 6, "slots": [{"id": 1}]},
        ]);
        let list = List(vec![table(7, &[(0, 0), (1, 0)]), table(6, &[(1, 0)])]);
        assert_eq!(serde_json::from_value::<List>(whole).unwrap(), list);
    }

    #[test]
    fn a_short_text_does_not_become_thousands_of_tables() {
        let small = serde_json::json!({"term": 1, "epoch": 6, "slots": [], "without": []});
        let read = |count| serde_json::from_value::<List>(serde_json::Value::from(vec![small.clone(); count]));
        assert_eq!(read(MOST).unwrap().0.len(), MOST);
        assert_eq!(read(MOST + 1).unwrap_err().to_string(), "33 tables; at most 32 are read");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(
            tables in prop::collection::vec(prop::collection::vec((0_u32..8, 0_u8..4), 0..8), 0..5)
        ) {
            let list = List((0..).zip(&tables).map(|(epoch, slots)| table(epoch, slots)).collect());
            let written = serde_json::to_string(&list).unwrap();
            prop_assert_eq!(serde_json::from_str::<List>(&written).unwrap(), list);
        }
    }
}
