//! docs/clients.md: what each protocol sends, and what was measured of each library.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use ring::notice::{Message, MessageKind, Spoken, spell};
use ring::settings::{Notice, NoticeProtocol};

use crate::libraries::Library;

/// What was measured of a library.
pub(crate) struct Row {
    pub(crate) library: &'static Library,
    /// Clients that had to move.
    pub(crate) moved: usize,
    /// How long each that came back was away, in order.
    pub(crate) away: Vec<Duration>,
}

/// Checks that the page says what was measured, apart from times, which differ from run to run. Writes it when asked.
pub(crate) fn check(rows: &[Row]) {
    let page = page(rows);
    println!("{page}");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    if std::env::var_os("WSPOOL_GENERATE").is_some() {
        std::fs::write(&path, &page).expect("a page that can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(lasting(&committed), lasting(&page), "docs/clients.md is stale: run `make clients`");
}

/// A page without its times, which are the last two cells of a row.
fn lasting(page: &str) -> Vec<&str> {
    let end = |line: &str| line.match_indices('|').rev().nth(2).map_or(line.len(), |(at, _)| at);
    page.lines().map(|line| if line.ends_with(" s |") { &line[..end(line)] } else { line }).collect()
}

fn page(rows: &[Row]) -> String {
    let protocols: String = NoticeProtocol::ALL.map(protocol).concat();
    let rows: String = rows.iter().map(row).collect();
    format!("{HEAD}{protocols}{MEASURED}{rows}{TAIL}")
}

/// What a protocol sends, by the code that sends it.
fn protocol(protocol: NoticeProtocol) -> String {
    let notice = Notice { protocol, ..Notice::default() };
    let mut told: Vec<String> = Vec::new();
    for kind in [MessageKind::Text, MessageKind::Binary] {
        let spoken = Spoken { app: Some(kind), mqtt_level: Some(5) };
        told.extend(notice.message_for(spoken).map(shown));
    }
    let message = if told.is_empty() { String::new() } else { format!("{}, then ", told.join(" or ")) };
    let fatal = protocol.fatal_codes();
    let never = if fatal.is_empty() { "none".into() } else { spell(fatal) };
    let own = if protocol.no_message().is_some() { "no" } else { "yes" };
    format!("| `{protocol:?}` | {message}Close {} | {never} | {own} |\n", notice.code())
}

fn row(row: &Row) -> String {
    let Row { library, moved, away } = row;
    let told = library.message.map_or_else(String::new, |message| format!("{}, ", shown(message)));
    let (median, longest) = (away[away.len() / 2].as_secs_f64(), away[away.len() - 1].as_secs_f64());
    let mut line = String::new();
    write!(line, "| {} | `{:?}` | {told}Close {} ", library.name(), library.protocol, library.close).expect("memory");
    let (server, back) = (library.server, away.len());
    writeln!(line, "| {server} | {moved} | {back} | {median:.2} s | {longest:.2} s |").expect("memory");
    line
}

/// A message for people.
fn shown(message: Message<'_>) -> String {
    let Message { kind, payload } = message;
    match kind {
        MessageKind::Text => format!("`{}`", String::from_utf8_lossy(payload).trim_end_matches('\u{1e}')),
        MessageKind::Binary => {
            let bytes: Vec<String> = payload.iter().map(|byte| format!("{byte:02X}")).collect();
            format!("binary `{}`", bytes.join(" "))
        }
    }
}

const HEAD: &str = "\
<!-- Generated from tests/tests/clients by `make clients`, and tested there. -->
# Client libraries

What a client is told before its connection is closed is `spec.notice` of its pool. `protocol` names what its library
understands; the default, `WebSocket`, is a Close alone, and suits every library that reconnects after any close.

```yaml
notice: {protocol: SignalR}
```

| `protocol` | a client is told | close codes that keep its clients away | `message` of your own |
|---|---|---|---|
";

const MEASURED: &str = "
- A protocol's message goes ahead of the Close only where the app's last one was of the same kind, text or binary: that is
  the client's encoding. Clients of MQTT 3 get none. The text of SignalR ends with its record separator.
- `closeCode` replaces the code. One that keeps the protocol's clients away is refused.

## Measured

Each library ran with 20 clients on one server, through real sidecars under a real operator; then a second server joined,
and those whose keys it took were moved. No client has a line of code for it, and nobody else was disturbed. The time away
is from the Close on the wire to the 101 of the next connection, with eight libraries at a time on two cores.

| library | `protocol` | is told | server | moved | came back | median away | longest away |
|---|---|---|---|---|---|---|---|
";

const TAIL: &str = "
- Most libraries wait for the same time before their first try, so the pace of the move is what spreads them.
  reconnecting-websocket by pladaria draws its time once for a page, from 1 to 5 s: here all clients share one page.
- Action Cable waits for so long whatever it is told. Leave `rebalance.returnTimeout` well above 20 s.
- The key must be in every handshake, and in every other request of the library, such as polls and negotiations. Clients
  of Discord reconnect to the `resume_gateway_url` that their server gave them: it must be an address of the pool.
- With the protocols `SocketIO` and `SignalR` a session is a connection of its key as soon as an answer of the app names
  it. Its polls, and the WebSocket that it gets, go where it began, also when its key has another owner by then. One that
  still polls is moved by ending it at its app, as its client would. Without keys (`LeastConnections`) nothing keeps the
  requests of a session together: let such clients use WebSocket alone.
- A stream of events (`text/event-stream`) is a connection of its key, too. To move it, it is ended after an event; an
  `EventSource` comes back by itself, some seconds later unless its server says otherwise (`retry:`). Its server is asked
  not to compress it. One that is compressed all the same is passed on, and neither counted nor moved.
- SignalR without `withAutomaticReconnect()`, and subscriptions-transport-ws without `reconnect: true`, do not reconnect.
- A library that is not here, and a browser's plain `WebSocket`, does what the application makes it do.
";
