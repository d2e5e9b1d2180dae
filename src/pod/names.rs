//! What a name may look like: the checks of apimachinery's `validation` package, with its sentences.
//!
//! In: a string. Out: nothing, or why it is refused. Does not know which field it stands in (`validation`).

/// A part of a DNS name: container, volume and host names.
#[must_use]
pub fn dns_label(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_dns_label(value)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
         end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .to_owned()
    })
}

/// A whole DNS name: pod, ConfigMap and Secret names.
#[must_use]
pub fn dns_subdomain(value: &str) -> Option<String> {
    if value.len() > 253 {
        return Some("must be no more than 253 bytes".to_owned());
    }
    (!value.split('.').all(is_dns_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .to_owned()
    })
}

/// Environment variables, as relaxed in Kubernetes 1.34: printable ASCII without `=`.
#[must_use]
pub fn env_name(value: &str) -> Option<String> {
    let legal = !value.is_empty() && value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
    (!legal).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()
    })
}

/// Keys of ConfigMaps and Secrets.
#[must_use]
pub fn config_key(value: &str) -> Option<String> {
    if value.len() > 253 {
        return Some("must be no more than 253 characters".to_owned());
    }
    let legal =
        !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !legal {
        return Some(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if value.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// Names of ports; every rule broken is said.
#[must_use]
pub fn port_name(value: &str) -> Vec<&'static str> {
    let mut errors = Vec::new();
    if value.len() > 15 {
        errors.push("must be no more than 15 characters");
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)");
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens");
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen");
    }
    errors
}

/// Keys of labels and annotations: `[prefix/]name`.
#[must_use]
pub fn qualified_name(value: &str) -> Option<String> {
    let (prefix, name) = match value.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, value),
    };
    if name.contains('/') {
        return Some(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
             an alphanumeric character with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
                .to_owned(),
        );
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".to_owned());
        }
        if let Some(error) = dns_subdomain(prefix) {
            return Some(format!("prefix part {error}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes".to_owned());
    }
    (!is_label_word(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            .to_owned()
    })
}

/// Values of labels; may be empty.
#[must_use]
pub fn label_value(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!value.is_empty() && !is_label_word(value)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
         validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .to_owned()
    })
}

fn is_dns_label(value: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && edge(value.bytes().next())
        && edge(value.bytes().last())
}

fn is_label_word(value: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(value.bytes().next())
        && edge(value.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_the_api_checks_them() {
        for (case, error, refused) in [
            ("a label", dns_label("web-1"), false),
            ("a label with a capital", dns_label("Web"), true),
            ("a label ending in a hyphen", dns_label("web-"), true),
            ("an empty label", dns_label(""), true),
            ("a label of 64 bytes", dns_label(&"a".repeat(64)), true),
            ("a subdomain", dns_subdomain("web.example"), false),
            ("a subdomain with an empty part", dns_subdomain("web..example"), true),
            ("a variable with dots", env_name("my.VAR"), false),
            ("a variable with a digit first", env_name("1A"), false),
            ("a variable with =", env_name("A=B"), true),
            ("a key", config_key("app.conf"), false),
            ("a key that climbs", config_key("../x"), true),
            ("a key of two dots", config_key("..data"), true),
            ("a qualified name", qualified_name("example.com/Name_1"), false),
            ("a qualified name without name", qualified_name("example.com/"), true),
            ("an empty label value", label_value(""), false),
            ("a label value with a space", label_value("a b"), true),
        ] {
            assert_eq!(error.is_some(), refused, "{case}: {error:?}");
        }
        assert_eq!(port_name("http"), Vec::<&str>::new());
        assert_eq!(port_name("8080"), ["must contain at least one letter (a-z)"]);
    }
}
