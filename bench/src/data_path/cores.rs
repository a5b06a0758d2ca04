//! Which core runs what.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The two cores of the bench.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    proxy: usize,
    load: usize,
}

impl Cores {
    /// The first two cores that this thread may use; from now on it uses the second one only.
    pub fn claim() -> Result<Self, String> {
        let allowed = sched_getaffinity(this_thread()).map_err(|error| format!("the cores cannot be read: {error}"))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let (Some(proxy), Some(load)) = (cores.next(), cores.next()) else {
            return Err("two cores are needed: one for the proxy, one for its load".into());
        };
        pin(load);
        Ok(Self { proxy, load })
    }

    /// Does something on the proxies' core. Programs that it starts stay there.
    pub async fn on_proxy_core<T>(self, work: impl Future<Output = T>) -> T {
        pin(self.proxy);
        let done = work.await;
        pin(self.load);
        done
    }
}

fn this_thread() -> Pid {
    Pid::from_raw(0)
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core that was in the set");
    sched_setaffinity(this_thread(), &set).expect("a core that this thread may use");
}
