//! A process tree inside one container: a pipeline of two programs, and every promise about children.
//!
//! Usage: `pipeline [--program PATH]`. PATH, default our own argv[0], is this very program in the container's
//! filesystem: it plays all the parts. Prints what the pipeline said, one line per check, and `pipeline: N passed,
//! M failed`; exit code 0 or 1. The parts: `produce LINES`, `consume`, `exit CODE`, `show`, `holds FD`, `spin`,
//! `sleep`.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, process, thread};

use guest_support::args::Args;
use guest_support::check::{Checks, Outcome, Step, ensure, equal, fails_with};
use preview1::process::{Command, Ended, Pid, SIGKILL, ids, kill, pipe, try_wait, wait, wait_any};

/// More than a pipe holds, so that both ends must wait for each other.
const LINES: u64 = 100_000;

fn main() -> ExitCode {
    let mut args = Args::new("pipeline [--program PATH]");
    let program = args.option("--program").or_else(|| env::args().next()).unwrap_or_default();
    match args.next::<String>("part").as_deref() {
        None => parent(&program),
        Some("produce") => produce(args.next_or("lines", LINES)),
        Some("consume") => consume(),
        Some("exit") => process::exit(args.next_or("code", 0)),
        Some("show") => show(),
        Some("holds") => holds(args.next_or("descriptor", 0)),
        Some("spin") => loop {
            std::hint::spin_loop();
        },
        Some("sleep") => loop {
            thread::sleep(Duration::from_hours(1));
        },
        Some(other) => args.fail(format_args!("no part is called {other:?}")),
    }
}

/// Writes numbered lines; a reader that has gone is no error, as for any filter.
fn produce(lines: u64) -> ExitCode {
    let mut output = io::BufWriter::new(io::stdout().lock());
    let result = (0..lines).try_for_each(|number| writeln!(output, "{number}")).and_then(|()| output.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
        Err(error) => {
            eprintln!("produce: {error}");
            ExitCode::FAILURE
        }
    }
}

fn consume() -> ExitCode {
    let (mut lines, mut sum) = (0_u64, 0_u64);
    for line in io::stdin().lock().lines() {
        match line.map(|line| line.parse::<u64>()) {
            Ok(Ok(number)) => sum += number,
            other => {
                eprintln!("consume: {other:?}");
                return ExitCode::FAILURE;
            }
        }
        lines += 1;
    }
    println!("{lines} lines, sum {sum}");
    ExitCode::from(3)
}

fn show() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    println!("args {args:?} cwd {} env {}", working_directory(), environment());
    let (pid, parent) = ids();
    println!("pid {} parent {}", pid.0, parent.0);
    ExitCode::SUCCESS
}

/// What the node says the working directory is; libc itself always starts in `/`.
fn working_directory() -> String {
    std::fs::read_link("/proc/self/cwd").map_or_else(|error| error.to_string(), |path| path.display().to_string())
}

/// All variables but PWD, by which the node tells the working directory.
fn environment() -> String {
    let variables = env::vars().filter(|(name, _)| name != "PWD");
    variables.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Ends with 0 when the descriptor is open here, with 1 when it is not.
fn holds(descriptor: i32) -> ExitCode {
    // SAFETY: the call only asks; whether anything is behind the number is the question.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    if flags < 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn parent(program: &str) -> ExitCode {
    let mut checks = Checks::new("pipeline");
    let part = |name: &str| Command::new(program).arg(name).fd(2, &io::stderr());
    checks.check("produce | consume: all lines arrive, both exit codes come back", || {
        let expected = format!("{LINES} lines, sum {}\n", LINES * (LINES - 1) / 2);
        let (reader, writer) = pipe().step("pipe")?;
        let (result, result_writer) = pipe().step("second pipe")?;
        let producer = part("produce").arg(&LINES.to_string()).fd(1, &writer).spawn().step("spawn produce")?;
        let consumer = part("consume").fd(0, &reader).fd(1, &result_writer).spawn().step("spawn consume")?;
        // Who keeps a writing end open keeps its reader waiting.
        drop((reader, writer, result_writer));
        let said = read_all(result)?;
        print!("produce | consume: {said}");
        let (first, second) = (wait(producer).step("wait")?, wait(consumer).step("wait")?);
        println!("produce exited with {}, consume with {}", first.status, second.status);
        equal("what consume said", said.as_str(), expected.as_str())?;
        equal("exit codes", (first.status, second.status), (0, 3))
    });
    checks.check("a writer whose reader has gone gets EPIPE", || {
        let (reader, writer) = pipe().step("pipe")?;
        let producer = part("produce").fd(1, &writer).spawn().step("spawn")?;
        drop((reader, writer));
        equal("exit code", wait(producer).step("wait")?.status, 141)
    });
    checks.check("every exit code comes back as it was", || {
        for code in [0, 1, 7, 127, 128, 255] {
            let child = part("exit").arg(&code.to_string()).spawn().step("spawn")?;
            equal("exit code", wait(child).step("wait")?, Ended { pid: child, status: code })?;
        }
        Ok(())
    });
    surroundings(&mut checks, program);
    endings(&mut checks, program);
    refusals(&mut checks, program);
    checks.verdict()
}

fn surroundings(checks: &mut Checks, program: &str) {
    let said_by = |command: Command| -> Result<String, String> {
        let (reader, writer) = pipe().step("pipe")?;
        let child = command.fd(1, &writer).spawn().step("spawn")?;
        drop(writer);
        let said = read_all(reader)?;
        equal("exit code", wait(child).step("wait")?.status, 0)?;
        Ok(said)
    };
    checks.check("arguments, environment and working directory are the child's own", || {
        let command =
            Command::new(program).arg("show").arg("two words").arg("").env(&["A=1", "B=x=y"]).current_dir("/tmp");
        let said = said_by(command)?;
        starts_with(&said, "args [\"show\", \"two words\", \"\"] cwd /tmp env A=1,B=x=y\n")
    });
    checks.check("without its own, the child gets its parent's", || {
        let said = said_by(Command::new(program).arg("show"))?;
        starts_with(&said, &format!("args [\"show\"] cwd {} env {}\n", working_directory(), environment()))
    });
    checks.check("a child knows its parent", || {
        let said = said_by(Command::new(program).arg("show"))?;
        let (pid, _) = ids();
        ensure(said.ends_with(&format!("parent {}\n", pid.0)), || format!("we are {}, it said {said:?}", pid.0))
    });
    checks.check("a child holds the descriptors it was given and no others", || {
        let (reader, _writer) = pipe().step("pipe")?;
        let number = reader.as_raw_fd();
        let holds = Command::new(program).arg("holds").arg(&number.to_string());
        let without = wait(holds.spawn().step("spawn")?).step("wait")?.status;
        let with = wait(holds.fd(number as u32, &reader).spawn().step("spawn")?).step("wait")?.status;
        equal("exit codes (not given, given)", (without, with), (1, 0))
    });
}

fn endings(checks: &mut Checks, program: &str) {
    let start = |part: &str| Command::new(program).arg(part).spawn().step("spawn");
    checks.check("kill ends a child that sleeps and one that spins, with 137", || {
        for part in ["sleep", "spin"] {
            let child = start(part)?;
            thread::sleep(Duration::from_millis(20));
            kill(child, SIGKILL).step("kill")?;
            equal(part, wait(child).step("wait")?.status, 128 + SIGKILL)?;
        }
        Ok(())
    });
    checks.check("a wait that must not hang says that nobody has ended", || {
        let child = start("sleep")?;
        let begin = Instant::now();
        equal("wait", try_wait(child).step("wait")?, None)?;
        ensure(begin.elapsed() < Duration::from_secs(1), || format!("it took {:?}", begin.elapsed()))?;
        kill(child, SIGKILL).step("kill")?;
        wait(child).step("wait").map(drop)
    });
    checks.check("wait for any gives each child once, then ECHILD", || {
        let mut expected = Vec::new();
        for code in 10..14 {
            let child = Command::new(program).arg("exit").arg(&code.to_string()).spawn().step("spawn")?;
            expected.push((child.0, code));
        }
        let mut ended = Vec::new();
        for _ in 0..expected.len() {
            let one = wait_any().step("wait")?;
            ended.push((one.pid.0, one.status));
        }
        ended.sort_unstable();
        expected.sort_unstable();
        equal("children", ended, expected)?;
        fails_with("one more wait", wait_any(), (ECHILD, "ECHILD"))
    });
}

fn refusals(checks: &mut Checks, program: &str) {
    checks.check("a program that is not there is ENOENT", || {
        fails_with("spawn", Command::new("/no/such/program").spawn(), (libc::ENOENT, "ENOENT"))
    });
    checks.check("a file that is no program is ENOEXEC", || {
        std::fs::write("/tmp/no-program", "just text\n").step("write")?;
        fails_with("spawn", Command::new("/tmp/no-program").spawn(), (libc::ENOEXEC, "ENOEXEC"))?;
        std::fs::remove_file("/tmp/no-program").step("unlink")
    });
    checks.check("a descriptor that is not ours cannot be given away", || {
        struct NotOurs;
        impl AsRawFd for NotOurs {
            fn as_raw_fd(&self) -> i32 {
                4_321
            }
        }
        fails_with("spawn", Command::new(program).arg("exit").fd(1, &NotOurs).spawn(), (libc::EBADF, "EBADF"))
    });
    checks.check("who is not our child is ECHILD to wait for and ESRCH to kill", || {
        fails_with("wait", wait(Pid(999_999)), (ECHILD, "ECHILD"))?;
        fails_with("kill", kill(Pid(999_999), SIGKILL), (ESRCH, "ESRCH"))
    });
}

/// Not among the names of the libc crate for WASI; preview 1's numbers.
const ECHILD: i32 = 12;
const ESRCH: i32 = 71;

fn starts_with(said: &str, expected: &str) -> Outcome {
    ensure(said.starts_with(expected), || format!("it said {said:?}, expected {expected:?}"))
}

fn read_all(mut reader: File) -> Result<String, String> {
    let mut text = String::new();
    reader.read_to_string(&mut text).step("read")?;
    Ok(text)
}
