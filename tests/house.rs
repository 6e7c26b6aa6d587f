//! The rules of the house, checked on the sources themselves: where `unsafe` may
//! be, which layer knows which, what the program depends on, and that what is
//! documented is what is built.

#[path = "house/imports.rs"]
mod imports;
#[path = "house/tokens.rs"]
mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use imports::Imports;
use rapiddiskd::api::routes::{ENDPOINTS, Verb};

const TOP: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(Path::new(TOP).join(path)).unwrap()
}

/// Every Rust file below `dir`, as path relative to the top and text.
fn sources(dir: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&Path::new(TOP).join(dir), &mut paths);
    assert!(!paths.is_empty(), "no sources in {dir}");
    let relative = |path: &PathBuf| path.strip_prefix(TOP).unwrap().display().to_string();
    paths.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// The part of a file that is not its unit tests, without comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Fails where a file of `dir` says one of `words`, unit tests and comments aside.
fn forbid(dir: &str, words: &[&str]) {
    for (path, text) in sources(dir) {
        let code = code(&text);
        for word in words {
            assert!(!code.contains(word), "{path} says {word:?}");
        }
    }
}

#[test]
fn unsafe_is_in_the_kernel_layer_alone_and_each_has_its_reason() {
    let is_unsafe = |line: &str| {
        let line = line.trim_start();
        !line.starts_with("//")
            && line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    };
    let mut blocks = 0;
    for (path, text) in sources("src") {
        let lines: Vec<_> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| is_unsafe(line)) {
            assert!(path.starts_with("src/kernel/"), "{path}:{}: unsafe", i + 1);
            blocks += 1;
            // A declaration states no reason; what calls or promises does.
            let is_declaration = line.contains("unsafe extern") || line.contains("unsafe fn");
            let above = lines[..i].iter().rev().take(4);
            assert!(
                is_declaration || above.clone().any(|line| line.contains("SAFETY:")),
                "{path}:{}: unsafe without its SAFETY reason",
                i + 1
            );
        }
    }
    assert!(blocks > 0, "the search finds nothing at all");
}

#[test]
fn each_layer_knows_only_those_below_it() {
    forbid("src/kernel", &["crate::storage", "crate::api", "crate::http", "serde_json", "tiny_http"]);
    let paths = ["\"sys/", "\"/sys", "\"proc/", "\"/proc", "\"dev/"];
    forbid("src/storage", &["crate::api", "crate::http", "serde_json", "tiny_http"]);
    forbid("src/storage", &paths);
    forbid("src/http", &["crate::storage", "crate::api", "serde_json"]);
    forbid("src/api", &["crate::kernel", "rustix"]);
    forbid("src/api", &paths);
}

/// The rooms of `src`, the uppermost first, and those that each may know. All may know the logger.
const ROOMS: [(&str, &[&str]); 9] = [
    ("main", &["cli", "daemon"]),
    ("cli", &["http", "storage"]),
    // The flags come to it as cli's Config.
    ("daemon", &["cli", "client", "api", "http", "storage", "kernel"]),
    ("client", &["http"]),
    ("api", &["http", "storage"]),
    ("http", &["kernel"]),
    ("storage", &["kernel"]),
    ("kernel", &[]),
    ("logger", &[]),
];

/// The room that a file of `src` is in: `src/http/parse.rs` is in `http`.
fn room(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap();
    below.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Fails with all `complaints`, a line each, if there are any.
fn assert_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}\n", complaints.join("\n  "));
}

#[test]
fn each_room_imports_only_those_it_may_know() {
    let imports = Imports::of(&sources("src"));
    let (mut complaints, mut seen) = (vec![], 0);
    for file in imports.files().filter(|file| file.path != "src/lib.rs") {
        let own = room(&file.path);
        let Some((_, known)) = ROOMS.iter().find(|(name, _)| *name == own) else {
            complaints.push(format!("{}: ROOMS in tests/house.rs has no room {own}", file.path));
            continue;
        };
        for (other, by) in imports.uses(file) {
            seen += 1;
            let other = room(&other);
            if other != own && other != "logger" && !known.contains(&other) {
                complaints.push(format!("{}: {own} must not know {other}: {by}", file.path));
            }
        }
    }
    assert!(seen > 20, "the search finds only {seen} imports");
    assert_none("a room imports what it must not know", &complaints);
}

#[test]
fn each_file_is_declared_as_a_module() {
    let imports = Imports::of(&sources("src"));
    let declared: BTreeSet<_> = imports.files().map(|file| file.path.as_str()).collect();
    // A file with unit tests alone is declared for them alone, by the module of its folder.
    let is_for_tests = |path: &str| {
        let (dir, name) = path.rsplit_once('/').unwrap();
        let parent = Path::new(TOP).join(dir).join("mod.rs");
        let declaration = format!("#[cfg(test)]\nmod {};", name.trim_end_matches(".rs"));
        name == "tests.rs" || fs::read_to_string(parent).is_ok_and(|text| text.contains(&declaration))
    };
    let all = sources("src").into_iter().map(|(path, _)| path);
    let others: Vec<_> =
        all.filter(|path| !declared.contains(path.as_str()) && !is_for_tests(path)).collect();
    assert_none("files that no module declares", &others);
}

/// The files that can be reached from `start` over imports, each with the file before it on a
/// shortest way.
fn reached<'a>(uses: &'a BTreeMap<String, imports::Uses>, start: &'a str) -> BTreeMap<&'a str, &'a str> {
    let mut before = BTreeMap::new();
    let mut next = vec![start];
    while !next.is_empty() {
        for file in std::mem::take(&mut next) {
            for other in uses[file].keys() {
                if !before.contains_key(other.as_str()) {
                    before.insert(other.as_str(), file);
                    next.push(other);
                }
            }
        }
    }
    before
}

/// Each circle is told once, as a shortest one through a file that no other shows already.
#[test]
fn no_file_imports_from_one_that_imports_from_it() {
    let imports = Imports::of(&sources("src"));
    let uses: BTreeMap<_, _> = imports.files().map(|file| (file.path.clone(), imports.uses(file))).collect();
    let mut complaints = BTreeSet::new();
    let mut shown = BTreeSet::new();
    // A pair says more than a longer circle of which it is a part.
    for (file, others) in &uses {
        for (other, by) in others.iter().filter(|(other, _)| *other > file) {
            if let Some(back) = uses[other].get(file) {
                complaints.insert(format!("{file} uses {by}, and {other} uses {back}"));
                shown.extend([file.as_str(), other]);
            }
        }
    }
    for file in uses.keys() {
        let before = reached(&uses, file);
        if shown.contains(file.as_str()) || !before.contains_key(file.as_str()) {
            continue;
        }
        let mut circle = vec![file.as_str()];
        while circle.len() == 1 || circle[circle.len() - 1] != file {
            circle.push(before[circle[circle.len() - 1]]);
        }
        circle.reverse();
        let steps = circle.windows(2).map(|pair| format!("{} uses {}", pair[0], uses[pair[0]][pair[1]]));
        complaints.insert(steps.chain([format!("which is in {file}")]).collect::<Vec<_>>().join(", "));
        shown.extend(circle);
    }
    assert_none("files import from each other in a circle", &complaints.into_iter().collect::<Vec<_>>());
}

/// An open file may be held and handed on: it is the claim on a device.
#[test]
fn files_are_touched_by_the_kernel_layer_and_not_by_storage_or_the_api() {
    let of_a_path = [
        "canonicalize",
        "exists",
        "is_dir",
        "is_file",
        "metadata",
        "read_dir",
        "read_link",
        "symlink_metadata",
    ];
    let imports = Imports::of(&sources("src"));
    let mut complaints = vec![];
    for file in imports.files().filter(|file| ["storage", "api"].contains(&room(&file.path))) {
        let calls = imports.external(file).into_iter().filter(|path| {
            let is_call =
                ["std::fs::", "std::os::unix::fs::", "rustix::fs::"].iter().any(|of| path.starts_with(of));
            is_call && path != "std::fs::File"
        });
        let methods = file.methods.iter().filter(|name| of_a_path.contains(&name.as_str()));
        complaints.extend(calls.map(|call| format!("{}: {call}", file.path)));
        complaints.extend(methods.map(|name| format!("{}: .{name}()", file.path)));
    }
    assert_none("file-system calls belong into src/kernel", &complaints);
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let all = sources("src").into_iter().chain(sources("tests"));
    let lengths = all.map(|(path, text)| (path, text.lines().count()));
    let long: Vec<_> = lengths.filter(|(_, lines)| *lines > 500).collect();
    let complaints: Vec<_> = long.iter().map(|(path, lines)| format!("{path}: {lines} lines")).collect();
    assert_none("files over 500 lines: two things live in one room", &complaints);
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "README.md has {lines} lines; 150 are enough, and each folder has its own page");
}

#[test]
fn the_page_of_the_tests_has_each_step_and_lane() {
    let (script, page) = (read("tests/run"), read("tests/README.md"));
    let listed = script.lines().filter_map(|line| line.strip_prefix("    \"")?.split_once("  "));
    let names: Vec<_> = listed.map(|(name, _)| name).collect();
    assert!(names.len() >= 18, "only {names:?} found");
    for name in names {
        assert!(page.contains(&format!("\n| `{name}` |")), "tests/README.md lacks {name}");
    }
}

#[test]
fn no_other_program_is_ever_run() {
    forbid("src", &["process::Command", "execve", "/bin/"]);
}

#[test]
fn every_module_says_what_it_is_for() {
    for (path, text) in sources("src") {
        assert!(text.starts_with("//! "), "{path} has no header");
    }
}

#[test]
fn the_runtime_dependencies_are_these_and_no_other() {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut names: Vec<_> =
        section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["dlmalloc", "httparse", "lexopt", "log", "rustix", "serde_json", "simple_logger", "tiny_http"]
    );
}

#[test]
fn the_pages_have_every_option_and_every_path_of_the_api() {
    let manual = read("buildroot/package/rapiddiskd/rapiddiskd.8").replace("\\-", "-");
    let help = rapiddiskd::cli::help();
    let options: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(options.len() >= 15, "only {options:?} found");
    for option in options {
        assert!(manual.contains(option), "the manual page lacks {option}");
    }
    let (routes, page) = (read("src/api/routes.rs"), read("src/api/README.md"));
    let paths: HashSet<_> =
        routes.split("\"/v1/").skip(1).filter_map(|rest| rest.split(['/', '"']).next()).collect();
    assert!(paths.len() >= 14, "only {} paths found", paths.len());
    for path in paths {
        assert!(page.contains(&format!("/v1/{path}")), "src/api/README.md lacks {path}");
    }
}

/// The first text of each call of `each` in these files is the path of a change whose system calls fail.
#[test]
fn the_system_calls_of_each_change_are_made_to_fail() {
    let files = ["tests/native.rs", "tests/kernel/inject.rs"].map(read);
    let injected: Vec<_> = files
        .iter()
        .flat_map(|text| text.split(" each(").skip(1).filter_map(|rest| rest.split('"').nth(1)))
        .map(|path| path.split_once('?').unwrap_or((path, "")))
        .collect();
    assert!(injected.len() >= 30, "only {injected:?} found");
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.verb == Verb::Post) {
        let path = endpoint.path.trim_start_matches("/v1/");
        let is_it = |other: &str| {
            other.split('/').count() == path.split('/').count()
                && other.split('/').next() == path.split('/').next()
        };
        let queries: Vec<_> =
            injected.iter().filter(|(other, _)| is_it(other)).map(|(_, query)| query).collect();
        assert!(!queries.is_empty(), "no system call of {path} is made to fail");
        for option in endpoint.options {
            let is_given = queries.iter().any(|query| query.starts_with(&format!("{}=", option.name)));
            assert!(is_given, "no system call of {path}?{}= is made to fail", option.name);
        }
    }
}

#[test]
fn the_links_of_the_pages_lead_somewhere() {
    let pages = [
        "README.md",
        "src/README.md",
        "src/api/README.md",
        "src/http/README.md",
        "src/storage/README.md",
        "tests/README.md",
        "buildroot/README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
    ];
    let mut links = 0;
    for page in pages {
        let text = read(page);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let path = Path::new(TOP).join(page).parent().unwrap().join(target);
            assert!(path.exists(), "{page} links to {target}, which is not there");
            links += 1;
        }
    }
    assert!(links >= 15, "only {links} links found");
}

#[test]
fn one_version_is_in_the_manifest_the_package_the_api_the_man_page_and_the_changelog() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read("CHANGELOG.md");
    let mut sections = changelog.lines().filter_map(|line| line.strip_prefix("## ["));
    assert_eq!(sections.next(), Some("Unreleased]"), "what is not released yet comes first");
    let released: Vec<_> =
        sections.map(|section| section.split_once("] - ").unwrap_or((section, ""))).collect();
    for (version, date) in &released {
        let is_date = date.len() == 10 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        assert!(is_date, "the changelog's section {version} has no date");
    }
    let (newest, date) = released[0];
    assert_eq!(newest, version, "the changelog's newest section");
    let package = read("buildroot/package/rapiddiskd/rapiddiskd.mk");
    assert!(package.contains(&format!("\nRAPIDDISKD_VERSION = {version}\n")), "the package's version");
    let page = read("buildroot/package/rapiddiskd/rapiddiskd.8");
    let title = format!(".TH RAPIDDISKD 8 {date} \"rapiddiskd {version}\" ");
    assert!(page.starts_with(&title), "the man page does not begin with {title}");
    // The API takes its version from the manifest, and has no other.
    let api: String = sources("src/api").iter().map(|(_, text)| code(text)).collect();
    assert!(api.contains("env!(\"CARGO_PKG_VERSION\")") && !api.contains(version), "the API's version");
}
