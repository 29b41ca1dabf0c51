//! Files and folders named in the map of the code exist.

/// The map.
const PAGE: &str = "docs/architecture.md";
/// Extensions of files in the map.
const FILES: [&str; 9] = [
    ".rs", ".cpp", ".py", ".proto", ".yaml", ".json", ".toml", ".tpl", ".md",
];

/// Names on the page that no file of the project has.
pub(super) fn check(files: &[String], read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let Some(page) = read(PAGE) else {
        return vec![format!("{PAGE} is missing")];
    };
    let gone = named(&page).filter(|name| !files.iter().any(|file| is_at(file, name)));
    gone.map(|name| format!("{PAGE} names {name}, which is not there"))
        .collect()
}

/// Code in the tables that has the form of a path.
fn named(page: &str) -> impl Iterator<Item = &str> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let code = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    code.filter(|name| {
        let is_file = FILES.iter().any(|ending| name.ends_with(ending));
        (is_file || name.ends_with('/')) && !name.contains(char::is_whitespace)
    })
}

/// Whether `name`, whole or without the folders above it, is `file` or contains it.
fn is_at(file: &str, name: &str) -> bool {
    let below = |start: usize| {
        let rest = file[start..].strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || name.ends_with('/'))
    };
    let folders = file.match_indices('/').map(|(at, _)| at + 1);
    std::iter::once(0).chain(folders).any(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_map_names_is_there() {
        let files = ["app/src/net/dial.rs", "app/src/main.rs"].map(str::to_owned);
        let page = "`gone.rs` in a text\n\
            | a | `app/src/net/`, `dial.rs`, `net/dial.rs`, `app/src/main.rs` |\n\
            | b | `n.rs`, `app/src/net/dial`, `DRAIN`, `net/gone.rs`, `src/wish/` |\n";
        let wrong = check(&files, &|_| Some(page.to_owned()));
        let names = ["n.rs", "net/gone.rs", "src/wish/"];
        let expected = names.map(|n| format!("{PAGE} names {n}, which is not there"));
        assert_eq!(wrong, expected);
        assert_eq!(check(&files, &|_| None).len(), 1);
    }
}
