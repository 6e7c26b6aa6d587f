//! The rules of the house, checked on the sources themselves: where `unsafe` may
//! be, which layer knows which, what the program depends on, and that what is
//! documented is what is built.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

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
    assert_eq!(names, ["httparse", "lexopt", "log", "rustix", "serde_json", "simple_logger", "tiny_http"]);
}

#[test]
fn the_readme_has_the_help_and_every_path_of_the_api() {
    let readme = read("README.md");
    assert!(readme.contains(&rapiddiskd::cli::help()), "the README's options are not those of --help");
    let routes = read("src/api/routes.rs");
    let paths: HashSet<_> =
        routes.split("\"/v1/").skip(1).filter_map(|rest| rest.split(['/', '"']).next()).collect();
    assert!(paths.len() >= 14, "only {} paths found", paths.len());
    for path in paths {
        assert!(readme.contains(&format!("/v1/{path}")), "the README lacks {path}");
    }
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
