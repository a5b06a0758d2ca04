//! Additions to a pod, in the form that both a JSON patch and a manifest take.

use json_patch::AddOperation;
use json_patch::jsonptr::PointerBuf;
use serde::Serialize;
use serde_json::{Value, json};

/// Additions in order.
#[derive(Default)]
pub(super) struct Edits(Vec<AddOperation>);

impl Edits {
    /// Sets a field, over what it holds.
    pub(super) fn set(&mut self, path: &str, value: Value) {
        let path = PointerBuf::parse(path).expect("paths are written here: each begins with a slash, none has a tilde");
        self.0.push(AddOperation { path, value });
    }

    /// Appends to a list, of which `present` is there already.
    pub(super) fn append<T: Serialize>(&mut self, path: &str, present: Option<&[T]>, items: &[T]) {
        if present.is_none() {
            self.set(path, json!(items));
            return;
        }
        for item in items {
            self.set(&format!("{path}/-"), json!(item));
        }
    }
}

impl From<Edits> for Vec<AddOperation> {
    fn from(edits: Edits) -> Self {
        edits.0
    }
}
