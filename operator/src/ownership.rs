//! Who owns keys, as files say: the commands `owner` and `plan`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use ring::{KeyHasher, Owners, SlotId};

use crate::planner::{self, Member, MemberState, Roster, Scope};
use crate::standalone::members::Listed;
use crate::standalone::state::{StateError, StateFile};
use crate::standalone::{self, FileError};

/// The owner of every key, when all listed members are ready.
#[derive(Clone, Debug)]
pub struct Ownership {
    hasher: KeyHasher,
    roster: Roster,
    ring: Owners,
    names: BTreeMap<SlotId, String>,
}

/// Why a command gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state file cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// No member may hold a slot.
    #[error("{0}: no member holds a slot; list one with an app")]
    Nobody(String),
    /// Keys cannot be read, or answers not written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Ownership {
    /// Reads the files. Slots that the state file beside the members file gives to names are kept.
    pub fn read(pool: &Path, members: &Path) -> Result<Self, Error> {
        let saved = StateFile::beside(members).load()?.map(|saved| saved.roster).unwrap_or_default();
        Self::after(&saved, pool, members)
    }

    /// Who owns what once another members file is in force.
    pub fn then(&self, pool: &Path, members: &Path) -> Result<Self, Error> {
        Self::after(&self.roster, pool, members)
    }

    fn after(roster: &Roster, pool: &Path, members: &Path) -> Result<Self, Error> {
        let checked = standalone::read_pool(pool)?;
        let listed = standalone::read_members(members)?;
        standalone::check_weights(&checked, members, &listed)?;
        let desired = standalone::desired(&checked, &listed);
        // Holders are known by name here: nothing has asked their sidecars for UIDs.
        let mut roster = roster.clone();
        for slot in &mut roster.slots {
            for holder in slot.holder.iter_mut().map(Arc::make_mut) {
                holder.uid.clone_from(&holder.name);
            }
        }
        let members_now: Vec<Member> = listed.into_iter().map(ready).collect();
        let roster = planner::plan(&roster, &members_now, desired, Scope::Whole);
        let names = roster.slots.iter().filter_map(|slot| Some((slot.id, slot.holder.as_ref()?.name.clone())));
        let names: BTreeMap<_, _> = names.collect();
        if names.is_empty() {
            return Err(Error::Nobody(members.display().to_string()));
        }
        let ring = Owners::new(&checked.hasher, &roster.slots);
        Ok(Self { hasher: checked.hasher, ring, names, roster })
    }

    /// The member that owns a key.
    pub fn owner(&self, key: &[u8]) -> &str {
        let slot = self.ring.owner(self.hasher.hash(key)).expect("some slot is held");
        &self.names[&slot]
    }

    /// Answers `key<TAB>member` for each line.
    pub fn answer(&self, keys: impl BufRead, mut out: impl Write) -> io::Result<()> {
        each_line(keys, |key| {
            out.write_all(key)?;
            writeln!(out, "\t{}", self.owner(key))
        })?;
        out.flush()
    }

    /// Each member's share of the keys.
    fn shares(&self) -> BTreeMap<&str, u64> {
        self.roster.slots.iter().filter_map(|s| Some((s.holder.as_ref()?.name.as_str(), u64::from(s.weight)))).collect()
    }
}

fn ready(listed: Listed) -> Member {
    Member {
        uid: Some(listed.name.clone()),
        name: listed.name,
        address: listed.address,
        weight: listed.weight,
        role: listed.role,
        ordinal: None,
        state: MemberState::Ready,
        silent: false,
    }
}

/// Says how many of the keys would move, from where to where.
pub fn compare(now: &Ownership, then: &Ownership, keys: impl BufRead, mut out: impl Write) -> io::Result<()> {
    let mut moves: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut owned: BTreeMap<&str, u64> = BTreeMap::new();
    let mut count = 0;
    each_line(keys, |key| {
        let (from, to) = (now.owner(key), then.owner(key));
        count += 1;
        *owned.entry(from).or_default() += 1;
        if from != to {
            *moves.entry((from, to)).or_default() += 1;
        }
        Ok(())
    })?;
    let width = now.names.values().chain(then.names.values()).map(String::len).max().unwrap_or(0).max("from".len());
    if !moves.is_empty() {
        writeln!(out, "{:width$}  {:width$}  {:>9}", "from", "to", "keys")?;
    }
    for ((from, to), keys) in &moves {
        writeln!(out, "{from:width$}  {to:width$}  {keys:>9}")?;
    }
    let total: u64 = moves.values().sum();
    writeln!(out, "keys={count} moved={total} minimum={}", minimum(now, then, &owned, count))?;
    out.flush()
}

/// The fewest keys that must move: all of the members that lose their slots, and for slots beyond those their fair share.
fn minimum(now: &Ownership, then: &Ownership, owned: &BTreeMap<&str, u64>, keys: u64) -> u64 {
    let (shares, shares_then) = (now.shares(), then.shares());
    let gone: u64 = owned.iter().filter(|(name, _)| !shares_then.contains_key(*name)).map(|(_, count)| count).sum();
    let total: u64 = shares_then.values().sum();
    let grown = total.saturating_sub(shares.values().sum());
    gone + keys * grown / total
}

/// Calls `each` with every line, without its end. The buffer is used again: a million keys are a matter of a second.
fn each_line(mut input: impl BufRead, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        let end = line.strip_suffix(b"\n").map_or(line.as_slice(), |rest| rest.strip_suffix(b"\r").unwrap_or(rest));
        each(end)?;
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::rebalance::Saved;

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            let pool = "apiVersion: wspool.dev/v1alpha1\nkind: WebSocketPool\nmetadata: {name: chat}\nspec: {key: {from: [{query: user}]}}\n";
            fs::write(files.path("pool.yaml"), pool).unwrap();
            files
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn members(&self, file: &str, numbers: impl IntoIterator<Item = u16>) -> std::path::PathBuf {
            let mut text = String::new();
            for n in numbers {
                writeln!(text, "- {{name: server-{n}, address: h:{}, control: h:{}}}", 1_000 + n, 2_000 + n).unwrap();
            }
            fs::write(self.path(file), text).unwrap();
            self.path(file)
        }

        fn ownership(&self, numbers: impl IntoIterator<Item = u16>) -> Ownership {
            Ownership::read(&self.path("pool.yaml"), &self.members("now.yaml", numbers)).unwrap()
        }
    }

    fn keys(count: u32) -> Vec<u8> {
        (0..count).fold(String::new(), |text, i| format!("{text}user-{i}\n")).into_bytes()
    }

    fn compared(now: &Ownership, then: &Ownership, keys: &[u8]) -> String {
        let mut out = Vec::new();
        compare(now, then, keys, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_owners_among_ten_are_those_of_the_vectors() {
        let files = Files::new();
        let mut out = Vec::new();
        let keys = "\na\nuser-1\nuser-2\r\nuser-3\nuser-42";
        files.ownership(0..10).answer(keys.as_bytes(), &mut out).unwrap();
        let expected =
            "\tserver-6\na\tserver-8\nuser-1\tserver-7\nuser-2\tserver-4\nuser-3\tserver-2\nuser-42\tserver-4\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn slots_that_the_state_file_gives_to_names_are_kept() {
        let files = Files::new();
        let grown = files.ownership([0, 1, 2]);
        let now = files.members("now.yaml", [2, 1, 0]);
        StateFile::beside(&now).replace(&Saved { roster: grown.roster.clone(), ..Saved::default() }).unwrap();
        let again = Ownership::read(&files.path("pool.yaml"), &now).unwrap();
        assert_eq!(again.names, grown.names, "whatever the order of the file is now");
    }

    #[test]
    fn a_plan_says_how_many_keys_move_from_where_to_where() {
        let files = Files::new();
        let now = files.ownership([1, 2]);
        let then = now.then(&files.path("pool.yaml"), &files.members("then.yaml", [1, 2, 3])).unwrap();
        let text = compared(&now, &then, &keys(3_000));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("from") && lines[1].starts_with("server-1") && lines[2].starts_with("server-2"));
        let moved: u64 = lines[3].split(' ').find_map(|word| word.strip_prefix("moved=")).unwrap().parse().unwrap();
        assert!(moved.abs_diff(1_000) < 100, "{text}");
        assert!(lines[3].starts_with("keys=3000 ") && lines[3].ends_with(" minimum=1000"), "{text}");
    }

    #[test]
    fn a_replaced_member_moves_its_own_keys_and_the_minimum_says_the_same() {
        let files = Files::new();
        let now = files.ownership([1, 2]);
        let then = now.then(&files.path("pool.yaml"), &files.members("then.yaml", [2, 3])).unwrap();
        let text = compared(&now, &then, &keys(1_000));
        assert_eq!(text.lines().count(), 3, "server-1 to server-3, nothing else: {text}");
        let last = text.lines().last().unwrap();
        let figure = |name| last.split(' ').find_map(|word: &str| word.strip_prefix(name)).unwrap();
        assert_eq!(figure("moved="), figure("minimum="));
    }

    #[test]
    fn a_pool_without_servers_is_refused() {
        let files = Files::new();
        fs::write(files.path("none.yaml"), "[]").unwrap();
        let refused = Ownership::read(&files.path("pool.yaml"), &files.path("none.yaml")).unwrap_err();
        assert!(refused.to_string().contains("no member holds a slot"));
    }
}
