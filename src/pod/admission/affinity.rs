//! Whether a pod wants a node like this one.
//!
//! In: `nodeSelector`, required node affinity, tolerations, and the node's labels, name and taints. Out: yes or no, by
//! `component-helpers/scheduling/corev1`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// The labels of a node.
pub type Labels = BTreeMap<String, String>;

/// Whether `nodeSelector` and `requiredDuringSchedulingIgnoredDuringExecution` choose the node.
#[must_use]
pub fn selects(spec: &PodSpec, name: &str, labels: &Labels) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| any_term_selects(&r.node_selector_terms, name, labels))
}

/// Whether one of these terms chooses the node.
#[must_use]
pub fn any_term_selects(terms: &[NodeSelectorTerm], name: &str, labels: &Labels) -> bool {
    terms.iter().any(|term| term_matches(term, name, labels))
}

/// A term without requirements matches nothing.
fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let value_of_field = |key: &str| (key == "metadata.name").then_some(name);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|e| requirement_matches(e, labels.get(&e.key).map(String::as_str)))
        && fields.iter().all(|f| requirement_matches(f, value_of_field(&f.key)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some(number(value?)?.cmp(&number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        // The API server lets no other in; one of a later version matches nothing rather than everything.
        _ => false,
    }
}

/// Whether no taint keeps the pod from running: a node asks only about `NoExecute`.
#[must_use]
pub fn tolerates_no_execute(spec: &PodSpec, taints: &[Taint]) -> bool {
    taints.iter().filter(|taint| taint.effect == "NoExecute").all(|taint| tolerates(spec, taint))
}

/// Whether a toleration of the pod is for this taint.
#[must_use]
pub fn tolerates(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| is_for(toleration, taint))
}

fn is_for(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect)
        || given(&toleration.key).is_some_and(|key| key != taint.key)
    {
        return false;
    }
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some("Exists") => true,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(more: Value) -> PodSpec {
        let mut spec = json!({"containers": []});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_node_is_chosen_by_selector_and_affinity() {
        let labels: Labels = [("os", "wasi"), ("n", "5")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let terms = |terms: Value| {
            json!({"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let one = |key: &str, operator: &str, values: Value| {
            terms(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        for (case, wanted, expected) in [
            ("nothing asked", json!({}), true),
            ("a selector that matches", json!({"nodeSelector": {"os": "wasi"}}), true),
            ("another value", json!({"nodeSelector": {"os": "linux"}}), false),
            ("no such label", json!({"nodeSelector": {"x": "1"}}), false),
            ("In", one("os", "In", json!(["linux", "wasi"])), true),
            ("NotIn", one("os", "NotIn", json!(["wasi"])), false),
            ("NotIn without the label", one("x", "NotIn", json!(["wasi"])), true),
            ("Exists", one("x", "Exists", json!([])), false),
            ("DoesNotExist", one("x", "DoesNotExist", json!([])), true),
            ("Gt", one("n", "Gt", json!(["4"])), true),
            ("Lt", one("n", "Lt", json!(["4"])), false),
            ("Gt of no number", one("os", "Gt", json!(["4"])), false),
            (
                "the node's name",
                terms(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}])),
                true,
            ),
            (
                "terms are alternatives",
                terms(json!([{}, {"matchExpressions": [{"key": "os", "operator": "Exists"}]}])),
                true,
            ),
            ("an empty term matches nothing", terms(json!([{}])), false),
        ] {
            assert_eq!(selects(&spec(wanted), "n1", &labels), expected, "{case}");
        }
    }

    #[test]
    fn only_no_execute_taints_keep_a_pod_away_here() {
        let taint = |effect: &str| -> Taint {
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": effect})).unwrap()
        };
        for (case, toleration, effect, expected) in [
            ("not tolerated", json!([]), "NoExecute", false),
            ("another effect is the scheduler's matter", json!([]), "NoSchedule", true),
            ("equal", json!([{"key": "k", "value": "v"}]), "NoExecute", true),
            ("another value", json!([{"key": "k", "value": "w"}]), "NoExecute", false),
            ("exists", json!([{"key": "k", "operator": "Exists"}]), "NoExecute", true),
            ("everything", json!([{"operator": "Exists"}]), "NoExecute", true),
            ("for another effect", json!([{"operator": "Exists", "effect": "NoSchedule"}]), "NoExecute", false),
        ] {
            let spec = spec(json!({"tolerations": toleration}));
            assert_eq!(tolerates_no_execute(&spec, &[taint(effect)]), expected, "{case}");
        }
    }
}
