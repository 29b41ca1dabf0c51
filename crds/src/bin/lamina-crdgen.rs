//! Writes the CustomResourceDefinitions as YAML into the folders that are named.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    if folders.is_empty() || folders.iter().any(|f| f.starts_with('-')) {
        eprintln!("usage: lamina-crdgen FOLDER...");
        return ExitCode::from(2);
    }
    match write_all(&folders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("lamina-crdgen: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(folders: &[String]) -> Result<(), String> {
    let files = lamina_crds::generate::files().map_err(|e| e.to_string())?;
    for folder in folders {
        for (name, content) in &files {
            let path = Path::new(folder).join(name);
            std::fs::write(&path, content)
                .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
    }
    Ok(())
}
