//! Tests named on the page of guarantees exist.

/// The page.
const PAGE: &str = "docs/security.md";
/// The head of their table.
const HEAD: &str = "| row | what holds | test |";

/// Tests named on the page that no crate has, and guarantees without a test.
pub(super) fn check(files: &[String], read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let Some(page) = read(PAGE) else {
        return vec![format!("{PAGE} is missing")];
    };
    let rows = page.lines().skip_while(|line| *line != HEAD).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    if rows.is_empty() {
        return vec![format!("{PAGE} has no table of what holds")];
    }
    let mut wrong = Vec::new();
    for row in rows {
        let named = named(row);
        if named.is_empty() {
            wrong.push(format!("{PAGE}: no test is named in {row}"));
        }
        for (of, name) in named {
            if !is_there(of, name, files, read) {
                wrong.push(format!("{PAGE} names {name} of {of}, which is not there"));
            }
        }
    }
    wrong
}

/// Folders of crates with the names of tests or of their rooms.
fn named(row: &str) -> Vec<(&str, &str)> {
    let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next();
    let mut found = Vec::new();
    for part in cell.unwrap_or_default().split("; ") {
        let Some((of, names)) = part.split_once(": ") else {
            continue;
        };
        let names = names.split('`').skip(1).step_by(2);
        found.extend(names.map(|name| (of.trim(), name)));
    }
    found
}

/// Whether crate `of` has a function, a room or a file of that name.
fn is_there(of: &str, name: &str, files: &[String], read: &dyn Fn(&str) -> Option<String>) -> bool {
    let folder = format!("{of}/");
    let mut sources = files
        .iter()
        .filter_map(|file| file.strip_prefix(&folder))
        .filter(|file| file.ends_with(".rs"));
    if name.ends_with(".rs") {
        return sources.any(|file| file == name);
    }
    let room = name
        .strip_suffix("::tests")
        .unwrap_or(name)
        .replace("::", "/");
    let (as_file, as_folder) = (format!("src/{room}.rs"), format!("src/{room}/"));
    let leaf = name.rsplit("::").next().unwrap_or(name);
    let function = format!("fn {leaf}(");
    sources.any(|file| {
        let is_room = file == as_file || file.starts_with(&as_folder);
        is_room || read(&format!("{folder}{file}")).is_some_and(|text| text.contains(&function))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_names_its_test() {
        let files = [
            "app/src/door/mod.rs",
            "app/src/door/seats.rs",
            "app/tests/it.rs",
        ];
        let files = files.map(str::to_owned);
        let page = |cell: &str| format!("{HEAD}\n|---|---|---|\n| 1, N | a; b | {cell} |\n\n`x`\n");
        let read = |cell: &str| {
            let page = page(cell);
            move |file: &str| match file {
                PAGE => Some(page.clone()),
                "app/src/door/seats.rs" => Some("mod tests { fn nobody_stays() {} }".to_owned()),
                _ => Some(String::new()),
            }
        };
        let wrong = |cell: &str| check(&files, &read(cell)).len();
        assert_eq!(
            wrong("app: `door::seats::tests::nobody_stays`, `tests/it.rs`"),
            0
        );
        assert_eq!(
            wrong("app: `door::seats::tests`, `door`; app: `nobody_stays`"),
            0
        );
        assert_eq!(wrong("app: `seats::tests`"), 1);
        assert_eq!(
            wrong("app: `door::seats::tests::nobody_stays`, `somebody_stays`"),
            1
        );
        assert_eq!(wrong("lib: `nobody_stays`"), 1);
        assert_eq!(wrong("by reading"), 1);
        assert_eq!(check(&files, &|_| None).len(), 1);
    }
}
