//! Asks the guest's applications to give back what they can do without.
//!
//! An application takes part by a file in `/etc/plimsoll/deflate.d` that belongs to root and that
//! nobody else may write. The files are asked one after the other, in the order of their names,
//! each for what those before it did not give, and within what is left of the time:
//!
//! - An executable is called as `HOOK deflate`, with `PLIMSOLL_MEMORY_BYTES`,
//!   `PLIMSOLL_CPU_MILLICORES` and `PLIMSOLL_WITHIN_MS` set.
//! - A file `NAME.url` holds an address of this guest, such as `http://127.0.0.1:8080/deflate`. It
//!   gets a POST of `{"verb": "deflate", "memory_bytes": ..., "cpu_millicores": ..., "within_ms":
//!   ...}`.
//!
//! Each answers, on standard output or as the response's body, what it freed:
//! `{"memory_bytes": ..., "cpu_millicores": ...}`. The word is for people; what counts is what the
//! balloon then finds. When all may be used again they are called with `inflate` in place of
//! `deflate`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use plimsoll_api::ErrorChain;
use plimsoll_api::guest::{
    DeflateRequest, DeflateResult, EnvironmentVariable, HookResult, MAX_MESSAGE_BYTES,
    MAX_TEXT_BYTES, to_printable,
};
use serde::{Deserialize, Serialize};

use crate::system::System;
use crate::{exec, facts, hooks};

const HOOKS: &str = "etc/plimsoll/deflate.d";
/// How long a hook may take over being told that all may be used again.
const INFLATE_LIMIT: Duration = Duration::from_secs(10);
/// Most of an answer that is read.
const MAX_ANSWER: u32 = 4096;

/// What is said to a hook.
#[derive(Clone, Copy, Serialize)]
struct Word {
    verb: &'static str,
    memory_bytes: u64,
    cpu_millicores: u64,
    within_ms: u64,
}

/// What a hook answers.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Freed {
    memory_bytes: u64,
    cpu_millicores: u64,
}

/// Asks all hooks for what is wanted.
#[must_use]
pub fn deflate(system: &System, request: &DeflateRequest) -> DeflateResult {
    let deadline = Instant::now() + Duration::from_millis(request.within_ms);
    let (mut memory_bytes, mut cpu_millicores) = (request.memory_bytes, request.cpu_millicores);
    let mut results = Vec::new();
    for hook in hooks::files(&system.path(HOOKS)) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || (memory_bytes == 0 && cpu_millicores == 0) {
            break;
        }
        let word = Word { verb: "deflate", memory_bytes, cpu_millicores, within_ms: millis(left) };
        let Some(result) = ask(&hook, word) else { continue };
        memory_bytes = memory_bytes.saturating_sub(result.freed_bytes);
        cpu_millicores = cpu_millicores.saturating_sub(result.freed_millicores);
        results.push(result);
    }
    DeflateResult { hooks: results, memory: facts::memory(system) }
}

/// Tells all hooks that they may use again what was asked of them.
#[must_use]
pub fn inflate(system: &System) -> DeflateResult {
    let within_ms = millis(INFLATE_LIMIT);
    let word = Word { verb: "inflate", memory_bytes: 0, cpu_millicores: 0, within_ms };
    let files = hooks::files(&system.path(HOOKS));
    let results = files.iter().filter_map(|hook| ask(hook, word)).collect();
    DeflateResult { hooks: results, memory: facts::memory(system) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Asks one hook; `None` if the file is none.
fn ask(hook: &Path, word: Word) -> Option<HookResult> {
    let answer = if hook.extension().is_some_and(|extension| extension == "url") {
        post(hook, word)
    } else if hooks::is_executable(hook) {
        run(hook, word)
    } else {
        return None;
    };
    let name = hook.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let (freed, failure) = match answer {
        Ok(freed) => (freed, None),
        Err(failure) => (Freed::default(), Some(to_printable(&failure, MAX_MESSAGE_BYTES))),
    };
    Some(HookResult {
        name: to_printable(&name, MAX_TEXT_BYTES),
        freed_bytes: freed.memory_bytes,
        freed_millicores: freed.cpu_millicores,
        failure,
    })
}

fn run(hook: &Path, word: Word) -> Result<Freed, String> {
    let argv = vec![hook.to_string_lossy().into_owned(), word.verb.to_owned()];
    let mut request = hooks::command(argv, word.within_ms);
    request.max_output_bytes = MAX_ANSWER;
    request.env = [
        ("PLIMSOLL_MEMORY_BYTES", word.memory_bytes),
        ("PLIMSOLL_CPU_MILLICORES", word.cpu_millicores),
        ("PLIMSOLL_WITHIN_MS", word.within_ms),
    ]
    .map(|(name, value)| EnvironmentVariable { name: name.to_owned(), value: value.to_string() })
    .into();
    let ended = exec::run(&request).map_err(|error| ErrorChain(&error).to_string())?;
    if ended.timed_out {
        return Err(format!("did not end within {} ms", word.within_ms));
    }
    match ended.exit_code {
        Some(0) => understand(&ended.stdout),
        Some(code) => Err(format!("ended with status {code}")),
        None => Err("was ended by a signal".to_owned()),
    }
}

/// An answer; nothing at all is none freed.
fn understand(text: &[u8]) -> Result<Freed, String> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Freed::default());
    }
    serde_json::from_slice(text)
        .map_err(|error| format!("answered what is not understood: {error}"))
}

/// Speaks just enough HTTP for an endpoint on this machine: one request, one answer, the end.
fn post(hook: &Path, word: Word) -> Result<Freed, String> {
    let deadline = Instant::now() + Duration::from_millis(word.within_ms);
    let url = std::fs::read_to_string(hook).map_err(|error| error.to_string())?;
    let (address, path) = endpoint(url.trim())?;
    let said = |error: std::io::Error| format!("http://{address}: {error}");
    let body = serde_json::to_string(&word).map_err(|error| error.to_string())?;
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&address, left()).map_err(said)?;
    stream.set_write_timeout(Some(left())).map_err(said)?;
    stream.write_all(request.as_bytes()).map_err(said)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while answer.len() < usize::try_from(MAX_ANSWER).unwrap_or(usize::MAX) {
        stream.set_read_timeout(Some(left())).map_err(said)?;
        match stream.read(&mut piece).map_err(said)? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("its answer is no HTTP response")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        return Err(format!(
            "answered with status {}",
            if status.is_empty() { "?" } else { status }
        ));
    }
    understand(body.as_bytes())
}

/// The address and the path of a URL on this machine.
fn endpoint(url: &str) -> Result<(SocketAddr, &str), String> {
    let wrong = || format!("`{url}` is no address such as http://127.0.0.1:8080/path");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let authority = authority.replace("localhost", "127.0.0.1");
    let address: SocketAddr = authority.parse().map_err(|_| wrong())?;
    let local = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !local || path.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(wrong());
    }
    Ok((address, path))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn hook(system: &System, name: &str, text: &str, mode: u32) {
        let directory = system.path(HOOKS);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(name), text).unwrap();
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(directory.join(name), permissions).unwrap();
    }

    const REQUEST: DeflateRequest =
        DeflateRequest { memory_bytes: 1000, cpu_millicores: 500, within_ms: 20_000 };

    #[test]
    fn each_hook_is_asked_for_what_is_left() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        hook(&system, "10", "#!/bin/sh\necho '{\"memory_bytes\": 600}'\n", 0o755);
        hook(&system, "20-bad", "#!/bin/sh\nexit 3\n", 0o755);
        hook(&system, "30-silent", "#!/bin/sh\n", 0o755);
        hook(&system, "35-nonsense", "#!/bin/sh\necho hello\n", 0o755);
        hook(&system, "36-no-hook", "text", 0o644);
        let echo = "#!/bin/sh\n[ $1 = deflate ] || exit 9\n\
                    echo \"{\\\"memory_bytes\\\": $PLIMSOLL_MEMORY_BYTES, \
                    \\\"cpu_millicores\\\": $PLIMSOLL_CPU_MILLICORES}\"\n";
        hook(&system, "40-all", echo, 0o755);
        hook(&system, "50-not-asked", "#!/bin/sh\nexit 1\n", 0o755);
        let result = deflate(&system, &REQUEST);
        let seen: Vec<_> = result
            .hooks
            .iter()
            .map(|hook| (hook.name.as_str(), hook.freed_bytes, hook.freed_millicores))
            .collect();
        assert_eq!(
            seen,
            [
                ("10", 600, 0),
                ("20-bad", 0, 0),
                ("30-silent", 0, 0),
                ("35-nonsense", 0, 0),
                ("40-all", 400, 500)
            ]
        );
        let failures: Vec<_> = result.hooks.iter().map(|hook| hook.failure.is_some()).collect();
        assert_eq!(failures, [false, true, false, true, false]);
        // All are told of the end.
        let told = inflate(&system);
        assert_eq!(told.hooks.len(), 6);
    }

    #[test]
    fn an_endpoint_of_the_guest_is_a_hook() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let system = System::at(root.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        hook(&system, "cache.url", &format!("http://{address}/free\n"), 0o644);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 256];
            while !request.ends_with(b"}") {
                let count = stream.read(&mut piece).unwrap();
                request.extend_from_slice(&piece[..count]);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"memory_bytes\": 77}").unwrap();
            String::from_utf8(request).unwrap()
        });
        let result = deflate(&system, &REQUEST);
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /free HTTP/1.0\r\n"), "{request}");
        assert!(request.contains("\"verb\":\"deflate\",\"memory_bytes\":1000"), "{request}");
        assert_eq!(result.hooks.len(), 1);
        assert_eq!((result.hooks[0].freed_bytes, &result.hooks[0].failure), (77, &None));
        // Nobody listens any more.
        assert!(deflate(&system, &REQUEST).hooks[0].failure.is_some());
    }

    #[test]
    fn only_addresses_of_the_guest_itself_are_asked() {
        assert!(endpoint("http://127.0.0.1:80/x?y=1").is_ok());
        assert_eq!(endpoint("http://localhost:8080").unwrap().1, "/");
        assert!(endpoint("http://[::1]:80/").is_ok());
        for bad in [
            "",
            "127.0.0.1:80",
            "https://127.0.0.1:80/",
            "http://192.0.2.1:80/",
            "http://127.0.0.1/",
            "http://127.0.0.1:80/a b",
            "http://127.0.0.1:80/a\r\nX: y",
            "http://example.org:80/",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }
}
