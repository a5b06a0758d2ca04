//! The client of control ports, against small servers that behave and misbehave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use operator::control::{Control, ControlError, Written};
use operator::driver::courier::{self, Mailbox, Route};
use ring::wire::{Grant, Placed, Problem, Report};
use ring::{Placement, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// A server that ends with the test.
struct Server {
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn with(routes: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { address, task }
    }

    /// Takes connections, answers each with these bytes after the first request on it, and counts them.
    async fn raw(answer: &'static [u8]) -> (Self, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(answer).await;
            }
        });
        (Self { address, task }, requests)
    }
}

fn grant(total: u64) -> Grant {
    let version = Version { term: 1, epoch: 7 };
    Grant { target: "a".into(), version, allow_total: total, ttl_ms: 1_000, to: Vec::new() }
}

fn report(evicted: u64) -> Json<Report> {
    Json(Report { uid: "a".into(), evicted, ..Report::default() })
}

#[tokio::test]
async fn each_request_goes_to_its_route_and_is_answered_with_a_report() {
    let routes = Router::new()
        .route("/v1/status", get(async || report(1)))
        .route("/v1/evictions", put(async |Json(grant): Json<Grant>| report(grant.allow_total)))
        .route("/v1/placement", put(async |Json(placed): Json<Placed>| report(placed.placement.version.epoch)));
    let server = Server::with(routes).await;
    let control = Control::default();
    let placement = Placement { version: Version { term: 1, epoch: 9 }, ..Placement::default() };
    let placed = Placed { target: "a".into(), placement };
    assert_eq!(control.status(&server.address, None).await.unwrap().evicted, 1);
    assert_eq!(control.grant(&server.address, &grant(5)).await.unwrap().evicted, 5);
    assert_eq!(control.place(&server.address, &placed).await.unwrap().evicted, 9);
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Control::default().status(&address, None).await.unwrap_err();
    assert!(matches!(error, ControlError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = Control::default().status(&address, None).await.unwrap_err();
    assert!(matches!(error, ControlError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_sidecar() {
    let problem = Problem { status: 409, title: "older".into(), detail: "this sidecar already has epoch 9".into() };
    let routes = Router::new().route("/v1/evictions", put(async || (StatusCode::CONFLICT, Json(problem))));
    let server = Server::with(routes).await;
    let error = Control::default().grant(&server.address, &grant(1)).await.unwrap_err();
    assert!(error.to_string().ends_with("answered 409 Conflict: this sidecar already has epoch 9"), "{error}");
}

#[tokio::test]
async fn something_else_than_a_sidecar_is_named_as_such() {
    let server = Server::with(Router::new().route("/v1/status", get(async || "hello"))).await;
    let error = Control::default().status(&server.address, None).await.unwrap_err();
    assert!(matches!(error, ControlError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_given_up() {
    let endless = Router::new().route("/v1/status", get(async || vec![b' '; 2 * 1024 * 1024]));
    let server = Server::with(endless).await;
    let error = Control::default().status(&server.address, None).await.unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_grant_whose_answer_is_lost_is_not_sent_again() {
    let (server, requests) = Server::raw(b"").await;
    let error = Control::default().grant(&server.address, &grant(1)).await.unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_slow_sidecar_delays_no_other() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let quick = Server::with(Router::new().route("/v1/status", get(async || report(0)))).await;
    let (answer, mut answers) = mpsc::channel(4);
    let mut couriers = Vec::new();
    for (member, address) in [(1, silent.local_addr().unwrap().to_string()), (2, quick.address.clone())] {
        let mailbox = Mailbox::default();
        mailbox.ask();
        let route = Route { member, address, uid: None };
        let task = tokio::spawn(courier::serve(route, mailbox.clone(), Control::default(), answer.clone()));
        couriers.push((mailbox, task));
    }
    let first = answers.recv().await.unwrap();
    assert!((first.member, first.result.is_ok()) == (2, true));
    couriers[1].0.ask();
    let second = answers.recv().await.unwrap();
    assert!((second.member, second.result.is_ok()) == (2, true), "asked again while the other one still waits");
    for (mailbox, task) in couriers {
        mailbox.close();
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_courier_carries_only_the_newest_of_what_waits() {
    let server = Server::with(
        Router::new().route("/v1/evictions", put(async |Json(grant): Json<Grant>| report(grant.allow_total))),
    )
    .await;
    let (answer, mut answers) = mpsc::channel(4);
    let mailbox = Mailbox::default();
    for total in [1, 2, 3] {
        mailbox.grant(grant(total));
    }
    mailbox.ask();
    let route = Route { member: 1, address: server.address.clone(), uid: None };
    let task = tokio::spawn(courier::serve(route, mailbox.clone(), Control::default(), answer));
    assert_eq!(answers.recv().await.unwrap().result.unwrap().evicted, 3);
    mailbox.close();
    task.await.unwrap();
    assert!(answers.recv().await.is_none(), "one request answered them all");
}

#[tokio::test]
async fn a_placement_that_is_on_its_way_to_a_slow_sidecar_is_not_sent_again() {
    let (arrived, mut arrivals) = mpsc::channel(8);
    let slow = Arc::new(Notify::new());
    let release = Arc::clone(&slow);
    let take = async move |Json(placed): Json<Placed>| {
        let Placement { pool_uid, version, .. } = placed.placement;
        arrived.send(version.epoch).await.unwrap();
        slow.notified().await;
        Json(Report { uid: placed.target, pool_uid, version, ..Report::default() })
    };
    let server = Server::with(Router::new().route("/v1/placement", put(take))).await;
    let (answer, mut answers) = mpsc::channel(8);
    let mailbox = Mailbox::default();
    let route = Route { member: 1, address: server.address.clone(), uid: None };
    let courier = tokio::spawn(courier::serve(route, mailbox.clone(), Control::default(), answer));
    let publish = |epoch| {
        let placement =
            Placement { pool_uid: "pool".into(), version: Version { term: 1, epoch }, ..Placement::default() };
        mailbox.place("a".into(), Arc::new(Written::new(Arc::new(placement))));
    };
    publish(1);
    assert_eq!(arrivals.recv().await, Some(1));
    publish(1);
    release.notify_one();
    assert_eq!(answers.recv().await.unwrap().result.unwrap().version.epoch, 1);
    // What comes next is the next one.
    publish(2);
    assert_eq!(arrivals.recv().await, Some(2));
    release.notify_one();
    mailbox.close();
    courier.await.unwrap();
    assert!(arrivals.try_recv().is_err());
}
