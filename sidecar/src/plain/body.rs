//! The bodies of answers to clients.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::{Frame, Incoming, SizeHint};

use super::events::Events;
use crate::admission::Place;
use crate::sessions::First;
use crate::sessions::dialect::Reading;
use crate::sidecar::Sidecar;

/// The body of an answer.
pub(crate) enum Body {
    /// Our own.
    Own(Full<Bytes>),
    /// Our own, behind a head that goes first.
    Later(Later),
    /// The app's, or a peer's.
    Passing(Incoming),
    /// The app's, which may name a session.
    Beginning(Box<Beginning>),
    /// The app's, for as long as it has events.
    Events(Box<Events>),
}

/// What is known only when the head has gone; then nothing.
pub(crate) struct Later(Option<BoxFuture<'static, Bytes>>);

/// The answer to a request that may begin a session. The session is held before its client can know its name.
pub(crate) struct Beginning {
    pub sidecar: Arc<Sidecar>,
    pub body: Incoming,
    /// What has come so far, and what to do once that names a session.
    pub seen: Vec<u8>,
    pub then: Option<(Place, First)>,
}

impl Body {
    pub(crate) fn own(bytes: impl Into<Bytes>) -> Self {
        Self::Own(Full::new(bytes.into()))
    }
}

impl Later {
    pub(crate) fn new(bytes: impl Future<Output = Bytes> + Send + 'static) -> Self {
        Self(Some(bytes.boxed()))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(bytes) = &mut self.0 else { return Poll::Ready(None) };
        let bytes = ready!(bytes.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(bytes))
    }
}

impl Beginning {
    fn see(&mut self, bytes: &[u8]) {
        let Some((place, first)) = self.then.take() else { return };
        self.seen.extend_from_slice(bytes);
        match first.dialect.read(&self.seen) {
            Reading::More => self.then = Some((place, first)),
            Reading::Nothing => {}
            Reading::Begun { id, silence } => self.sidecar.sessions.begin(place, id, silence, first),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Later(later) => later.poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passing(body) => Pin::new(body).poll_frame(cx),
            Self::Beginning(beginning) => {
                let polled = Pin::new(&mut beginning.body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(bytes) = frame.data_ref()
                {
                    beginning.see(bytes);
                }
                polled
            }
            Self::Events(events) => events.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Later(later) => later.0.is_none(),
            Self::Passing(body) => body.is_end_stream(),
            Self::Beginning(beginning) => beginning.body.is_end_stream(),
            Self::Events(events) => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Passing(body) => body.size_hint(),
            Self::Beginning(beginning) => beginning.body.size_hint(),
            Self::Later(_) | Self::Events(_) => SizeHint::default(),
        }
    }
}
