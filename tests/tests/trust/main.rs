//! Who is believed: the operator by a token for each request, peers by the pool's secret, and nobody else.

mod control;
mod logs;
mod peers;

use harness::http::Answer;
use ring::wire::Problem;

/// Panics unless an answer is this problem.
fn refused(answer: &Answer, status: u16, title: &str, what: &str) {
    assert_eq!(answer.status.as_u16(), status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), Problem::CONTENT_TYPE, "{what}");
    let problem: Problem = serde_json::from_slice(&answer.body).expect("a problem");
    assert_eq!((problem.status, problem.title.as_str()), (status, title), "{what}: {problem:?}");
}
