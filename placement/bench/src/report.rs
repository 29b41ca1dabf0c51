//! Output of the benchmarks: CSV files, and sections of a page.

use crate::run::Field;
use anyhow::{Context, Result};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A table that becomes a CSV file.
#[derive(Debug, Clone)]
pub(crate) struct Csv {
    text: String,
}

impl Csv {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            text: header.join(",") + "\n",
        }
    }

    pub(crate) fn row(&mut self, cells: &[&dyn Display]) {
        let cells: Vec<String> = cells.iter().map(|c| quoted(&c.to_string())).collect();
        self.text += &(cells.join(",") + "\n");
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, &self.text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// An optional figure as a cell.
pub(crate) fn cell(figure: Option<f64>) -> String {
    figure.map_or_else(String::new, |f| f.to_string())
}

/// Seconds with three digits and a fitting unit.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{} µs", digits(s * 1e6)),
        s if s < 1.0 => format!("{} ms", digits(s * 1e3)),
        s => format!("{} s", digits(s)),
    }
}

/// About three digits.
pub(crate) fn digits(figure: f64) -> String {
    match figure.abs() {
        f if f >= 100.0 => format!("{figure:.0}"),
        f if f >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// A table in Markdown.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    let rule = vec!["---".to_owned(); header.len()];
    let body: String = rows.iter().map(|r| line(r)).collect();
    line(&head) + &line(&rule) + &body
}

/// The folder of the results.
#[derive(Debug, Clone)]
pub(crate) struct Results {
    folder: PathBuf,
}

const PAGE: &str = "placement.md";
const SKELETON: &str = include_str!("page.md");

impl Results {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("placement"))
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A data file or plot.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join("placement").join(name)
    }

    pub(crate) fn page(&self) -> PathBuf {
        self.folder.join(PAGE)
    }

    /// Replaces the section of that name.
    pub(crate) fn section(&self, name: &str, body: &str) -> Result<()> {
        let path = self.page();
        let text = fs::read_to_string(&path).unwrap_or_else(|_| SKELETON.to_owned());
        let text = replaced(&text, name, body)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn replaced(text: &str, name: &str, body: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let lost = || format!("{PAGE} has lost its marks of section {name}; remove it to have it anew");
    let (before, rest) = text.split_once(&begin).with_context(lost)?;
    let (_, after) = rest.split_once(&end).with_context(lost)?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", body.trim()))
}

/// The machine and the versions in one line, and the day.
pub(crate) fn machine(field: &Field) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown CPU", |l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    let gib = kib.unwrap_or(0.0) / 1024.0 / 1024.0;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    Ok(format!(
        "{}: {cpu}, {cores} cores, {gib:.0} GiB; {}; {}; load {load} at the end of this part.",
        output("date", &["-u", "+%Y-%m-%d"]),
        output("rustc", &["--version"]),
        field.versions()?,
    ))
}

fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    text.unwrap_or_else(|_| format!("{program} unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_the_old_one() {
        let first = replaced(SKELETON, "targets", "old").unwrap();
        let second = replaced(&first, "targets", "new").unwrap();
        assert!(second.contains("new") && !second.contains("old\n"));
        assert_eq!(second, replaced(SKELETON, "targets", "new").unwrap());
        assert!(replaced("no marks", "targets", "new").is_err());
    }

    #[test]
    fn cells_with_commas_are_quoted() {
        let mut csv = Csv::new(&["a", "b"]);
        csv.row(&[&"x, \"y\"", &1.5]);
        assert_eq!(csv.text, "a,b\n\"x, \"\"y\"\"\",1.5\n");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time(2.5e-5), "25.0 µs");
        assert_eq!(time(0.1234), "123 ms");
        assert_eq!(time(1.5), "1.50 s");
    }
}
