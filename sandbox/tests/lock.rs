//! Escape attempts from a locked process: this program starts itself as an inmate, which tries to
//! break out and reports how far it got.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_sandbox::lock::{Cell, Limits, Strictness, lock_up};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 200 << 20;
const FILE_BYTES: u64 = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|a| a == "inmate") {
        let [deed, folder, strictness] = &arguments[at + 1..] else {
            panic!("{arguments:?}");
        };
        inmate(deed, Path::new(folder), strictness == "required");
        return;
    }
    for (name, test) in TESTS {
        test();
        println!("test {name} ... ok");
    }
    println!(
        "test result: ok. {} passed; 0 failed; 0 ignored",
        TESTS.len()
    );
}

const TESTS: [(&str, fn()); 6] = [
    ("an_inmate_reaches_nothing_outside", reaches_nothing),
    ("an_inmate_can_work", can_work),
    ("what_an_inmate_uses_up_is_limited", is_limited),
    ("what_the_kernel_lacks_is_refused", lacks),
    ("an_inmate_with_threads_is_no_inmate", with_threads),
    ("locking_up_takes_no_time", takes_no_time),
];

/// A folder with a cell, an outside, and this program as an inmate.
struct Prison {
    folder: tempfile::TempDir,
}

impl Prison {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cell")).unwrap();
        fs::write(folder.path().join("model"), "model").unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        Self { folder }
    }

    fn command(&self, deed: &str, strictness: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("inmate").arg(deed).arg(self.folder.path());
        command.arg(strictness);
        command
    }

    fn run(&self, deed: &str) -> Output {
        self.command(deed, "required").output().unwrap()
    }

    fn says(&self, deed: &str) -> String {
        text(&self.run(deed))
    }
}

fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn reaches_nothing() {
    let prison = Prison::new();
    for deed in [
        "read secret",
        "read passwd",
        "write secret",
        "empty secret",
        "make file",
        "remove secret",
        "rename out",
        "link secret",
        "list folder",
        "tcp",
        "udp",
        "unix",
        "exec",
        "kill parent",
        "read parent",
        "raise limit",
    ] {
        let said = prison.says(deed);
        assert!(
            said.contains("denied") || said.contains("not permitted"),
            "{deed}: {said}"
        );
    }
    let secret = fs::read_to_string(prison.folder.path().join("secret"));
    assert_eq!(secret.unwrap(), "secret");
    let left = fs::read_dir(prison.folder.path()).unwrap().count();
    assert_eq!(left, 3);
}

fn can_work() {
    let prison = Prison::new();
    for deed in [
        "read model",
        "write block",
        "compute",
        "thread",
        "abort handler",
    ] {
        assert_eq!(prison.says(deed), "done", "{deed}");
    }
    assert_eq!(
        prison.run("abort").status.signal(),
        Some(6),
        "aborting ends it as ever"
    );
}

fn is_limited() {
    let prison = Prison::new();
    let begin = Instant::now();
    assert_eq!(prison.run("spin").status.signal(), Some(24));
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(prison.run("large file").status.signal(), Some(25));
    let written = fs::metadata(prison.folder.path().join("cell/large")).unwrap();
    assert_eq!(written.len(), FILE_BYTES);
    let said = prison.says("memory");
    assert!(said.contains("no memory"), "{said}");
    let said = prison.says("files");
    assert!(said.contains("Too many open files"), "{said}");
}

/// Runs an inmate where `call` fails as on a kernel without it.
fn without(prison: &Prison, call: i64, strictness: &str) -> Output {
    let mut command = prison.command("read secret", strictness);
    let inner = std::thread::spawn(move || {
        let filter = SeccompFilter::new(
            BTreeMap::from([(call, Vec::new())]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        // For this thread and what it starts.
        apply_filter(&program).unwrap();
        command.output().unwrap()
    });
    inner.join().unwrap()
}

fn lacks() {
    let prison = Prison::new();
    let landlock = libc::SYS_landlock_create_ruleset;
    for (call, name) in [(landlock, "Landlock"), (libc::SYS_seccomp, "seccomp")] {
        let said = text(&without(&prison, call, "required"));
        assert!(said.contains("cannot lock up"), "{name}: {said}");
        assert!(said.contains(&format!("no {name} (")), "{said}");
        assert!(!said.contains("done"), "{said}");
    }
    // If it continues anyway, the other half still protects.
    let said = text(&without(&prison, landlock, "what there is"));
    assert!(said.contains("missing Landlock"), "{said}");
    assert!(said.contains("done"), "{said}");
    let said = text(&without(&prison, libc::SYS_seccomp, "what there is"));
    assert!(said.contains("missing seccomp"), "{said}");
    assert!(said.contains("denied"), "{said}");
}

fn with_threads() {
    let said = Prison::new().says("threads before");
    let is_new = said == "done";
    assert!(is_new || said.contains("holds for one thread"), "{said}");
}

fn takes_no_time() {
    let said = Prison::new().says("time");
    assert!(said.starts_with("locked up in "), "{said}");
    println!("{said}");
}

fn inmate(deed: &str, folder: &Path, is_required: bool) {
    let cell = Cell {
        read: vec![folder.join("model")],
        write: Some(folder.join("cell")),
        limits: Limits {
            memory_bytes: MEMORY_BYTES,
            cpu: Some(Duration::from_secs(1)),
            file_bytes: FILE_BYTES,
        },
    };
    if deed == "threads before" {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
    }
    let strictness = if is_required {
        Strictness::Required
    } else {
        Strictness::WhatThereIs
    };
    // An inmate may not call it.
    let parent = rustix::process::getppid().unwrap();
    let begin = Instant::now();
    match lock_up(&cell, strictness) {
        Ok(missing) => missing.iter().for_each(|m| println!("missing {}", m.what)),
        Err(error) => {
            println!("{error}");
            return;
        }
    }
    if deed == "time" {
        println!("locked up in {:.2?}", begin.elapsed());
        return;
    }
    match attempt(deed, folder, parent) {
        Ok(()) => println!("done"),
        Err(error) => println!("{error}"),
    }
}

fn attempt(deed: &str, folder: &Path, parent: Pid) -> std::io::Result<()> {
    let secret = folder.join("secret");
    let own = |name: &str| -> PathBuf { folder.join("cell").join(name) };
    match deed {
        "read model" => fs::read(folder.join("model")).map(drop),
        "read secret" => fs::read(secret).map(drop),
        "read passwd" => fs::read("/etc/passwd").map(drop),
        "read parent" => fs::read(format!("/proc/{parent}/environ")).map(drop),
        "write secret" => OpenOptions::new().write(true).open(secret).map(drop),
        "empty secret" => OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_TRUNC)
            .open(secret)
            .map(drop),
        "make file" => fs::write(folder.join("new"), "x"),
        "remove secret" => fs::remove_file(secret),
        "rename out" => {
            fs::write(own("mine"), "x")?;
            fs::rename(own("mine"), folder.join("moved"))
        }
        "link secret" => std::os::unix::fs::symlink(secret, own("link")),
        "list folder" => fs::read_dir(folder).map(drop),
        "write block" => {
            fs::write(own("block.part"), "block")?;
            fs::rename(own("block.part"), own("block"))?;
            fs::remove_file(own("block"))
        }
        "tcp" => TcpStream::connect("127.0.0.1:80").map(drop),
        "udp" => UdpSocket::bind("127.0.0.1:0").map(drop),
        "unix" => UnixStream::connect("/run/x").map(drop),
        "exec" => Err(Command::new("/bin/true").exec()),
        "kill parent" => Ok(kill_process(parent, Signal::TERM)?),
        "raise limit" => raise_limit(),
        "compute" | "abort handler" => Ok(()),
        "thread" => std::thread::spawn(|| ()).join().map_err(|_| panicked()),
        "threads before" => Ok(()),
        "abort" => std::process::abort(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "large file" => fs::write(own("large"), vec![0; 4 << 20]),
        "memory" => {
            let mut kept: Vec<u8> = Vec::new();
            let reserved = kept.try_reserve_exact(2 * MEMORY_BYTES as usize);
            reserved.map_err(|_| std::io::Error::other("no memory"))
        }
        "files" => {
            let model = || fs::File::open(folder.join("model"));
            (0..200)
                .map(|_| model())
                .collect::<Result<Vec<_>, _>>()
                .map(drop)
        }
        other => panic!("{other}"),
    }
}

fn raise_limit() -> std::io::Result<()> {
    Ok(setrlimit(Resource::Nofile, getrlimit(Resource::Nofile))?)
}

fn panicked() -> std::io::Error {
    std::io::Error::other("it panicked")
}
