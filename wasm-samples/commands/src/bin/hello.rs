//! Shows what a container sees of itself: its arguments, its environment, its host name, its working directory.
//!
//! Usage: `hello [WORD...]`. Exit code 0.

use std::{env, fs};

use guest_support::cwd;

fn main() {
    println!("Hello from WebAssembly!");
    println!("args: {:?}", env::args().collect::<Vec<_>>());
    match cwd::enter().and_then(|()| env::current_dir()) {
        Ok(directory) => println!("cwd: {}", directory.display()),
        Err(error) => println!("cwd: {error}"),
    }
    // /etc/hostname is managed by the node; outside of one there may be none.
    match fs::read_to_string("/etc/hostname") {
        Ok(name) => println!("hostname: {}", name.trim_end()),
        Err(error) => println!("hostname: {error}"),
    }
    let mut variables: Vec<_> = env::vars_os().collect();
    variables.sort();
    for (name, value) in variables {
        println!("env: {}={}", name.to_string_lossy(), value.to_string_lossy());
    }
}
