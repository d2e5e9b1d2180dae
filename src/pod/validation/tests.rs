//! Tables of bad pods and the sentences an API server answers.

use super::super::field::join;
use super::*;
use serde_json::{Value, json};

fn faults(spec: Value) -> String {
    let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap();
    crate::pod::defaults::apply(&mut pod);
    join(&validate(&pod))
}

fn with_container(fields: Value) -> Value {
    let mut container = json!({"name": "c", "image": "x"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"containers": [container]})
}

#[test]
fn a_plain_pod_has_no_faults() {
    assert_eq!(faults(with_container(json!({}))), "[]");
}

#[test]
fn faults_of_containers_are_named_as_the_api_names_them() {
    for (case, container, expected) in [
        (
            "a mount without its volume",
            json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
            r#"spec.containers[0].volumeMounts[0].name: Not found: "x""#,
        ),
        ("no image", json!({"image": ""}), "spec.containers[0].image: Required value"),
        (
            "a bad name",
            json!({"name": "A_b"}),
            "spec.containers[0].name: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            "a port out of range",
            json!({"ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "no port",
            json!({"ports": [{"containerPort": 0}]}),
            "spec.containers[0].ports[0].containerPort: Required value",
        ),
        (
            "a protocol",
            json!({"ports": [{"containerPort": 1, "protocol": "tcp"}]}),
            r#"spec.containers[0].ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
        ),
        (
            "two ports of one name",
            json!({"ports": [{"name": "http", "containerPort": 1}, {"name": "http", "containerPort": 2}]}),
            r#"spec.containers[0].ports[1].name: Duplicate value: "http""#,
        ),
        (
            "one host port twice",
            json!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}]}),
            r#"spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//80""#,
        ),
        (
            "a pull policy",
            json!({"imagePullPolicy": "Sometimes"}),
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never""#,
        ),
        (
            "an env without name",
            json!({"env": [{"name": "", "value": "1"}]}),
            "spec.containers[0].env[0].name: Required value",
        ),
        (
            "an env with value and source",
            json!({"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            "an unknown field",
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.whatever"}}}]}),
            r#"spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.whatever": error converting fieldPath: field label not supported: metadata.whatever"#,
        ),
        (
            "a resource that is not one",
            json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]}),
            r#"spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value: "limits.gpu": supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory""#,
        ),
        (
            "a bad quantity",
            json!({"resources": {"limits": {"memory": "lots"}}}),
            r#"spec.containers[0].resources.limits[memory]: Invalid value: "lots": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (got "lots")"#,
        ),
        (
            "a request above its limit",
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}}),
            r#"spec.containers[0].resources.requests: Invalid value: "1500m": must be less than or equal to cpu limit of 1"#,
        ),
        (
            "a message policy",
            json!({"terminationMessagePolicy": "Never"}),
            r#"spec.containers[0].terminationMessagePolicy: Unsupported value: "Never": supported values: "File", "FallbackToLogsOnError""#,
        ),
        (
            "a user below zero",
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            "rules without a policy",
            json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
            "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
        ),
    ] {
        let got = faults(with_container(container));
        // A limit that cannot be read is its own default request, and so is a fault twice.
        let got = if case == "a bad quantity" {
            got.trim_start_matches('[').split(", spec").next().unwrap().to_owned()
        } else {
            got
        };
        assert_eq!(got, expected, "{case}");
    }
}

#[test]
fn faults_of_specs_are_named_as_the_api_names_them() {
    let plain = || json!({"name": "c", "image": "x"});
    for (case, spec, expected) in [
        ("no containers", json!({"containers": []}), "spec.containers: Required value"),
        (
            "two of one name",
            json!({"containers": [plain(), plain()]}),
            r#"spec.containers[1].name: Duplicate value: "c""#,
        ),
        (
            "an init container of the same name",
            json!({"containers": [plain()], "initContainers": [plain()]}),
            r#"spec.initContainers[0].name: Duplicate value: "c""#,
        ),
        (
            "a probe on an init container",
            json!({"containers": [plain()], "initContainers": [{"name": "i", "image": "x", "livenessProbe": {}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            "a restart policy",
            json!({"containers": [plain()], "restartPolicy": "Sometimes"}),
            r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
        ),
        (
            "a deadline of zero",
            json!({"containers": [plain()], "activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            "a grace below zero",
            json!({"containers": [plain()], "terminationGracePeriodSeconds": -1}),
            "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "an operating system",
            json!({"containers": [plain()], "os": {"name": "plan9"}}),
            r#"spec.os.name: Unsupported value: "plan9": supported values: "linux", "windows""#,
        ),
        (
            "two volumes of one name",
            json!({"containers": [plain()], "volumes": [{"name": "v"}, {"name": "v"}]}),
            r#"spec.volumes[1].name: Duplicate value: "v""#,
        ),
        (
            "a volume of two types",
            json!({"containers": [plain()], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            "a host path that climbs",
            json!({"containers": [plain()], "volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}),
            r#"spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
        ),
        (
            "a projected path that is the node's",
            json!({"containers": [plain()], "volumes": [{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "..data"}]}}]}),
            r#"spec.volumes[0].configMap.items[0].path: Invalid value: "..data": must not start with '..'"#,
        ),
        (
            "dnsPolicy None without servers",
            json!({"containers": [plain()], "dnsPolicy": "None"}),
            "spec.dnsConfig: Required value",
        ),
        (
            "a host alias",
            json!({"containers": [plain()], "hostAliases": [{"ip": "1.2.3", "hostnames": ["a"]}]}),
            r#"spec.hostAliases[0].ip: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
        ),
    ] {
        assert_eq!(faults(spec), expected, "{case}");
    }
}

#[test]
fn several_faults_are_said_together() {
    let got = faults(json!({"containers": [{"name": "", "image": ""}]}));
    assert_eq!(got, "[spec.containers[0].name: Required value, spec.containers[0].image: Required value]");
}
