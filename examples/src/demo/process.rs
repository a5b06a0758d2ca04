//! Child processes that cannot outlive the demo.
//!
//! They are killed when they are dropped, which covers every orderly end. The demo may also be killed, or abort in a
//! panic: so on Linux each child is started through the demo's own binary (`demo leash`), which asks the kernel for a
//! SIGKILL at its parent's death and then becomes the program.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Error;

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many lines of a log an error shows.
const LOG_LINES: usize = 20;

/// Where programs are and logs go.
#[derive(Clone, Debug)]
pub struct Launcher {
    demo: PathBuf,
    logs: PathBuf,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Launcher {
    /// Programs are found beside the demo's binary; logs go to an existing folder.
    pub fn new(demo: PathBuf, logs: PathBuf) -> Self {
        Self { demo, logs }
    }

    /// Starts a program. Must be called on the main thread: the kernel's promise is bound to the thread that forks.
    pub fn start(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Process, Error> {
        let program = self.demo.with_file_name(program);
        if !program.is_file() {
            return Err(Error::Machine(format!("{} is not built; `make demo` builds it", program.display())));
        }
        let log = self.logs.join(format!("{name}.log"));
        let doing = || format!("starting {name}");
        let output = File::options().create(true).append(true).open(&log).map_err(Error::io(doing()))?;
        let errors = output.try_clone().map_err(Error::io(doing()))?;
        let child = Command::new(&self.demo)
            .args(["leash", &std::process::id().to_string()])
            .arg(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0) // Ctrl-C is for the demo, which then ends them in order.
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io(doing()))?;
        Ok(Process { name: name.into(), child, log })
    }
}

impl Process {
    /// An error when the process has ended.
    pub fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait().map_err(Error::io(format!("looking after {}", self.name)))? {
            None => Ok(()),
            Some(status) => Err(Error::Ended { name: self.name.clone(), status, log: self.last_lines() }),
        }
    }

    /// Asks the process to end (SIGTERM), and waits for it.
    pub async fn stop(mut self) -> Result<(), Error> {
        let doing = || format!("stopping {}", self.name);
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|errno| Error::io(doing())(errno.into()))?;
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop).map_err(Error::io(doing())),
            Err(_) => Err(Error::Late {
                what: format!("{} was asked to end", self.name),
                limit: PATIENCE,
                state: format!("the end of its log:\n{}", self.last_lines()),
            }),
        }
    }

    /// Kills the process (SIGKILL), and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child.kill().await.map_err(Error::io(format!("killing {}", self.name)))
    }

    fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// The other side of [`Launcher::start`]: dies with the parent, and becomes the program. Returns only when it cannot.
pub fn leash(parent: u32, program: &PathBuf, arguments: &[String]) -> io::Error {
    #[cfg(target_os = "linux")]
    if let Err(errno) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return errno.into();
    }
    if getppid().as_raw().cast_unsigned() != parent {
        return io::Error::other("the demo has already ended");
    }
    StdCommand::new(program).args(arguments).exec()
}

/// Raises the limit of open files to what so many clients need here and in the processes that inherit it.
pub fn raise_open_files(clients: usize) -> Result<(), Error> {
    // Two sockets for each client in the balancer and the router, and one in the crowd.
    let needed = 4 * clients as u64 + 256;
    let raised = rlimit::increase_nofile_limit(needed).map_err(Error::io("raising the limit of open files"))?;
    if raised < needed {
        return Err(Error::Machine(format!("{clients} clients need {needed} open files, and the limit is {raised}")));
    }
    Ok(())
}
