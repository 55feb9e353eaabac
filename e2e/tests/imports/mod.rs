//! Which files of a crate import which, read from their tokens.
//!
//! A path leads to the file that it names and, when that re-exports what the path ends with, to the one that has it. A re-export (`pub use`) alone
//! is a signpost: its file does not import what it points to. Tests are left out.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module, by the names on the way to it from the root of its crate.
type Module = Vec<String>;
/// Files with the files that each of them imports.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// What the files of a crate import. `sources`: their text, by path below `src`.
pub fn imports(sources: &BTreeMap<String, String>) -> Imports {
    let files: BTreeMap<Module, &String> = sources.keys().map(|file| (module(file), file)).collect();
    let read = files.keys().map(|module| {
        let text = &sources[files[module]];
        let tokens = text.parse::<TokenStream>().unwrap_or_else(|error| panic!("{}: {error}", files[module]));
        let mut reader = Reader::new(&files, module);
        reader.read(tokens, module);
        (module.clone(), reader)
    });
    let read: BTreeMap<Module, Reader> = read.collect();
    let tests: BTreeSet<&Module> = read.values().flat_map(|reader| &reader.tests).collect();
    let is_test = |module: &Module| (0..=module.len()).any(|end| tests.contains(&module[..end].to_vec()));
    let shipped = read.values().filter(|reader| !is_test(reader.file));
    shipped
        .map(|reader| {
            let imported = reader.imported.iter().flat_map(|path| on_the_way(&read, path.clone()));
            let imported = imported.filter(|module| module != reader.file && !is_test(module));
            (files[reader.file].clone(), imported.map(|module| files[&module].clone()).collect())
        })
        .collect()
}

/// The modules with files that `path` leads to: the one that it names, and those to which re-exports point from there.
fn on_the_way(read: &BTreeMap<Module, Reader>, mut path: Module) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    while let Some(end) = (0..=path.len()).rev().find(|end| read.contains_key(&path[..*end])) {
        let (module, names) = path.split_at(end);
        let sign = names.first().and_then(|name| read[module].signs.get(name));
        // A second time at one place: two signs that point at each other.
        let is_new = found.insert(module.to_vec());
        let Some(target) = sign.filter(|_| is_new) else { break };
        path = below(target, names[1..].to_vec());
    }
    found
}

/// Files that reach one another by imports, in groups.
pub fn circles(imports: &Imports) -> Vec<BTreeSet<String>> {
    let reached = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(imports.get(file).into_iter().flatten().filter(|next| seen.insert((*next).clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|file| (file, reached(file))).collect();
    let circle = |file: &String| -> BTreeSet<String> {
        reached[file]
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(file)))
            .cloned()
            .collect()
    };
    let all: BTreeSet<BTreeSet<String>> =
        imports.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
    all.into_iter().collect()
}

/// The module that is in `file`, a path below `src`.
fn module(file: &str) -> Module {
    let mut names: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        names.pop();
    }
    names
}

/// Reads one file.
struct Reader<'a> {
    files: &'a BTreeMap<Module, &'a String>,
    file: &'a Module,
    /// What it imports: modules, and names in them.
    imported: BTreeSet<Module>,
    /// Where what it re-exports is.
    signs: BTreeMap<String, Module>,
    /// Modules with files that it declares for tests only.
    tests: BTreeSet<Module>,
    /// Modules that it has imported by name.
    names: BTreeMap<String, Module>,
}

impl<'a> Reader<'a> {
    fn new(files: &'a BTreeMap<Module, &'a String>, file: &'a Module) -> Self {
        Self {
            files,
            file,
            imported: BTreeSet::new(),
            signs: BTreeMap::new(),
            tests: BTreeSet::new(),
            names: BTreeMap::new(),
        }
    }

    /// Takes note of what `tokens` import that stand in the module `here`: that of the file, or one within.
    fn read(&mut self, tokens: TokenStream, here: &Module) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            at += match word(&rest[0]).as_deref() {
                Some("mod") => self.inner(rest, here),
                Some("pub") => self.public(rest, here),
                Some("use") => self.import(rest, here),
                Some(_) => self.path(rest, here),
                None if is(&rest[0], '#') => self.attribute(rest, here),
                // The field of a value; the end of a path whose beginning is a type.
                None if is(&rest[0], '.') => 2,
                None if is_joint(rest) => 3,
                None => {
                    if let TokenTree::Group(group) = &rest[0] {
                        self.read(group.stream(), here);
                    }
                    1
                }
            };
        }
    }

    /// `mod name { … }`: its length.
    fn inner(&mut self, tokens: &[TokenTree], here: &Module) -> usize {
        let (Some(name), Some(TokenTree::Group(body))) = (tokens.get(1).and_then(word), tokens.get(2)) else {
            return 1;
        };
        self.read(body.stream(), &below(here, [name]));
        3
    }

    /// `#[…]`, with the item behind it when that is for tests only: its length.
    fn attribute(&mut self, tokens: &[TokenTree], here: &Module) -> usize {
        let own = usize::from(tokens.get(1).is_some_and(|token| is(token, '!')));
        let Some(TokenTree::Group(attribute)) = tokens.get(1 + own) else { return 1 };
        if attribute.stream().to_string().replace(' ', "") != "cfg(test)" {
            return 2 + own;
        }
        if own == 1 {
            self.tests.insert(here.clone());
            return tokens.len();
        }
        let item = tokens[2..].iter().position(ends_item).map_or(tokens.len(), |end| end + 3);
        let declared = tokens[2..item].windows(2).find(|pair| word(&pair[0]).as_deref() == Some("mod"));
        self.tests.extend(declared.and_then(|pair| Some(below(here, [word(&pair[1])?]))));
        item
    }

    /// `use …;`: its length.
    fn import(&mut self, tokens: &[TokenTree], here: &Module) -> usize {
        let end = tokens.iter().position(|token| is(token, ';')).unwrap_or(tokens.len());
        for (path, name) in leaves(&tokens[1..end], &[]) {
            if let Some(module) = self.resolve(&path, here) {
                if self.files.contains_key(&module) {
                    self.names.insert(name, module.clone());
                }
                self.imported.insert(module);
            }
        }
        end + 1
    }

    /// `name::name…`: its length.
    fn path(&mut self, tokens: &[TokenTree], here: &Module) -> usize {
        let mut path: Module = word(&tokens[0]).into_iter().collect();
        let mut length = 1;
        while let [_, _, name, ..] = &tokens[length..]
            && is_joint(&tokens[length..])
            && let Some(name) = word(name)
        {
            path.push(name);
            length += 3;
        }
        if path.len() > 1
            && let Some(module) = self.resolve(&path, here)
        {
            self.imported.insert(module);
        }
        length
    }

    /// `pub`, with what it is for and what it re-exports: its length.
    fn public(&mut self, tokens: &[TokenTree], here: &Module) -> usize {
        let scope = match tokens.get(1) {
            Some(TokenTree::Group(group)) => group.stream().into_iter().next().as_ref().and_then(word),
            _ => None,
        };
        let is_scope = |word: &str| matches!(word, "crate" | "super" | "self" | "in");
        let length = 1 + usize::from(scope.as_deref().is_some_and(is_scope));
        if tokens.get(length).and_then(word).as_deref() != Some("use") {
            return length;
        }
        let end = tokens.iter().position(|token| is(token, ';')).unwrap_or(tokens.len());
        for (path, name) in leaves(&tokens[length + 1..end], &[]) {
            self.signs.extend(self.resolve(&path, here).map(|module| (name, module)));
        }
        end + 1
    }

    /// Where `path` leads within the crate: what follows the last file of it are names in that.
    fn resolve(&self, path: &[String], here: &Module) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => below(&[], rest.to_vec()),
            "self" => below(here, rest.to_vec()),
            "super" => {
                let ups = path.iter().take_while(|name| *name == "super").count();
                below(&here[..here.len().saturating_sub(ups)], path[ups..].to_vec())
            }
            name if self.files.contains_key(&below(here, [name.to_owned()])) => below(here, path.to_vec()),
            name => below(self.names.get(name)?, rest.to_vec()),
        };
        if module.last().is_some_and(|name| name == "self") {
            module.pop();
        }
        Some(module)
    }
}

/// The paths of a tree of imports, with the name that each gives.
fn leaves(tokens: &[TokenTree], prefix: &[String]) -> Vec<(Module, String)> {
    let mut path = prefix.to_vec();
    let mut name = None;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let trees = inner.split(|token| is(token, ',')).filter(|tree| !tree.is_empty());
                return trees.flat_map(|tree| leaves(tree, &path)).collect();
            }
            TokenTree::Ident(ident) if ident == "as" => {
                name = tokens.get(at + 1).and_then(word);
                break;
            }
            TokenTree::Ident(ident) => path.push(ident.to_string()),
            _ => {}
        }
    }
    let own = path.iter().rev().find(|name| *name != "self").cloned();
    vec![(path, name.or(own).unwrap_or_default())]
}

fn below(module: &[String], names: impl IntoIterator<Item = String>) -> Module {
    module.iter().cloned().chain(names).collect()
}

fn word(token: &TokenTree) -> Option<String> {
    if let TokenTree::Ident(ident) = token { Some(ident.to_string()) } else { None }
}

fn is(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// Whether `tokens` begin with `::`.
fn is_joint(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [first, second, ..] if is(first, ':') && is(second, ':'))
}

/// The last token of an item.
fn ends_item(token: &TokenTree) -> bool {
    is(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}
