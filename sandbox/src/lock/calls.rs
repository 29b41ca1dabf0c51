//! seccomp: which system calls this process can make.
//!
//! An allow list: calls of later kernels are refused. Refused calls fail with
//! EPERM instead of ending the process, so that an unforeseen but harmless one
//! costs nothing.

use super::Missing;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, threads, time, and open files: libtorch computing.
const ALLOWED: [i64; 56] = [
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    // From a socket that it was given; it cannot create one.
    libc::SYS_recvmsg,
    libc::SYS_renameat2,
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
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The same.
const ALLOWED_MORE: [i64; 4] = [
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_renameat,
];

/// Older calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: [i64; 9] = [
    libc::SYS_access,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: [i64; 0] = [];

/// Cuts this process, with all its threads, off from the network, other processes and every part of
/// the kernel that computing does not need.
pub(super) fn confine() -> Result<(), Missing> {
    let missing = |why: String| Missing {
        what: "seccomp",
        why,
    };
    let programs = programs(std::process::id()).map_err(|e| missing(e.to_string()))?;
    for program in &programs {
        apply_filter_all_threads(program).map_err(|e| missing(e.to_string()))?;
    }
    Ok(())
}

fn programs(own_id: u32) -> Result<[BpfProgram; 2], BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    // The C library starts threads by `clone` if `clone3`, whose arguments no filter can see, does
    // not exist. This needs a separate filter: each has one answer for everything it refuses.
    let absent = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(number(libc::ENOSYS)),
        arch,
    )?;
    let allowed = SeccompFilter::new(
        allowed(own_id)?,
        SeccompAction::Errno(number(libc::EPERM)),
        SeccompAction::Allow,
        arch,
    )?;
    // The second one allows no call to install another.
    Ok([absent.try_into()?, allowed.try_into()?])
}

fn allowed(own_id: u32) -> Result<Rules, BackendError> {
    let plain = ALLOWED.iter().chain(&ALLOWED_MORE).chain(&ALLOWED_HERE);
    let mut rules: Rules = plain.map(|call| (*call, Vec::new())).collect();
    // The other filter answers this one.
    rules.insert(libc::SYS_clone3, Vec::new());
    // Threads, but no processes.
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![all([has(0, thread, thread)?])?]);
    // Aborting, but no signals to others.
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own_id.into())?;
    rules.insert(libc::SYS_tgkill, vec![all([own])?]);
    rules.insert(libc::SYS_openat, opening(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, opening(1)?);
    // Reading limits, but not setting them.
    let none = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![all([none])?]);
    let of_a_terminal = [libc::TCGETS, libc::TIOCGWINSZ];
    rules.insert(libc::SYS_ioctl, one_of(1, &of_a_terminal)?);
    let plain = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_DUPFD_CLOEXEC,
    ];
    rules.insert(libc::SYS_fcntl, one_of(1, &plain.map(bits))?);
    // Lowering priority; raising it needs a privilege.
    let itself = || {
        let zero = |argument| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)
        };
        all([zero(0)?, zero(1)?])
    };
    rules.insert(libc::SYS_getpriority, vec![itself()?]);
    rules.insert(libc::SYS_setpriority, vec![itself()?]);
    rules.insert(libc::SYS_prctl, one_of(0, &[bits(libc::PR_SET_NAME)])?);
    Ok(rules)
}

/// Landlock before 6.2 does not see that opening a file for reading can empty it.
fn opening(flags: u8) -> Result<Vec<SeccompRule>, BackendError> {
    let access = bits(libc::O_ACCMODE);
    let truncate = bits(libc::O_TRUNC);
    Ok(vec![
        all([has(flags, truncate, 0)?])?,
        all([has(flags, access, bits(libc::O_WRONLY))?])?,
        all([has(flags, access, bits(libc::O_RDWR))?])?,
    ])
}

fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value: &u64| {
        let length = SeccompCmpArgLen::Dword;
        all([SeccompCondition::new(
            argument,
            length,
            SeccompCmpOp::Eq,
            *value,
        )?])
    };
    values.iter().map(rule).collect()
}

fn has(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, BackendError> {
    let compare = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)
}

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

/// Constants of the C library are signed, arguments of the kernel are not.
const fn bits(flags: i32) -> u64 {
    flags.cast_unsigned() as u64
}

const fn number(error: i32) -> u32 {
    error.cast_unsigned()
}
