//! A hub in a thread: HTTP/1.1 with byte ranges, and faults on order.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

#[derive(Clone, Default)]
pub struct Behaviour {
    /// Close the connection after so many bytes of body.
    pub cut_after: Option<usize>,
    /// Answer with the whole file whatever was asked.
    pub no_ranges: bool,
    /// Answer with this status and no body.
    pub status: Option<u16>,
    /// Wait so long between pieces of 64 KiB.
    pub slow: Duration,
}

pub struct Hub {
    address: std::net::SocketAddr,
    /// First byte of every request for the file.
    pub starts: Arc<Mutex<Vec<u64>>>,
    pub behaviour: Arc<Mutex<Behaviour>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    pub fn serve(file: Vec<u8>, behaviour: Behaviour) -> Self {
        Self::serve_files(vec![("tiny.gguf", file)], behaviour)
    }

    /// Files of the repository by their names.
    pub fn serve_files(files: Vec<(&'static str, Vec<u8>)>, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let starts = Arc::new(Mutex::new(Vec::new()));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, acts, ends) = (Arc::clone(&starts), Arc::clone(&behaviour), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if ends.load(Ordering::SeqCst) {
                        break;
                    }
                    let (files, seen, acts, ends) = (&files, &seen, &acts, &ends);
                    scope.spawn(move || {
                        let acts = acts.lock().unwrap().clone();
                        let _ = stream.map(|stream| answer(stream, files, seen, &acts, ends));
                    });
                }
            });
        });
        Self { address, starts, behaviour, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn starts(&self) -> Vec<u64> {
        self.starts.lock().unwrap().clone()
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(
    mut stream: TcpStream,
    files: &[(&str, Vec<u8>)],
    starts: &Mutex<Vec<u64>>,
    acts: &Behaviour,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut range = None;
    let mut first = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (start, end) = value.trim().split_once('-').unwrap();
            range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok().map(|last| last + 1)));
        }
    }
    if first.is_empty() {
        return Ok(());
    }
    let asked_for = |name: &str| first.starts_with(&format!("GET /o/tiny/resolve/main/{name} "));
    let Some((_, file)) = files.iter().find(|(name, _)| asked_for(name)) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    if let Some(status) = acts.status {
        return write!(stream, "HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let asked = range.filter(|_| !acts.no_ranges);
    starts.lock().unwrap().push(asked.map_or(0, |(start, _)| start as u64));
    let (start, end) = asked.map_or((0, file.len()), |(start, end)| (start, end.unwrap_or(file.len())));
    let status = if asked.is_some() { "206 Partial Content" } else { "200 OK" };
    let part = match asked {
        Some(_) => format!("content-range: bytes {start}-{}/{}\r\n", end - 1, file.len()),
        None => String::new(),
    };
    write!(stream, "HTTP/1.1 {status}\r\n{part}content-length: {}\r\nconnection: close\r\n\r\n", end - start)?;
    let body = &file[start..end];
    for piece in body[..body.len().min(acts.cut_after.unwrap_or(usize::MAX))].chunks(65_536) {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        stream.write_all(piece)?;
        std::thread::sleep(acts.slow);
    }
    Ok(())
}
