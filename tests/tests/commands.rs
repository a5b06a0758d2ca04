//! The operator's commands that answer questions about a pool: `owner` and `plan`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use harness::operator::Files;

const OWNER: [&str; 5] = ["owner", "--pool", "pool.yaml", "--members", "members.yaml"];

/// So many members, `server-0` and on.
fn members(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let port = 8_000 + number;
        writeln!(text, "- {{name: server-{number}, address: 127.0.0.1:{port}, control: 127.0.0.1:1{port}}}")
            .expect("memory");
    }
    text
}

fn keys(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        writeln!(text, "user-{number}").expect("memory");
        text
    })
}

#[test]
fn owner_agrees_with_the_published_vectors() {
    let files = Files::new("");
    files.write_members(&members(10));
    let output = files.run(&OWNER, "\na\nuser-1\nuser-2\nuser-3\nuser-42\n".into());
    assert!(output.status.success(), "{output:?}");
    let expected = "\tserver-6\na\tserver-8\nuser-1\tserver-7\nuser-2\tserver-4\nuser-3\tserver-2\nuser-42\tserver-4\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    files.write_members(&members(3));
    let output = files.run(&OWNER, "user-1\nuser-2\nuser-3\n".into());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "user-1\tserver-1\nuser-2\tserver-0\nuser-3\tserver-2\n");
}

#[test]
fn a_million_keys_have_balanced_owners() {
    let files = Files::new("");
    files.write_members(&members(10));
    let began = Instant::now();
    let output = files.run(&OWNER, keys(1_000_000));
    println!("1,000,000 keys took {:?}", began.elapsed());
    assert!(output.status.success(), "{:?}", output.status);
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let text = std::str::from_utf8(&output.stdout).expect("text");
    for line in text.lines() {
        *counts.entry(line.split_once('\t').expect("a tab").1).or_default() += 1;
    }
    assert_eq!((counts.len(), counts.values().sum::<u32>()), (10, 1_000_000));
    let most = counts.values().max().expect("ten");
    assert!(*most < 101_500, "{counts:?}");
}

#[test]
fn plan_counts_what_would_move_and_from_where_to_where() {
    let files = Files::new("");
    files.write_members(&members(10));
    std::fs::write(files.path("then.yaml"), members(11)).expect("a file");
    let arguments = ["plan", "--pool", "pool.yaml", "--members", "members.yaml", "--to", "then.yaml"];
    let output = files.run(&arguments, keys(100_000));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let last = text.lines().last().expect("a last line");
    let figures: BTreeMap<_, _> = last.split(' ').filter_map(|figure| figure.split_once('=')).collect();
    assert_eq!(figures.get("keys"), Some(&"100000"), "{last}");
    let figure = |name: &str| figures[name].parse::<f64>().expect("a number");
    let share = figure("moved") / figure("minimum");
    assert!((0.97..=1.03).contains(&share), "{share} of the minimum: {last}");
    assert!(text.contains("server-0") && text.contains("server-10"), "{text}");
}

#[test]
fn a_mistake_in_a_file_is_named_with_its_place() {
    let files = Files::new("");
    files.write_members("- {name: a, address: nowhere, control: 127.0.0.1:1}\n");
    let output = files.run(&OWNER, "a\n".into());
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("members.yaml") && said.contains("line 1") && said.contains("nowhere"), "{said}");
    assert!(!said.contains("panicked"), "{said}");

    files.write_members(&members(2));
    std::fs::write(files.path("pool.yaml"), "apiVersion: wspool.dev/v1alpha1\nkind: WebSocketPool\nspec: {prot: 1}\n")
        .expect("a file");
    let output = files.run(&OWNER, "a\n".into());
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("pool.yaml") && said.contains("prot"), "{said}");
}

#[test]
fn a_port_in_use_ends_standalone_with_a_sentence() {
    let files = Files::new("");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("its address").to_string();
    let arguments = ["standalone", "--pool", "pool.yaml", "--members", "members.yaml", "--admin", &taken];
    let output = files.run(&arguments, String::new());
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--admin") && said.contains(&taken) && !said.contains("panicked"), "{said}");
}
