//! Exercises a container's network through `std::net` and judges the answers by Linux's rules.
//!
//! Usage: `net-check` checks the loopback inside one container; `net-check serve PORT` echoes TCP and UDP on all
//! addresses for good; `net-check dial HOST PORT` checks against such a server in another container or pod; `net-check hoard
//! PORT` takes all of the network that its pod may have, and waits for good.
//! `--no-ipv6` leaves out `::1`. One line per check, then `net-check: N passed, M failed`; exit code 0 or 1.
//!
//! There are no threads in WASI 0.2, so one process plays both ends: it never waits for itself, but polls where a real
//! peer would be waited for.

mod hoard;
mod names;
mod poll;
mod serve;
mod stream;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use guest_support::args::Args;
use guest_support::check::Checks;

fn main() -> ExitCode {
    let mut args = Args::new("net-check [--no-ipv6] | serve PORT | dial HOST PORT | hoard PORT");
    let ipv6 = !args.flag("--no-ipv6");
    let mut checks = Checks::new("net-check");
    match args.next::<String>("mode").as_deref() {
        None => {
            let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
            if ipv6 {
                addresses.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
            }
            for address in addresses {
                tcp::run(&mut checks, address);
                stream::run(&mut checks, address);
                udp::run(&mut checks, address);
            }
            names::run(&mut checks);
        }
        Some("serve") => {
            let Some(port) = args.next("port") else { args.fail("PORT is missing") };
            if let Err(error) = serve::serve(port) {
                eprintln!("net-check: port {port}: {error}");
                return ExitCode::FAILURE;
            }
        }
        Some("dial") => {
            let (Some(host), Some(port)) = (args.next::<String>("host"), args.next("port")) else {
                args.fail("HOST or PORT is missing")
            };
            serve::dial(&mut checks, &host, port);
        }
        Some("hoard") => {
            let Some(port) = args.next("port") else { args.fail("PORT is missing") };
            if let Err(error) = hoard::hoard(port) {
                eprintln!("net-check: port {port}: {error}");
                return ExitCode::FAILURE;
            }
        }
        Some(other) => args.fail(format_args!("no mode is called {other:?}")),
    }
    checks.verdict()
}
