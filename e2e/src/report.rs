//! Figures as a table for people and as JSON for the record.

use std::path::Path;

use anyhow::Result;
use dunlin_terminal::record;
use serde_json::{Value, json};

use crate::cluster::repository;

/// The value at quantile `q` (0..=1) of `values`, by the nearest-rank rule; 0 when empty.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// Two columns, aligned.
#[must_use]
pub fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}\n")).collect()
}

/// Writes `figures` with commit, machine and method to `path`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, method: &str, figures: &Value) -> Result<()> {
    let report = json!({
        "commit": record::commit(&repository()),
        "machine": record::machine(),
        "method": method,
        "figures": figures,
    });
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{quantile, table};

    #[test]
    fn quantiles_are_nearest_rank() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), 2.0);
        assert_eq!(quantile(&values, 0.99), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn tables_align() {
        assert_eq!(table(&[("a", "1".into()), ("bcd", "2".into())]), "  a    1\n  bcd  2\n");
    }
}
