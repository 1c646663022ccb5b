//! The program `opengrid-lab`: what it leaves behind, what it refuses, what it says. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use common::test_name;
use opengrid_lab::{
    control::{Reply, Request},
    namespace,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_opengrid-lab");

/// A running `up`; killed with what it made when dropped.
struct Running {
    child: Child,
    name: String,
    ready: Value,
}

impl Running {
    fn up(name: &str, options: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        let mut child = command.args(["up", "--name", name]).args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, name: name.to_owned(), ready: serde_json::from_str(&line).unwrap() }
    }

    fn control(&self) -> UnixStream {
        UnixStream::connect(self.ready["control"].as_str().unwrap()).unwrap()
    }

    fn end_with(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = run(&["clean", "--name", &self.name]);
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn possible() -> bool {
    let reason = namespace::why_not();
    if let Some(reason) = &reason {
        println!("skipped: {reason}");
    }
    reason.is_none()
}

#[test]
fn it_announces_its_hosts_runs_programs_in_them_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let name = test_name('p');
    let mut lab = Running::up(&name, &["--hosts", "3", "--delay-ms", "1.5"]);
    let hosts = lab.ready["hosts"].as_array().unwrap();
    assert_eq!(hosts[2]["address"], "10.77.0.3");
    assert_eq!(hosts[2]["namespace"], format!("{name}2"));
    let shown = run(&["exec", "--name", &name, "1", "--", "ip", "-4", "-o", "addr", "show"]);
    assert!(said(&shown).contains("10.77.0.2/24") && said(&shown).contains("127.0.0.1/8"), "{}", said(&shown));
    assert_eq!(run(&["exec", "--name", &name, "0", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert!(said(&run(&["exec", "--name", &name, "3", "--", "true"])).contains(&format!("{name}3")));

    let mut inside = Command::new(PROGRAM).args(["exec", "--name", &name, "0", "--", "sleep", "60"]).spawn().unwrap();
    let started = Instant::now();
    while !said(&Command::new("ip").args(["netns", "pids", &format!("{name}0")]).output().unwrap())
        .lines()
        .any(|pid| pid == inside.id().to_string())
    {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(lab.end_with(Signal::TERM), Some(0));
    assert!(!inside.wait().unwrap().success(), "what ran in a host ended with it");
    assert_eq!(namespace::numbered(&name), Vec::<String>::new());
    assert!(!std::path::Path::new(lab.ready["control"].as_str().unwrap()).exists());
}

#[test]
fn the_next_start_removes_what_a_killed_one_left_but_never_a_living_one() {
    if !possible() {
        return;
    }
    let name = test_name('s');
    let mut killed = Running::up(&name, &["--hosts", "3"]);
    let second = run(&["up", "--name", &name]);
    assert!(!second.status.success() && said(&second).contains("in use"), "{}", said(&second));
    assert!(!run(&["clean", "--name", &name]).status.success());
    assert_eq!(namespace::numbered(&name).len(), 3);
    killed.end_with(Signal::KILL);
    assert_eq!(namespace::numbered(&name).len(), 3, "nobody could clean up");
    let mut next = Running::up(&name, &["--hosts", "2"]);
    assert_eq!(namespace::numbered(&name).len(), 2);
    assert_eq!(next.end_with(Signal::INT), Some(0));
    assert_eq!(namespace::numbered(&name).len(), 0);
}

#[test]
fn the_control_socket_answers_every_line_and_survives_bad_ones() {
    if !possible() {
        return;
    }
    let name = test_name('c');
    let lab = Running::up(&name, &[]);
    let mut stream = lab.control();
    let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut ask = |line: &str| -> Reply {
        writeln!(stream, "{line}").unwrap();
        serde_json::from_str(&replies.next().unwrap().unwrap()).unwrap()
    };
    assert_eq!(ask(r#"{"command":"set","from":0,"to":1,"delay_us":5000}"#), Reply::done());
    for (line, words) in [
        ("hello", "not a request"),
        ("", "not a request"),
        (r#"{"command":"explode"}"#, "unknown variant"),
        (r#"{"command":"cut","from":9}"#, "there is no host 9"),
    ] {
        let reply = ask(line);
        assert!(!reply.ok && reply.error.as_ref().unwrap().contains(words), "{reply:?}");
    }
    assert!(ask(&serde_json::to_string(&Request::Stats).unwrap()).stats.is_some());

    // A line without an end costs its sender the connection and nobody else.
    let mut endless = lab.control();
    let _ = endless.write_all(&vec![b'x'; 100_000]);
    let mut last = String::new();
    let _ = BufReader::new(endless).read_line(&mut last);
    assert!(last.is_empty() || last.contains("max line length"), "{last}");
    assert_eq!(ask(r#"{"command":"heal"}"#), Reply::done());

    let told = run(&["tell", "--name", &name, r#"{"command":"cut"}"#, r#"{"command":"cut","to":77}"#]);
    assert_eq!(told.status.code(), Some(1));
    assert_eq!(said(&told).lines().count(), 2);
}

#[test]
fn impossible_wishes_are_refused_in_words() {
    if !possible() {
        return;
    }
    for (arguments, words) in [
        (&["up", "--name", "lab1"][..], "no digit at the end"),
        (&["up", "--name", "../x"], "letters, digits and hyphens"),
        (&["clean", "--name", "../x"], "letters, digits and hyphens"),
        (&["up", "--name", "oglabz", "--hosts", "0"], "0 hosts"),
        (&["up", "--name", "oglabz", "--mtu", "100"], "MTU 100"),
        (&["up", "--name", "oglabz", "--delay-ms", "90000"], "delay_us is 90000000, at most 60000000"),
        (&["up", "--name", "oglabz", "--jitter-ms=-1"], "no time is below zero"),
        (&["up", "--name", "oglabz", "--delay-ms", "NaN"], "no time is below zero"),
        (&["tell", "--name", "oglabz", "{}"], "is a laboratory of this name up?"),
    ] {
        let refused = run(arguments);
        assert!(!refused.status.success() && said(&refused).contains(words), "{arguments:?}: {}", said(&refused));
    }
    assert_eq!(namespace::numbered("oglabz"), Vec::<String>::new());
}
