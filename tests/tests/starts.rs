//! A sidecar that cannot do what it was told ends at once, with one clear sentence.

use std::net::TcpListener;

use harness::process::{Process, program};
use harness::{App, Guestbook, Sidecar, ports};
use tempfile::TempDir;

/// Runs a sidecar that ends by itself; returns its exit code and what it wrote.
async fn fails(folder: &TempDir, arguments: &[&str]) -> (i32, String) {
    let log = folder.path().join("log");
    let mut process = Process::start("sidecar", &program("wspool-sidecar"), arguments, &log);
    let status = process.ended().await;
    let written = process.log();
    assert!(!written.contains("panicked"), "{arguments:?}: {written}");
    (status.code().expect("an exit code"), written)
}

/// A failed start with a file for `--config`.
async fn refuses_config(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sidecar.yaml");
    std::fs::write(&file, text).expect("a file");
    let listen = ports::free().to_string();
    let file = file.to_string_lossy();
    let arguments = ["--listen", &listen, "--upstream", "127.0.0.1:1", "--config", &file];
    let (code, written) = fails(&folder, &arguments).await;
    assert_ne!(code, 0, "{text:?} was accepted");
    assert!(written.contains("sidecar.yaml"), "the file is not named: {written}");
    written
}

#[tokio::test]
async fn a_flag_that_cannot_be_right_is_named_with_its_value_and_what_would_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = ports::free().to_string();
    let open = format!("0.0.0.0:{}", ports::free().port());
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--listen", "8000", "--upstream", "127.0.0.1:1"], &["--listen", "8000", "127.0.0.1:"]),
        (&["--listen", &listen, "--upstream", "nowhere"], &["--upstream", "nowhere", "127.0.0.1:"]),
        (&["--listen", &listen], &["--upstream", "--role router"]),
        (&["--listen", &listen, "--upstream", "127.0.0.1:1", "--role", "router"], &["--upstream", "router"]),
        (&["--listen", &listen, "--upstream", "127.0.0.1:1", "--control", &open], &["--control", "127.0.0.1"]),
        (&["--listen", &listen, "--upstream", "127.0.0.1:1", "--wokers", "2"], &["--wokers", "--workers"]),
        (&["--listen", &listen, "--upstream", "127.0.0.1:1", "--workers", "0"], &["--workers", "0", "1..=64"]),
    ];
    for (arguments, said) in cases {
        let (code, written) = fails(&folder, arguments).await;
        assert_ne!(code, 0, "{arguments:?} was accepted");
        for word in said {
            assert!(written.contains(word), "{arguments:?} does not say {word:?}: {written}");
        }
        std::fs::remove_file(folder.path().join("log")).expect("a log");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    for flag in ["--listen", "--control", "--metrics"] {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = listener.local_addr().expect("its address").to_string();
        let free = ports::free().to_string();
        let mut arguments = vec!["--upstream", "127.0.0.1:1", flag, &taken];
        if flag != "--listen" {
            arguments.extend(["--listen", &free]);
        }
        let (code, written) = fails(&folder, &arguments).await;
        assert_ne!(code, 0, "{flag} was accepted");
        let sentence = written.lines().find(|line| line.contains(&taken)).unwrap_or_else(|| panic!("{written}"));
        assert!(sentence.contains(flag) && sentence.contains("in use"), "{sentence}");
    }
}

#[tokio::test]
async fn a_configuration_file_with_a_mistake_is_refused_with_its_place() {
    assert!(refuses_config("limits: {connections: many}\n").await.contains("line 1"));
    assert!(refuses_config("notice: {closeCode: 1012}\nlimit: {connections: 1}\n").await.contains("limit"));
    assert!(refuses_config("limits: {connections: 1\n").await.contains("line"));
    assert!(refuses_config("limits: {idle: 5 minutes}\n").await.contains("5 minutes"));
    assert!(refuses_config("key: {from: [{path: /rooms}]}\n").await.contains("{key}"));
}

#[tokio::test]
async fn an_interrupted_sidecar_ends_at_once_and_well() {
    let book = Guestbook::default();
    let app = App::start("server", &book).await;
    let mut sidecar = Sidecar::beside(app.address).await;
    let mut client = harness::Client::connect(sidecar.listen, "ann").await;
    client.check().await;
    sidecar.process().signal(nix::sys::signal::Signal::SIGINT);
    let status = sidecar.process().ended().await;
    assert_eq!(status.code(), Some(0), "{}", sidecar.process().log());
}
