//! The sockets that listen on a port of this pod, as Linux lists them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind};

/// A list per family. `self`: the network is that of the process, as the other containers of its pod have it.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// The state of a socket that listens, in the column `st`.
const LISTEN: &str = "0A";

/// The numbers of the sockets that listen on a port. They come from a counter of the kernel (`ino`), so that a socket that
/// is made later has another one.
pub fn on(port: u16) -> Result<BTreeSet<u64>, Error> {
    let mut found = BTreeSet::new();
    for table in TABLES {
        match File::open(table) {
            Ok(file) => found.extend(read(BufReader::new(file), port)?),
            // A machine without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads a list up to its first connection: those that listen come before all others, which may be many.
fn read(table: impl BufRead, port: u16) -> Result<Vec<u64>, Error> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut columns = line.split_whitespace();
        let (local, state) = (columns.nth(1).unwrap_or_default(), columns.nth(1).unwrap_or_default());
        if state != LISTEN {
            break;
        }
        let local_port = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        if local_port == Some(port) {
            found.extend(columns.nth(5).and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_list_is_read_up_to_its_first_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:0BB9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65532        0 4713 1 0 100 0 0 10 0
   3: 0100007F:0BB8 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4714 1 0 20 4 30 10 -1
";
        assert_eq!(read(table.as_bytes(), 3000).expect("a list"), [4711, 4713]);
        assert_eq!(read(table.as_bytes(), 3001).expect("a list"), [4712]);
        assert_eq!(read(table.as_bytes(), 54_321).expect("a list"), [0; 0]);
    }

    #[test]
    fn a_socket_that_takes_anothers_place_has_another_number() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let first = TcpListener::bind(any).expect("a port");
            let address = first.local_addr().expect("an address");
            let before = on(address.port()).expect("the list");
            assert_eq!(before.len(), 1, "{any}");
            drop(first);
            assert_eq!(on(address.port()).expect("the list"), BTreeSet::new());
            let _second = TcpListener::bind(address).expect("the same port");
            let after = on(address.port()).expect("the list");
            assert!(after.len() == 1 && after.is_disjoint(&before), "{any}: {before:?} {after:?}");
        }
    }
}
