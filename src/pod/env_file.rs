//! Files of variables that `fileKeyRef` reads: the kubelet's strict part of a shell's syntax.
//!
//! In: the text of a file, a key. Out: its value, or why the file is none of this kind. Reads no file.
//! `KEY='VALUE'`, in single quotes that may span lines, comments and blank lines between; nothing is expanded.

/// The longest line: Go's `bufio.Scanner` takes no longer one.
const MAX_LINE: usize = 64 * 1024;

/// Why a file cannot be read; the words are those of the kubelet's `ParseEnv`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvFileError {
    /// A line that is no assignment.
    #[error("invalid environment variable format at line {line}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A value that never ends.
    #[error("invalid environment variable format starting at line {line}: unclosed single quote")]
    Unclosed {
        /// Where it begins.
        line: usize,
    },
    /// A line that is too long.
    #[error("line {line} is longer than {MAX_LINE} bytes")]
    TooLong {
        /// Counted from 1.
        line: usize,
    },
}

/// The value of `key`; empty when the file does not have it. Lines behind it are not looked at.
///
/// # Errors
/// [`EnvFileError`] of the first line that is wrong.
pub fn parse(text: &str, key: &str) -> Result<String, EnvFileError> {
    let mut lines = Lines { rest: text, number: 0 };
    while let Some(line) = lines.next()? {
        let line = line.trim_start_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = lines.number;
        let wrong = |problem| EnvFileError::Line { line: number, problem };
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        let trimmed = name.trim_end_matches(BLANK);
        if trimmed.is_empty() {
            return Err(wrong("empty variable name"));
        }
        if trimmed.len() != name.len() {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        if value.starts_with(BLANK) {
            // As a shell reads it: the variable is empty, the rest of the line is something else.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let rest = value.strip_prefix('\'').ok_or_else(|| wrong("value must be enclosed in single quotes"))?;
        let value = quoted(rest, &mut lines)?;
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

const BLANK: [char; 2] = [' ', '\t'];

/// A value behind its opening quote, to the end of the line that has the closing one.
fn quoted(rest: &str, lines: &mut Lines<'_>) -> Result<String, EnvFileError> {
    let began = lines.number;
    let mut value = String::new();
    let mut rest = rest;
    loop {
        if let Some((end, behind)) = rest.split_once('\'') {
            value.push_str(end);
            let behind = behind.trim_start_matches(BLANK);
            if !behind.is_empty() && !behind.starts_with('#') {
                return Err(EnvFileError::Line {
                    line: lines.number,
                    problem: "unexpected content after closing quote",
                });
            }
            return Ok(value);
        }
        value.push_str(rest);
        value.push('\n');
        rest = lines.next()?.ok_or(EnvFileError::Unclosed { line: began })?;
    }
}

/// Lines as Go's `bufio.ScanLines` gives them.
struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, EnvFileError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.number += 1;
        if line.len() >= MAX_LINE {
            return Err(EnvFileError::TooLong { line: self.number });
        }
        Ok(Some(line.strip_suffix('\r').unwrap_or(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables_are_read_as_the_kubelet_reads_them() {
        // Rows of the kubelet's TestParseEnv, and some of what it says in its documentation.
        for (case, text, key, expected) in [
            ("white space before a name", "   KEY1='val1'\n\t\tKEY2='val2'\nKEY3='val3'\n", "KEY2", Ok("val2")),
            ("comments, blank lines", "# c\n\nKEY1='foo'\n   # d\n \t\nKEY2='bar'\n", "KEY2", Ok("bar")),
            ("no such key", "KEY1='foo'\n", "KEY3", Ok("")),
            ("no file at all", "", "KEY", Ok("")),
            ("a # inside", "KEY1='foo#notcomment'\n", "KEY1", Ok("foo#notcomment")),
            ("a comment behind", "KEY1='a' # b\nKEY2='c'# d", "KEY2", Ok("c")),
            ("blanks inside", "KEY1='   foo bar   '\n", "KEY1", Ok("   foo bar   ")),
            ("blanks behind = are an empty value", "KEY= 'val'\n", "KEY", Ok("")),
            ("of another key, too", "KEY1=\t'val\nKEY2='b'\n", "KEY2", Ok("b")),
            ("several lines", "KEY1='a\n  b\n\nc'\nKEY2='d'\n", "KEY1", Ok("a\n  b\n\nc")),
            ("a key inside a value is none", "KEY1='a\nKEY2='\nKEY2='d'\n", "KEY2", Ok("d")),
            ("nothing is expanded", r"KEY='$HOME \n'", "KEY", Ok(r"$HOME \n")),
            ("double quotes inside", "KEY='\"x\"'", "KEY", Ok("\"x\"")),
            ("lines of Windows", "KEY1='a'\r\nKEY2='b\r\nc'\r\n", "KEY2", Ok("b\nc")),
            ("the first of two wins", "KEY='a'\nKEY='b'\n", "KEY", Ok("a")),
            ("what is behind the key is not looked at", "KEY='a'\nrubbish\n", "KEY", Ok("a")),
            ("no =", "KEY1='a'\nrubbish\n", "KEY", Err("invalid environment variable format at line 2: missing '='")),
            ("no name", "='a'", "KEY", Err("invalid environment variable format at line 1: empty variable name")),
            (
                "a blank before =",
                "KEY1 = 'val1'\n",
                "KEY2",
                Err("invalid environment variable format at line 1: whitespace before '=' is not allowed"),
            ),
            (
                "no quotes",
                "\nKEY=a",
                "KEY",
                Err("invalid environment variable format at line 2: value must be enclosed in single quotes"),
            ),
            (
                "something behind the quote",
                "KEY='a\nb'c",
                "KEY",
                Err("invalid environment variable format at line 2: unexpected content after closing quote"),
            ),
            (
                "no end",
                "A='b'\nKEY='a\nb\n",
                "KEY",
                Err("invalid environment variable format starting at line 2: unclosed single quote"),
            ),
        ] {
            let got = parse(text, key).map_err(|error| error.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{case}");
        }
        let long = format!("A='{}'", "x".repeat(MAX_LINE));
        assert_eq!(parse(&long, "A"), Err(EnvFileError::TooLong { line: 1 }));
    }
}
