//! The man page's section about the options, made from the table of flags. The program itself does
//! not have it. The other sections are written by hand.

use std::path::Path;
use std::{env, fs};

use super::flag::Flag;
use super::table::GROUPS;

/// The man page.
const PAGE: &str = "buildroot/package/rapiddiskd/rapiddiskd.8";

/// What stands before and after the section.
const START: &str = ".SH OPTIONS\n";
const END: &str = ".SH ";

/// The longest line of a text. A sentence begins on a new line.
const WIDTH: usize = 80;

/// The section, in the man macros of roff.
fn section() -> String {
    let mut text = String::from(".\\\" Made from src/cli/table.rs: see src/cli/manpage.rs.\n");
    for (i, group) in GROUPS.iter().enumerate() {
        if i > 0 {
            text += &format!(".SS {}\n", group.title);
        }
        for flag in group.flags {
            text += &format!(".TP\n{}\n{}", names(flag), paragraph(flag.manual.0));
        }
    }
    text
}

fn names(flag: &Flag) -> String {
    let short = flag.short.map(|short| bold(&format!("-{short}")));
    let long = flag.long.map(|long| bold(&format!("--{long}")));
    let names = short.into_iter().chain(long).collect::<Vec<_>>().join(", ");
    match flag.value() {
        Some(value) => format!("{names} \\fI{value}\\fR"),
        None => names,
    }
}

/// Bold, with a dash that can be copied to a shell.
fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", text.replace('-', "\\-"))
}

/// Text as roff source.
fn paragraph(text: &str) -> String {
    let bold = |(i, part): (usize, &str)| if i % 2 == 1 { bold(part) } else { part.to_owned() };
    let text: String = text.split('`').enumerate().map(bold).collect();
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("the first line");
        if !line.is_empty() && (line.ends_with('.') || line.len() + 1 + word.len() > WIDTH) {
            lines.push(word.to_owned());
        } else {
            line.extend([if line.is_empty() { "" } else { " " }, word]);
        }
    }
    // A line that begins with one of these would be a macro.
    assert!(!lines.iter().any(|line| line.starts_with(['.', '\''])), "{lines:?}");
    lines.join("\n") + "\n"
}

#[test]
fn the_man_page_has_the_options_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(START).expect("a section about options");
    let (_, after) = rest.split_once(END).expect("a section after that");
    let wanted = format!("{before}{START}{}{END}{after}", section());
    if env::var_os("UPDATE_MAN_PAGE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    assert!(page == wanted, "{PAGE} is out of date: run UPDATE_MAN_PAGE=1 cargo test --lib man_page");
}
