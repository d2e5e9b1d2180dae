//! What a container runs: image ENTRYPOINT and CMD against `command` and `args`.
//!
//! In: both, and the final environment for `$(VAR)`. Out: argv. Finds no program (`runtime`).

use k8s_openapi::api::core::v1::Container;

use super::expansion::expand;

/// The program and its arguments. Empty when neither the pod nor the image says what to run; the image of a
/// bare wasm artifact says nothing, and its caller puts the artifact's path there.
///
/// | image | `command` | `args` | runs |
/// |---|---|---|---|
/// | E, C | | | E C |
/// | E, C | X | | X |
/// | E, C | | Y | E Y |
/// | E, C | X | Y | X Y |
#[must_use]
pub fn argv(container: &Container, entrypoint: &[String], cmd: &[String], env: &[(String, String)]) -> Vec<String> {
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, lookup)).collect::<Vec<_>>();
    let command = container.command.as_deref().unwrap_or(&[]);
    let args = container.args.as_deref().unwrap_or(&[]);
    let mut argv = if command.is_empty() { entrypoint.to_vec() } else { expanded(command) };
    if !args.is_empty() {
        argv.extend(expanded(args));
    } else if command.is_empty() {
        argv.extend_from_slice(cmd);
    }
    argv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (case, command, args, expected) in [
            ("neither", "", "", "entry cmd"),
            ("command drops both", "mine", "", "mine"),
            ("args replace cmd", "", "arg", "entry arg"),
            ("both", "mine", "arg", "mine arg"),
            ("variables expand", "mine", "$(A) $(B) $$(A)", "mine 1 $(B) $(A)"),
        ] {
            let list = |text: &str| (!text.is_empty()).then(|| words(text));
            let container = Container { command: list(command), args: list(args), ..Container::default() };
            let env = [("A".to_owned(), "1".to_owned())];
            assert_eq!(argv(&container, &words("entry"), &words("cmd"), &env), words(expected), "{case}");
        }
    }
}
