//! What a child process gives up before it reads its first hostile byte: privileges, files, network, new processes.
//!
//! On Linux: `no_new_privs`, Landlock (read the model files, nothing else), a seccomp deny-list and no core dumps. Each
//! layer that the kernel lacks is named in the report; elsewhere the child is only a separate process.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the sandbox must allow beyond its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Devices {
    None,
    /// GPU drivers open device files, sockets and threads of their own: Landlock and the network rules stay off.
    Gpu,
}

/// What a confined process tried and how each attempt ended: `None` when it succeeded, which is a hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxProbe {
    pub read_other_file: Option<String>,
    pub write_file: Option<String>,
    pub rename_file: Option<String>,
    pub open_socket: Option<String>,
    pub start_process: Option<String>,
}

/// Tries what a sandbox must refuse; harmless where it succeeds.
pub fn probe() -> SandboxProbe {
    let why = |error: std::io::Error| error.to_string();
    let scratch = std::env::temp_dir().join(format!("opengrid-sandbox-probe-{}", std::process::id()));
    let write_file = std::fs::write(&scratch, b"").err().map(why);
    if write_file.is_none() {
        let _ = std::fs::remove_file(&scratch);
    }
    SandboxProbe {
        read_other_file: std::fs::File::open("/etc/passwd").err().map(why),
        write_file,
        rename_file: rename_to_itself("/etc/passwd").err().map(why),
        open_socket: std::net::UdpSocket::bind("127.0.0.1:0").err().map(why),
        start_process: std::process::Command::new("/bin/true").status().err().map(why),
    }
}

/// Does nothing where it is allowed. By `renameat`, which the filter must know beside `rename` and `renameat2`.
#[cfg(target_os = "linux")]
fn rename_to_itself(path: &str) -> std::io::Result<()> {
    use rustix::fs::{CWD, renameat};
    Ok(renameat(CWD, path, CWD, path)?)
}

#[cfg(not(target_os = "linux"))]
fn rename_to_itself(path: &str) -> std::io::Result<()> {
    std::fs::rename(path, path)
}

/// Confines this process for good; call before any thread starts. Returns what is in force, for people.
#[cfg(target_os = "linux")]
pub fn enter(files: &[&Path], devices: Devices) -> String {
    linux::enter(files, devices)
}

#[cfg(not(target_os = "linux"))]
pub fn enter(_files: &[&Path], _devices: Devices) -> String {
    "separate process only".to_owned()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{collections::BTreeMap, path::Path};

    use landlock::{
        ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
        RulesetStatus, Scope,
    };
    use rustix::process::{Resource, Rlimit, setrlimit};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    use super::Devices;

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;
    type Failure = Box<dyn std::error::Error>;

    /// Read by the C++ runtime and ggml for the number of cores and their topology.
    const SYSTEM_DIRECTORY: &str = "/sys/devices/system";
    const SYSTEM_FILES: [&str; 2] = ["/proc/cpuinfo", "/proc/meminfo"];

    pub(super) fn enter(files: &[&Path], devices: Devices) -> String {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let state = |name: &str, done: Result<String, String>| match done {
            Ok(note) => format!("{name}{note}"),
            Err(why) => format!("no {name}: {why}"),
        };
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut states = Vec::new();
        if let Err(error) = setrlimit(Resource::Core, none) {
            states.push(format!("core dumps stay on: {error}"));
        }
        if let Err(error) = rustix::thread::set_no_new_privs(true) {
            states.push(format!("no no_new_privs: {error}"));
        }
        states.push(match devices {
            Devices::None => state("landlock", restrict_files(files).map_err(|error| text(&error))),
            Devices::Gpu => "no landlock: a gpu is used".to_owned(),
        });
        states.push(state("seccomp", filter_calls(devices).map(|()| String::new()).map_err(|error| text(&error))));
        states.join(", ")
    }

    fn restrict_files(files: &[&Path]) -> Result<String, RulesetError> {
        let abi = ABI::V6;
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        let files = SYSTEM_FILES.iter().map(Path::new).chain(files.iter().copied());
        let files = files.map(|file| (file, AccessFs::ReadFile.into()));
        let directory = (Path::new(SYSTEM_DIRECTORY), AccessFs::ReadFile | AccessFs::ReadDir);
        for (path, access) in files.chain([directory]) {
            if let Ok(fd) = PathFd::new(path) {
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
            }
        }
        Ok(match ruleset.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => String::new(),
            RulesetStatus::PartiallyEnforced => " (partly: an older kernel)".to_owned(),
            RulesetStatus::NotEnforced => " (not enforced: the kernel lacks it)".to_owned(),
        })
    }

    fn filter_calls(devices: Devices) -> Result<(), Failure> {
        // glibc falls back from clone3, whose flags a filter cannot see, to clone, whose flags it can.
        apply([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
        apply(denied(devices)?, libc::EPERM)
    }

    fn apply(rules: Rules, errno: i32) -> Result<(), Failure> {
        let architecture = std::env::consts::ARCH.try_into()?;
        let deny = SeccompAction::Errno(errno.unsigned_abs());
        let program: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, deny, architecture)?.try_into()?;
        seccompiler::apply_filter(&program)?;
        Ok(())
    }

    fn denied(devices: Devices) -> Result<Rules, Failure> {
        let mut rules: Rules = ALWAYS_DENIED.iter().map(|call| (*call, Vec::new())).collect();
        if devices == Devices::None {
            rules.extend(NETWORK.iter().map(|call| (*call, Vec::new())));
            rules.insert(libc::SYS_openat, for_writing(2)?);
            #[cfg(target_arch = "x86_64")]
            rules.insert(libc::SYS_open, for_writing(1)?);
            for call in [libc::SYS_kill, libc::SYS_tgkill] {
                rules.insert(call, vec![other_process()?]);
            }
            let thread = libc::CLONE_THREAD as u64;
            rules.insert(libc::SYS_clone, vec![masked(0, thread, 0)?]);
        }
        Ok(rules)
    }

    fn for_writing(argument: u8) -> Result<Vec<SeccompRule>, Failure> {
        let mode = libc::O_ACCMODE as u64;
        Ok(vec![masked(argument, mode, libc::O_WRONLY as u64)?, masked(argument, mode, libc::O_RDWR as u64)?])
    }

    fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, Failure> {
        let compare = SeccompCmpOp::MaskedEq(mask);
        Ok(SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, compare, value)?])?)
    }

    fn other_process() -> Result<SeccompRule, Failure> {
        let me = u64::from(std::process::id());
        Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, me)?])?)
    }

    const NETWORK: &[i64] = &[
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
    ];

    const ALWAYS_DENIED: &[i64] = &[
        // Other programs and processes.
        libc::SYS_execve,
        libc::SYS_execveat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_kcmp,
        // The file system's shape, where Landlock is missing.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mkdir,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rmdir,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_link,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_symlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lchown,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod,
        libc::SYS_unlinkat,
        libc::SYS_renameat,
        libc::SYS_renameat2,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchmodat2,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_truncate,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_openat2,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        // Wide kernel interfaces.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_clock_settime,
        libc::SYS_settimeofday,
        libc::SYS_sethostname,
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
    ];
}
