//! Messages of ours for one client, until there is a place for them in its stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::message::Message;

/// The most that waits for one client, in bytes: a client that does not read costs no more.
pub const CAPACITY: usize = 256 * 1024;

/// What became of a message for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is in the client's stream.
    Written,
    /// The client was told to go before; it is on its way to another server.
    Moved,
    /// The connection has ended, or is ending.
    Gone,
    /// There is no place for a message of ours: an extension that we do not know, or malformed frames.
    Unable,
    /// The client does not read what it gets already.
    Slow,
}

/// A message on its way into one client's stream.
#[derive(Debug)]
pub struct Mail {
    message: Message,
    slip: Slip,
}

/// Who wants to know.
#[derive(Debug)]
enum Slip {
    /// Somebody waits. When it no longer does, the message is not written.
    Awaited(oneshot::Sender<Fate>),
    /// Nobody: it was promised, and is kept until then.
    Promised(Instant),
}

impl Mail {
    /// A message whose sender waits for its fate.
    pub fn awaited(message: Message) -> (Self, oneshot::Receiver<Fate>) {
        let (sender, receiver) = oneshot::channel();
        (Self { message, slip: Slip::Awaited(sender) }, receiver)
    }

    /// A message that was promised, and is worth nothing after a time.
    pub fn promised(message: Message, until: Instant) -> Self {
        Self { message, slip: Slip::Promised(until) }
    }
}

/// The messages that wait for one client.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    mails: VecDeque<Mail>,
    bytes: usize,
    shut: Option<Fate>,
    /// Runs while they wait for the app's first message.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Mailbox {
    /// Takes a message in; gives a promised one back where there is no place for it.
    pub(super) fn post(&mut self, mail: Mail) -> Option<(Message, Instant)> {
        let size = mail.message.size();
        let full = (self.bytes > 0 && self.bytes + size > CAPACITY) || self.has_stalled();
        if let Some(fate) = self.shut.or(full.then_some(Fate::Slow)) {
            return resolve(mail, fate);
        }
        self.bytes += size;
        self.mails.push_back(mail);
        None
    }

    /// Ready when the messages have been held for so long since this was first asked.
    pub(super) fn hold(&mut self, cx: &mut Context<'_>, time: Duration) -> Poll<()> {
        self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(time))).as_mut().poll(cx)
    }

    /// The next message to write. From here on it counts as written.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.patience = None;
        while let Some(mail) = self.mails.pop_front() {
            self.bytes -= mail.message.size();
            let wanted = match mail.slip {
                Slip::Awaited(sender) => sender.send(Fate::Written).is_ok(),
                Slip::Promised(_) => true,
            };
            if wanted {
                return Some(mail.message.frame().clone());
            }
        }
        None
    }

    /// Whether one has waited in vain for as long as its sender could, and waits still.
    fn has_stalled(&self) -> bool {
        matches!(self.mails.front(), Some(Mail { slip: Slip::Awaited(sender), .. }) if sender.is_closed())
    }

    /// Whether there is anything to write.
    pub(super) fn is_waiting(&self) -> bool {
        self.shut.is_none() && !self.mails.is_empty()
    }

    /// Whether it takes nothing any more.
    pub(super) fn is_shut(&self) -> bool {
        self.shut.is_some()
    }

    /// Takes and gives nothing any more. What was promised stays, to be reclaimed.
    pub(super) fn shut(&mut self, fate: Fate) {
        let fate = *self.shut.get_or_insert(fate);
        for mail in std::mem::take(&mut self.mails) {
            if let Some((message, until)) = resolve(mail, fate) {
                self.mails.push_back(Mail::promised(message, until));
            }
        }
    }

    /// What was promised and is not written.
    pub(super) fn reclaim(&mut self) -> Vec<(Message, Instant)> {
        self.shut(Fate::Gone);
        self.bytes = 0;
        self.mails.drain(..).filter_map(|mail| resolve(mail, Fate::Gone)).collect()
    }
}

fn resolve(mail: Mail, fate: Fate) -> Option<(Message, Instant)> {
    match mail.slip {
        Slip::Awaited(sender) => {
            // Whoever does not wait any more has counted it already.
            let _ = sender.send(fate);
            None
        }
        Slip::Promised(until) => Some((mail.message, until)),
    }
}

#[cfg(test)]
mod tests {
    use ring::notice::MessageKind;

    use super::*;

    fn message(length: usize) -> Message {
        Message::new(MessageKind::Text, &vec![b'a'; length]).unwrap()
    }

    #[test]
    fn a_client_that_does_not_read_costs_a_bounded_amount() {
        let mut mailbox = Mailbox::default();
        let mut slow = 0;
        let receipts: Vec<_> = (0..10_000)
            .map(|_| {
                let (mail, receipt) = Mail::awaited(message(1_000));
                assert!(mailbox.post(mail).is_none());
                receipt
            })
            .collect();
        for mut receipt in receipts {
            slow += usize::from(receipt.try_recv() == Ok(Fate::Slow));
        }
        assert!(mailbox.bytes <= CAPACITY);
        assert_eq!(slow, 10_000 - mailbox.mails.len());
    }

    #[test]
    fn the_largest_message_fits_into_an_empty_mailbox() {
        let mut mailbox = Mailbox::default();
        let (mail, _receipt) = Mail::awaited(message(crate::message::LARGEST));
        mailbox.post(mail);
        assert!(mailbox.next().is_some());
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_written() {
        let mut mailbox = Mailbox::default();
        let (mail, receipt) = Mail::awaited(message(1));
        mailbox.post(mail);
        drop(receipt);
        assert_eq!(mailbox.next(), None);
    }

    #[test]
    fn behind_a_message_that_waits_in_vain_nobody_waits() {
        let mut mailbox = Mailbox::default();
        let (first, receipt) = Mail::awaited(message(1));
        mailbox.post(first);
        drop(receipt);
        let (second, mut receipt) = Mail::awaited(message(1));
        mailbox.post(second);
        assert_eq!(receipt.try_recv(), Ok(Fate::Slow));
        mailbox.next();
        let (third, mut receipt) = Mail::awaited(message(1));
        mailbox.post(third);
        assert!(mailbox.next().is_some(), "the client reads again");
        assert_eq!(receipt.try_recv(), Ok(Fate::Written));
    }

    #[test]
    fn a_promise_comes_back_when_it_could_not_be_kept() {
        let mut mailbox = Mailbox::default();
        let until = Instant::now();
        let (mail, mut receipt) = Mail::awaited(message(1));
        mailbox.post(mail);
        mailbox.post(Mail::promised(message(2), until));
        mailbox.shut(Fate::Moved);
        assert!(!mailbox.is_waiting());
        assert_eq!(mailbox.reclaim(), [(message(2), until)]);
        assert_eq!(receipt.try_recv(), Ok(Fate::Moved));
        assert_eq!(mailbox.post(Mail::promised(message(3), until)), Some((message(3), until)));
    }
}
