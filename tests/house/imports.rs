//! Which file of `src` uses which, read from the `use` declarations and the paths in the code.
//! Unit tests, comments and texts are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::slice::from_ref;

use super::tokens::tokens;

/// A name that a `use` declaration brings into a file.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    /// The name in this file; `*` for all names of a module.
    name: String,
    path: Vec<String>,
    is_public: bool,
}

/// One file.
#[derive(Debug, Default)]
pub struct File {
    /// Relative to the top of the repository.
    pub path: String,
    module: Vec<String>,
    /// The modules that it declares and that are not unit tests.
    children: BTreeSet<String>,
    imports: Vec<Import>,
    /// The paths in its code, such as `block::open`.
    paths: BTreeSet<Vec<String>>,
    /// The names in its code that no path leads to.
    names: BTreeSet<String>,
    /// The methods that its code calls without an argument.
    pub methods: BTreeSet<String>,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Module(Vec<String>),
    /// Something that this module defines.
    In(Vec<String>),
    /// Something of the standard library or of another crate: its full path.
    External(Vec<String>),
}

/// All files that belong to the program, by module.
pub struct Imports(BTreeMap<Vec<String>, File>);

/// For each file that a file uses, one path by which it does.
pub type Uses = BTreeMap<String, String>;

impl Imports {
    /// Reads these files: their paths and texts. `src/main.rs` is a room of its own.
    pub fn of(sources: &[(String, String)]) -> Imports {
        let text_of = |module: &[String]| {
            let stem = format!("src/{}", module.join("/"));
            let candidates = match module {
                [] => vec!["src/lib.rs".to_owned()],
                _ => vec![format!("{stem}.rs"), format!("{stem}/mod.rs")],
            };
            sources.iter().find(|(path, _)| candidates.contains(path))
        };
        let mut files = BTreeMap::new();
        let mut modules = vec![vec![], vec!["main".to_owned()]];
        while let Some(module) = modules.pop() {
            // A module that is written inside its parent's file belongs to that file.
            let Some((path, text)) = text_of(&module) else { continue };
            let file = File::read(path, &module, text);
            modules.extend(file.children.iter().map(|child| [&module[..], from_ref(child)].concat()));
            files.insert(module, file);
        }
        Imports(files)
    }

    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.0.values()
    }

    /// The paths of other crates and of the standard library that a file uses, in full.
    pub fn external(&self, file: &File) -> BTreeSet<String> {
        let imported = file.imports.iter().map(|import| &import.path);
        let items = imported.chain(&file.paths).map(|path| self.resolve(&file.module, path, 0));
        items
            .filter_map(|item| if let Item::External(path) = item { Some(path.join("::")) } else { None })
            .collect()
    }

    /// The files that a file uses. A module that it only imports counts by the paths that begin
    /// with its name. What a file re-exports of its children counts only if its code uses it.
    pub fn uses(&self, file: &File) -> Uses {
        let mut uses = Uses::new();
        let mut add = |module: &[String], path: &[String]| {
            if let Some(other) = self.0.get(module).filter(|other| other.path != file.path) {
                uses.entry(other.path.clone()).or_insert_with(|| path.join("::"));
            }
        };
        for import in &file.imports {
            let Item::In(module) = self.resolve(&file.module, &import.path, 0) else { continue };
            let is_passed_on = import.is_public && module.starts_with(&file.module);
            if !is_passed_on || file.names.contains(&import.name) {
                add(&module, &import.path);
            }
        }
        for path in &file.paths {
            if let Item::In(module) | Item::Module(module) = self.resolve(&file.module, path, 0) {
                add(&module, path);
            }
        }
        uses
    }

    /// What a path leads to that stands in the file of `module`.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Item {
        let (first, rest) = path.split_first().expect("a path has a name");
        match first.as_str() {
            "crate" | "rapiddiskd" => self.walk(&[], rest, depth),
            "self" | "super" => self.walk(module, path, depth),
            name => match self.0.get(module) {
                Some(file) if file.binds(name) && depth < 20 => self.walk(module, path, depth),
                _ => Item::External(path.to_vec()),
            },
        }
    }

    fn walk(&self, module: &[String], path: &[String], depth: usize) -> Item {
        let Some((first, rest)) = path.split_first() else { return Item::Module(module.to_vec()) };
        let child = [module, from_ref(first)].concat();
        let Some(file) = self.0.get(module) else { return Item::External(path.to_vec()) };
        match first.as_str() {
            "self" => self.walk(module, rest, depth),
            "super" => self.walk(&module[..module.len().saturating_sub(1)], rest, depth),
            "*" => Item::In(module.to_vec()),
            _ if self.0.contains_key(&child) => self.walk(&child, rest, depth),
            name => match file.imports.iter().find(|import| import.name == name) {
                Some(import) if import.path[0] != name || file.children.contains(name) => {
                    let item = self.resolve(module, &[&import.path[..], rest].concat(), depth + 1);
                    match &item {
                        // What a room re-exports of another room is a part of its own interface.
                        Item::In(other) if import.is_public && other.first() != module.first() => {
                            Item::In(module.to_vec())
                        }
                        _ => item,
                    }
                }
                Some(_) => Item::External(path.to_vec()),
                None => Item::In(module.to_vec()),
            },
        }
    }
}

impl File {
    /// Whether a path may begin with this name here.
    fn binds(&self, name: &str) -> bool {
        self.children.contains(name) || self.imports.iter().any(|import| import.name == name)
    }

    fn read(path: &str, module: &[String], text: &str) -> File {
        let mut file = File { path: path.into(), module: module.to_vec(), ..File::default() };
        let tokens = tokens(text);
        let token = |at: usize| tokens.get(at).copied().unwrap_or_default();
        let is_name = |at: usize| token(at).starts_with(|c: char| c.is_alphabetic() || c == '_');
        let mut at = 0;
        while at < tokens.len() {
            let before = if at > 0 { token(at - 1) } else { "" };
            if token(at) == "use" && ["", ";", "{", "}", "]", ")", "pub"].contains(&before) {
                let is_public = ["pub", ")"].contains(&before);
                let end = at + tokens[at..].iter().position(|token| *token == ";").expect("a semicolon");
                read_tree(&tokens[at + 1..end], &[], &mut |name, path| {
                    file.imports.push(Import { name, path, is_public });
                });
                at = end;
            } else if token(at) == "mod" && token(at + 2) == ";" {
                file.children.insert(token(at + 1).into());
                at += 2;
            } else if token(at) == "pub" && token(at + 1) == "(" {
                at += tokens[at..].iter().position(|token| *token == ")").expect("a parenthesis");
            } else if is_name(at) && before == "." {
                if token(at + 1) == "(" && token(at + 2) == ")" {
                    file.methods.insert(token(at).into());
                }
            } else if is_name(at) && before != "::" {
                let mut path = vec![token(at).to_owned()];
                file.names.insert(token(at).into());
                while token(at + 1) == "::" && is_name(at + 2) {
                    path.push(token(at + 2).into());
                    at += 2;
                }
                if path.len() > 1 {
                    file.paths.insert(path);
                }
            }
            at += 1;
        }
        file
    }
}

/// Gives each name and path of a `use` declaration to `found`.
fn read_tree(tree: &[&str], prefix: &[String], found: &mut dyn FnMut(String, Vec<String>)) {
    if let Some(open) = tree.iter().position(|token| *token == "{") {
        let prefix: Vec<_> = prefix.iter().cloned().chain(names(&tree[..open])).collect();
        let mut depth = 0;
        for branch in tree[open + 1..tree.len() - 1].split(|token| {
            depth += i32::from(*token == "{") - i32::from(*token == "}");
            depth == 0 && *token == ","
        }) {
            if !branch.is_empty() {
                read_tree(branch, &prefix, found);
            }
        }
        return;
    }
    let renamed = tree.iter().position(|token| *token == "as");
    let own: Vec<_> = names(&tree[..renamed.unwrap_or(tree.len())]).collect();
    let mut path = [prefix, &own].concat();
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    let name = renamed.map_or_else(|| path[path.len() - 1].clone(), |at| tree[at + 1].to_owned());
    found(name, path);
}

fn names(path: &[&str]) -> impl Iterator<Item = String> {
    path.iter().filter(|token| **token != "::").map(|&token| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(sources: &[(&str, &str)], file: &str) -> Vec<String> {
        let sources: Vec<_> = sources.iter().map(|&(path, text)| (path.into(), text.into())).collect();
        let imports = Imports::of(&sources);
        let file = imports.files().find(|found| found.path == file).unwrap();
        imports.uses(file).into_iter().map(|(file, path)| format!("{file} by {path}")).collect()
    }

    #[test]
    fn what_a_file_uses_is_found() {
        let sources = [
            ("src/lib.rs", "mod a; mod b;"),
            (
                "src/a/mod.rs",
                "pub mod x; mod y; pub use x::Passed; pub(crate) use y::{self, Used}; struct Own(Used);",
            ),
            ("src/a/x.rs", "use std::fs; use super::{Own, y as z}; fn f() { z::g(); fs::read() }"),
            (
                "src/a/y.rs",
                "pub(in crate::b) fn g() { // crate::b::c()\n \"crate::b::c\"; '\"'; super::super::b::c() }",
            ),
            (
                "src/b.rs",
                "use crate::a; fn c(p: &a::Passed) {}\n#[cfg(test)] mod tests { use crate::a::y::g; }",
            ),
        ];
        assert_eq!(uses(&sources, "src/lib.rs"), [""; 0]);
        assert_eq!(uses(&sources, "src/a/mod.rs"), ["src/a/y.rs by y::Used"]);
        assert_eq!(uses(&sources, "src/a/x.rs"), ["src/a/mod.rs by super::Own", "src/a/y.rs by z::g"]);
        assert_eq!(uses(&sources, "src/a/y.rs"), ["src/b.rs by super::super::b::c"]);
        assert_eq!(uses(&sources, "src/b.rs"), ["src/a/x.rs by a::Passed"]);
    }
}
