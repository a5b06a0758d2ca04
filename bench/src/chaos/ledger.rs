//! What clients have seen, and what it comes to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Around a message's sending: who was connected all the time should have received it.
const BEFORE: Duration = Duration::from_millis(500);
/// The same, after it. Until then an account waits for what was sent before its end.
pub const AFTER: Duration = Duration::from_millis(1_500);
/// The time over which handshakes at one app are counted, in milliseconds.
const WINDOW: u64 = 100;

/// What one client has seen.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Its key: clients of one key are in one room.
    pub room: usize,
    /// Its connections, in order.
    pub stays: Vec<Stay>,
    /// When it sent each of its messages, from number 0 on.
    pub sent: Vec<Instant>,
    /// The messages that it received.
    pub heard: Heard,
}

/// Messages: who sent them, and their numbers.
#[derive(Clone, Debug, Default)]
pub struct Heard(HashMap<usize, Vec<bool>>);

impl Heard {
    /// Adds one.
    pub fn insert(&mut self, (sender, number): (usize, usize)) {
        let numbers = self.0.entry(sender).or_default();
        if numbers.len() <= number {
            numbers.resize(number + 1, false);
        }
        numbers[number] = true;
    }

    fn has(&self, sender: usize, number: usize) -> bool {
        self.0.get(&sender).and_then(|numbers| numbers.get(number)).is_some_and(|heard| *heard)
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Stay {
    /// The app that greeted it.
    pub server: String,
    /// When it came there, by the app's clock: milliseconds since 1970.
    pub greeted: u64,
    /// The longest time that the app had stood still when it greeted.
    pub still: Duration,
    /// When it began.
    pub from: Instant,
    /// When it ended: for one that fell silent, when it was heard last.
    pub to: Option<Instant>,
    /// When the client gave it up.
    pub left: Option<Instant>,
    /// Whether the client ended it.
    pub by_choice: bool,
}

impl Stay {
    /// A connection that has just begun.
    pub fn new(server: String, greeted: u64, from: Instant) -> Self {
        Self { server, greeted, still: Duration::ZERO, from, to: None, left: None, by_choice: false }
    }

    /// Whether it has ended, and not by the client's choice.
    pub fn is_broken(&self) -> bool {
        self.left.is_some() && !self.by_choice
    }

    fn is_there(&self, time: Instant) -> bool {
        self.from <= time && self.to.is_none_or(|to| to > time)
    }
}

/// The time that is accounted for, and whom something happened to in it.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its begin.
    pub begin: Instant,
    /// Its end.
    pub end: Instant,
    /// The servers whose clients were cut off.
    pub hit: BTreeSet<String>,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Clients that were there.
    pub clients: usize,
    /// Connections that ended.
    pub breaks: usize,
    /// The most of one client.
    pub most_breaks: usize,
    /// Breaks that there had to be: one for each client that ended up at another server, or nowhere, or was at one that
    /// was hit. But for those that went to a new server beyond its share.
    pub least: usize,
    /// Clients that went from one server to another, though both were there before and after, or though the other was new
    /// and had its share.
    pub needless: usize,
    /// How long clients were away, ascending.
    pub away: Vec<Duration>,
    /// The most handshakes at one app within 100 ms.
    pub peak: usize,
    /// The longest time that an app stood still. Those who come meanwhile wait in its backlog, and it meets them at once.
    pub still: Duration,
    /// Messages that nobody received.
    pub lost_up: usize,
    /// Messages that somebody received, and that a client which was connected all the while did not: one for each.
    pub lost_down: usize,
    /// Room-seconds in which members of one room were on two servers.
    pub split: Duration,
    /// The most clients at one server, over the mean.
    pub imbalance: f64,
}

/// What happened in a span.
pub fn tally(lives: &[Life], span: &Span) -> Tally {
    let mut tally = Tally::default();
    tally.count_breaks(lives, span);
    tally.peak = handshakes(lives, span).into_values().map(peak).max().unwrap_or_default();
    let came = lives.iter().flat_map(|life| &life.stays).filter(|stay| span.has(stay.from));
    tally.still = came.map(|stay| stay.still).max().unwrap_or_default();
    tally.imbalance = imbalance(&servers(lives, span.end));
    for members in rooms(lives) {
        tally.split += split(&members, lives, span);
        tally.count_messages(&members, lives, span);
    }
    tally
}

impl Span {
    fn has(&self, time: Instant) -> bool {
        self.begin <= time && time < self.end
    }

    fn overlaps(&self, stay: &Stay) -> bool {
        stay.from < self.end && stay.left.is_none_or(|left| left >= self.begin)
    }
}

impl Tally {
    fn count_breaks(&mut self, lives: &[Life], span: &Span) {
        let (before, after) = (servers(lives, span.begin), servers(lives, span.end));
        let was_and_is = |server: &str| before.contains_key(server) && after.contains_key(server);
        let (mut could_stay, mut went_to_new) = (HashMap::new(), 0);
        for life in lives {
            let stays: Vec<&Stay> = life.stays.iter().filter(|stay| span.overlaps(stay)).collect();
            let (Some(first), Some(last)) = (stays.first(), stays.last()) else { continue };
            let breaks =
                stays.iter().filter(|stay| stay.is_broken() && stay.left.is_some_and(|at| span.has(at))).count();
            let gone = last.is_broken() && last.left.is_some_and(|left| left < span.end);
            let moved = first.server != last.server;
            self.clients += 1;
            self.breaks += breaks;
            self.most_breaks = self.most_breaks.max(breaks);
            self.least += usize::from(moved || gone || span.hit.contains(&first.server));
            self.needless += usize::from(moved && was_and_is(&first.server) && was_and_is(&last.server));
            if was_and_is(&first.server) {
                *could_stay.entry(life.room).or_default() += 1;
                went_to_new += usize::from(moved && !before.contains_key(last.server.as_str()));
            }
            for pair in life.stays.windows(2).filter(|pair| pair[0].is_broken()) {
                if let Some(to) = pair[0].to.filter(|to| span.has(*to)) {
                    self.away.push(pair[1].from.saturating_duration_since(to));
                }
            }
        }
        self.away.sort_unstable();
        let excess = beyond_share(&could_stay, went_to_new, after.len().saturating_sub(before.len()), after.len());
        self.least -= excess;
        self.needless += excess;
    }

    fn count_messages(&mut self, members: &[usize], lives: &[Life], span: &Span) {
        for &sender in members {
            for (number, sent) in lives[sender].sent.iter().enumerate().filter(|(_, sent)| span.has(**sent)) {
                let heard = |member: &usize| lives[*member].heard.has(sender, number);
                if !members.iter().any(heard) {
                    self.lost_up += 1;
                    continue;
                }
                let stayed = |member: &&usize| lives[**member].stayed(*sent);
                self.lost_down += members.iter().filter(stayed).filter(|member| !heard(member)).count();
            }
        }
    }
}

impl Life {
    fn stayed(&self, around: Instant) -> bool {
        let through = |stay: &Stay| stay.from + BEFORE <= around && stay.left.is_none_or(|left| left >= around + AFTER);
        self.stays.iter().any(through)
    }
}

/// How many of those that went to new servers exceed the share of these, and three standard deviations: rooms are given out at
/// random, each as a whole. `could_stay` are the clients of each room whose server stayed; of `servers`, `more` came in
/// addition to those that took the place of others, which have a share of nobody else.
fn beyond_share(could_stay: &HashMap<usize, usize>, went: usize, more: usize, servers: usize) -> usize {
    let (sum, squares) = could_stay.values().fold((0, 0), |(sum, squares), size| (sum + size, squares + size * size));
    // All of it is multiplied by the number of servers.
    let deviation = (9 * more * (servers - more) * squares).isqrt();
    (went * servers).saturating_sub(sum * more + deviation).checked_div(servers).unwrap_or_default()
}

/// How many clients each server had.
fn servers(lives: &[Life], time: Instant) -> BTreeMap<&str, usize> {
    let mut servers = BTreeMap::new();
    for stay in lives.iter().filter_map(|life| life.stays.iter().find(|stay| stay.is_there(time))) {
        *servers.entry(stay.server.as_str()).or_default() += 1;
    }
    servers
}

#[expect(clippy::cast_precision_loss, reason = "counts of clients")]
fn imbalance(servers: &BTreeMap<&str, usize>) -> f64 {
    let (sum, most) = (servers.values().sum::<usize>(), servers.values().max().copied().unwrap_or_default());
    if sum == 0 { 0.0 } else { most as f64 * servers.len() as f64 / sum as f64 }
}

/// When connections came to each server.
fn handshakes<'a>(lives: &'a [Life], span: &Span) -> BTreeMap<&'a str, Vec<u64>> {
    let mut handshakes: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for stay in lives.iter().flat_map(|life| &life.stays).filter(|stay| span.has(stay.from)) {
        handshakes.entry(&stay.server).or_default().push(stay.greeted);
    }
    handshakes
}

fn peak(mut times: Vec<u64>) -> usize {
    times.sort_unstable();
    let within = |first: usize| times[first..].partition_point(|time| *time < times[first] + WINDOW);
    (0..times.len()).map(within).max().unwrap_or_default()
}

fn rooms(lives: &[Life]) -> Vec<Vec<usize>> {
    let mut rooms: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, life) in lives.iter().enumerate() {
        rooms.entry(life.room).or_default().push(number);
    }
    rooms.into_values().collect()
}

/// How long members of a room were on two servers.
fn split(members: &[usize], lives: &[Life], span: &Span) -> Duration {
    let stays: Vec<&Stay> =
        members.iter().flat_map(|member| &lives[*member].stays).filter(|stay| span.overlaps(stay)).collect();
    let clip = |time: Instant| time.clamp(span.begin, span.end);
    let mut times: BTreeSet<Instant> = BTreeSet::from([span.begin, span.end]);
    times.extend(stays.iter().flat_map(|stay| [clip(stay.from), clip(stay.to.unwrap_or(span.end))]));
    let times: Vec<Instant> = times.into_iter().collect();
    let is_split = |time: Instant| {
        let at = stays.iter().filter(|stay| stay.is_there(time));
        at.map(|stay| stay.server.as_str()).collect::<BTreeSet<_>>().len() > 1
    };
    times.windows(2).filter(|pair| is_split(pair[0])).map(|pair| pair[1] - pair[0]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zero: Instant, seconds: u64) -> Instant {
        zero + Duration::from_secs(seconds)
    }

    fn stay(zero: Instant, server: &str, from: u64, to: Option<u64>) -> Stay {
        let to = to.map(|to| at(zero, to));
        Stay { to, left: to, ..Stay::new(server.into(), 1_000 * from, at(zero, from)) }
    }

    fn span(zero: Instant, begin: u64, end: u64) -> Span {
        Span { begin: at(zero, begin), end: at(zero, end), hit: BTreeSet::new() }
    }

    fn lives<const N: usize>(stays: [Vec<Stay>; N]) -> [Life; N] {
        stays.map(|stays| Life { stays, ..Life::default() })
    }

    #[test]
    fn a_move_is_one_break_and_a_room_on_two_servers_is_counted_as_long_as_it_is() {
        let zero = Instant::now();
        let moved = vec![stay(zero, "a", 0, Some(10)), stay(zero, "b", 12, None)];
        let late = vec![stay(zero, "a", 0, Some(15)), stay(zero, "b", 16, None)];
        let tally = tally(&lives([moved, late]), &span(zero, 5, 20));
        assert_eq!((tally.breaks, tally.most_breaks, tally.least, tally.needless), (2, 1, 2, 0));
        assert_eq!(tally.away, [Duration::from_secs(1), Duration::from_secs(2)]);
        assert_eq!(tally.split, Duration::from_secs(3));
        assert_eq!(tally.peak, 1);
    }

    #[test]
    fn a_break_has_to_be_for_whoever_ends_elsewhere_or_nowhere_or_was_hit() {
        let zero = Instant::now();
        let came_back = || vec![stay(zero, "a", 0, Some(10)), stay(zero, "a", 11, None)];
        let stayed_away = vec![stay(zero, "b", 0, Some(10))];
        let went = vec![Stay { by_choice: true, ..stay(zero, "b", 0, Some(10)) }];
        let lives = lives([came_back(), stayed_away, went]);
        let calm = tally(&lives, &span(zero, 5, 20));
        assert_eq!((calm.breaks, calm.least, calm.clients), (2, 1, 3));
        let hit = tally(&lives, &Span { hit: BTreeSet::from(["a".into()]), ..span(zero, 5, 20) });
        assert_eq!((hit.breaks, hit.least), (2, 2));
    }

    #[test]
    fn a_move_between_servers_that_were_and_are_there_was_needless() {
        let zero = Instant::now();
        let stays = |server| vec![stay(zero, server, 0, None)];
        let moved = vec![stay(zero, "a", 0, Some(10)), stay(zero, "b", 11, None)];
        let grown = vec![stay(zero, "a", 0, Some(10)), stay(zero, "c", 11, None)];
        let tally = tally(&lives([stays("a"), stays("b"), moved, grown]), &span(zero, 5, 20));
        assert_eq!((tally.least, tally.needless), (2, 1));
    }

    #[test]
    fn a_new_server_that_gets_more_than_its_share_got_the_rest_needlessly() {
        let zero = Instant::now();
        let grown = |movers: usize| {
            let life = |room: usize| {
                let old = if room.is_multiple_of(2) { "a" } else { "b" };
                let stays = if room < movers {
                    vec![stay(zero, old, 0, Some(10)), stay(zero, "c", 11, None)]
                } else {
                    vec![stay(zero, old, 0, None)]
                };
                Life { room, stays, ..Life::default() }
            };
            let lives: Vec<Life> = (0..300).map(life).collect();
            let tally = tally(&lives, &span(zero, 5, 20));
            assert_eq!((tally.breaks, tally.least + tally.needless), (movers, movers));
            tally.needless
        };
        // A third, and three times eight by chance.
        assert_eq!([grown(0), grown(100), grown(124)], [0; 3]);
        assert_eq!(grown(296), 171);
    }

    #[test]
    fn whoever_stayed_has_no_reason_to_go_to_a_server_that_took_the_place_of_another() {
        let zero = Instant::now();
        let moved = |from| vec![stay(zero, from, 0, Some(10)), stay(zero, "c", 11, None)];
        let tally = tally(&lives([vec![stay(zero, "a", 0, None)], moved("a"), moved("b")]), &span(zero, 5, 20));
        assert_eq!((tally.breaks, tally.least, tally.needless), (2, 1, 1));
    }

    #[test]
    fn a_message_is_lost_on_its_way_up_or_to_somebody_who_was_there_all_the_while() {
        let zero = Instant::now();
        let there = || vec![stay(zero, "a", 0, None)];
        let mut sender = Life { stays: there(), sent: vec![at(zero, 5), at(zero, 6)], ..Life::default() };
        sender.heard.insert((0, 0));
        let came_late = Life { stays: vec![stay(zero, "a", 5, None)], ..Life::default() };
        let deaf = Life { stays: there(), ..Life::default() };
        let tally = tally(&[sender, came_late, deaf], &span(zero, 0, 20));
        assert_eq!((tally.lost_up, tally.lost_down), (1, 1));
    }

    #[test]
    fn the_longest_standstill_is_that_of_apps_which_somebody_came_to() {
        let zero = Instant::now();
        let greeted = |from, still| vec![Stay { still: Duration::from_millis(still), ..stay(zero, "a", from, None) }];
        let tally = tally(&lives([greeted(1, 900), greeted(6, 40), greeted(7, 310)]), &span(zero, 5, 20));
        assert_eq!(tally.still, Duration::from_millis(310));
    }

    #[test]
    fn the_peak_is_the_most_at_one_server_within_a_window() {
        assert_eq!(peak(vec![300, 0, 20, 90, 110, 115]), 4);
    }
}
