//! A small HTTP server that reports what it sees of its container; the lab's tests run it as an
//! image.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static READY: AtomicBool = AtomicBool::new(true);

fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_default();
    let listener = match TcpListener::bind(&address) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on {address:?}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening on {address}");
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(&stream) {
            eprintln!("{error}");
        }
    }
    ExitCode::SUCCESS
}

/// Answers one request: `/readyz`, `/unready`, `/env/NAME`, `/args`,
/// `/file/PATH`, `/write/PATH`, `/user`, `/exit`.
fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (verb, rest) = path[1.min(path.len())..]
        .split_once('/')
        .unwrap_or((path.trim_start_matches('/'), ""));
    let result = match verb {
        "readyz" if READY.load(Ordering::Relaxed) => Ok("ok".to_owned()),
        "unready" => {
            READY.store(false, Ordering::Relaxed);
            Ok(String::new())
        }
        "env" => std::env::var(rest).map_err(|error| error.to_string()),
        "args" => Ok(std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        "file" => std::fs::read_to_string(format!("/{rest}")).map_err(|error| error.to_string()),
        "write" => std::fs::write(format!("/{rest}"), "written\n")
            .map(|()| String::new())
            .map_err(|error| error.to_string()),
        "user" => std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string()),
        "exit" => std::process::exit(3),
        _ => Err("not found".to_owned()),
    };
    let (status, body) = match result {
        Ok(body) => ("200 OK", body),
        Err(error) => ("503 Service Unavailable", error),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
