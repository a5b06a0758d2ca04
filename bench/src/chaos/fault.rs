//! What breaks: processes, links, whole nodes. It runs in the cluster's process namespace (`tests/cluster/exec`), where all
//! of them can be seen.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::usage::Usage;

/// A process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    /// Its program and arguments.
    pub command: String,
    /// Its control groups.
    groups: String,
}

/// All processes.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let process = |pid| {
        let command = read(pid, "cmdline")?.replace('\0', " ");
        Some(Process { pid, command, groups: read(pid, "cgroup")? })
    };
    pids.filter_map(process).filter(|process| !process.command.is_empty()).collect()
}

/// The processes of a pod, by its UID.
pub fn of_pod(uid: &str) -> Vec<Process> {
    processes().into_iter().filter(|process| process.groups.contains(&format!("pod{uid}"))).collect()
}

/// The process whose command has this in it.
pub fn with(words: &str) -> Process {
    let found = processes().into_iter().find(|process| process.command.contains(words));
    found.unwrap_or_else(|| panic!("no process {words:?}"))
}

impl Process {
    /// Kills it.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Halts it where it is.
    pub fn halt(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// What it has used.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.try_into().expect("a process id"));
        // It may have ended by itself.
        let _ = kill(pid, signal);
    }
}

/// Powers a node off: everything on it is gone at once.
pub fn power_off(node: &str) {
    let number = node.trim_start_matches("node");
    with(&format!("tests/cluster/node {number}")).kill();
}

/// Cuts the cable of a node, or plugs it in again.
pub fn cable(node: &str, state: &str) {
    let run = PathBuf::from(std::env::var_os("WSPOOL_CONTROL_PLANE").expect("tests/cluster/exec sets it"));
    let network = format!("--net={}", run.join("network").display());
    let set = Command::new("nsenter").args([&network, "ip", "link", "set", node, state]).status();
    assert!(set.expect("nsenter runs").success(), "the cable of {node} cannot be set {state}");
}
