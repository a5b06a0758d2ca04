//! Which member holds which slot: the slot policy, as a function of what is there.
//!
//! The rules, in the order in which they are applied:
//!
//! 1. There are as many slots as desired. When fewer are desired, slots are retired: vacant ones first, then those of dead
//!    and of leaving members, then the highest.
//! 2. A missing slot is made with the lowest free id, for the first members in the list that have none. Ids are reused:
//!    a pool that shrinks and grows again gives its keys back to the slots that had them.
//! 3. A slot is the home of the member that held it last. A member that comes back, also under a new UID, gets its home.
//! 4. Spares (ready members without a slot) take over what others leave: first the slots of dead members, whose keys have
//!    no owner, then those of leaving ones.
//! 5. A dead member's slot that nobody takes is vacant: its keys belong to their next-best slots. A leaving member keeps
//!    its slot until somebody takes it, or until it is overdue.
//!
//! Members with ordinals (the pods of a `StatefulSet`) hold the slots of those, and no others: there are no spares, and slots
//! are retired from the highest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ring::{Holder, Slot, SlotId};
use serde::{Deserialize, Serialize};

/// One server of the pool with its sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: the pod's, or the one in the members file.
    pub name: String,
    /// Its pod's UID, which its sidecar's reports carry; `None` until that is known.
    pub uid: Option<String>,
    /// Where its sidecar accepts clients and peers, `host:port`.
    pub address: String,
    /// Its share of the keys, 1 to 64.
    pub weight: u8,
    /// What it does.
    pub role: Role,
    /// The only slot that it may hold; `None` means any.
    pub ordinal: Option<SlotId>,
    /// How it is.
    pub state: MemberState,
    /// Whether its sidecar has not answered when it was asked last, however the member is.
    pub silent: bool,
}

/// What a member does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It has an app, and may hold a slot.
    #[default]
    App,
    /// It has none, and hands everything to owners.
    Router,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Not ready yet: it gets no keys.
    Starting,
    /// It may hold a slot.
    Ready,
    /// It does not answer. It keeps its slot and gets no other.
    Unreachable,
    /// It is going away.
    Leaving {
        /// Whether it has waited for a successor for long enough.
        overdue: bool,
    },
    /// It is dead: it holds no connections.
    Dead,
}

/// The slots of a pool, and whose they were last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Roster {
    /// The slots, ascending by id.
    pub slots: Vec<Slot>,
    /// The name of the member that a slot is kept for.
    #[serde(default)]
    pub homes: BTreeMap<SlotId, String>,
}

/// How much of a change is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Whole,
    /// Only what cannot wait until membership stands still: the slots of leaving, dead and restarted members.
    Forced,
}

/// Plans the slots for the members as they are now. Planning again without a change changes nothing.
pub fn plan(current: &Roster, members: &[Member], desired: usize, scope: Scope) -> Roster {
    let mut planner = Planner::new(current, members);
    if members.iter().any(|member| member.ordinal.is_some()) {
        planner.follow_ordinals(desired, scope);
    } else {
        planner.retire(desired, scope);
        if scope == Scope::Whole {
            planner.make(desired);
        }
        planner.send_home(scope);
        planner.replace(scope);
    }
    planner.vacate();
    planner.finish()
}

/// Members that could hold a slot and hold none.
pub fn spares<'a>(roster: &Roster, members: &'a [Member]) -> impl Iterator<Item = &'a Member> {
    let holders: BTreeSet<String> = roster.slots.iter().filter_map(|s| Some(s.holder.as_ref()?.uid.clone())).collect();
    members.iter().filter(move |m| m.is_ready() && m.uid.as_ref().is_some_and(|uid| !holders.contains(uid)))
}

impl Member {
    fn is_ready(&self) -> bool {
        self.role == Role::App && self.state == MemberState::Ready && self.uid.is_some()
    }

    /// Whether it leaves, and no successor is waited for any more. There is none for an ordinal: the next pod that has it
    /// comes when this one is gone.
    fn waits_for_nobody(&self) -> bool {
        self.state == (MemberState::Leaving { overdue: true }) || (self.is_leaving() && self.ordinal.is_some())
    }

    fn is_leaving(&self) -> bool {
        matches!(self.state, MemberState::Leaving { .. })
    }

    pub(crate) fn holder(&self) -> Option<Arc<Holder>> {
        let uid = self.uid.clone()?;
        Some(Arc::new(Holder { name: self.name.clone(), uid, address: self.address.clone() }))
    }
}

/// The first of the members that share a name or a UID, by it.
fn first_of_each<'a>(members: impl Iterator<Item = (&'a str, &'a Member)>) -> HashMap<&'a str, &'a Member> {
    members.fold(HashMap::new(), |mut first, (by, member)| {
        first.entry(by).or_insert(member);
        first
    })
}

struct Planner<'a> {
    members: &'a [Member],
    slots: BTreeMap<SlotId, Place<'a>>,
}

/// A slot while it is planned.
struct Place<'a> {
    weight: u8,
    home: Option<&'a str>,
    held: Held<'a>,
}

#[derive(Clone, Copy)]
enum Held<'a> {
    Vacant,
    By(&'a Member),
    /// By a process that is dead, whose place was not vacant before.
    ByDead,
}

impl<'a> Planner<'a> {
    fn new(current: &'a Roster, members: &'a [Member]) -> Self {
        let living = members.iter().filter(|member| member.state != MemberState::Dead);
        let living = first_of_each(living.filter_map(|member| Some((member.uid.as_deref()?, member))));
        let place = |slot: &'a Slot| {
            let held = match &slot.holder {
                None => Held::Vacant,
                Some(holder) => living.get(holder.uid.as_str()).copied().map_or(Held::ByDead, Held::By),
            };
            let home = current.homes.get(&slot.id).map(String::as_str);
            (slot.id, Place { weight: slot.weight, home, held })
        };
        Self { members, slots: current.slots.iter().map(place).collect() }
    }

    fn retire(&mut self, desired: usize, scope: Scope) {
        let mut surplus: Vec<_> = self.slots.iter().map(|(&id, place)| (place.hold(), id)).collect();
        surplus.sort_unstable_by(|(hold, id), (other_hold, other)| hold.cmp(other_hold).then(other.cmp(id)));
        surplus.truncate(self.slots.len().saturating_sub(desired));
        for (hold, id) in surplus {
            if scope == Scope::Whole || matches!(hold, Hold::Dead | Hold::Leaving) {
                self.slots.remove(&id);
            }
        }
    }

    fn follow_ordinals(&mut self, desired: usize, scope: Scope) {
        let apps = self.members.iter().filter(|member| member.role == Role::App && !member.is_leaving());
        let apps: Vec<_> = apps.filter_map(|member| Some((member.ordinal?, member))).collect();
        for &(id, member) in apps.iter().filter(|_| scope == Scope::Whole) {
            let vacant = Place { weight: member.weight, home: Some(&member.name), held: Held::Vacant };
            self.slots.entry(id).or_insert(vacant);
        }
        let surplus = self.slots.len().saturating_sub(desired);
        let highest: Vec<_> = self.slots.iter().rev().map(|(&id, place)| (id, place.hold())).take(surplus).collect();
        for (id, hold) in highest {
            if scope == Scope::Whole || matches!(hold, Hold::Dead | Hold::Leaving) {
                self.slots.remove(&id);
            }
        }
        for (id, member) in apps.into_iter().filter(|(_, member)| member.is_ready()) {
            let open = self.slots.get(&id).is_some_and(|place| match place.held {
                Held::Vacant => scope == Scope::Whole,
                Held::ByDead => true,
                Held::By(_) => false,
            });
            if open {
                self.hand(id, member);
            }
        }
    }

    fn make(&mut self, desired: usize) {
        let mut homes: HashSet<&str> = self.slots.values().filter_map(|place| place.home).collect();
        let holders = self.holders();
        for member in self.members {
            if self.slots.len() >= desired {
                return;
            }
            let holds = member.uid.as_deref().is_some_and(|uid| holders.contains(uid));
            let at_home = holds || homes.contains(member.name.as_str());
            if member.role == Role::App && !member.is_leaving() && !at_home {
                let free = self.lowest_free();
                let place = Place { weight: member.weight, home: Some(&member.name), held: Held::Vacant };
                self.slots.insert(free, place);
                homes.insert(&member.name);
            }
        }
    }

    fn lowest_free(&self) -> SlotId {
        let in_use = self.slots.keys().zip(0..).take_while(|(id, expected)| id.0 == *expected).count();
        SlotId(u32::try_from(in_use).expect("there are more ids than slots"))
    }

    fn send_home(&mut self, scope: Scope) {
        let mut spares = first_of_each(self.spares().map(|member| (member.name.as_str(), member)));
        let homecoming: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, place)| match place.held {
                Held::Vacant => scope == Scope::Whole,
                Held::ByDead => true,
                Held::By(_) => false,
            })
            // Two slots may be kept for one member, which gets the lower.
            .filter_map(|(&id, place)| Some((id, spares.remove(place.home?)?)))
            .collect();
        for (id, member) in homecoming {
            self.hand(id, member);
        }
    }

    fn replace(&mut self, scope: Scope) {
        let mut open: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, place)| scope == Scope::Whole || !matches!(place.held, Held::Vacant))
            .filter_map(|(&id, place)| Some((place.urgency()?, id)))
            .collect();
        open.sort_unstable();
        // Whom they replace is none: it leaves, or is dead.
        let spares: Vec<_> = self.spares().take(open.len()).collect();
        for ((_, id), spare) in open.into_iter().zip(spares) {
            self.hand(id, spare);
        }
    }

    fn vacate(&mut self) {
        let somebody_else = self.slots.values().any(|p| matches!(p.held, Held::By(m) if !m.is_leaving()));
        // With nobody left to take its keys, a leaving member serves them to the end.
        for place in self.slots.values_mut().filter(|_| somebody_else) {
            if matches!(place.held, Held::By(member) if member.waits_for_nobody()) {
                place.held = Held::Vacant;
            }
        }
    }

    fn hand(&mut self, id: SlotId, member: &'a Member) {
        self.slots.insert(id, Place { weight: member.weight, home: Some(&member.name), held: Held::By(member) });
    }

    fn spares(&self) -> impl Iterator<Item = &'a Member> {
        let holders = self.holders();
        let holds = move |member: &Member| member.uid.as_deref().is_some_and(|uid| holders.contains(uid));
        self.members.iter().filter(move |member| member.is_ready() && !holds(member))
    }

    /// The UIDs of members that hold a slot.
    fn holders(&self) -> HashSet<&'a str> {
        let held = self.slots.values().filter_map(|place| match place.held {
            Held::By(member) => member.uid.as_deref(),
            Held::Vacant | Held::ByDead => None,
        });
        held.collect()
    }

    fn finish(self) -> Roster {
        let mut roster = Roster::default();
        for (id, place) in self.slots {
            let member = match place.held {
                Held::By(member) => Some(member),
                Held::Vacant | Held::ByDead => None,
            };
            let weight = member.map_or(place.weight, |m| m.weight);
            roster.slots.push(Slot { id, weight, holder: member.and_then(Member::holder) });
            if let Some(home) = place.home {
                roster.homes.insert(id, home.to_owned());
            }
        }
        roster
    }
}

/// How firmly a slot is held; the loosest are retired first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hold {
    Vacant,
    Dead,
    Leaving,
    Firm,
}

/// Whose slot is taken over first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Its keys have no owner.
    Unowned,
    /// Its keys will lose their owner.
    Leaving,
}

impl Place<'_> {
    fn hold(&self) -> Hold {
        match self.held {
            Held::Vacant => Hold::Vacant,
            Held::ByDead => Hold::Dead,
            Held::By(member) if member.is_leaving() => Hold::Leaving,
            Held::By(_) => Hold::Firm,
        }
    }

    fn urgency(&self) -> Option<Urgency> {
        match self.hold() {
            Hold::Vacant | Hold::Dead => Some(Urgency::Unowned),
            Hold::Leaving => Some(Urgency::Leaving),
            Hold::Firm => None,
        }
    }
}

#[cfg(test)]
mod tests;
