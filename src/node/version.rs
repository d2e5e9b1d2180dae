//! Which kubelet this node says it is.
//!
//! In: the server's version. Out: `nodeInfo.kubeletVersion`. Pure.

/// The newest kubelet whose behaviour this node follows.
const NEWEST_MINOR: u32 = 36;

/// `v1.MINOR.0+wasilet`: no newer than the server's (a kubelet may not be) and no newer than what this node knows. The patch
/// is always 0, since a server's patch releases change nothing here.
///
/// `minor` is as `/version` has it, such as `36` or, on some clouds, `27+`. One that cannot be read is the newest.
#[must_use]
pub fn kubelet_version(major: &str, minor: &str) -> String {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    let minor = if major == "1" { digits.parse().unwrap_or(NEWEST_MINOR) } else { NEWEST_MINOR };
    format!("v1.{}.0+wasilet", minor.min(NEWEST_MINOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_never_newer_than_its_server() {
        for (major, minor, expected) in [
            ("1", "34", "v1.34.0+wasilet"),
            ("1", "27+", "v1.27.0+wasilet"),
            ("1", "36", "v1.36.0+wasilet"),
            ("1", "40", "v1.36.0+wasilet"),
            ("2", "0", "v1.36.0+wasilet"),
            ("1", "", "v1.36.0+wasilet"),
        ] {
            assert_eq!(kubelet_version(major, minor), expected, "{major}.{minor}");
        }
    }
}
