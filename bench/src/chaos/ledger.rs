//! What clients have seen, and what it comes to.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Around a message's sending: who was connected all the time should have received it.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(1_500);
/// The time over which handshakes at one app are counted.
const WINDOW: Duration = Duration::from_millis(100);

/// What one client has seen.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Its key: clients of one key are in one room.
    pub room: usize,
    /// Its connections, in order.
    pub stays: Vec<Stay>,
    /// When it sent each of its messages, from number 0 on.
    pub sent: Vec<Instant>,
    /// The messages that it received: who sent it, and its number.
    pub heard: HashSet<(usize, usize)>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Stay {
    /// The app that greeted it.
    pub server: String,
    /// When it began.
    pub from: Instant,
    /// When it ended: for one that fell silent, when it was heard last.
    pub to: Option<Instant>,
    /// When the client gave it up.
    pub left: Option<Instant>,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Clients.
    pub clients: usize,
    /// Connections that ended.
    pub breaks: usize,
    /// The most of one client.
    pub most_breaks: usize,
    /// Clients that ended the step at another server than they began it at: each needs one break.
    pub changed: usize,
    /// How long clients were away, ascending.
    pub away: Vec<Duration>,
    /// The most handshakes at one app within 100 ms.
    pub peak: usize,
    /// Messages that nobody received.
    pub lost_up: usize,
    /// Messages that somebody received, and that a client which was connected all the while did not: one for each.
    pub lost_down: usize,
    /// Room-seconds in which members of one room were on two servers.
    pub split: Duration,
    /// The most clients at one server, over the mean.
    pub imbalance: f64,
}

/// What happened from `begin` to `end`.
pub fn tally(lives: &[Life], begin: Instant, end: Instant) -> Tally {
    let during = |time: Instant| begin <= time && time < end;
    let mut tally = Tally { clients: lives.len(), ..Tally::default() };
    let mut handshakes: BTreeMap<&str, Vec<Instant>> = BTreeMap::new();
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    for life in lives {
        let breaks = life.stays.iter().filter(|stay| stay.left.is_some_and(during)).count();
        tally.breaks += breaks;
        tally.most_breaks = tally.most_breaks.max(breaks);
        tally.changed += usize::from(life.at(begin).is_some() && life.at(begin) != life.at(end));
        for pair in life.stays.windows(2) {
            if let Some(to) = pair[0].to.filter(|to| during(*to)) {
                tally.away.push(pair[1].from.saturating_duration_since(to));
            }
        }
        for stay in life.stays.iter().filter(|stay| during(stay.from)) {
            handshakes.entry(&stay.server).or_default().push(stay.from);
        }
        if let Some(server) = life.at(end) {
            *load.entry(server).or_default() += 1;
        }
    }
    tally.away.sort_unstable();
    tally.peak = handshakes.into_values().map(peak).max().unwrap_or_default();
    let (most, servers) = (load.values().copied().max().unwrap_or_default(), load.len());
    let present: usize = load.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of clients")]
    if present > 0 {
        tally.imbalance = most as f64 * servers as f64 / present as f64;
    }
    for members in rooms(lives) {
        tally.split += split(&members, lives, begin, end);
        for &sender in &members {
            for (number, sent) in lives[sender].sent.iter().enumerate().filter(|(_, sent)| during(**sent)) {
                let heard = |member: &usize| lives[*member].heard.contains(&(sender, number));
                if !members.iter().any(heard) {
                    tally.lost_up += 1;
                    continue;
                }
                let stayed = |member: &&usize| lives[**member].stayed(*sent);
                tally.lost_down += members.iter().filter(stayed).filter(|member| !heard(member)).count();
            }
        }
    }
    tally
}

impl Life {
    /// The server it was at.
    fn at(&self, time: Instant) -> Option<&str> {
        let at = self.stays.iter().find(|stay| stay.from <= time && stay.to.is_none_or(|to| to > time));
        at.map(|stay| stay.server.as_str())
    }

    fn stayed(&self, around: Instant) -> bool {
        let through = |stay: &Stay| stay.from + BEFORE <= around && stay.left.is_none_or(|left| left >= around + AFTER);
        self.stays.iter().any(through)
    }
}

fn rooms(lives: &[Life]) -> Vec<Vec<usize>> {
    let mut rooms: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, life) in lives.iter().enumerate() {
        rooms.entry(life.room).or_default().push(number);
    }
    rooms.into_values().collect()
}

fn peak(mut times: Vec<Instant>) -> usize {
    times.sort_unstable();
    let within = |first: usize| times[first..].partition_point(|time| *time < times[first] + WINDOW);
    (0..times.len()).map(within).max().unwrap_or_default()
}

/// How long members of a room were on two servers.
fn split(members: &[usize], lives: &[Life], begin: Instant, end: Instant) -> Duration {
    let stays = || members.iter().flat_map(|member| &lives[*member].stays);
    let clip = |time: Instant| time.clamp(begin, end);
    let mut times: BTreeSet<Instant> = BTreeSet::from([begin, end]);
    times.extend(stays().flat_map(|stay| [clip(stay.from), clip(stay.to.unwrap_or(end))]));
    let times: Vec<Instant> = times.into_iter().collect();
    let is_split = |from: Instant| {
        let at = stays().filter(|stay| stay.from <= from && stay.to.is_none_or(|to| to > from));
        at.map(|stay| stay.server.as_str()).collect::<BTreeSet<_>>().len() > 1
    };
    times.windows(2).filter(|span| is_split(span[0])).map(|span| span[1] - span[0]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zero: Instant, seconds: u64) -> Instant {
        zero + Duration::from_secs(seconds)
    }

    fn stay(zero: Instant, server: &str, from: u64, to: Option<u64>) -> Stay {
        let to = to.map(|to| at(zero, to));
        Stay { server: server.into(), from: at(zero, from), to, left: to }
    }

    #[test]
    fn a_move_is_one_break_and_a_room_on_two_servers_is_counted_as_long_as_it_is() {
        let zero = Instant::now();
        let moved = vec![stay(zero, "a", 0, Some(10)), stay(zero, "b", 12, None)];
        let late = vec![stay(zero, "a", 0, Some(15)), stay(zero, "b", 16, None)];
        let lives = [moved, late].map(|stays| Life { stays, ..Life::default() });
        let tally = tally(&lives, at(zero, 5), at(zero, 20));
        assert_eq!((tally.breaks, tally.most_breaks, tally.changed), (2, 1, 2));
        assert_eq!(tally.away, [Duration::from_secs(1), Duration::from_secs(2)]);
        assert_eq!(tally.split, Duration::from_secs(3));
        assert_eq!(tally.peak, 1);
    }

    #[test]
    fn a_message_is_lost_on_its_way_up_or_to_somebody_who_was_there_all_the_while() {
        let zero = Instant::now();
        let there = || vec![stay(zero, "a", 0, None)];
        let mut sender = Life { stays: there(), sent: vec![at(zero, 5), at(zero, 6)], ..Life::default() };
        sender.heard.insert((0, 0));
        let came_late = Life { stays: vec![stay(zero, "a", 5, None)], ..Life::default() };
        let deaf = Life { stays: there(), ..Life::default() };
        let tally = tally(&[sender, came_late, deaf], zero, at(zero, 20));
        assert_eq!((tally.lost_up, tally.lost_down), (1, 1));
    }

    #[test]
    fn the_peak_is_the_most_at_one_server_within_a_window() {
        let zero = Instant::now();
        let times = [0, 20, 90, 110, 115, 300].map(|ms| zero + Duration::from_millis(ms));
        assert_eq!(peak(times.to_vec()), 4);
    }
}
