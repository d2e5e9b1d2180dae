//! `spec` of a pod, without what is inside containers and volumes.
//!
//! In: a spec. Out: what is wrong with it, by `ValidatePodSpec`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, PodDNSConfig, PodSpec};

use super::{check, container, in_range, one_of, volume};
use crate::pod::field::{Errors, Path};
use crate::pod::names;
use crate::pod::restart::is_sidecar;

/// resolv.conf(5) reads no more.
const MAX_NAMESERVERS: usize = 3;
/// `MaxDNSSearchPaths`.
const MAX_SEARCHES: usize = 32;

pub(super) fn validate(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let volumes = volume::validate_all(spec.volumes.as_deref().unwrap_or(&[]), &path.child("volumes"), errors);
    containers(spec, &volumes, path, errors);
    init_containers(spec, &volumes, path, errors);
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        errors.forbidden(path.child("ephemeralContainers"), "cannot be set on create");
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let restart = text(&spec.restart_policy);
    one_of(&restart, &["Always", "OnFailure", "Never"], &path.child("restartPolicy"), errors);
    let dns = text(&spec.dns_policy);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&dns, &policies, &path.child("dnsPolicy"), errors);
    dns_config(spec.dns_config.as_ref(), &dns, &path.child("dnsConfig"), errors);
    if let Some(seconds) = spec.active_deadline_seconds {
        in_range(seconds, 1, i64::from(i32::MAX), &path.child("activeDeadlineSeconds"), errors);
    }
    if let Some(seconds) = spec.termination_grace_period_seconds.filter(|seconds| *seconds < 0) {
        let detail = "must be greater than or equal to 0";
        errors.invalid_number(path.child("terminationGracePeriodSeconds"), seconds, detail);
    }
    for (name, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            check(names::dns_label(value), &path.child(name), value, errors);
        }
    }
    for (name, value) in [("serviceAccountName", &spec.service_account_name), ("nodeName", &spec.node_name)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            check(names::dns_subdomain(value), &path.child(name), value, errors);
        }
    }
    host_aliases(spec, path, errors);
    security_context(spec, path, errors);
    if let Some(os) = &spec.os {
        one_of(&os.name, &["linux", "windows"], &path.child("os").child("name"), errors);
    }
}

fn containers(spec: &PodSpec, volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let path = path.child("containers");
    if spec.containers.is_empty() {
        errors.required(path);
        return;
    }
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (index, each) in spec.containers.iter().enumerate() {
        let at = path.index(index);
        container::validate(each, spec, volumes, &at, errors);
        if !names.insert(each.name.as_str()) {
            errors.duplicate(at.child("name"), &each.name);
        }
        container_restart_policy(each, &at, errors);
        unique_host_ports(each, &mut host_ports, &at, errors);
    }
}

fn init_containers(spec: &PodSpec, volumes: &BTreeSet<&str>, path: &Path, errors: &mut Errors) {
    let mut names: BTreeSet<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (index, each) in spec.init_containers.iter().flatten().enumerate() {
        let at = path.child("initContainers").index(index);
        container::validate(each, spec, volumes, &at, errors);
        if !names.insert(each.name.as_str()) {
            errors.duplicate(at.child("name"), &each.name);
        }
        container_restart_policy(each, &at, errors);
        // Init containers run one after the other: each may use the ports of another.
        unique_host_ports(each, &mut BTreeSet::new(), &at, errors);
        if !is_sidecar(each) {
            for (name, given) in [
                ("lifecycle", each.lifecycle.is_some()),
                ("livenessProbe", each.liveness_probe.is_some()),
                ("readinessProbe", each.readiness_probe.is_some()),
                ("startupProbe", each.startup_probe.is_some()),
            ] {
                if given {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errors.forbidden(at.child(name), detail);
                }
            }
        }
    }
}

fn container_restart_policy(container: &Container, path: &Path, errors: &mut Errors) {
    match &container.restart_policy {
        Some(policy) => {
            one_of(policy, &["Always", "Never", "OnFailure"], &path.child("restartPolicy"), errors);
        }
        None if container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty()) => {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required_because(path.child("restartPolicy"), detail);
        }
        None => {}
    }
    for (index, rule) in container.restart_policy_rules.iter().flatten().enumerate() {
        let at = path.child("restartPolicyRules").index(index);
        one_of(&rule.action, &["Restart", "RestartAllContainers"], &at.child("action"), errors);
        match &rule.exit_codes {
            None => errors.required(at.child("exitCodes")),
            Some(codes) => {
                one_of(&codes.operator, &["In", "NotIn"], &at.child("exitCodes").child("operator"), errors);
                if codes.values.as_ref().is_none_or(Vec::is_empty) {
                    errors.required(at.child("exitCodes").child("values"));
                }
            }
        }
    }
}

fn unique_host_ports<'a>(
    container: &'a Container,
    used: &mut BTreeSet<(String, &'a str, i32)>,
    path: &Path,
    errors: &mut Errors,
) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
        let protocol = port.protocol.clone().unwrap_or_default();
        let ip = port.host_ip.as_deref().unwrap_or("");
        if !used.insert((protocol.clone(), ip, host_port)) {
            let key = format!("{protocol}/{ip}/{host_port}");
            errors.duplicate(path.child("ports").index(index).child("hostPort"), &key);
        }
    }
}

fn dns_config(config: Option<&PodDNSConfig>, policy: &str, path: &Path, errors: &mut Errors) {
    let nameservers = config.and_then(|c| c.nameservers.as_deref()).unwrap_or(&[]);
    if policy == "None" && nameservers.is_empty() {
        errors.required(if config.is_some() { path.child("nameservers") } else { path.clone() });
    }
    if nameservers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid_number(path.child("nameservers"), format!("{nameservers:?}"), detail);
    }
    for (index, server) in nameservers.iter().enumerate() {
        ip(server, &path.child("nameservers").index(index), errors);
    }
    let searches = config.and_then(|c| c.searches.as_deref()).unwrap_or(&[]);
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid_number(path.child("searches"), format!("{searches:?}"), detail);
    }
    for (index, search) in searches.iter().enumerate() {
        let name = search.strip_suffix('.').unwrap_or(search);
        if name.is_empty() && search == "." {
            continue;
        }
        check(names::dns_subdomain(&name.replace('_', "-")), &path.child("searches").index(index), search, errors);
    }
    for (index, option) in config.and_then(|c| c.options.as_ref()).into_iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or("").is_empty() {
            errors.required(path.child("options").index(index));
        }
    }
}

fn host_aliases(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let at = path.child("hostAliases").index(index);
        ip(&alias.ip, &at.child("ip"), errors);
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            check(names::dns_subdomain(name), &at.child("hostnames").index(index), name, errors);
        }
    }
}

fn ip(value: &str, path: &Path, errors: &mut Errors) {
    if value.parse::<IpAddr>().is_err() {
        errors.invalid(path.clone(), value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn security_context(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let Some(context) = &spec.security_context else { return };
    let path = path.child("securityContext");
    for (name, id) in
        [("fsGroup", context.fs_group), ("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)]
    {
        if let Some(id) = id {
            in_range(id, 0, i64::from(i32::MAX), &path.child(name), errors);
        }
    }
    for (index, id) in context.supplemental_groups.iter().flatten().enumerate() {
        in_range(*id, 0, i64::from(i32::MAX), &path.child("supplementalGroups").index(index), errors);
    }
}
