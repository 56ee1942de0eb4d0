//! The workspace's packages, as cargo sees them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::build::UNIKERNELS;
use crate::process::Tool;

/// The names of the workspace's packages.
pub fn names() -> Result<BTreeSet<String>> {
    let out = Tool::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .named("cargo-metadata-names")
        .output()?;
    let data: Value = serde_json::from_slice(&out)?;
    let packages = data["packages"].as_array().context("cargo metadata without packages")?;
    Ok(packages.iter().filter_map(|p| p["name"].as_str()).map(str::to_owned).collect())
}

/// Packages that hold unikernels. They build for the host, too, where their tests run.
pub fn with_unikernels() -> Result<BTreeSet<&'static str>> {
    let all = names()?;
    Ok(UNIKERNELS.iter().map(|unit| unit.package).filter(|name| all.contains(*name)).collect())
}
