//! nginx itself.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use harness::process::Process;
use harness::{ports, until};
use ring::agreement::Agreement;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::keys::keys;
use crate::servers::{Server, Servers};
use crate::{agrees, ask, golden, sets};

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx(#[expect(dead_code, reason = "it ends when it is dropped")] Process);

impl Nginx {
    /// Starts one with this in its `http` block, and waits until it listens.
    pub(crate) async fn start(folder: &TempDir, name: &str, http: &str, listens: SocketAddr) -> Self {
        let path = folder.path().join(format!("{name}.conf"));
        let own = |file: &str| format!("{}-{file}", folder.path().join(name).display());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|kind| format!("{kind}_temp_path {};\n", own(kind))).concat();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{ worker_connections 4096; }}\n\
             http {{\naccess_log off;\nkeepalive_requests 1000000;\n{temporary}{http}}}\n",
            own("pid")
        );
        std::fs::write(&path, config).expect("a file in a temporary folder");
        let arguments = ["-e", "stderr", "-c", &path.to_string_lossy()];
        let mut process =
            Process::start(name, &installed("nginx"), arguments, &folder.path().join(format!("{name}.log")));
        listening(&mut process, listens).await;
        Self(process)
    }
}

/// A program that `make test` installs.
pub(crate) fn installed(name: &str) -> PathBuf {
    let found =
        ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"].map(|folder| Path::new(folder).join(name));
    let found = found.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: `make test` installs it before the tests"))
}

/// Waits until a program listens.
pub(crate) async fn listening(process: &mut Process, address: SocketAddr) {
    until("the proxy listens", async || {
        process.check();
        TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test]
async fn nginx_sends_every_key_to_its_owner() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut servers = Servers::default();
    let sets = sets(&mut servers);
    let _servers = servers.start(&folder).await;
    let mut config = String::new();
    let mut entries = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let entry = ports::free();
        entries.push(entry);
        writeln!(config, "upstream set{number} {{ hash $http_x_key consistent; keepalive 16;").expect("memory");
        for Server { address, weight } in &set.servers {
            writeln!(config, "server {address} weight={weight} max_fails=0;").expect("memory");
        }
        writeln!(
            config,
            "}}\nserver {{ listen {entry}; location / {{ proxy_pass http://set{number}; proxy_http_version 1.1; \
             proxy_set_header Connection ''; }} }}"
        )
        .expect("memory");
    }
    let _nginx = Nginx::start(&folder, "nginx", &config, entries[0]).await;
    let version = golden::version(&installed("nginx"), "-v");
    let keys = keys();
    for (set, entry) in sets.iter().zip(entries) {
        let answers = ask::about(entry, &keys);
        agrees("algorithm: NginxKetama", &set.servers, &keys, &answers);
        golden::write("nginx", &version, Agreement::NginxKetama, set, &answers);
    }
}
