//! Which server a key belongs to, who must move when that changes, and the messages that say so.
//!
//! Nothing here does I/O or reads a clock: the operator and the sidecar decide with these functions and act elsewhere.
//!
//! ```text
//!  key ──hash──► KeyHash ──ring──► owner slot ──placement──► holder (a pod)
//!                              │
//!                              ├─delta──► which held keys moved
//!                              └─claim──► may this server take the key now?
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`hash`] | a key's hash, keyed or not |
//! | [`owners`] | the slots that own keys, whatever the algorithm |
//! | [`rendezvous`] | slots and their scores: the owner of a key, and its next-best |
//! | [`agreement`], [`continuum`] | the hashes of ingresses, and the points that most of them use |
//! | [`delta`] | what changed between two sets of slots, applied to held keys |
//! | [`placement`] | which pod holds which slot, with its version and its predecessors |
//! | [`claim`] | the protocol by which a key leaves one server before it enters another |
//! | [`load`] | which slot a connection goes to where load decides, not a key |
//! | [`notice`] | what clients of each protocol are told before their connection is closed |
//! | [`settings`] | what a pool's spec tells its sidecars |
//! | [`duration`] | durations as users write them |
//! | [`wire`] | the JSON that operator and sidecars exchange |

pub mod agreement;
pub mod claim;
pub mod continuum;
pub mod delta;
pub mod duration;
pub mod hash;
pub mod load;
pub mod notice;
pub mod owners;
pub mod placement;
pub mod rendezvous;
pub mod settings;
pub mod wire;

pub use hash::{KeyHash, KeyHasher};
pub use owners::Owners;
pub use placement::{Compiled, Holder, Placement, Slot, SlotId, Version};
