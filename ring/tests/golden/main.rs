//! The hashes of ingresses, against the answers of the programs themselves in the files beside this one: `README.md` says
//! how they were made.

mod keys;

use std::collections::BTreeSet;
use std::path::Path;

use ring::agreement::Agreement;
use ring::{Holder, Slot, SlotId};

use keys::{KEYS, keys};

/// What a program has answered.
struct Golden {
    agreement: Agreement,
    slots: Vec<Slot>,
    /// For each key the number of the server that it was sent to.
    owners: Vec<u32>,
}

impl Golden {
    fn parse(text: &str) -> Self {
        let (head, answers) = text.split_once("\n\n").expect("an empty line behind the head");
        let mut lines = head.lines();
        lines.next().and_then(|line| line.strip_prefix("program ")).expect("a program");
        let agreement = lines.next().and_then(|line| line.strip_prefix("agreement ")).expect("an agreement");
        let slot = |(id, line): (u32, &str)| {
            let (address, weight) = line.split_once(" weight ").expect("an address and a weight");
            let holder = Holder { name: format!("h{id}"), uid: format!("u{id}"), address: address.to_owned() };
            Slot { id: SlotId(id), weight: weight.parse().expect("a weight"), holder: Some(holder.into()) }
        };
        Self {
            agreement: serde_json::from_str(agreement).expect("an agreement of ours"),
            slots: (0..).zip(lines).map(slot).collect(),
            owners: answers.lines().flat_map(str::chars).map(|owner| owner.to_digit(36).expect("a digit")).collect(),
        }
    }
}

#[test]
fn every_key_has_the_owner_that_the_program_sent_it_to() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let keys = keys();
    let mut configurations = BTreeSet::new();
    for entry in folder.read_dir().expect("the golden files") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let golden = Golden::parse(&std::fs::read_to_string(&path).expect("text"));
        assert_eq!(golden.owners.len(), KEYS, "{}", path.display());
        let owners = golden.agreement.owners(&golden.slots);
        let owner = |key: &String| owners.owner(golden.agreement.hash(key.as_bytes())).expect("an owner").0;
        let differ: Vec<_> = keys.iter().zip(&golden.owners).filter(|(key, answer)| owner(key) != **answer).collect();
        assert!(differ.is_empty(), "{}: {} differ, first {:?}", path.display(), differ.len(), differ.first());
        let asked: BTreeSet<_> = golden.owners.iter().collect();
        assert_eq!(asked.len(), golden.slots.len(), "{}: every server owns keys", path.display());
        configurations.insert(format!("{:?}", golden.agreement));
    }
    // Two of nginx's and two of Envoy's kinds, and HAProxy's three keys of a server.
    assert_eq!(configurations.len(), 7, "{configurations:?}");
}
