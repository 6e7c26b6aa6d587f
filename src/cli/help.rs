//! The text of `--help`.

use super::flag::Flag;
use super::table::GROUPS;

/// The column at which the texts begin.
const COLUMN: usize = 27;

/// The longest line, in characters.
const WIDTH: usize = 80;

/// The text of `--help`.
pub fn help() -> String {
    let mut text =
        "rapiddiskd: RAM disks, RAM caches and NVMe targets, managed over HTTP\n\nUsage: rapiddiskd [OPTIONS]\n"
            .to_owned();
    for group in &GROUPS {
        text += &format!("\n{}:\n", group.title);
        for flag in group.flags {
            append(&mut text, flag);
        }
    }
    text
}

/// Appends the lines of one flag: its names, and beside or below them its text.
fn append(text: &mut String, flag: &Flag) {
    let mut line = format!("  {}", names(flag));
    if line.len() + 2 > COLUMN {
        text.push_str(&line);
        text.push('\n');
        line.clear();
    }
    for word in flag.help.split(' ') {
        if line.len() > COLUMN && line.len() + 1 + word.len() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line.clear();
        }
        let column = if line.len() < COLUMN { COLUMN } else { line.len() + 1 };
        line = format!("{line:column$}{word}");
    }
    text.push_str(&line);
    text.push('\n');
}

/// `-p, --port PORT`; a long name without a short one stands below the other long names.
fn names(flag: &Flag) -> String {
    let mut names = match (flag.short, flag.long) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, long) => format!("    --{}", long.unwrap_or_default()),
    };
    if let Some(value) = flag.value() {
        names = format!("{names} {value}");
    }
    names
}
