//! A placement as it comes from the operator or a file: one that is accepted gives keys to its slots only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring::Placement;

fuzz_target!(|bytes: &[u8]| {
    let Ok(placement) = serde_json::from_slice::<Placement>(bytes) else { return };
    let written = serde_json::to_vec(&placement).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<Placement>(&written).expect("and read again"), placement);
    let Ok(compiled) = placement.compile() else { return };
    for key in ["", "ann", "user-1"] {
        let owner = compiled.ring().owner(compiled.hash(key));
        let slots = &compiled.placement().table.slots;
        let mut held = slots.iter().filter(|slot| slot.holder.is_some());
        assert_eq!(owner.is_none(), held.clone().next().is_none());
        assert!(owner.is_none_or(|owner| held.any(|slot| slot.id == owner)));
        assert!(compiled.previous_holders(key).len() <= compiled.placement().predecessors.len());
    }
});
