//! `kubelet_volume_stats_*`: how full the volumes of claims are, as dashboards and alerts of storage ask it.
//!
//! In: a summary. Out: the kubelet's series, one of each for a claim, however many pods use it. Pure.

use std::collections::BTreeMap;

use super::super::stats::{FsStats, Summary};
use super::text::{Exposition, Kind};

/// What a series is of, without the prefix; its help; its value.
type Series = (&'static str, &'static str, fn(&FsStats) -> Option<u64>);

const SERIES: [Series; 6] = [
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |fs| Some(fs.capacity_bytes)),
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |fs| Some(fs.available_bytes)),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |fs| Some(fs.used_bytes)),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |fs| fs.inodes),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |fs| fs.inodes_free),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |fs| fs.inodes_used),
];

pub(super) fn encode(summary: &Summary) -> String {
    let volumes = summary.pods.iter().flat_map(|pod| &pod.volumes);
    let claims: BTreeMap<(&str, &str), &FsStats> = volumes
        .filter_map(|volume| {
            let claim = volume.claim.as_ref()?;
            Some(((claim.namespace.as_str(), claim.name.as_str()), &volume.fs))
        })
        .collect();
    let mut text = Exposition::default();
    for (name, help, value) in SERIES {
        let mut family = text.family(name, Kind::Gauge, help);
        for ((namespace, claim), fs) in &claims {
            if let Some(value) = value(fs) {
                family.sample(&[("namespace", namespace), ("persistentvolumeclaim", claim)], value as f64, None);
            }
        }
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::super::super::stats::{ClaimReference, VolumeStats};
    use super::super::testing;
    use super::*;

    #[test]
    fn a_claim_has_one_series_of_each() {
        let mut summary = testing::summary();
        let fs = FsStats {
            time: summary.node.start_time,
            available_bytes: 60,
            capacity_bytes: 100,
            used_bytes: 40,
            inodes_free: None,
            inodes: Some(9),
            inodes_used: Some(4),
        };
        let of = |claim: Option<&str>| VolumeStats {
            fs: fs.clone(),
            name: "data".to_owned(),
            claim: claim.map(|name| ClaimReference { name: name.to_owned(), namespace: "ns".to_owned() }),
        };
        // Two volumes of one claim, and one of none.
        summary.pods[0].volumes = vec![of(Some("data")), of(Some("data")), of(None)];
        let text = encode(&summary);
        let labels = "{namespace=\"ns\",persistentvolumeclaim=\"data\"}";
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected =
            [("capacity_bytes", 100), ("available_bytes", 60), ("used_bytes", 40), ("inodes", 9), ("inodes_used", 4)]
                .map(|(name, value)| format!("kubelet_volume_stats_{name}{labels} {value}"));
        assert_eq!(samples, expected);
    }
}
