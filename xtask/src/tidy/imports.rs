//! Which file imports names from which, read from the tokens of a crate's files.
//!
//! A name belongs to the file that defines it: a re-export (`pub use`) is followed
//! and is not an import itself. Test code is left out.

use super::tokens::{group, is_path_separator, is_punct, without_tests};
use proc_macro2::{Delimiter, LexError, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};

/// Path of a module within its crate; empty for the crate's root.
pub(super) type ModulePath = Vec<String>;

/// The imports of one crate root (`lib.rs`, or a binary's file) and its modules.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// Module of each file.
    pub(super) modules: BTreeMap<String, ModulePath>,
    /// The names that the first file imports from the second.
    pub(super) arrows: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Imports {
    /// A cycle of files in words, with the names that cause it.
    pub(super) fn tell(&self, circle: &[String]) -> String {
        let behind = circle.iter().cycle().skip(1);
        let steps: Vec<String> = circle
            .iter()
            .zip(behind)
            .map(|(from, to)| self.takes(from, to))
            .collect();
        format!("a circle of imports: {}", steps.join("; "))
    }

    /// An arrow in words.
    pub(super) fn takes(&self, from: &str, to: &str) -> String {
        let names = self.arrows.get(&(from.to_owned(), to.to_owned()));
        let names: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
        format!("{from} takes {} from {to}", names.join(", "))
    }
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// It is missing.
    #[error("{0}: no such file")]
    Missing(String),
    /// It is not Rust code.
    #[error("{0}: {1}")]
    Code(String, LexError),
}

/// Reads `root` (a path relative to the repository) and every module that it declares; `text`
/// returns a file's content.
pub(super) fn read(
    root: &str,
    text: &dyn Fn(&str) -> Option<String>,
) -> Result<Imports, Unreadable> {
    let mut tree = Tree {
        modules: BTreeMap::new(),
        text,
    };
    let folder = parent(root);
    tree.add(root.to_owned(), folder, Vec::new())?;
    Ok(tree.imports())
}

/// A module: its declarations, and the paths it names.
#[derive(Debug, Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// Names brought in by `use` at the module's top level, with their paths.
    uses: BTreeMap<String, Vec<String>>,
    /// Every path that the module's code names.
    paths: Vec<Vec<String>>,
    /// Names that the code uses alone, without a path.
    bare: BTreeSet<String>,
}

struct Tree<'a> {
    modules: BTreeMap<ModulePath, Module>,
    text: &'a dyn Fn(&str) -> Option<String>,
}

impl Tree<'_> {
    /// Adds the module in `file`, whose child modules are in `folder`.
    fn add(&mut self, file: String, folder: String, path: ModulePath) -> Result<(), Unreadable> {
        let Some(text) = (self.text)(&file) else {
            return Err(Unreadable::Missing(file));
        };
        match without_tests(&text) {
            Ok(tokens) => self.add_tokens(tokens, file, folder, path),
            Err(cause) => Err(Unreadable::Code(file, cause)),
        }
    }

    fn add_tokens(
        &mut self,
        tokens: TokenStream,
        file: String,
        folder: String,
        path: ModulePath,
    ) -> Result<(), Unreadable> {
        let mut reader = Reader::default();
        reader.read(tokens, true);
        reader.module.file.clone_from(&file);
        for (name, body) in reader.children {
            let mut child = path.clone();
            child.push(name.clone());
            let inside = format!("{folder}/{name}");
            reader.module.children.insert(name.clone());
            match body {
                Some(body) => self.add_tokens(body, file.clone(), inside, child)?,
                None => {
                    let beside = format!("{folder}/{name}.rs");
                    let file = if (self.text)(&beside).is_some() {
                        beside
                    } else {
                        format!("{inside}/mod.rs")
                    };
                    self.add(file, inside, child)?;
                }
            }
        }
        self.modules.insert(path, reader.module);
        Ok(())
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::default();
        for (path, module) in &self.modules {
            // Inline modules come after the file's own, whose path is shorter.
            let of_file = imports.modules.entry(module.file.clone());
            of_file.or_insert_with(|| path.clone());
            let bare = module
                .bare
                .iter()
                .filter(|name| module.uses.contains_key(*name));
            let bare = bare.map(|name| vec![name.clone()]);
            for named in module.paths.iter().cloned().chain(bare) {
                let Some(target) = self.resolve(path, &named, 0) else {
                    continue;
                };
                let to = &self.modules[&target].file;
                if *to != module.file {
                    let arrow = (module.file.clone(), to.clone());
                    let name = named.last().cloned().unwrap_or_default();
                    imports.arrows.entry(arrow).or_default().insert(name);
                }
            }
        }
        imports
    }

    /// The module that defines `path`, as named in the module `at`; `None` for names of other
    /// crates.
    fn resolve(&self, at: &[String], path: &[String], depth: usize) -> Option<ModulePath> {
        // Two re-exports of each other, which do not compile, would never end.
        const DEEPEST: usize = 32;
        let (first, mut rest) = path.split_first()?;
        let mut here: ModulePath = match first.as_str() {
            "crate" => Vec::new(),
            "self" => at.to_vec(),
            "super" => at.split_last()?.1.to_vec(),
            name => {
                let module = self.modules.get(at)?;
                if !module.children.contains(name) && !module.uses.contains_key(name) {
                    return None;
                }
                rest = path;
                at.to_vec()
            }
        };
        while let Some((name, behind)) = rest.split_first() {
            let module = self.modules.get(&here)?;
            if name == "super" {
                here.pop()?;
            } else if module.children.contains(name) {
                here.push(name.clone());
            } else if let Some(used) = module.uses.get(name) {
                let whole = [used.as_slice(), behind].concat();
                if depth > DEEPEST || whole == path {
                    return None;
                }
                return self.resolve(&here, &whole, depth + 1);
            } else {
                break;
            }
            rest = behind;
        }
        Some(here)
    }
}

/// Reads the tokens of one module.
#[derive(Default)]
struct Reader {
    module: Module,
    /// Child modules, with the body of those that are inline.
    children: Vec<(String, Option<TokenStream>)>,
}

impl Reader {
    /// `is_top` for the module's own items, not those in functions.
    fn read(&mut self, tokens: TokenStream, is_top: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut public = false;
        while at < tokens.len() {
            let next = match &tokens[at] {
                TokenTree::Ident(word) => match word.to_string().as_str() {
                    "pub" => {
                        public = true;
                        let scoped = group(tokens.get(at + 1), Delimiter::Parenthesis).is_some();
                        at += 1 + usize::from(scoped);
                        continue;
                    }
                    "use" => self.read_use(&tokens, at, public, is_top),
                    "mod" => self.read_child(&tokens, at),
                    _ => self.read_path(&tokens, at),
                },
                TokenTree::Group(inner) => {
                    self.read(inner.stream(), false);
                    at + 1
                }
                _ => at + 1,
            };
            public = false;
            at = next;
        }
    }

    /// `use a::{b, c as d};` Returns the next position.
    fn read_use(&mut self, tokens: &[TokenTree], at: usize, public: bool, is_top: bool) -> usize {
        let end = (at..tokens.len()).find(|z| is_punct(tokens.get(*z), ';'));
        let (Some(end), Some(TokenTree::Ident(_) | TokenTree::Group(_))) =
            (end, tokens.get(at + 1))
        else {
            // `use<'a>` in a type, or `use ::other::name`.
            return at + 1;
        };
        let mut named = Vec::new();
        use_tree(&tokens[at + 1..end], &[], &mut named);
        for (name, path) in named {
            if is_top && name != "_" && name != "*" {
                self.module.uses.insert(name, path.clone());
            }
            if !public {
                self.module.paths.push(path);
            }
        }
        end + 1
    }

    fn read_child(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(at + 1) else {
            return at + 1;
        };
        if is_punct(tokens.get(at + 2), ';') {
            self.children.push((name.to_string(), None));
            return at + 3;
        }
        if let Some(body) = group(tokens.get(at + 2), Delimiter::Brace) {
            let child = (name.to_string(), Some(body.stream()));
            self.children.push(child);
            return at + 3;
        }
        at + 1
    }

    /// `a::b::c` or a name alone.
    fn read_path(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let mut path = Vec::new();
        let mut next = at;
        while let Some(TokenTree::Ident(name)) = tokens.get(next) {
            path.push(name.to_string());
            if !is_path_separator(tokens, next + 1) {
                next += 1;
                break;
            }
            next += 3;
        }
        let behind = |z: usize| at.checked_sub(z).and_then(|z| tokens.get(z));
        // `<T as Trait>::Item`, `::other::name`, `.field`.
        let goes_on =
            is_punct(behind(1), '.') || is_punct(behind(1), ':') && is_punct(behind(2), ':');
        if goes_on || declares(behind(1)) {
            return next;
        }
        if path.len() > 1 {
            self.module.paths.push(path);
        } else if let Some(name) = path.pop() {
            let is_type = name.starts_with(|c: char| c.is_ascii_uppercase());
            let is_call = group(tokens.get(next), Delimiter::Parenthesis).is_some();
            if is_type || is_call {
                self.module.bare.insert(name);
            }
        }
        next
    }
}

/// Whether the preceding word makes it a declaration.
fn declares(before: Option<&TokenTree>) -> bool {
    const WORDS: [&str; 8] = [
        "fn", "struct", "enum", "trait", "type", "const", "static", "union",
    ];
    matches!(before, Some(TokenTree::Ident(w)) if WORDS.contains(&w.to_string().as_str()))
}

/// Every name that a `use` brings in, with its path; `*` for all names of one.
fn use_tree(tokens: &[TokenTree], before: &[String], named: &mut Vec<(String, Vec<String>)>) {
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => {
                // `a::{self}` is `a`.
                if name != "self" || path.is_empty() {
                    path.push(name.to_string());
                }
                if is_path_separator(tokens, at + 1) {
                    at += 3;
                    continue;
                }
                let renamed = match (tokens.get(at + 1), tokens.get(at + 2)) {
                    (Some(TokenTree::Ident(word)), Some(TokenTree::Ident(new))) if word == "as" => {
                        Some(new.to_string())
                    }
                    _ => None,
                };
                let name = renamed.or_else(|| path.last().cloned());
                named.extend(name.map(|name| (name, path)));
            }
            Some(TokenTree::Punct(p)) if p.as_char() == '*' => named.push(("*".to_owned(), path)),
            Some(TokenTree::Group(all)) => {
                let all: Vec<TokenTree> = all.stream().into_iter().collect();
                for one in all.split(|t| is_punct(Some(t), ',')) {
                    use_tree(one, &path, named);
                }
            }
            _ => {}
        }
        return;
    }
}

fn parent(file: &str) -> String {
    let folder = file.rsplit_once('/').map(|(folder, _)| folder);
    folder.unwrap_or_default().to_owned()
}
