//! Whether a container that ended runs again.
//!
//! In: `restartPolicy` of the pod and of the container, the container's rules, an exit code. Out: yes or no.
//! The delay before it runs again is `back_off`'s.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, PodSpec};

/// `restartPolicy`, of a pod or of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// After every end.
    #[default]
    Always,
    /// After a failure.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// Reads an API value; unknown ones are refused by `validation` and count as the default here.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Self {
        match value {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    /// Whether a container under this policy runs again after `exit_code`.
    #[must_use]
    pub const fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What decides about the restarts of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestartRules {
    /// The container's own policy, else the pod's.
    pub policy: RestartPolicy,
    /// What follows certain exit codes whatever the policy says (`restartPolicyRules`); the first that matches counts.
    pub rules: Vec<Rule>,
}

/// One of `restartPolicyRules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// When.
    pub codes: ExitCodeRule,
    /// What.
    pub action: RuleAction,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// The container runs again.
    Restart,
    /// All containers of the pod run again, init containers first.
    RestartAllContainers,
}

/// Which exit codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCodeRule {
    /// One of these codes.
    In(Vec<i32>),
    /// None of these codes.
    NotIn(Vec<i32>),
}

impl RestartRules {
    /// The rules of one container of a pod (init container or regular).
    #[must_use]
    pub fn of(container: &Container, spec: &PodSpec) -> Self {
        let policy = container.restart_policy.as_deref().or(spec.restart_policy.as_deref());
        let rules = match container.restart_policy {
            // The API allows rules only beside a policy of the container's own.
            Some(_) => container.restart_policy_rules.iter().flatten().filter_map(read_rule).collect(),
            None => Vec::new(),
        };
        Self { policy: RestartPolicy::parse(policy), rules }
    }

    /// Whether the container runs again after `exit_code`.
    #[must_use]
    pub fn restarts_after(&self, exit_code: i32) -> bool {
        self.matching(exit_code).is_some() || self.policy.restarts_after(exit_code)
    }

    /// Whether the whole pod runs again after `exit_code`.
    #[must_use]
    pub fn restarts_all_after(&self, exit_code: i32) -> bool {
        self.matching(exit_code).is_some_and(|rule| rule.action == RuleAction::RestartAllContainers)
    }

    fn matching(&self, exit_code: i32) -> Option<&Rule> {
        self.rules.iter().find(|rule| match &rule.codes {
            ExitCodeRule::In(codes) => codes.contains(&exit_code),
            ExitCodeRule::NotIn(codes) => !codes.contains(&exit_code),
        })
    }
}

/// Whether any container of the pod may make all of them run again (`AllContainersCouldRestart`).
#[must_use]
pub fn could_restart_all(spec: &PodSpec) -> bool {
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.flat_map(|container| container.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == RESTART_ALL_CONTAINERS)
}

/// The action that concerns the whole pod.
const RESTART_ALL_CONTAINERS: &str = "RestartAllContainers";

fn read_rule(rule: &ContainerRestartRule) -> Option<Rule> {
    let on = rule.exit_codes.as_ref()?;
    let values = on.values.clone().unwrap_or_default();
    let codes = match on.operator.as_str() {
        "In" => ExitCodeRule::In(values),
        "NotIn" => ExitCodeRule::NotIn(values),
        _ => return None,
    };
    let all = rule.action == RESTART_ALL_CONTAINERS;
    Some(Rule { codes, action: if all { RuleAction::RestartAllContainers } else { RuleAction::Restart } })
}

/// Whether an init container is a sidecar: started in its turn, then kept running beside the others.
#[must_use]
pub fn is_sidecar(init_container: &Container) -> bool {
    init_container.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestartPolicy::{Always, Never, OnFailure};

    #[test]
    fn policy_rules_and_exit_code_decide_a_restart() {
        let with = |codes| vec![Rule { codes, action: RuleAction::Restart }];
        let rule = |codes: &[i32]| with(ExitCodeRule::In(codes.to_vec()));
        for (case, policy, rules, code, again) in [
            ("Always restarts a success", Always, vec![], 0, true),
            ("Always restarts a failure", Always, vec![], 1, true),
            ("OnFailure leaves a success alone", OnFailure, vec![], 0, false),
            ("OnFailure restarts a failure", OnFailure, vec![], 137, true),
            ("Never leaves a failure alone", Never, vec![], 1, false),
            ("a rule restarts its exit code under Never", Never, rule(&[42]), 42, true),
            ("another exit code falls back to the policy", Never, rule(&[42]), 1, false),
            ("NotIn matches every other code", Never, with(ExitCodeRule::NotIn(vec![0])), 1, true),
        ] {
            assert_eq!(RestartRules { policy, rules }.restarts_after(code), again, "{case}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_says_whether_all_run_again() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({"restartPolicy": "Never", "containers": [
            {"name": "c", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
                {"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]}]}))
        .unwrap();
        let rules = RestartRules::of(&spec.containers[0], &spec);
        for (code, one, all) in [(0, false, false), (1, true, false), (42, true, true)] {
            assert_eq!((rules.restarts_after(code), rules.restarts_all_after(code)), (one, all), "{code}");
        }
        assert!(could_restart_all(&spec) && !could_restart_all(&PodSpec::default()));
    }
}
