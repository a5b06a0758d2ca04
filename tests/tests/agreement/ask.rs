//! Which server a proxy sends a key to.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// For each key the address of the server that answered.
pub(crate) type Answers = Vec<String>;

/// How many requests are on their way at once.
const AT_ONCE: usize = 64;

/// A proxy that does not answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks about keys, in the header `x-key`.
pub(crate) fn about(proxy: SocketAddr, keys: &[String]) -> Answers {
    let mut socket = TcpStream::connect(proxy).expect("a proxy that listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answers = Vec::new();
    for batch in keys.chunks(AT_ONCE) {
        let request = |key: &String| format!("GET / HTTP/1.1\r\nhost: agreement\r\nx-key: {key}\r\n\r\n");
        socket.write_all(batch.iter().map(request).collect::<String>().as_bytes()).expect("requests are taken");
        let mut text = String::new();
        while text.matches('>').count() < batch.len() {
            let mut buffer = [0; 16_384];
            let read = socket.read(&mut buffer).unwrap_or_else(|error| panic!("{error} after {text}"));
            assert!(read > 0, "the proxy has closed after {text}");
            text.push_str(std::str::from_utf8(&buffer[..read]).expect("text"));
        }
        let named = text.split('<').skip(1).map(|rest| rest.split('>').next().expect("a first part").to_owned());
        answers.extend(named);
    }
    answers
}
