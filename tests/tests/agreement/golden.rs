//! The golden files of `ring/tests/golden`: what the programs answered, for where there is no program to ask.

use std::fmt::Write as _;
use std::path::Path;

use ring::agreement::Agreement;

use crate::Set;
use crate::ask::Answers;
use crate::servers::Server;

/// So many keys a line.
const A_LINE: usize = 100;

/// Writes a file anew when `WSPOOL_GENERATE` is set, and the set has a name.
pub(crate) fn write(hash: &str, program: &str, agreement: Agreement, set: &Set, answers: &Answers) {
    let Some(name) = set.name.filter(|_| std::env::var_os("WSPOOL_GENERATE").is_some()) else { return };
    let servers = &set.servers;
    let agreement = serde_json::to_string(&agreement).expect("JSON");
    let mut text = format!("program {program}\nagreement {agreement}\n");
    for Server { address, weight } in servers {
        writeln!(text, "{address} weight {weight}").expect("memory");
    }
    for (number, answer) in answers.iter().enumerate() {
        if number % A_LINE == 0 {
            text.push('\n');
        }
        let owner =
            servers.iter().position(|server| server.address.to_string() == *answer).expect("one of the servers");
        let owner = u32::try_from(owner).expect("fewer than 36");
        text.push(char::from_digit(owner, 36).expect("fewer than 36 servers"));
    }
    text.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ring/tests/golden").join(format!("{hash}-{name}.txt"));
    std::fs::write(path, text).expect("a golden file");
}

/// What a program says of its version, in one line, without the folder that it is in.
pub(crate) fn version(program: &Path, argument: &str) -> String {
    let output = std::process::Command::new(program).arg(argument).output().expect("its version");
    // nginx writes it to its standard error.
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let name = program.file_name().expect("a program").to_string_lossy();
    text.trim().lines().next().unwrap_or_default().replace(&*program.to_string_lossy(), &name)
}
