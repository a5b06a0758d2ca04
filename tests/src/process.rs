//! A program under test.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// How much of a log a failed test shows.
const LOG_LINES: usize = 60;

/// A running program. It is killed when it is dropped, and a failed test shows the end of its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Where a program of this workspace is: beside the one that asks, or beside the folder of a test's executable.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the own executable");
    let tests = Path::new("deps");
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with(tests)).expect("target/<profile>");
    let program = folder.join(name);
    assert!(program.is_file(), "{} is not built: `make test` builds it before the tests", program.display());
    program
}

impl Process {
    /// Starts a program; what it writes is appended to the log.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        log: &Path,
    ) -> Self {
        Self::start_in(name, program, arguments, std::iter::empty::<(&str, &str)>(), log)
    }

    /// The same with variables in its environment.
    pub fn start_in(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        environment: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
        log: &Path,
    ) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("a log that can be written");
        let errors = output.try_clone().expect("a log that can be written twice");
        let child = Command::new(program)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many files it has open now.
    pub fn open_files(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).expect("a running process").count()
    }

    /// The memory that it has in use now (resident), in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        line.expect("its memory").trim().parse::<u64>().expect("a number") * 1024
    }

    /// Lets it open so many files at most, from now on.
    pub fn limit_open_files(&self, most: u64) {
        let pid = self.child.id().cast_signed();
        rlimit::prlimit(pid, rlimit::Resource::NOFILE, Some((most, most)), None).expect("a lower limit");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.name));
    }

    /// Kills it (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("the end of a killed process");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child's status").is_some()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        until(&what, async || match self.child.try_wait().expect("a child's status") {
            Some(status) => Ok(status),
            None => Err("it still runs".into()),
        })
        .await
    }

    /// Panics when it has ended.
    pub fn check(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child's status") {
            panic!("{} has ended with {status}:\n{}", self.name, self.log());
        }
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- the log of {}:\n{}\n---", self.name, end.join("\n"));
        }
    }
}
