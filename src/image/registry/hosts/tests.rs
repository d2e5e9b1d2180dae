//! `hosts.toml` as containerd's documentation writes it.

use super::*;

fn read(text: &str, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    parse(Path::new("/certs.d/host/hosts.toml"), text, registry)
}

fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect()
}

#[test]
fn mirrors_come_in_the_order_written_and_the_registry_last() {
    let text = r#"
server = "https://registry-1.docker.io"
[host."https://z-first.example"]
  capabilities = ["pull", "resolve"]
[host."http://a-second.example:5000"]
  capabilities = ["pull"]
  dial_timeout = "500ms"
[host."https://path.example/v2/proxy/"]
  override_path = true
  ca = ["ca.pem", "/etc/other.pem"]
  client = [["me.cert", "me.key"]]
  [host."https://path.example/v2/proxy/".header]
    x-one = "1"
    x-two = ["2", "3"]
"#;
    let endpoints = read(text, "docker.io").unwrap();
    assert_eq!(
        bases(&endpoints),
        [
            "https://z-first.example/v2",
            "http://a-second.example:5000/v2",
            "https://path.example/v2/proxy",
            "https://registry-1.docker.io/v2",
        ]
    );
    assert!(!endpoints[0].can(Action::Push) && endpoints[3].can(Action::Push));
    assert!(!endpoints[1].capabilities.resolve);
    assert_eq!(endpoints[1].dial_timeout, Duration::from_millis(500));
    let tls = &endpoints[2].tls;
    assert_eq!(tls.ca, [PathBuf::from("/certs.d/host/ca.pem"), PathBuf::from("/etc/other.pem")]);
    assert_eq!(tls.client, Some((PathBuf::from("/certs.d/host/me.cert"), Some(PathBuf::from("/certs.d/host/me.key")))));
    assert_eq!(endpoints[2].headers.len(), 3);
    assert_eq!(endpoints[0].role, Role::Mirror);
    assert_eq!(endpoints[3].role, Role::Origin);
}

#[test]
fn settings_without_a_host_are_for_the_registry_itself() {
    let endpoints = read("skip_verify = true\nca = \"ca.pem\"\n", "reg.example:5000").unwrap();
    assert_eq!(bases(&endpoints), ["https://reg.example:5000/v2"]);
    assert!(endpoints[0].tls.skip_verify);
    assert_eq!(endpoints[0].tls.ca, [PathBuf::from("/certs.d/host/ca.pem")]);
}

#[test]
fn a_host_that_is_the_registry_gets_its_credentials_and_is_asked_once() {
    let endpoints =
        read("server = \"https://r.example\"\n[host.\"https://r.example\"]\nskip_verify = true\n", "r.example");
    let endpoints = endpoints.unwrap();
    assert_eq!(bases(&endpoints), ["https://r.example/v2"]);
    assert_eq!(endpoints[0].role, Role::Origin);
    assert!(endpoints[0].tls.skip_verify);
}

#[test]
fn a_wrong_file_is_named_with_what_is_wrong() {
    for (text, part) in [
        ("server = 1", "parsing /certs.d/host/hosts.toml"),
        ("[host.\"ftp://x\"]", "\"ftp://x\" is not an http or https URL"),
        ("[host.\"https://u:p@x\"]", "is not an http or https URL"),
        ("capabilities = [\"fly\"]", "unknown capability \"fly\""),
        ("dial_timeout = \"soon\"", "is not a duration"),
        ("client = [\"a\", \"b\"]", "more than one client certificate"),
    ] {
        let error = read(text, "r.example").unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn this_machine_is_asked_in_plain_http() {
    for (registry, base) in [
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
    ] {
        assert_eq!(endpoints(&[], registry).unwrap()[0].base.as_str(), base, "{registry}");
    }
}

#[test]
fn directories_are_found_by_every_name_containerd_uses() {
    for name in ["reg.example_5000_", "reg.example:5000", "_default"] {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join(name);
        fs::create_dir(&host).unwrap();
        fs::write(host.join("hosts.toml"), "[host.\"https://mirror.example\"]\n").unwrap();
        let found = endpoints(&[dir.path().to_owned()], "reg.example:5000").unwrap();
        assert_eq!(bases(&found), ["https://mirror.example/v2", "https://reg.example:5000/v2"], "{name}");
    }
}

#[test]
fn dockers_certificates_are_found_without_a_hosts_file() {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("reg.example");
    fs::create_dir(&host).unwrap();
    for file in ["ca.crt", "me.cert", "me.key"] {
        fs::write(host.join(file), "").unwrap();
    }
    let found = endpoints(&[dir.path().to_owned()], "reg.example").unwrap();
    assert_eq!(found[0].tls.ca, [host.join("ca.crt")]);
    assert_eq!(found[0].tls.client, Some((host.join("me.cert"), Some(host.join("me.key")))));
}
