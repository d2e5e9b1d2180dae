//! Turns the target of an HTTP request into a path below a directory. In: the target as sent, hostile. Out: a relative
//! path without `.`, `..`, empty segments or NUL, or nothing. Looks at no file.

/// The path below the served directory, without a leading slash, with a trailing one where the target has it or means a
/// directory. `None` when the target is malformed or leads above that directory.
#[must_use]
pub fn normalize(target: &str) -> Option<String> {
    let path = target.split(['?', '#']).next()?;
    // The absolute form that proxies use (RFC 9112, 3.2.2).
    let path = match path.strip_prefix("http://").or_else(|| path.strip_prefix("https://")) {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => path,
    };
    let decoded = percent_decode(path.strip_prefix('/')?)?;
    if decoded.contains('\0') {
        return None;
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut is_directory = decoded.ends_with('/');
    for segment in decoded.split('/') {
        is_directory = match segment {
            "" => is_directory,
            "." => true,
            ".." => {
                segments.pop()?;
                true
            }
            name => {
                segments.push(name);
                decoded.ends_with('/')
            }
        };
    }
    let mut normalized = segments.join("/");
    if is_directory && !normalized.is_empty() {
        normalized.push('/');
    }
    Some(normalized)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (hex_digit(rest.next()?)?, hex_digit(rest.next()?)?);
            bytes.push(high << 4 | low);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn targets_become_paths_below_the_root_or_nothing() {
        for (case, target, expected) in [
            ("the root", "/", Some("")),
            ("a file", "/a/b.html", Some("a/b.html")),
            ("a directory", "/a/", Some("a/")),
            ("a query is not part of the path", "/a?b=/../c", Some("a")),
            ("percent signs are decoded once", "/%61%2520b", Some("a%20b")),
            ("an encoded slash is a slash", "/a%2Fb", Some("a/b")),
            ("UTF-8", "/%C3%A9", Some("\u{e9}")),
            ("empty segments vanish", "//a///b", Some("a/b")),
            ("dots are resolved", "/a/./b/../c", Some("a/c")),
            ("dots at the end mean a directory", "/a/b/..", Some("a/")),
            ("three dots are a name", "/...", Some("...")),
            ("the absolute form", "http://host:80/a", Some("a")),
            ("the absolute form without a path", "http://host", Some("")),
            ("above the root", "/..", None),
            ("above the root, after going down", "/a/../../b", None),
            ("above the root, encoded", "/%2e%2e/b", None),
            ("above the root, slash encoded as well", "/..%2f..%2fb", None),
            ("not a path", "a", None),
            ("the asterisk form", "*", None),
            ("a cut escape", "/%4", None),
            ("a bad escape", "/%zz", None),
            ("bytes that are no UTF-8", "/%ff", None),
            ("NUL", "/a%00b", None),
        ] {
            assert_eq!(normalize(target).as_deref(), expected, "{case}");
        }
    }
}
