//! The one buffer of the load's thread: what is read is counted or sent back at once, and kept nowhere.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; 256 * 1024].into());
}

/// Reads what there is, and lets `with` have it.
pub fn poll_read<T>(
    cx: &mut Context<'_>,
    from: &mut (impl AsyncRead + Unpin),
    with: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut bytes = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut bytes))?;
        Poll::Ready(Ok(with(bytes.filled())))
    })
}
