//! A small HTTP client on the Unix socket: one connection a request, so that dropping an answer
//! is a client that leaves.

use std::path::Path;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// An answer whose body may still come. Dropping it closes the connection.
#[derive(Debug)]
pub struct Answer {
    response: Response<Incoming>,
    connection: JoinHandle<()>,
    buffer: Vec<u8>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Status and code of an error.
    pub fn error(&self) -> (u16, String) {
        let code = self.json()["error"]["code"].as_str().expect("not an error").to_owned();
        (self.status.as_u16(), code)
    }
}

/// Sends a request and waits for the head of its answer.
pub async fn send(socket: &Path, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let stream = UnixStream::connect(socket).await.expect("nobody listens on the socket");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await?;
    Ok(Answer { response, connection, buffer: Vec::new() })
}

/// A request with a body.
pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "reflectd")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Waits for the end of the body.
    pub async fn whole(mut self) -> Reply {
        let status = self.response.status();
        let headers = self.response.headers().clone();
        let body = self.response.body_mut().collect().await.unwrap().to_bytes();
        Reply { status, headers, body }
    }

    /// The data of the next server-sent event; `None` at the end.
    pub async fn event(&mut self) -> Option<String> {
        loop {
            // Else a comment that keeps the connection alive.
            if let Some(data) = self.block().await?.strip_prefix("data: ") {
                return Some(data.to_owned());
            }
        }
    }

    /// The next event or comment, as it was sent; `None` at the end.
    pub async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8(block).unwrap().trim_end().to_owned());
            }
            let frame = self.response.body_mut().frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    /// All events up to the end, each as JSON but the last `[DONE]`, whose presence is returned.
    pub async fn events(mut self) -> (Vec<Value>, bool) {
        let mut events = Vec::new();
        while let Some(data) = self.event().await {
            if data == "[DONE]" {
                assert_eq!(self.event().await, None, "something follows [DONE]");
                return (events, true);
            }
            events.push(serde_json::from_str(&data).unwrap());
        }
        (events, false)
    }
}
