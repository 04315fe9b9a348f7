//! Who is served at the control socket: a thread that accepts, one for each of few clients, one that answers.
//!
//! Knows bounds: of clients, of bytes and of time. Does not know requests.
//!
//! A client that says nothing, or takes nothing, holds one place of `CLIENTS_MAX` for some seconds, and nothing else.
//! Questions are answered one at a time (`desk`), so that however many ask, the shards are asked in turn.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::desk::Desk;
use super::socket::ControlSocket;
use super::{Answer, REQUEST_BYTES_MAX, Request, answer_line, parse_request};

/// Clients that are served at once; more are told to come again.
const CLIENTS_MAX: usize = 16;
/// A request must be here by then, and an answer taken.
const REQUEST_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The pause after an accept that failed: at once it would only fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One question and where its answer goes.
#[derive(Debug)]
struct Question {
    request: Request,
    answer: Sender<Answer>,
}

/// Lets any thread of this process ask the desk.
#[derive(Clone, Debug)]
pub(in crate::control) struct Questions(Sender<Question>);

impl Questions {
    /// Asks and waits; the error is a sentence.
    pub(in crate::control) fn ask(&self, request: Request) -> Answer {
        let (answer, is_answered) = bounded(1);
        let gone = || "the server is ending".to_owned();
        self.0.send(Question { request, answer }).map_err(|_| gone())?;
        is_answered.recv().map_err(|_| gone())?
    }
}

/// Starts the thread that answers. It ends when nobody can ask any more.
pub(in crate::control) fn start_desk(desk: Desk) -> io::Result<Questions> {
    let (ask, questions) = bounded(CLIENTS_MAX);
    thread::Builder::new().name("desk".to_owned()).spawn(move || answer_all(desk, &questions))?;
    Ok(Questions(ask))
}

fn answer_all(mut desk: Desk, questions: &Receiver<Question>) {
    for Question { request, answer } in questions {
        // Who asked may have gone.
        let _ = answer.send(desk.answer(request));
    }
}

/// Starts the thread that accepts clients. It lives as long as the process.
pub(in crate::control) fn start(socket: &ControlSocket, questions: Questions) -> io::Result<()> {
    let listener = socket.listener()?;
    thread::Builder::new().name("control".to_owned()).spawn(move || {
        // Each client's thread holds a second of these while it lives.
        let place = Arc::new(());
        loop {
            match listener.accept() {
                Ok((client, _)) => welcome(client, &place, &questions),
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    })?;
    Ok(())
}

fn welcome(mut client: UnixStream, place: &Arc<()>, questions: &Questions) {
    let refuse = |client: &mut UnixStream, why: &str| {
        // A short line fits the socket's buffer, or nobody gets it.
        let _ = client.set_nonblocking(true);
        let _ = client.write_all(&answer_line(Err(why.to_owned())));
    };
    if !is_ours(&client) {
        refuse(&mut client, "only the user the server runs as, or root, may ask");
        return;
    }
    if Arc::strong_count(place) > CLIENTS_MAX {
        refuse(&mut client, "too many ask at once: try again");
        return;
    }
    let (place, questions) = (Arc::clone(place), questions.clone());
    let begun = thread::Builder::new().name("control-client".to_owned()).spawn(move || {
        let _ = converse(&mut client, &questions);
        drop(place);
    });
    if let Err(error) = begun {
        tracing::warn!(%error, "a client of the control socket was turned away: no thread for it");
    }
}

/// The mode of the socket says the same; this also holds where somebody changes it.
fn is_ours(client: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(client).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

fn converse(client: &mut UnixStream, questions: &Questions) -> io::Result<()> {
    let answer = match read_line(client, Instant::now() + REQUEST_TIME)? {
        Some(line) => parse_request(&line).and_then(|request| questions.ask(request)),
        None => Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes")),
    };
    write_line(client, &answer_line(answer), Instant::now() + ANSWER_TIME)
}

/// A line, or `None` where it is too long. The end of the stream ends a line too.
fn read_line(client: &mut UnixStream, until: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        client.set_read_timeout(Some(left(until)?))?;
        let read = match client.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let end = piece[..read].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&piece[..end.unwrap_or(read)]);
        if line.len() >= REQUEST_BYTES_MAX {
            return Ok(None);
        }
        if end.is_some() || read == 0 {
            return Ok(Some(line));
        }
    }
}

fn write_line(client: &mut UnixStream, mut line: &[u8], until: Instant) -> io::Result<()> {
    while !line.is_empty() {
        client.set_write_timeout(Some(left(until)?))?;
        match client.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Never zero, which would mean for ever.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_its_end_or_the_streams_and_is_bounded() {
        let soon = || Instant::now() + Duration::from_secs(5);
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"one\ntwo").unwrap();
        assert_eq!(read_line(&mut here, soon()).unwrap().unwrap(), b"one");
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"two").unwrap();
        drop(there);
        assert_eq!(read_line(&mut here, soon()).unwrap().unwrap(), b"two");
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let long = thread::spawn(move || there.write_all(&[b'x'; 2 * REQUEST_BYTES_MAX]));
        assert_eq!(read_line(&mut here, soon()).unwrap(), None);
        drop(here);
        let _ = long.join();
    }

    #[test]
    fn who_says_or_takes_nothing_is_not_waited_for() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let soon = || Instant::now() + Duration::from_millis(50);
        assert!(read_line(&mut here, soon()).is_err());
        assert!(write_line(&mut here, &vec![0; 16 << 20], soon()).is_err());
        drop(there);
    }
}
