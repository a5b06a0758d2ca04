//! The demo itself, with fewer clients.

use std::process::Command;

use wspool_examples::demo::acts::{Instead, compare};
use wspool_examples::demo::process::Launcher;
use wspool_examples::demo::screen::Screen;
use wspool_examples::demo::verdict::Comparison;

const CLIENTS: usize = 60;

async fn compared(instead: Instead) -> Comparison {
    let logs = tempfile::tempdir().expect("a folder");
    let launcher = Launcher::new(env!("CARGO_BIN_EXE_demo").into(), logs.path().into());
    compare(CLIENTS, instead, &launcher, &Screen::new()).await.expect("a comparison")
}

#[tokio::test]
async fn dropping_all_connections_breaks_everyone_and_balances_them() {
    let comparison = compared(Instead::DropAll).await;
    assert_eq!(comparison.broken, CLIENTS);
    assert_eq!(comparison.balance, [CLIENTS / 2, CLIENTS / 2]);
}

#[tokio::test]
async fn round_robin_breaks_nobody_and_leaves_the_new_server_empty() {
    let comparison = compared(Instead::RoundRobin).await;
    assert_eq!(comparison.broken, 0);
    assert_eq!(comparison.balance, [CLIENTS, 0]);
}

/// Needs the binaries of the sidecar and the operator beside the demo's: `make test` builds them.
#[test]
fn every_act_shows_what_it_should() {
    let demo = Command::new(env!("CARGO_BIN_EXE_demo")).args(["--connections", "100", "--rate", "100"]).output();
    let demo = demo.expect("the demo's binary runs");
    let told = format!("{}{}", String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{told}");
    for act in ["scale-up", "rollout", "drain", "kill", "scale-up-by-load", "scale-up-drop-all", "scale-up-round-robin"]
    {
        assert_eq!(
            told.matches(&format!("\nact={act} connections=100 ")).count(),
            2,
            "once played, once at the end: {told}"
        );
    }
}

#[test]
fn a_process_on_the_leash_does_not_start_when_its_parent_is_gone() {
    let demo =
        Command::new(env!("CARGO_BIN_EXE_demo")).args(["leash", "2147483647", "/bin/sh", "-c", "exit 0"]).output();
    let demo = demo.expect("the demo's binary runs");
    assert!(!demo.status.success());
    assert!(String::from_utf8_lossy(&demo.stderr).contains("already ended"), "{demo:?}");
}
