//! The HTTP client that both sides are asked with, so that it costs both the same: JSON replies and
//! streams of server-sent events, a connection a request. Used by `daemon` and `peer`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    /// Ours.
    Socket(PathBuf),
    /// The peer's port on 127.0.0.1.
    Port(u16),
}

impl Endpoint {
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.send("GET", path, Bytes::new()).await?;
        let bytes = response.into_body().collect().await.context("read the reply")?.to_bytes();
        serde_json::from_slice(&bytes).with_context(|| format!("the reply to GET {path}"))
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self.send("POST", path, body.to_string().into()).await?;
        let bytes = response.into_body().collect().await.context("read the reply")?.to_bytes();
        serde_json::from_slice(&bytes).with_context(|| format!("the reply to POST {path}"))
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send("DELETE", path, Bytes::new()).await?.into_body().collect().await?;
        Ok(())
    }

    /// Asks for a reply in events.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<Events> {
        let response = self.send("POST", path, body.to_string().into()).await?;
        Ok(Events { body: response.into_body(), pending: Vec::new() })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("build the request")?;
        let response = match self {
            Self::Socket(path) => exchange(UnixStream::connect(path).await?, request).await?,
            Self::Port(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port)).await?;
                stream.set_nodelay(true)?;
                exchange(stream, request).await?
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.context("read the reply")?.to_bytes();
        bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&bytes))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the response's body, whose reader sees its error too.
    drop(tokio::spawn(connection));
    sender.send_request(request).await.context("send the request")
}

/// The events of a reply.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    pending: Vec<u8>,
}

impl Events {
    /// The next event and when it came; `None` after `[DONE]`.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(Instant, Value)>> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event);
                let Some(data) = event.trim().strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let value: Value = serde_json::from_str(data).context("an event is no JSON")?;
                if let Some(error) = value.get("error") {
                    bail!("the server broke off: {error}");
                }
                return Ok(Some((Instant::now(), value)));
            }
            let frame = self.body.frame().await.context("a stream ended without [DONE]")?;
            if let Some(bytes) = frame.context("read a stream")?.data_ref() {
                self.pending.extend_from_slice(bytes);
            }
        }
    }
}
