//! Reads a guest's arguments. In: the process's argv. Out: typed values, or a usage error on stderr and exit
//! code 2, as command-line programs have it. Knows no option syntax beyond `--name value` and `--name`.

use std::fmt::Display;
use std::process;
use std::str::FromStr;

/// Arguments of a guest: positional ones in order, `--name value` pairs taken out by name.
#[derive(Debug)]
pub struct Args {
    usage: &'static str,
    rest: Vec<String>,
}

impl Args {
    /// The arguments of this process, without its name. `usage` is printed when they make no sense.
    #[must_use]
    pub fn new(usage: &'static str) -> Self {
        Self { usage, rest: std::env::args().skip(1).collect() }
    }

    /// The next positional argument, or `default`.
    pub fn next_or<T>(&mut self, name: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        self.next(name).unwrap_or(default)
    }

    /// The next positional argument, if there is one.
    pub fn next<T>(&mut self, name: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        if self.rest.is_empty() {
            return None;
        }
        let value = self.rest.remove(0);
        Some(self.parse(name, &value))
    }

    /// The value of `--name value`, taken out wherever it stands. Call these before the positional ones.
    pub fn option<T>(&mut self, name: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let at = self.rest.iter().position(|argument| argument == name)?;
        self.rest.remove(at);
        if at == self.rest.len() {
            self.fail(format_args!("{name} needs a value"));
        }
        let value = self.rest.remove(at);
        Some(self.parse(name, &value))
    }

    /// Whether `--name` is there, taken out wherever it stands.
    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.rest.len();
        self.rest.retain(|argument| argument != name);
        self.rest.len() < before
    }

    /// All that is left.
    #[must_use]
    pub fn rest(self) -> Vec<String> {
        self.rest
    }

    /// Ends the process with code 2 and `problem` on stderr.
    pub fn fail(&self, problem: impl Display) -> ! {
        eprintln!("{problem}\nusage: {}", self.usage);
        process::exit(2)
    }

    fn parse<T>(&self, name: &str, value: &str) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        value.parse().unwrap_or_else(|error| self.fail(format_args!("{name} {value:?}: {error}")))
    }
}
