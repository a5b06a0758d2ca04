//! The place of the figures in a page, and what they were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

const END: &str = "<!-- to here -->\n";

/// Writes figures into a page, between the two marks of the command that measured them.
pub fn fill(path: &Path, command: &str, figures: &str) -> Result<(), String> {
    let page = read(path)?;
    let page = filled(&page, command, figures).ok_or_else(|| format!("{} has no place for them", path.display()))?;
    save(path, &page)
}

/// Writes a file.
pub fn save(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The page with other figures between its two marks; nothing when it has no such place.
fn filled(page: &str, command: &str, figures: &str) -> Option<String> {
    let begin = format!("<!-- {command} writes from here -->\n");
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{figures}\n{END}{after}"))
}

/// The programs and the machine, in a few words.
pub fn setting(programs: &[(&str, &str)]) -> Result<String, String> {
    let versions: Result<Vec<String>, String> =
        programs.iter().map(|(name, program)| Ok(format!("{name} {}", version(program)?))).collect();
    let kernel = dotted(&read(Path::new("/proc/sys/kernel/osrelease"))?).unwrap_or_default();
    let processors = read(Path::new("/proc/cpuinfo"))?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, model)| model);
    Ok(format!("{}, Linux {kernel}, {model}", versions?.join(", ")))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
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
    fn only_what_is_between_the_marks_of_its_command_is_replaced() {
        let page = "# A page\n<!-- make bench writes from here -->\nold\n<!-- to here -->\nMore.\n";
        let once = filled(page, "make bench", "| new |\n").unwrap();
        let wanted = "# A page\n<!-- make bench writes from here -->\n\n| new |\n\n<!-- to here -->\nMore.\n";
        assert_eq!(once, wanted);
        assert_eq!(filled(&once, "make bench", "| new |\n"), Some(once));
        assert_eq!(filled(page, "make chaos", "| new |\n"), None);
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
