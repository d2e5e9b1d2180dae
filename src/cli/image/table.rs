//! Rows of `wasilet image ls`, for people and for programs.
//!
//! In: [`ImageSummary`]s. Out: cells as crictl and Docker print them, or crictl's JSON.

use std::time::SystemTime;

use crate::cli::output::human_duration;
use crate::image::{ImageKind, ImageSummary};

/// Which columns the table has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    Usual,
    WithDigests,
}

/// Docker's short form of an id; its first digits are enough for every command.
const SHORT_ID: usize = 13;

/// One row a name, as crictl prints them.
pub(super) fn summary_rows(image: &ImageSummary, columns: Columns) -> Vec<Vec<String>> {
    let age = SystemTime::now().duration_since(image.stored_at).unwrap_or_default();
    let row = |name: String, tag: String| {
        let mut row = vec![name, tag];
        if columns == Columns::WithDigests {
            row.push(image.manifest_digest.to_string());
        }
        row.extend([
            image.image_id.hex()[..SHORT_ID].to_owned(),
            if image.kind == ImageKind::Artifact { "artifact" } else { "image" }.to_owned(),
            human_duration(age),
            human_size(image.size),
        ]);
        row
    };
    if image.names.is_empty() {
        return vec![row("<none>".to_owned(), "<none>".to_owned())];
    }
    image.names.iter().map(|name| row(name.name(), name.tag().unwrap_or("<none>").to_owned())).collect()
}

/// The fields of `crictl images -o json`.
pub(super) fn summary_json(image: &ImageSummary) -> serde_json::Value {
    let tags: Vec<String> = image.names.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect();
    let mut digests: Vec<String> =
        image.names.iter().map(|name| name.at_digest(image.manifest_digest.clone()).to_string()).collect();
    digests.dedup();
    serde_json::json!({
        "id": image.image_id,
        "repoTags": tags,
        "repoDigests": digests,
        "size": image.size.to_string(),
        "kind": image.kind,
        "pinned": image.pinned,
    })
}

/// Decimal units with three digits, as Docker and crictl print sizes.
pub(super) fn human_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if value < 10.0 && unit != "B" { 2 } else { usize::from(value < 100.0 && unit != "B") };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_writes_them() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (12_345, "12.3kB"),
            (999_400, "999kB"),
            (999_600, "1.00MB"),
            (5_000_000_000, "5.00GB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
