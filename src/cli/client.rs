//! The client of the daemon's socket: JSON requests and streams of events. It knows HTTP and nothing
//! of what the paths mean. Used by every subcommand but `serve`, `check`, `probe` and `pages`.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::reply::ErrorBody;
use super::sse;
use protocol::exit::Exit;

/// Why the daemon did not do it, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {}: start it with `reflectd serve`", one_of(paths))]
    NoDaemon {
        /// The sockets that were tried.
        paths: Vec<PathBuf>,
    },
    /// The socket cannot be opened.
    #[error("open the socket {}: it belongs to the user who runs the daemon", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The connection ended before the reply did.
    #[error("the daemon left in the middle of {request}: its log says why")]
    Broken {
        /// Method and path.
        request: String,
        /// The cause, where there is one.
        #[source]
        source: Option<hyper::Error>,
    },
    /// The daemon understood and refused.
    #[error("{message}")]
    Refused {
        /// HTTP status; 200 when a stream broke off with an error.
        status: u16,
        /// The daemon's message.
        message: String,
    },
    /// The reply is not what this version expects.
    #[error("the reply to {request} is of another version: restart the daemon after an update")]
    Unexpected {
        /// Method and path.
        request: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// The exit code of a program that ends with this.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NoDaemon { .. } | Self::Broken { .. } => Exit::Unavailable,
            Self::Connect { .. } => Exit::System,
            Self::Refused { status: 409 | 429 | 503, .. } => Exit::TryAgain,
            Self::Refused { status: 500, .. } => Exit::Internal,
            Self::Refused { .. } | Self::Unexpected { .. } => Exit::Failed,
        }
    }
}

/// The way to one daemon. Every request has a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The first where somebody listens is asked.
    sockets: Vec<PathBuf>,
}

impl Client {
    pub(super) fn new(sockets: Vec<PathBuf>) -> Self {
        Self { sockets }
    }

    #[cfg(test)]
    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::DELETE, path, Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::POST, path, encode(body)).await
    }

    /// Sends a request that is answered by events.
    pub(super) async fn stream(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Events, ClientError> {
        let response = self.send(Method::POST, path, encode(body)).await?;
        Ok(Events {
            request: format!("POST {path}"),
            body: response.into_body(),
            parser: sse::Parser::default(),
            ready: VecDeque::new(),
        })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let request = format!("{method} {path}");
        let response = self.send(method, path, body).await?;
        let bytes = collect(&request, response).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Unexpected { request, source })
    }

    /// The response, when its status says success.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let request_line = format!("{method} {path}");
        let broken =
            |source| ClientError::Broken { request: request_line.clone(), source: Some(source) };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(broken)?;
        // The task ends with the response's body; its error also reaches whoever reads that body.
        drop(tokio::spawn(connection));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "reflectd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("paths are written in this program and need no escapes");
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = collect(&request_line, response).await?;
        let message = serde_json::from_slice(&bytes)
            .map_or_else(|_| status.to_string(), |body: ErrorBody| body.error.message);
        Err(ClientError::Refused { status: status.as_u16(), message })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        for path in &self.sockets {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(stream),
                // A socket file of a daemon that was killed refuses.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(source) => return Err(ClientError::Connect { path: path.clone(), source }),
            }
        }
        Err(ClientError::NoDaemon { paths: self.sockets.clone() })
    }
}

/// The events of one request. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Events {
    request: String,
    body: Incoming,
    parser: sse::Parser,
    ready: VecDeque<String>,
}

impl Events {
    /// The next event; `None` after `[DONE]`. A stream that ends without it is an error, because
    /// the reply may have been cut.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return if data == "[DONE]" { Ok(None) } else { self.decode(&data).map(Some) };
            }
            let broken = |source| ClientError::Broken { request: self.request.clone(), source };
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.ready.extend(self.parser.push(bytes));
                    }
                }
                Some(Err(error)) => return Err(broken(Some(error))),
                None => return Err(broken(None)),
            }
        }
    }

    fn decode<T: DeserializeOwned>(&self, data: &str) -> Result<T, ClientError> {
        let unexpected = |source| ClientError::Unexpected { request: self.request.clone(), source };
        let value: Value = serde_json::from_str(data).map_err(unexpected)?;
        if value.get("error").is_some() {
            let body: ErrorBody = serde_json::from_value(value).map_err(unexpected)?;
            return Err(ClientError::Refused { status: 200, message: body.error.message });
        }
        serde_json::from_value(value).map_err(unexpected)
    }
}

/// `a`, `a or b`, `a, b or c`.
fn one_of(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    match paths.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => paths.concat(),
    }
}

async fn collect(request: &str, response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = response.into_body().collect().await.map_err(|source| ClientError::Broken {
        request: request.to_owned(),
        source: Some(source),
    })?;
    Ok(body.to_bytes())
}

fn encode(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("requests are plain structs with string keys").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    /// A server that gives one canned reply to one connection, after it has read the request.
    fn serve(reply: &'static str) -> (tempfile::TempDir, Client) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"{}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(reply.as_bytes()).unwrap();
        });
        // One that is not there and one that nobody answers are passed over.
        let stale = folder.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        (folder, Client::new(vec!["/nonexistent/reflectd.sock".into(), stale, socket]))
    }

    #[tokio::test]
    async fn without_a_daemon_the_error_says_how_to_start_one() {
        let client = Client::new(vec!["/nonexistent/a.sock".into(), "/nonexistent/b.sock".into()]);
        let error = client.get::<Value>("/health").await.unwrap_err();
        assert_eq!(error.exit(), Exit::Unavailable);
        let text = "no daemon answers on /nonexistent/a.sock or /nonexistent/b.sock: start it with \
                    `reflectd serve`";
        assert_eq!(error.to_string(), text);
    }

    #[tokio::test]
    async fn a_refusal_carries_the_words_of_the_daemon() {
        let (_folder, client) = serve(
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 42\r\n\r\n\
             {\"error\":{\"message\":\"full\",\"code\":\"x\"}}    ",
        );
        let error = client.get::<Value>("/v1/status").await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit()), ("full", Exit::TryAgain));
    }

    #[tokio::test]
    async fn a_stream_gives_its_events_and_then_ends() {
        let (_folder, client) = serve(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n",
        );
        let mut events = client.stream("/v1/explore", &serde_json::json!({})).await.unwrap();
        assert_eq!(events.next::<u8>().await.unwrap(), Some(1));
        assert_eq!(events.next::<u8>().await.unwrap(), Some(2));
        assert_eq!(events.next::<u8>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_an_error() {
        let (_folder, client) = serve("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: 1\n\n");
        let mut events = client.stream("/v1/explore", &serde_json::json!({})).await.unwrap();
        assert_eq!(events.next::<u8>().await.unwrap(), Some(1));
        assert!(matches!(events.next::<u8>().await, Err(ClientError::Broken { .. })));
    }

    #[tokio::test]
    async fn an_error_inside_a_stream_is_a_refusal() {
        let (_folder, client) = serve(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
             data: {\"error\":{\"message\":\"the model failed\"}}\n\n",
        );
        let mut events = client.stream("/v1/explore", &serde_json::json!({})).await.unwrap();
        let error = events.next::<Value>().await.unwrap_err();
        assert_eq!(error.to_string(), "the model failed");
    }
}
