//! Size limits of images: they travel to small boards over slow links.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

const MB: f64 = 1e6;

/// The size of one image, unpacked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Size {
    name: &'static str,
    total_mb: f64,
    /// PyTorch's libraries.
    libtorch_mb: f64,
    /// Size of the archive, as transferred.
    archive_mb: f64,
}

/// Limits of an image.
struct Budget {
    name: &'static str,
    total_mb: f64,
    own_mb: f64,
}

const BUDGETS: [Budget; 2] = [
    Budget {
        name: "operator",
        total_mb: 30.0,
        own_mb: 30.0,
    },
    Budget {
        name: "node-agent",
        total_mb: 420.0,
        own_mb: 40.0,
    },
];

/// buildah's `size`, and the files' sizes.
pub(super) fn measure(
    name: &'static str,
    size: &str,
    archive: &Path,
    libtorch: Option<&Path>,
) -> Result<Size> {
    let libtorch = libtorch.map(bytes_of).transpose()?.unwrap_or(0);
    let bytes = fs::metadata(archive)
        .with_context(|| format!("cannot read {}", archive.display()))?
        .len();
    Ok(Size {
        name,
        total_mb: megabytes(size).with_context(|| format!("buildah tells a size of {size:?}"))?,
        libtorch_mb: libtorch as f64 / MB,
        archive_mb: bytes as f64 / MB,
    })
}

fn bytes_of(folder: &Path) -> Result<u64> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut sum = 0;
    for entry in entries {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// `384 MB` as a number; also kB and GB.
fn megabytes(size: &str) -> Option<f64> {
    let (number, unit) = size.trim().split_once(' ')?;
    let scale = match unit {
        "B" => 1e-6,
        "KB" | "kB" => 1e-3,
        "MB" => 1.0,
        "GB" => 1e3,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

pub(super) fn table(sizes: &[Size]) -> String {
    let mut text = format!(
        "  {:<12}{:>10}{:>12}{:>10}{:>10}\n",
        "IMAGE", "UNPACKED", "LIBTORCH", "OTHER", "ARCHIVE"
    );
    for size in sizes {
        text += &format!(
            "  {:<12}{:>7.1} MB{:>9.1} MB{:>7.1} MB{:>7.1} MB\n",
            size.name,
            size.total_mb,
            size.libtorch_mb,
            size.total_mb - size.libtorch_mb,
            size.archive_mb,
        );
    }
    text
}

/// Fails if an image exceeds its limits.
pub(super) fn check(sizes: &[Size]) -> Result<()> {
    let over: Vec<String> = sizes.iter().filter_map(over_budget).collect();
    if over.is_empty() {
        return Ok(());
    }
    bail!("{}", over.join("; "));
}

fn over_budget(size: &Size) -> Option<String> {
    let budget = BUDGETS.iter().find(|b| b.name == size.name)?;
    let own_mb = size.total_mb - size.libtorch_mb;
    (size.total_mb > budget.total_mb || own_mb > budget.own_mb).then(|| {
        format!(
            "lamina/{} has {:.1} MB, {own_mb:.1} MB without libtorch; it may have {} and {}",
            size.name, size.total_mb, budget.total_mb, budget.own_mb
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(name: &'static str, total_mb: f64, libtorch_mb: f64) -> Size {
        Size {
            name,
            total_mb,
            libtorch_mb,
            archive_mb: total_mb,
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(megabytes("384 MB"), Some(384.0));
        assert_eq!(megabytes("24.5 MB\n"), Some(24.5));
        assert_eq!(megabytes("1.1 GB"), Some(1100.0));
        assert_eq!(megabytes("684 KB"), Some(0.684));
        assert_eq!(megabytes("many"), None);
    }

    #[test]
    fn an_image_over_its_budget_fails() {
        assert!(
            check(&[
                size("operator", 29.0, 0.0),
                size("node-agent", 385.0, 351.0)
            ])
            .is_ok()
        );
        assert!(check(&[size("operator", 30.1, 0.0)]).is_err());
        assert!(check(&[size("node-agent", 421.0, 390.0)]).is_err());
        let fat = check(&[size("node-agent", 395.0, 350.0)]);
        let told = fat.unwrap_err().to_string();
        assert!(told.contains("45.0 MB without libtorch"), "{told}");
    }
}
