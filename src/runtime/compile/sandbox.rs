//! The seccomp filter of the compile subprocess.
//!
//! In: a process that has opened all it needs. Out: the same, able to compute, to allocate, to run threads, and to use
//! the descriptors it has. Opening, connecting, executing and signalling others fail with EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Why the filter is not in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// No filter is known for this kind of CPU.
    #[error("no seccomp filter for this architecture")]
    Architecture(#[source] seccompiler::BackendError),
    /// The filter could not be made.
    #[error("building the seccomp filter: {0}")]
    Build(#[source] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("loading the seccomp filter: {0}")]
    Load(#[source] seccompiler::Error),
}

/// What a compiler with threads calls. `open` and its kin are not here: rayon and std look for cgroup files and go on
/// without them.
const ALLOWED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Puts the filter in force for all threads, present and future.
pub(super) fn enter() -> Result<(), SandboxError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(SandboxError::Architecture)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    // abort() signals its own process; no other can be.
    let own_pid = u64::from(std::process::id());
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own_pid)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(SandboxError::Build)?;
    rules.insert(libc::SYS_tgkill, vec![own]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch).map_err(SandboxError::Build)?;
    let program: BpfProgram = filter.try_into().map_err(SandboxError::Build)?;
    seccompiler::apply_filter_all_threads(&program).map_err(SandboxError::Load)
}
