//! What a driver does for its members costs as much as there are members, and no more.

use std::time::Instant;

use ring::wire::Report;

use super::*;
use crate::pool::{WebSocketPool, check};

/// A pool, and one that is so many times as large.
const FEW: usize = 250;
const TIMES: usize = 8;
/// How much more work eight times as many members may be. What compares all of them with all is 64 times as much.
const MOST: u32 = 24;

/// A store that always has room.
#[derive(Debug)]
struct Memory;

impl Store for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    async fn save(&mut self, _: &Saved, _: &Placement) -> Result<(), SaveError> {
        Ok(())
    }
}

struct Bench {
    driver: Driver<Memory>,
    /// Held, or the driver would be told that they are gone.
    input: latest::Sender<Input>,
    answer: mpsc::Sender<Answer>,
    _kept: (mpsc::Receiver<Answer>, latest::Receiver<PoolView>),
    members: usize,
}

impl Bench {
    /// A pool whose members have just answered for the first time.
    async fn new(members: usize, strategy: &str) -> Self {
        let yaml = format!(
            "{{apiVersion: wspool.dev/v1alpha1, kind: WebSocketPool, metadata: {{name: chat}}, \
             spec: {{key: {{from: [{{query: user}}]}}, strategy: {strategy}, rebalance: {{settle: 0s}}}}}}"
        );
        let pool = check::check(&WebSocketPool::from_yaml(&yaml).unwrap(), None).unwrap();
        let entries = (0..members).map(entry).collect();
        let input = Input { pool, entries, desired: members, unlisted: Unlisted::IsGone, troubles: Vec::new() };
        let (input, receiver) = latest::channel(input);
        let (driver, viewed) = Driver::new(receiver, "pool", None, Memory, Control::default());
        let (answer, answers) = mpsc::channel(1);
        let mut bench = Self { driver, input, answer, _kept: (answers, viewed), members };
        bench.tick().await;
        bench.all_answer().await;
        bench
    }

    async fn tick(&mut self) {
        self.driver.tick(&self.answer).await.unwrap();
    }

    /// Every sidecar answers, and has what is in force.
    async fn all_answer(&mut self) {
        for number in 0..self.members {
            let answer = Answer { member: u64::try_from(number).unwrap() + 1, result: Ok(self.report(number)) };
            self.driver.answered(answer).await.unwrap();
        }
    }

    fn report(&self, number: usize) -> Report {
        Report {
            uid: format!("uid-{number}"),
            started: 1,
            pool_uid: "pool".to_owned(),
            version: self.driver.machine.version(),
            slot: u32::try_from(number).ok().map(SlotId),
            connections: 100,
            ..Report::default()
        }
    }

    /// All that comes between two ticks: each sidecar answers, and each pod may change.
    async fn round(&mut self) {
        self.all_answer().await;
        for _ in 0..self.members {
            self.input.send_modify(|input| input.entries.rotate_left(0));
            self.driver.input_changed(&self.answer).await.unwrap();
        }
        self.tick().await;
    }
}

fn entry(number: usize) -> Entry {
    Entry {
        name: format!("chat-6d4b75cb6d-{number:05}"),
        uid: Some(format!("uid-{number}")),
        address: format!("10.0.0.1:{number}"),
        control: format!("10.0.0.2:{number}"),
        weight: 1,
        role: Role::App,
        ordinal: None,
        standing: Standing::Present,
        pinned_until: 0,
    }
}

/// The members whose couriers have a question to carry; it is taken from them.
fn asked(driver: &Driver<Memory>) -> Vec<usize> {
    let of = |(number, tracked): (usize, &Tracked)| tracked.mailbox.take_question().then_some(number);
    driver.tracked.iter().enumerate().filter_map(of).collect()
}

#[tokio::test]
async fn in_a_move_those_are_asked_with_every_tick_that_take_part_and_the_others_once_a_second() {
    let mut bench = Bench::new(FEW, "ConsistentHash").await;
    bench.tick().await;
    bench.all_answer().await;
    bench.input.send_modify(|input| {
        input.entries.push(entry(FEW));
        input.desired += 1;
    });
    bench.members += 1;
    while bench.driver.machine.needed().len() < bench.members {
        bench.all_answer().await;
        bench.tick().await;
    }
    bench.all_answer().await;
    let mut report = bench.report(7);
    (report.moved_keys, report.moved, report.moved_to) = (1, 1, [(SlotId(FEW.try_into().unwrap()), 1)].into());
    bench.driver.answered(Answer { member: 8, result: Ok(report) }).await.unwrap();
    assert_eq!(bench.driver.machine.state(), State::Evicting);
    asked(&bench.driver);
    let mut times = vec![0; bench.members];
    for _ in 0..IDLE_TICKS {
        bench.tick().await;
        for number in asked(&bench.driver) {
            times[number] += 1;
        }
    }
    let often: Vec<usize> = (0..times.len()).filter(|number| times[*number] == IDLE_TICKS).collect();
    assert_eq!(often, [7, FEW], "the source and the destination");
    assert!(times.iter().enumerate().all(|(number, times)| *times == 1 || often.contains(&number)), "{times:?}");
}

/// The least time that a round took.
async fn time(bench: &mut Bench) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        bench.round().await;
        least = least.min(began.elapsed());
    }
    least
}

async fn compare(strategy: &str) {
    let mut times = Vec::new();
    for members in [FEW, FEW * TIMES] {
        let mut bench = Bench::new(members, strategy).await;
        bench.round().await;
        assert_eq!(bench.driver.view.borrow().slots.len(), members, "all of them have slots");
        times.push(time(&mut bench).await);
    }
    println!("{strategy}: {times:?}");
    assert!(times[1] < times[0] * MOST, "{FEW} members take {:?}, {TIMES} times as many {:?}", times[0], times[1]);
}

#[tokio::test]
async fn eight_times_as_many_members_are_not_sixty_four_times_as_much_work() {
    compare("ConsistentHash").await;
    compare("LeastConnections").await;
}
