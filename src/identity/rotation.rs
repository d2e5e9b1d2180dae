//! When a certificate is renewed: pure.
//!
//! In: what the certificate says, the time, and luck. Out: a time, or an answer. Asks nobody and reads no clock.

use std::time::Duration;

use jiff::Timestamp;

use super::csr::Wanted;
use super::pair::Facts;

/// The longest sleep until a deadline is looked at again: the machine may have slept, or its clock been set.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// When to renew: at 70 to 90 % of the certificate's life, so that nodes that joined together do not all ask together
/// (kubelet's `jitteryDuration`). `luck` is between 0 and 1.
#[must_use]
pub fn renewal_time(facts: &Facts, luck: f64) -> Timestamp {
    let life = facts.not_after.duration_since(facts.not_before);
    let part = life.as_secs_f64().max(0.0) * (0.7 + 0.2 * luck.clamp(0.0, 1.0));
    facts.not_before.checked_add(Duration::from_secs_f64(part)).unwrap_or(facts.not_after)
}

/// Whether a certificate may still be shown at `now`.
#[must_use]
pub fn is_valid(facts: &Facts, now: Timestamp) -> bool {
    now < facts.not_after
}

/// What is asked for and not in the certificate, in words. What it has beyond that is no reason to renew it
/// (kubelet's `certSatisfiesTemplate`).
#[must_use]
pub fn missing(facts: &Facts, wanted: &Wanted) -> Option<String> {
    if facts.common_name != wanted.common_name() {
        return Some(format!("it is for {:?}", facts.common_name));
    }
    if !facts.organizations.iter().any(|organization| organization == "system:nodes") {
        return Some("it lacks the group system:nodes".to_owned());
    }
    let name = wanted.dns_names.iter().find(|name| !facts.dns_names.contains(name));
    let ip = wanted.ips.iter().find(|ip| !facts.ips.contains(ip));
    name.map(ToString::to_string).or_else(|| ip.map(ToString::to_string)).map(|lacking| format!("it lacks {lacking}"))
}

/// Whether the pair of the store replaces the one of the kubeconfig: it is the outcome of a renewal of that one, not of
/// a cluster that this node has left.
#[must_use]
pub fn supersedes(stored: &Facts, configured: &Facts, now: Timestamp) -> bool {
    stored.common_name == configured.common_name
        && stored.issuer == configured.issuer
        && stored.not_after > configured.not_after
        && is_valid(stored, now)
}

/// How long to sleep until `deadline`, in pieces.
#[must_use]
pub fn sleep_until(deadline: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(now)).unwrap_or_default().min(LONGEST_SLEEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            common_name: "system:node:edge-1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            issuer: "CN=ca".to_owned(),
            not_before: Timestamp::from_second(1_000).unwrap(),
            not_after: Timestamp::from_second(2_000).unwrap(),
            dns_names: vec!["edge-1".to_owned()],
            ips: vec!["192.0.2.1".parse().unwrap()],
        }
    }

    #[test]
    fn renewal_is_between_70_and_90_percent() {
        for (case, luck, second) in
            [("first", 0.0, 1700), ("middle", 0.5, 1800), ("last", 1.0, 1900), ("nonsense is clamped", 7.0, 1900)]
        {
            assert_eq!(renewal_time(&facts(), luck).as_second(), second, "{case}");
        }
        let backwards = Facts { not_after: Timestamp::UNIX_EPOCH, ..facts() };
        assert_eq!(renewal_time(&backwards, 0.5), backwards.not_before);
    }

    #[test]
    fn a_certificate_lacks_what_it_does_not_have() {
        let client = Wanted::client("edge-1");
        let serving = |names: &[&str], ips: &[&str]| Wanted {
            dns_names: names.iter().map(ToString::to_string).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..client.clone()
        };
        for (case, facts, wanted, expected) in [
            ("a client's", facts(), client.clone(), None),
            ("more than asked for", facts(), serving(&["edge-1"], &[]), None),
            ("another name", facts(), Wanted::client("edge-2"), Some("it is for \"system:node:edge-1\"")),
            ("a new host name", facts(), serving(&["edge-1", "host"], &[]), Some("it lacks host")),
            ("a new address", facts(), serving(&[], &["192.0.2.9"]), Some("it lacks 192.0.2.9")),
            (
                "no group",
                Facts { organizations: Vec::new(), ..facts() },
                client.clone(),
                Some("it lacks the group system:nodes"),
            ),
        ] {
            assert_eq!(missing(&facts, &wanted).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn the_store_wins_only_over_what_it_renewed() {
        let now = Timestamp::from_second(1_500).unwrap();
        let newer = Facts { not_after: Timestamp::from_second(3_000).unwrap(), ..facts() };
        for (case, stored, now, expected) in [
            ("newer", newer.clone(), now, true),
            ("older", Facts { not_after: Timestamp::from_second(1_900).unwrap(), ..facts() }, now, false),
            ("another cluster", Facts { issuer: "CN=other".to_owned(), ..newer.clone() }, now, false),
            ("another node", Facts { common_name: "system:node:x".to_owned(), ..newer.clone() }, now, false),
            ("expired", newer, Timestamp::from_second(4_000).unwrap(), false),
        ] {
            assert_eq!(supersedes(&stored, &facts(), now), expected, "{case}");
        }
    }

    #[test]
    fn long_sleeps_come_in_pieces() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(sleep_until(at(10), at(4)), Duration::from_secs(6));
        assert_eq!(sleep_until(at(4), at(10)), Duration::ZERO);
        assert_eq!(sleep_until(at(1_000_000), at(0)), LONGEST_SLEEP);
    }
}
