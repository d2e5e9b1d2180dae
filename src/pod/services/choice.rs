//! Which endpoints of a Service's port are usable on this node: kube-proxy's `CategorizeEndpoints`.
//!
//! In: endpoints with what is said of them. Out: those for traffic of either policy. No randomness: who picks one of them is
//! the caller.

use super::{Facts, Target};

/// One endpoint of one port of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub target: Target,
    /// What is said of it.
    pub facts: Facts,
}

/// Which lists are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// That of policy `Cluster`.
    pub cluster: bool,
    /// That of policy `Local`.
    pub local: bool,
}

/// Endpoints that may be used now; a list that is not needed is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usable {
    /// For traffic of policy `Cluster`.
    pub cluster: Box<[Target]>,
    /// For traffic of policy `Local`.
    pub local: Box<[Target]>,
    /// How many ready ones are on this node: what a load balancer's health check asks.
    pub local_ready: usize,
}

/// The preference that hints express.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameNode,
    SameZone,
}

impl Topology {
    /// Hints count only when every ready endpoint has them and one of them is for us: else they are of a time when the
    /// endpoints or the nodes were others.
    fn from_hints(candidates: &[Candidate]) -> Self {
        let ready = || candidates.iter().map(|one| one.facts).filter(|facts| facts.has(Facts::READY));
        let says =
            |all: Facts, ours: Facts| ready().all(|facts| facts.has(all)) && ready().any(|facts| facts.has(ours));
        if says(Facts::FOR_NODES, Facts::FOR_THIS_NODE) {
            Self::SameNode
        } else if says(Facts::FOR_ZONES, Facts::FOR_THIS_ZONE) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn allows(self, facts: Facts) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => facts.has(Facts::FOR_THIS_NODE),
            Self::SameZone => facts.has(Facts::FOR_THIS_ZONE),
        }
    }
}

/// Ready endpoints; where there are none, those that end but still serve. Each list falls back by itself.
#[must_use]
pub fn usable(candidates: &[Candidate], uses: Uses) -> Usable {
    let topology = Topology::from_hints(candidates);
    let ending = Facts::SERVING.with(Facts::TERMINATING);
    let pick = |ready: &dyn Fn(Facts) -> bool, last: &dyn Fn(Facts) -> bool| -> Box<[Target]> {
        let chosen = |wanted: &dyn Fn(Facts) -> bool| -> Box<[Target]> {
            candidates.iter().filter(|one| wanted(one.facts)).map(|one| one.target).collect()
        };
        let found = chosen(&|facts| facts.has(Facts::READY) && ready(facts));
        if found.is_empty() { chosen(&|facts| facts.has(ending) && last(facts)) } else { found }
    };
    let local = |facts: Facts| facts.has(Facts::LOCAL);
    Usable {
        cluster: if uses.cluster { pick(&|facts| topology.allows(facts), &|_| true) } else { Box::default() },
        local: if uses.local { pick(&local, &local) } else { Box::default() },
        local_ready: candidates.iter().filter(|one| one.facts.has(Facts::LOCAL.with(Facts::READY))).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDING: Facts = Facts::SERVING.with(Facts::TERMINATING);
    const READY: Facts = Facts::READY.with(Facts::SERVING);
    const HERE: Facts = READY.with(Facts::LOCAL);
    const ZONED: Facts = READY.with(Facts::FOR_ZONES);
    const OUR_ZONE: Facts = ZONED.with(Facts::FOR_THIS_ZONE);
    const NODED: Facts = ZONED.with(Facts::FOR_NODES);
    const OUR_NODE: Facts = NODED.with(Facts::FOR_THIS_NODE);

    fn candidates(all: &[Facts]) -> Vec<Candidate> {
        let one = |(at, facts): (usize, &Facts)| Candidate { target: target(at), facts: *facts };
        all.iter().enumerate().map(one).collect()
    }

    fn target(at: usize) -> Target {
        Target { ip: [10, 0, 0, at as u8].into(), port: 80 }
    }

    fn indexes(targets: &[Target]) -> Vec<usize> {
        (0..256).filter(|at| targets.contains(&target(*at))).collect()
    }

    #[test]
    fn endpoints_are_used_as_kube_proxy_uses_them() {
        let none = Facts::default();
        for (case, facts, cluster, local) in [
            ("nothing there", &[][..], vec![], vec![]),
            ("unready ones are not used", &[none, READY, none], vec![1], vec![]),
            ("policies differ by where an endpoint is", &[READY, HERE], vec![0, 1], vec![1]),
            ("ending ones only without ready ones", &[ENDING, READY], vec![1], vec![]),
            ("ending ones that serve are the last resort", &[ENDING, Facts::TERMINATING], vec![0], vec![]),
            ("the last resort is each policy's own", &[ENDING.with(Facts::LOCAL), READY], vec![1], vec![0]),
            ("an ending one elsewhere is not local", &[ENDING, ENDING.with(Facts::LOCAL)], vec![0, 1], vec![1]),
            ("hints of zones", &[ZONED, OUR_ZONE, OUR_ZONE], vec![1, 2], vec![]),
            ("hints of zones with one lacking", &[ZONED, OUR_ZONE, READY], vec![0, 1, 2], vec![]),
            ("hints of zones without ours", &[ZONED, ZONED], vec![0, 1], vec![]),
            ("an unready one needs no hint", &[OUR_ZONE, ZONED, none], vec![0], vec![]),
            ("hints of nodes come first", &[OUR_ZONE.with(NODED), OUR_NODE], vec![1], vec![]),
            ("hints of nodes without ours: those of zones", &[OUR_ZONE.with(NODED), NODED], vec![0], vec![]),
            ("hints of nodes with one lacking: those of zones", &[OUR_NODE, OUR_ZONE], vec![1], vec![]),
            ("a local policy knows no hints", &[ZONED.with(Facts::LOCAL), OUR_ZONE], vec![1], vec![0]),
            ("hints for a zone whose endpoints end", &[OUR_ZONE.with(ENDING), ENDING.with(ZONED)], vec![0, 1], vec![]),
        ] {
            // An ending endpoint is not ready.
            let ready =
                |facts: Facts| if facts.has(Facts::TERMINATING) { Facts(facts.0 & !Facts::READY.0) } else { facts };
            let facts: Vec<Facts> = facts.iter().map(|facts| ready(*facts)).collect();
            let found = usable(&candidates(&facts), Uses { cluster: true, local: true });
            assert_eq!((indexes(&found.cluster), indexes(&found.local)), (cluster, local), "{case}");
        }
    }

    #[test]
    fn lists_that_are_not_needed_are_not_made_and_health_counts_ready_ones_here() {
        let all = candidates(&[HERE, READY, ENDING.with(Facts::LOCAL), HERE]);
        let found = usable(&all, Uses { cluster: false, local: true });
        assert_eq!((indexes(&found.cluster), indexes(&found.local), found.local_ready), (vec![], vec![0, 3], 2));
        let found = usable(&all, Uses { cluster: true, local: false });
        assert_eq!((indexes(&found.cluster), indexes(&found.local), found.local_ready), (vec![0, 1, 3], vec![], 2));
    }
}
