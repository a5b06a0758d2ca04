//! What the machine says of its pool: slots, the move, and conditions.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use ring::SlotId;
use ring::settings::Strategy;
use ring::wire::{BreakCause, RedisHealth};
use serde::Serialize;

use super::pace::Reason;
use super::{Machine, State, Term, estimate};
use crate::planner::{self, MemberState, Role};
use crate::pool::Mode;

/// A report counts for so long in the number of a pool's connections. Autoscalers look every 15 s; a sidecar is asked
/// several times a second.
const COUNTED_FOR: Duration = Duration::from_secs(10);

/// A pool, as `GET /v1/pools` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Its namespace; none without Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The leader's generation.
    pub term: u64,
    /// The version of the placement in force.
    pub epoch: u64,
    /// Where it stands.
    pub state: State,
    /// `Ready`, `Rebalancing`, `Degraded`.
    pub conditions: Vec<ConditionView>,
    /// Its slots, ascending.
    pub slots: Vec<SlotView>,
    /// Ready members without a slot.
    pub spares: Vec<String>,
    /// All members, as they are listed.
    pub members: Vec<MemberView>,
    /// How many slots are desired.
    pub desired: usize,
    /// Connections held in the pool.
    pub connections: u64,
    /// Whether that is all of them: every member that may hold some was heard lately.
    #[serde(skip)]
    pub counted: bool,
    /// The move under way, or what the last one came to.
    #[serde(rename = "move")]
    pub moving: MoveView,
    /// In mode `DryRun`: how many connections a change that waits would move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub would_move: Option<u64>,
    /// Connections ended by us, by cause.
    pub breaks: BTreeMap<BreakCause, u64>,
    /// All that is wrong, each with its reason and a sentence: the condition `Degraded` has the first one's reason, and
    /// all sentences.
    #[serde(skip)]
    pub troubles: Vec<(&'static str, String)>,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotView {
    /// Its number.
    pub id: SlotId,
    /// Its holder's name; nothing while it is vacant.
    pub member: Option<String>,
    /// Connections held there.
    pub connections: u64,
    /// Connections tunnelled from there to other members.
    pub transit: u64,
    /// Connections there whose owner is elsewhere.
    pub moved: u64,
    /// Whether its holder is ready, and has the placement in force.
    pub ready: bool,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Its pod's UID, once that is known.
    pub uid: Option<String>,
    /// The slot it holds.
    pub slot: Option<SlotId>,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is dead: it holds nothing, whatever it said last.
    #[serde(skip)]
    pub dead: bool,
    /// Connections held there; `None` while its sidecar has not been heard.
    pub connections: Option<u64>,
    /// Of these, the ones that stay for a pin.
    pub pinned: u64,
}

/// How far a move is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveView {
    /// Connections still to move.
    pub pending: u64,
    /// Connections evicted since the move began.
    pub evicted: u64,
    /// Of these, the ones seen at their new owner.
    pub returned: u64,
    /// Of these, the ones not seen there within `returnTimeout`.
    pub lost: u64,
    /// Of these, the ones that are expected there.
    pub in_flight: u64,
    /// Connections that will move when their pins end.
    pub pinned: u64,
    /// Evictions per second that are allowed now.
    pub rate: u64,
    /// Why it is not the full rate.
    pub reason: Option<&'static str>,
}

/// A condition, as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

impl PoolView {
    /// Adds trouble outside the machine; what the machine itself says goes before.
    pub fn degrade(&mut self, reason: &'static str, message: &str) {
        if let Some(condition) = self.conditions.iter_mut().find(|condition| condition.kind == "Degraded") {
            if condition.status {
                condition.message = format!("{}; {reason}: {message}", condition.message);
            } else {
                *condition = ConditionView { kind: "Degraded", status: true, reason, message: message.to_owned() };
            }
            self.troubles.push((reason, message.to_owned()));
        }
    }
}

impl Machine {
    /// What there is to say now.
    pub fn view(&self, now: Instant) -> PoolView {
        let degraded = self.degraded();
        let mut view = PoolView {
            namespace: None,
            name: self.pool.name.clone(),
            term: self.saved.version.term,
            epoch: self.saved.version.epoch,
            state: self.state(),
            troubles: if degraded.status { vec![(degraded.reason, degraded.message.clone())] } else { Vec::new() },
            conditions: vec![self.ready(), self.rebalancing(now), degraded],
            slots: self.slot_views(),
            spares: planner::spares(&self.saved.roster, &self.members).map(|member| member.name.clone()).collect(),
            members: self.member_views(),
            desired: self.desired,
            connections: self.connections(),
            counted: self.is_counted(now),
            moving: if self.moving.is_some() { self.move_view(now) } else { self.last.clone() },
            would_move: self.would_move(),
            breaks: self.fleet.breaks(),
        };
        if let Some(message) = self.redis_away() {
            view.degrade("RedisAway", &message);
        }
        view
    }

    /// Who does not hear what is published in the pool's Redis, and why.
    fn redis_away(&self) -> Option<String> {
        let deaf = self.members.iter().filter_map(|member| {
            let report = &self.fleet.get(member.uid.as_deref()?)?.report;
            let Some(RedisHealth::Down(why)) = &report.redis else { return None };
            Some((member.name.as_str(), why))
        });
        let (names, reasons): (Vec<_>, Vec<_>) = deaf.unzip();
        let why = reasons.first()?;
        Some(format!("what is published in Redis does not reach the clients of {}: {why}", names.join(", ")))
    }

    /// A server that has just started holds nothing yet; any other one that is silent may hold anything.
    fn is_counted(&self, now: Instant) -> bool {
        let holders = self.saved.roster.slots.iter().filter_map(|slot| Some(slot.holder.as_ref()?.uid.as_str()));
        let holders: HashSet<&str> = holders.collect();
        let heard = |uid: &str| {
            let heard = self.fleet.get(uid).map(|sidecar| sidecar.heard);
            heard.is_some_and(|heard| now.saturating_duration_since(heard) <= COUNTED_FOR)
        };
        let mut members = self.members.iter().filter(|member| member.role == Role::App).filter_map(|member| {
            let uid = member.uid.as_deref()?;
            match member.state {
                MemberState::Dead => None,
                MemberState::Starting if !holders.contains(uid) => None,
                _ => Some(heard(uid)),
            }
        });
        members.next().is_some_and(|first| first) && members.all(|heard| heard)
    }

    pub(super) fn move_view(&self, now: Instant) -> MoveView {
        let Some(moving) = &self.moving else { return MoveView::default() };
        MoveView {
            pending: self.pending(now),
            evicted: moving.flight.evicted(),
            returned: moving.flight.returned(),
            lost: moving.flight.lost(now),
            in_flight: moving.flight.in_flight(now),
            pinned: self.placed().map(|sidecar| sidecar.report.moved_pinned).sum(),
            rate: moving.allowance.rate,
            reason: match self.pool.pace.mode {
                Mode::Automatic => moving.allowance.reason.map(Reason::name),
                Mode::Paused | Mode::DryRun => Some("Paused"),
            },
        }
    }

    fn slot_views(&self) -> Vec<SlotView> {
        let slots = self.saved.roster.slots.iter().map(|slot| {
            let uid = slot.holder.as_ref().map(|holder| holder.uid.as_str());
            let report = uid.and_then(|uid| self.fleet.get(uid)).map(|sidecar| &sidecar.report);
            SlotView {
                id: slot.id,
                member: slot.holder.as_ref().map(|holder| holder.name.clone()),
                connections: report.map_or(0, |report| report.connections),
                transit: report.map_or(0, |report| report.transit),
                moved: report.map_or(0, |report| report.moved),
                ready: uid.is_some_and(|uid| self.state_of(uid) == MemberState::Ready && self.has_acknowledged(uid)),
            }
        });
        slots.collect()
    }

    fn member_views(&self) -> Vec<MemberView> {
        let slots = self.saved.roster.slots.iter();
        let holders = slots.filter_map(|slot| Some((slot.holder.as_ref()?.uid.as_str(), slot.id)));
        let holders: BTreeMap<&str, SlotId> = holders.collect();
        let members = self.members.iter().map(|member| {
            let uid = member.uid.as_deref();
            let report = uid.and_then(|uid| self.fleet.get(uid)).map(|sidecar| &sidecar.report);
            MemberView {
                name: member.name.clone(),
                uid: member.uid.clone(),
                slot: uid.and_then(|uid| holders.get(uid).copied()),
                ready: member.state == MemberState::Ready,
                dead: member.state == MemberState::Dead,
                connections: report.map(|report| report.connections),
                pinned: report.map_or(0, |report| report.pinned),
            }
        });
        members.collect()
    }

    fn would_move(&self) -> Option<u64> {
        let settling = self.settling.as_ref().filter(|_| self.pool.pace.mode == Mode::DryRun)?;
        let held = self.living().filter_map(|uid| Some((uid, self.fleet.get(uid)?.report.connections)));
        let (held, then) = (held.collect(), &settling.target);
        Some(match self.pool.settings.strategy {
            Strategy::ConsistentHash => estimate::moved(&self.table(), &then.table(), &held),
            Strategy::LeastConnections => estimate::levelled(&then.roster, &held, self.pool.pace.tolerance),
        })
    }

    fn ready(&self) -> ConditionView {
        let views = self.slot_views();
        let vacant: Vec<String> = views.iter().filter(|s| s.member.is_none()).map(|s| s.id.to_string()).collect();
        let waiting = views.iter().filter(|slot| !slot.ready).filter_map(|slot| slot.member.clone());
        let waiting: Vec<String> = waiting.collect();
        let (status, reason, message) = if views.is_empty() {
            (false, "NoSlots", "no slot has a holder yet".to_owned())
        } else if !vacant.is_empty() {
            (false, "SlotsVacant", format!("no ready member for slot {}", vacant.join(", ")))
        } else if !waiting.is_empty() {
            (false, "HoldersNotReady", format!("waiting for {}", waiting.join(", ")))
        } else {
            (true, "AllSlotsHeld", format!("{} slots are held by ready members", views.len()))
        };
        ConditionView { kind: "Ready", status, reason, message }
    }

    fn rebalancing(&self, now: Instant) -> ConditionView {
        let condition = |status, reason, message| ConditionView { kind: "Rebalancing", status, reason, message };
        if let Some(count) = self.would_move() {
            return condition(
                false,
                "DryRun",
                format!("about {count} of {} connections would move", self.connections()),
            );
        }
        let Some(moving) = &self.moving else {
            return match self.state() {
                State::Settling if self.pool.pace.mode == Mode::Paused => {
                    condition(false, "Paused", "a change waits until the mode is Automatic".to_owned())
                }
                State::Settling => condition(true, "Settling", "waiting until membership stands still".to_owned()),
                _ => condition(false, "Stable", "nothing is to be moved".to_owned()),
            };
        };
        let view = self.move_view(now);
        let figures = format!(
            "{} pending, {} pinned, {} evicted, {} returned, {} lost, at most {} per second",
            view.pending, view.pinned, view.evicted, view.returned, view.lost, view.rate
        );
        let reason = match (self.state(), self.pool.pace.mode) {
            (_, Mode::Paused | Mode::DryRun) => "Paused",
            (State::Publishing, _) => "Publishing",
            _ => moving.allowance.reason.map_or("Evicting", Reason::name),
        };
        condition(true, reason, figures)
    }

    fn degraded(&self) -> ConditionView {
        let condition = |reason, message| ConditionView { kind: "Degraded", status: true, reason, message };
        if let Term::Over { newer } = self.term {
            return condition("Superseded", format!("a newer operator leads: sidecars have {newer}"));
        }
        let trouble = self.moving.as_ref().and_then(|moving| moving.allowance.reason).filter(|r| r.is_trouble());
        if let Some(reason) = trouble {
            let message = match reason {
                Reason::ClientsNotReturning => {
                    let percent = self.pool.pace.min_returned;
                    format!(
                        "fewer than {percent} % of the evicted connections returned in time; the rest waits for them"
                    )
                }
                _ => "evictions are slowed down because the servers they lead to suffer".to_owned(),
            };
            return condition(reason.name(), message);
        }
        if self.full {
            let message = "too many placements in a row still have keys; changes wait until some have moved";
            return condition("TooManyMoves", message.to_owned());
        }
        let strangers = self.members.iter().filter(|member| {
            let report = member.uid.as_ref().and_then(|uid| self.fleet.get(uid)).map(|sidecar| &sidecar.report);
            report.is_some_and(|report| !report.pool_uid.is_empty() && report.pool_uid != self.saved.pool_uid)
        });
        let strangers: Vec<_> = strangers.map(|member| member.name.as_str()).collect();
        if !strangers.is_empty() {
            let message = format!(
                "{} follow the placement of an earlier pool of this name: roll the servers out again",
                strangers.join(", ")
            );
            return condition("OtherPool", message);
        }
        let named = |state: MemberState| {
            let members = self.members.iter().filter(move |m| m.state == state && m.role == Role::App);
            members.map(|member| member.name.as_str()).collect::<Vec<_>>()
        };
        let unreachable = named(MemberState::Unreachable);
        if !unreachable.is_empty() {
            let message = format!("{} cannot be reached: nothing is moved there", unreachable.join(", "));
            return condition("Unreachable", message);
        }
        let dead = named(MemberState::Dead);
        if !dead.is_empty() {
            let message = "refused connections for too long, or should have ended and do not answer";
            return condition("MembersDead", format!("{} {message}", dead.join(", ")));
        }
        ConditionView { kind: "Degraded", status: false, reason: "AsExpected", message: String::new() }
    }
}
