//! The thread that moves packets: it sleeps until a host sends something, a packet is due, or it is spoken to.
//!
//! One thread for all: a packet then costs one wake-up (the receiver's is the kernel's), and the links need no lock.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{EventfdFlags, epoll, eventfd},
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
        timerfd_settime,
    },
};
use tokio::sync::{mpsc, oneshot};
use tun_rs::SyncDevice;

use crate::{
    anticipation::{Anticipation, Wait},
    control::{Reply, Request, Stats},
    fabric::{Fabric, HostId},
    lateness::Lateness,
    packet,
};

/// Packets taken from one host in a row, so that one that floods does not keep the others waiting.
const READS_IN_A_ROW: usize = 32;
const PACKET_BYTES_MAX: usize = 65_535;
const EVENTS_MAX: usize = 64;
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Tokens of what is waited for; hosts have their numbers.
const TIMER: u64 = 1 << 32;
const COMMAND: u64 = 1 << 33;

/// A request and where its reply goes.
pub(crate) type Command = (Request, oneshot::Sender<Reply>);

pub(crate) struct Forwarder {
    devices: Vec<SyncDevice>,
    fabric: Fabric<Box<[u8]>>,
    commands: mpsc::Receiver<Command>,
    bell: Arc<Bell>,
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_at: Option<Duration>,
    anticipation: Anticipation,
    buffer: Box<[u8]>,
    no_receiver: u64,
    not_taken: u64,
    lateness: Lateness,
}

/// Makes the thread look at its commands, or end.
pub(crate) struct Bell {
    event: OwnedFd,
    stop: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, stop: AtomicBool::new(false) })
    }

    pub(crate) fn ring(&self) {
        // It fails only when it has been rung four billion times.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring();
    }
}

impl Forwarder {
    /// `devices` are non-blocking, one for each host of the fabric.
    pub(crate) fn new(
        devices: Vec<SyncDevice>,
        fabric: Fabric<Box<[u8]>>,
        commands: mpsc::Receiver<Command>,
        bell: Arc<Bell>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let watch = |source: &dyn AsFd, token| {
            epoll::add(&epoll, source.as_fd(), epoll::EventData::new_u64(token), epoll::EventFlags::IN)
        };
        watch(&timer, TIMER)?;
        watch(&bell.event, COMMAND)?;
        devices.iter().zip(0..).try_for_each(|(device, token)| watch(device, token))?;
        Ok(Self {
            devices,
            fabric,
            commands,
            bell,
            epoll,
            timer,
            timer_at: None,
            anticipation: Anticipation::new(now()),
            buffer: vec![0; PACKET_BYTES_MAX].into(),
            no_receiver: 0,
            not_taken: 0,
            lateness: Lateness::default(),
        })
    }

    /// Runs until it is stopped or a device fails.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let timeout = self.prepare_to_wait()?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                done => done?,
            };
            self.hand_over();
            for event in &events {
                match event.data.u64() {
                    TIMER => self.clear_timer(),
                    COMMAND if self.bell.stop.load(Ordering::Acquire) => return Ok(()),
                    COMMAND => self.obey(),
                    host => self.collect(host as u8)?,
                }
                // After every source, so that no packet waits for what others send.
                self.hand_over();
            }
        }
    }

    /// Takes what a host has sent.
    fn collect(&mut self, from: u8) -> io::Result<()> {
        for _ in 0..READS_IN_A_ROW {
            let bytes = match self.devices[usize::from(from)].recv(&mut self.buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let packet = &self.buffer[..bytes];
            match packet::receiver(packet, self.fabric.hosts()) {
                Some(to) => self.fabric.send(now(), HostId(from), to, bytes, || packet.into()),
                None => self.no_receiver += 1,
            }
        }
        Ok(())
    }

    /// Gives the hosts all that is due.
    fn hand_over(&mut self) {
        while let Some(delivery) = self.fabric.take_due(now()) {
            let taken = self.devices[usize::from(delivery.to.0)].send(&delivery.packet).is_ok();
            self.not_taken += u64::from(!taken);
            self.lateness.record(now().saturating_sub(delivery.due));
        }
    }

    /// How long to wait for events: not at all, or until one comes, which may be the timer.
    fn prepare_to_wait(&mut self) -> io::Result<Option<Timespec>> {
        // A timer that fires for nothing does no harm.
        let Some(due) = self.fabric.next_due() else { return Ok(None) };
        match self.anticipation.wait(now(), due) {
            Wait::Poll => Ok(Some(NO_TIME)),
            Wait::Until(at) => self.set_timer(at).map(|()| None),
        }
    }

    fn set_timer(&mut self, at: Duration) -> io::Result<()> {
        if self.timer_at == Some(at) {
            return Ok(());
        }
        self.timer_at = Some(at);
        // Zero would switch it off.
        let at = at.max(Duration::from_nanos(1));
        let it_value = Timespec { tv_sec: at.as_secs() as i64, tv_nsec: at.subsec_nanos().into() };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: NO_TIME, it_value })?;
        Ok(())
    }

    fn clear_timer(&mut self) {
        // Nothing to read when it has been set anew meanwhile.
        let fired = rustix::io::read(&self.timer, &mut [0; 8]).is_ok();
        if let Some(planned) = self.timer_at.take().filter(|_| fired) {
            self.anticipation.woke(planned, now());
        }
    }

    fn obey(&mut self) {
        let _ = rustix::io::read(&self.bell.event, &mut [0; 8]);
        while let Ok((request, reply)) = self.commands.try_recv() {
            // Whoever asked may have gone.
            let _ = reply.send(self.answer(&request));
        }
    }

    fn answer(&mut self, request: &Request) -> Reply {
        match (self.fabric.apply(request), request) {
            (Err(error), _) => Reply::refused(error),
            (Ok(()), Request::Stats) => Reply::stats(self.stats()),
            (Ok(()), _) => Reply::done(),
        }
    }

    fn stats(&self) -> Stats {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Stats {
            links: self.fabric.link_stats(),
            no_receiver: self.no_receiver,
            not_taken: self.not_taken,
            overrun: 0,
            late_p50_us: micros(self.lateness.percentile(50)),
            late_p99_us: micros(self.lateness.percentile(99)),
            late_worst_us: micros(self.lateness.worst()),
        }
    }
}

/// The clock that the timer goes by.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
