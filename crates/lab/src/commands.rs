//! The commands, one function each.

use std::{
    error::Error,
    io::{self, BufRead, BufReader, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    time::Duration,
};

use opengrid_lab::{
    control::{Reply, Set},
    fabric::HostId,
    laboratory::{self, Config, Handle, Laboratory},
    link::LinkSettings,
    measure, namespace, server,
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Command, Exec, Measure, Name, Tell, Up};

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Milliseconds of a person as the whole microseconds of the control socket.
const MICROS_PER_MS: f64 = 1000.0;
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(command: Command) -> Outcome {
    match command {
        Command::Up(up) => self::up(&up),
        Command::Exec(exec) => self::exec(&exec),
        Command::Tell(tell) => self::tell(&tell),
        Command::Clean(Name { name }) => clean(&name),
        Command::Measure(measure) => self::measure(&measure),
        Command::Check => Ok(check()),
    }
}

fn up(up: &Up) -> Outcome {
    let name = up.name.name.clone();
    if let Some(reason) = namespace::why_not() {
        return Err(reason.into());
    }
    let config = Config { name, hosts: up.hosts, mtu: up.mtu, links: links(up)?, seed: up.seed };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anything is there to be cleaned up.
    let signals = runtime.block_on(async { Signals::new() })?;
    let laboratory = Laboratory::up(&config)?;
    let path = up.control.clone().unwrap_or_else(|| laboratory::control_path(&config.name));
    let served = runtime.block_on(serve(&laboratory, &path, signals));
    // It may have been replaced; nothing depends on it any more.
    let _ = std::fs::remove_file(&path);
    laboratory.down()?;
    served.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn links(up: &Up) -> Result<LinkSettings, Box<dyn Error>> {
    let micros = |name, millis: f64| match millis {
        0.0.. => Ok((millis * MICROS_PER_MS).round() as u64),
        _ => Err(format!("--{name} {millis}: no time is below zero")),
    };
    let set = Set {
        delay_us: Some(micros("delay-ms", up.delay_ms)?),
        jitter_us: Some(micros("jitter-ms", up.jitter_ms)?),
        loss_ppm: Some(up.loss_ppm),
        rate_bytes_per_s: Some(up.rate_bytes_per_s),
        queue_bytes: up.queue_bytes,
        reorder: Some(up.reorder),
        ..Default::default()
    };
    Ok(set.changed(&LinkSettings::default())?)
}

struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        let on = |kind| signal(kind);
        Ok(Self([on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn serve(laboratory: &Laboratory, path: &Path, mut signals: Signals) -> io::Result<()> {
    let handle: &Handle = laboratory.handle();
    let listener = server::listen(path)?;
    let ready = json!({
        "ready": true,
        "control": path,
        "realtime": laboratory.is_realtime(),
        "hosts": laboratory.hosts(),
    });
    writeln!(io::stdout(), "{ready}")?;
    tokio::select! {
        () = signals.any() => Ok(()),
        // `down` says why.
        () = handle.ended() => Ok(()),
        served = server::serve(&listener, handle) => served,
    }
}

/// Becomes the command; returns only when that fails.
fn exec(exec: &Exec) -> Outcome {
    let name = laboratory::namespace_name(&exec.name.name, HostId(exec.host));
    namespace::enter(&name)?;
    let Some((program, arguments)) = exec.command.split_first() else { return Err("no command".into()) };
    let error = process::Command::new(program).args(arguments).exec();
    Err(format!("{}: {error}", program.display()).into())
}

fn tell(tell: &Tell) -> Outcome {
    let path: PathBuf = tell.control.clone().unwrap_or_else(|| laboratory::control_path(&tell.name.name));
    let failed = |error| format!("{}: {error}; is a laboratory of this name up?", path.display());
    let mut stream = UnixStream::connect(&path).map_err(failed)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let mut replies = BufReader::new(stream.try_clone()?).lines();
    let mut all_done = true;
    for request in &tell.requests {
        writeln!(stream, "{}", request.replace('\n', " "))?;
        let reply = replies.next().ok_or("the laboratory has ended")??;
        writeln!(io::stdout(), "{reply}")?;
        all_done &= serde_json::from_str::<Reply>(&reply)?.ok;
    }
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn clean(name: &str) -> Outcome {
    laboratory::clear(name)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(measure: &Measure) -> Outcome {
    if let Some(reason) = namespace::why_not() {
        return Err(reason.into());
    }
    let figures = measure::all(&measure.name, measure.packets, Duration::from_secs(measure.seconds))?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    Ok(ExitCode::SUCCESS)
}

fn check() -> ExitCode {
    let Some(reason) = namespace::why_not() else { return ExitCode::SUCCESS };
    println!("{reason}");
    ExitCode::FAILURE
}
