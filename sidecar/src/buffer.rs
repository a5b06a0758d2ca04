//! The one buffer of a thread, while somebody reads into it: whoever waits for bytes keeps none of its own.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Its size in bytes.
pub const SIZE: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The buffer, until it is dropped.
#[derive(Debug)]
pub struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    /// Takes it; whoever takes a second one meanwhile gets a new one.
    pub fn take() -> Self {
        Self(Some(SPARE.take().unwrap_or_else(|| vec![0; SIZE].into())))
    }

    /// Reads at most so many bytes; none at the end of the stream.
    pub fn read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        most: usize,
    ) -> Poll<io::Result<&[u8]>> {
        let most = most.min(SIZE);
        let mut bytes = ReadBuf::new(&mut self.0.as_deref_mut().unwrap_or_default()[..most]);
        ready!(Pin::new(from).poll_read(cx, &mut bytes))?;
        let filled = bytes.filled().len();
        Poll::Ready(Ok(self.0.as_deref().map_or(&[], |bytes| &bytes[..filled])))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        SPARE.set(self.0.take());
    }
}

/// Waits for bytes, at most so many, and gives them to `take`; returns how many there were.
pub async fn read(from: &mut (impl AsyncRead + Unpin), most: usize, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        let bytes = ready!(buffer.read(cx, from, most))?;
        take(bytes);
        Poll::Ready(Ok(bytes.len()))
    })
    .await
}
