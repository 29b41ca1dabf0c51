use super::rooms::Circles;
use super::*;

/// The problems of a crate in memory: its files with their code.
fn crate_of(files: &[(&str, &str)], rows: &'static [&'static [&'static str]]) -> Vec<String> {
    let of = Crate { rows, ..APP };
    judged(&of, files)
}

fn judged(of: &Crate, files: &[(&str, &str)]) -> Vec<String> {
    let files: BTreeMap<String, String> = files
        .iter()
        .map(|(name, code)| (format!("app/src/{name}"), (*code).to_owned()))
        .collect();
    let names: Vec<String> = files.keys().cloned().collect();
    check_imports(of, &names, &|file| files.get(file).cloned())
}

const APP: Crate = Crate {
    folder: "app",
    package: "app",
    may_use: &[],
    rows: &[],
    circles: Circles::None,
};
const ROOMS: &[&[&str]] = &[&["state"], &["plan", "deploy"], &["run"]];

/// Correct in every way that the reader must understand.
const GOOD: [(&str, &str); 7] = [
    (
        "lib.rs",
        "mod deploy; mod plan; mod run; mod state; pub use plan::Plan; pub use state::State;",
    ),
    (
        "state/mod.rs",
        "mod text; pub(crate) use text::Text; pub struct State;",
    ),
    ("state/text.rs", "pub struct Text(String);"),
    // A name of the root is that of the file that defines it.
    (
        "plan.rs",
        "use crate::{State, state}; pub struct Plan(State, state::Text);",
    ),
    (
        "deploy.rs",
        "fn f() { let x = crate::state::Text; vec![crate::state::State] }
         #[cfg(test)] mod tests { use crate::run::Run; use super::rooms::Circles;
use super::*; }",
    ),
    (
        "run.rs",
        "use crate::{plan::{self, Plan as P}, deploy::f}; pub struct Run;",
    ),
    ("bin/tool.rs", "use app::Plan; fn main() {}"),
];

fn with(changed: &str, code: &'static str) -> Vec<(&'static str, &'static str)> {
    let of = |(file, old): (&'static str, &'static str)| {
        (file, if file == changed { code } else { old })
    };
    GOOD.into_iter().map(of).collect()
}

#[test]
fn imports_of_rows_below_are_allowed() {
    let wrong = crate_of(&GOOD, ROOMS);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_import_that_is_not_of_a_row_below_is_named_however_it_is_written() {
    for (code, names) in [
        ("use crate::deploy::Step; pub struct Plan;", "Step"),
        (
            "use super::deploy::{Step, Stop}; pub struct Plan;",
            "Step, Stop",
        ),
        ("fn f() -> crate::deploy::Step {} pub struct Plan;", "Step"),
        (
            "fn f() { select! { x = crate::deploy::step() => {} } } pub struct Plan;",
            "step",
        ),
        (
            "use crate::deploy as d; pub struct Plan(d::Step);",
            "Step, deploy",
        ),
        ("use crate::deploy::*; pub struct Plan;", "deploy"),
        (
            "mod inner { use super::super::deploy::Step; } pub struct Plan;",
            "Step",
        ),
    ] {
        assert_eq!(
            crate_of(&with("plan.rs", code), ROOMS),
            [format!(
                "app/src/plan.rs takes {names} from app/src/deploy.rs: the room deploy is not below plan"
            )],
            "{code}"
        );
    }
}

#[test]
fn the_root_is_above_all_rooms() {
    let mut files = with("plan.rs", "use crate::LIMIT; pub struct Plan;");
    files[0].1 = "mod deploy; mod plan; mod run; mod state; pub const LIMIT: u8 = 1;";
    assert_eq!(
        crate_of(&files, ROOMS),
        [
            "app/src/plan.rs takes LIMIT from app/src/lib.rs, the crate's root, which is above all rooms"
        ]
    );
}

#[test]
fn a_circle_is_named_with_its_files_and_what_ties_it() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "mod inner; pub struct B(inner::Inner);"),
        ("b/inner.rs", "pub struct Inner(crate::c::C);"),
        ("c.rs", "pub use crate::a::A as Other; pub struct C(Other);"),
    ];
    let circle = "a circle of imports: app/src/a.rs takes B from app/src/b.rs; \
                  app/src/b.rs takes Inner from app/src/b/inner.rs; \
                  app/src/b/inner.rs takes C from app/src/c.rs; \
                  app/src/c.rs takes Other from app/src/a.rs";
    assert_eq!(crate_of(&files, &[]), [circle]);
}

#[test]
fn a_parent_that_only_passes_names_on_makes_no_circle_and_one_that_uses_them_does() {
    let child = ("plan/ask.rs", "use super::Plan; pub struct Ask(Plan);");
    let passes = "mod ask; pub use ask::Ask; pub struct Plan;";
    let root = ("lib.rs", "mod plan;");
    assert!(crate_of(&[root, ("plan.rs", passes), child], &[]).is_empty());
    let uses = "mod ask; pub use ask::Ask; pub struct Plan; fn f() -> Ask {}";
    assert_eq!(
        crate_of(&[root, ("plan.rs", uses), child], &[]),
        [
            "a circle of imports: app/src/plan.rs takes Ask from app/src/plan/ask.rs; \
          app/src/plan/ask.rs takes Plan from app/src/plan.rs"
        ]
    );
}

#[test]
fn circles_within_a_room_may_be_allowed_and_those_across_are_not() {
    let of = Crate {
        circles: Circles::Within,
        ..APP
    };
    let root = ("lib.rs", "mod a; mod b;");
    let inside = [
        root,
        ("a.rs", "mod one; use one::One; pub struct A;"),
        ("a/one.rs", "use super::A; pub struct One;"),
        ("b.rs", "use crate::a::A;"),
    ];
    assert!(judged(&of, &inside).is_empty());
    let across = [
        root,
        ("a.rs", "mod one; pub struct A;"),
        ("a/one.rs", "use crate::b::B;"),
        ("b.rs", "use crate::a::A; pub struct B;"),
    ];
    assert_eq!(
        judged(&of, &across),
        [
            "a circle of the rooms a, b: app/src/a/one.rs takes B from app/src/b.rs; \
          app/src/b.rs takes A from app/src/a.rs"
        ]
    );
}

#[test]
fn the_table_and_the_crate_have_the_same_rooms() {
    let mut files = with("deploy.rs", "");
    files[0].1 = "mod deploy; mod late; mod plan; mod run; mod state; pub use state::State;";
    files.push(("late.rs", ""));
    assert_eq!(
        crate_of(&files, &[&["state"], &["plan", "deploy"], &["run", "gone"]]),
        [
            format!("app/src/late.rs is in no room of app: add it to {TABLE}"),
            format!("app: the room gone of {TABLE} holds no file"),
        ]
    );
}

#[test]
fn code_that_cannot_be_read_is_named() {
    let wrong = crate_of(&[("lib.rs", "mod a;"), ("a.rs", "fn f( {")], &[]);
    assert!(wrong[0].starts_with("app/src/a.rs: "), "{wrong:?}");
    assert_eq!(
        crate_of(&[("lib.rs", "mod a;")], &[]),
        ["app/src/a/mod.rs: no such file"]
    );
}

#[test]
fn crates_use_what_the_table_allows() {
    let tree = "0 app v0.1.0 (/here/app)\n1 model v0.1.0 (/here/model)\n1 serde v1.0.0\n\n\
                0 model v0.1.0 (/here/model)";
    let uses = uses_of_each(tree);
    assert_eq!(uses.keys().collect::<Vec<_>>(), ["app", "model"]);
    let app = Crate {
        may_use: &["crds"],
        ..APP
    };
    assert_eq!(
        rooms::judge_uses(&app, &uses["app"]),
        [
            format!("app uses model, which it may not; see {TABLE}"),
            format!("app may use crds and does not: remove it from {TABLE}"),
        ]
    );
}
