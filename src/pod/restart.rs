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
    /// Exit codes after which it runs again whatever the policy says (`restartPolicyRules`).
    pub rules: Vec<ExitCodeRule>,
}

/// One of `restartPolicyRules`: `action: Restart`.
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
            Some(_) => container.restart_policy_rules.iter().flatten().filter_map(exit_code_rule).collect(),
            None => Vec::new(),
        };
        Self { policy: RestartPolicy::parse(policy), rules }
    }

    /// Whether the container runs again after `exit_code`.
    #[must_use]
    pub fn restarts_after(&self, exit_code: i32) -> bool {
        let matched = self.rules.iter().any(|rule| match rule {
            ExitCodeRule::In(codes) => codes.contains(&exit_code),
            ExitCodeRule::NotIn(codes) => !codes.contains(&exit_code),
        });
        matched || self.policy.restarts_after(exit_code)
    }
}

fn exit_code_rule(rule: &ContainerRestartRule) -> Option<ExitCodeRule> {
    let on = rule.exit_codes.as_ref()?;
    let codes = on.values.clone().unwrap_or_default();
    match on.operator.as_str() {
        "In" => Some(ExitCodeRule::In(codes)),
        "NotIn" => Some(ExitCodeRule::NotIn(codes)),
        _ => None,
    }
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
        let rule = |codes: &[i32]| vec![ExitCodeRule::In(codes.to_vec())];
        for (case, policy, rules, code, again) in [
            ("Always restarts a success", Always, vec![], 0, true),
            ("Always restarts a failure", Always, vec![], 1, true),
            ("OnFailure leaves a success alone", OnFailure, vec![], 0, false),
            ("OnFailure restarts a failure", OnFailure, vec![], 137, true),
            ("Never leaves a failure alone", Never, vec![], 1, false),
            ("a rule restarts its exit code under Never", Never, rule(&[42]), 42, true),
            ("another exit code falls back to the policy", Never, rule(&[42]), 1, false),
            ("NotIn matches every other code", Never, vec![ExitCodeRule::NotIn(vec![0])], 1, true),
        ] {
            assert_eq!(RestartRules { policy, rules }.restarts_after(code), again, "{case}");
        }
    }
}
