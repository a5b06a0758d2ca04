//! The first head of a connection: a head that is accepted is passed on as the same request, and without the client's headers
//! in our name.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ring::wire::header;
use sidecar::head::{Edit, HeadError, HeadLimits, RequestHead, read_request};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// The value of a header that a sidecar adds.
const OURS: &str = "a";

/// Reads a head, and leaves what it did not read.
fn read(stream: &mut &[u8]) -> Result<RequestHead, HeadError> {
    RUNTIME.block_on(read_request(stream, HeadLimits::default()))
}

fuzz_target!(|bytes: &[u8]| {
    let mut unread = bytes;
    let Ok(mut head) = read(&mut unread) else { return };
    let is_a_clients = head.check_client(HeadLimits::default()).is_ok();
    let (path, query) = (head.path().to_owned(), head.query().map(str::to_owned));
    let is_handshake = head.upgrade().is_some();
    let rest = head.take_rest();
    assert!(bytes.ends_with(&[&rest, unread].concat()), "what came behind the head is kept");

    if !is_a_clients {
        return;
    }
    let passed_on =
        head.rewrite(&Edit { forwarded_for: Some([192, 0, 2, 1].into()), add: &[(header::TARGET, OURS.into())] });
    let again = read(&mut passed_on.as_slice()).expect("a peer can read what it gets");
    assert_eq!((again.path(), again.query()), (path.as_str(), query.as_deref()));
    assert_eq!(again.upgrade().is_some(), is_handshake);
    let ours: Vec<_> =
        again.headers().filter(|(name, _)| name.to_ascii_lowercase().starts_with(header::PREFIX)).collect();
    assert_eq!(ours, [(header::TARGET, OURS.as_bytes())], "a client's headers in our name are stripped");
});
