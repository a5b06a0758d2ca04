//! One proxy, fresh, on all axes once.

use std::io;
use std::time::{Duration, Instant};

use super::axis::{self, Axis};
use super::cores::Cores;
use super::echo::Echo;
use super::load::{self, Client};
use super::proxy::{Kind, Proxy};
use crate::usage::{self, float};

/// Connections that come and go before anything is measured, so that what is there once is there.
const WARM_UP: u32 = 200;
/// How long memory may take to stand still.
const SETTLE: Duration = Duration::from_millis(500);
/// Messages in each second of the test of latency.
const RATE: u32 = 10_000;
/// Connections that these are spread over, and how many each gets: two seconds' worth.
const PACED: (usize, u32) = (100, 200);

/// How much is done on each axis.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Connections held at once: each is two files of this process, and two of the proxy.
    pub connections: u32,
    /// How long messages go back and forth, each time.
    pub time: Duration,
}

/// What was measured of one proxy.
pub type Figures = Vec<(Axis, f64)>;

/// Measures.
pub async fn measure(kind: Kind, cores: Cores, amount: Amount) -> io::Result<Figures> {
    let echo = Echo::start()?;
    let proxy = Proxy::start(kind, cores, echo.address).await;
    let mut run = Run { proxy, has_proxy: kind != Kind::Direct, amount, figures: Vec::new() };
    run.hold().await?;
    run.exchange().await?;
    Ok(run.figures)
}

struct Run {
    proxy: Proxy,
    has_proxy: bool,
    amount: Amount,
    figures: Figures,
}

impl Run {
    /// Handshakes, and the memory of those who are there.
    async fn hold(&mut self) -> io::Result<()> {
        let count = self.amount.connections;
        let mut first = Client::connect_all(self.proxy.address, 0..WARM_UP).await?;
        load::closed_loop(&mut first, 128, SETTLE).await?;
        load::reset_all(first);
        tokio::time::sleep(SETTLE).await;

        let (memory, kernel) = (self.proxy.memory(), usage::kernel_memory());
        let (began, cpu) = (Instant::now(), self.proxy.cpu());
        let mut clients = Client::connect_all(self.proxy.address, 0..count).await?;
        self.note(axis::STORM, f64::from(count) / began.elapsed().as_secs_f64());
        self.note_cpu(axis::HANDSHAKE, cpu, count);

        tokio::time::sleep(SETTLE).await;
        let idle = self.proxy.memory();
        self.note_memory(axis::IDLE, memory, idle);
        self.note(axis::KERNEL, growth(kernel, usage::kernel_memory()) / f64::from(count));

        load::once_each(&mut clients, 16 * 1024).await?;
        tokio::time::sleep(SETTLE).await;
        self.note_memory(axis::AFTER, idle, self.proxy.memory());
        load::reset_all(clients);
        Ok(())
    }

    /// Messages.
    async fn exchange(&mut self) -> io::Result<()> {
        let time = self.amount.time;
        let most = axis::SMALL.iter().map(|(count, _)| *count).max().unwrap_or_default();
        let mut clients = Client::connect_all(self.proxy.address, 0..most).await?;
        for (count, axis) in axis::SMALL {
            let cpu = self.proxy.cpu();
            let echoes = load::closed_loop(&mut clients[..count as usize], 128, time).await?;
            self.note_cpu(axis, cpu, echoes);
        }
        for (count, payload, rate, cost) in
            [(16, 16 << 10, axis::MEDIUM, axis::MEDIUM_CPU), (4, 1 << 20, axis::LARGE, axis::LARGE_CPU)]
        {
            let (began, cpu) = (Instant::now(), self.proxy.cpu());
            let echoes = load::closed_loop(&mut clients[..count], payload, time).await?;
            self.note(rate, f64::from(echoes) / began.elapsed().as_secs_f64());
            self.note_cpu(cost, cpu, echoes);
        }
        let (senders, each) = PACED;
        let away = load::open_loop(&mut clients[..senders], 128, RATE, each).await?;
        for (axis, percent) in [(axis::MEDIAN, 50), (axis::TAIL, 99)] {
            self.note(axis, micros(load::percentile(&away, percent)));
        }
        load::reset_all(clients);
        Ok(())
    }

    fn note(&mut self, axis: Axis, value: f64) {
        self.figures.push((axis, value));
    }

    fn note_cpu(&mut self, axis: Axis, before: Duration, operations: u32) {
        if self.has_proxy {
            self.note(axis, micros(self.proxy.cpu().saturating_sub(before)) / f64::from(operations));
        }
    }

    fn note_memory(&mut self, axis: Axis, before: u64, after: u64) {
        if self.has_proxy {
            self.note(axis, growth(before, after) / f64::from(self.amount.connections));
        }
    }
}

fn growth(before: u64, after: u64) -> f64 {
    float(after) - float(before)
}

/// A time as a figure.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
