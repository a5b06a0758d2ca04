//! The place of the figures in a page, and what they were measured on.

use std::fs;
use std::process::Command;

const BEGIN: &str = "<!-- make bench writes from here -->\n";
const END: &str = "<!-- to here -->\n";

/// The page with other figures between its two marks; nothing when it has no such place.
pub fn filled(page: &str, figures: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
}

/// The programs and the machine, in a few words.
pub fn setting() -> Result<String, String> {
    let (nginx, haproxy) = (version("nginx")?, version("haproxy")?);
    let kernel = dotted(&read("/proc/sys/kernel/osrelease")?).unwrap_or_default();
    let processors = read("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, model)| model);
    Ok(format!("nginx {nginx}, HAProxy {haproxy}, Linux {kernel}, {model}"))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// The first number with dots in it that a program says of itself.
fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("-v").output().map_err(|error| format!("{program}: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    dotted(&String::from_utf8_lossy(&said)).ok_or_else(|| format!("{program} -v names no version"))
}

fn dotted(text: &str) -> Option<String> {
    let mut words = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    words.find(|word| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit())).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("# A page\n{BEGIN}old\n{END}More.\n");
        let once = filled(&page, "| new |\n").unwrap();
        assert_eq!(once, format!("# A page\n{BEGIN}\n| new |\n\n{END}More.\n"));
        assert_eq!(filled(&once, "| new |\n"), Some(once));
        assert_eq!(filled("# A page\n", "| new |\n"), None);
    }

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        assert_eq!(dotted("nginx version: nginx/1.22.1\n"), Some("1.22.1".into()));
        assert_eq!(
            dotted("HAProxy version 2.6.12-1+deb12u2 2025/04/15 - https://haproxy.org/\n"),
            Some("2.6.12".into())
        );
        assert_eq!(dotted("nothing."), None);
    }
}
