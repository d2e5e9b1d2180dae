//! The node's toolbox as pods see it: which programs it stands in for, and who does not want it.
//!
//! In: names of programs, a pod. Out: whether the toolbox answers to a name. Where the toolbox's wasm is, and running it,
//! are the runtime's; the image made of it is `image`'s.

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

/// The path that always means the toolbox itself; no file is there.
pub const TOOLBOX_PATH: &str = "/.wasilet/toolbox";

/// `wasilet.dev/toolbox: "false"` on a pod: programs that its images lack are not found.
pub const TOOLBOX_ANNOTATION: &str = "wasilet.dev/toolbox";

/// Every name the toolbox answers to, one a line, sorted; the toolbox itself is built with the same file.
const APPLETS: &str = include_str!("../../wasm-samples/toolbox/applets.txt");

/// Directories where Linux images have such programs.
const DIRECTORIES: [&str; 6] = ["/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// Whether a container may use the toolbox for programs that its image lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolboxUse {
    /// Yes: the default.
    Offered,
    /// No: its pod says so.
    Withheld,
}

impl ToolboxUse {
    /// What `pod` says.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(TOOLBOX_ANNOTATION));
        if annotation.is_some_and(|value| value == "false") { Self::Withheld } else { Self::Offered }
    }
}

/// The names of the toolbox's programs, sorted.
pub fn applets() -> impl Iterator<Item = &'static str> {
    APPLETS.lines().filter(|name| !name.is_empty())
}

/// Whether the toolbox stands in for `program` (as in `argv[0]`) when nothing is there: a name alone, or one in a directory
/// where such programs are.
#[must_use]
pub fn stands_in_for(program: &str) -> bool {
    let name = match program.rsplit_once('/') {
        None => program,
        Some((directory, name)) if DIRECTORIES.contains(&directory) => name,
        Some(_) => return false,
    };
    applets().any(|applet| applet == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_in_for_names_and_for_the_usual_paths() {
        for (program, expected) in [
            ("sh", true),
            ("ls", true),
            ("/bin/sh", true),
            ("/usr/bin/env", true),
            ("[", true),
            ("/sh", false),
            ("/opt/bin/sh", false),
            ("bin/sh", false),
            ("", false),
            ("/bin/", false),
            ("nginx", false),
        ] {
            assert_eq!(stands_in_for(program), expected, "{program:?}");
        }
    }

    #[test]
    fn applets_are_sorted_and_named_once() {
        let names: Vec<&str> = applets().collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
    }

    #[test]
    fn a_pod_opts_out_by_annotation() {
        for (value, expected) in
            [(None, ToolboxUse::Offered), (Some("true"), ToolboxUse::Offered), (Some("false"), ToolboxUse::Withheld)]
        {
            let annotations = value.map(|value| [(TOOLBOX_ANNOTATION.to_owned(), value.to_owned())].into());
            let mut pod = Pod::default();
            pod.metadata.annotations = annotations;
            assert_eq!(ToolboxUse::of(&pod), expected, "{value:?}");
        }
    }
}
