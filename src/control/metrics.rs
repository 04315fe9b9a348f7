//! The Prometheus endpoint: HTTP for whoever may connect, bounded in clients, bytes and time.
//!
//! Knows HTTP by way of a library. Does not know figures (`exposition`) nor shards (`admin::desk`).
//!
//! One thread, not pinned. A client that is slow or says nothing keeps one place of `CLIENTS_MAX` for `CLIENT_TIME`; more
//! clients wait in the kernel's queue. None of them reaches a shard but by the question that all share.

mod exposition;

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::admin::service::Questions;
use super::admin::status::{Status, StatusAsked};
use super::admin::{self};

/// Clients that are served at once.
const CLIENTS_MAX: usize = 8;
/// By then a client has asked and taken its answer, or is gone.
const CLIENT_TIME: Duration = Duration::from_secs(10);
/// The longest request, its headers included, and the most headers.
const REQUEST_BYTES_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
/// The pause after an accept that failed: at once it would only fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PATH: &str = "/metrics";
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const WORDS: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Starts the thread. It lives as long as the process.
pub(super) fn start(listener: TcpListener, questions: Questions) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let named = std::thread::Builder::new().name("metrics".to_owned());
    named.spawn(move || {
        if let Err(error) = runtime.block_on(serve(listener, questions)) {
            tracing::error!(%error, "metrics are not served any more");
        }
    })?;
    Ok(())
}

async fn serve(listener: TcpListener, questions: Questions) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        // Before the next client is accepted: who finds no place waits in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let questions = questions.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(request, questions.clone()));
            let mut http = http1::Builder::new();
            http.keep_alive(false).max_buf_size(REQUEST_BYTES_MAX).max_headers(HEADERS_MAX);
            // What a client does wrong is its own affair.
            let _ = timeout(CLIENT_TIME, http.serve_connection(TokioIo::new(stream), answer)).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    questions: Questions,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != PATH {
        let words = format!("there is nothing but {PATH} here\n");
        return Ok(response(StatusCode::NOT_FOUND, WORDS, words));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, WORDS, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    // The desk answers when it does: not on the thread that serves the others.
    let asked = tokio::task::spawn_blocking(move || ask(&questions)).await;
    Ok(match asked.unwrap_or_else(|_| Err("the server is ending".to_owned())) {
        Ok(status) => response(StatusCode::OK, TEXT, exposition::text(&status)),
        Err(sentence) => response(StatusCode::SERVICE_UNAVAILABLE, WORDS, format!("{sentence}\n")),
    })
}

fn ask(questions: &Questions) -> Result<Status, String> {
    let answer = questions.ask(admin::Request::Status(StatusAsked::default()))?;
    serde_json::from_value(answer).map_err(|error| error.to_string())
}

fn response(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
