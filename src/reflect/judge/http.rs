//! One HTTP request to a server on this machine, over TCP or a Unix socket: JSON in, JSON out, a
//! connection each. Knows nothing of judging and tries nothing twice. Used by `endpoint`.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use config::{Address, EndpointConfig};

/// A reply is a sentence or twenty log-probs.
const MAX_REPLY: usize = 4 << 20;

/// Why there is no reply.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// The same request may succeed later.
    pub(super) is_transient: bool,
    /// When the server wants to be asked again.
    pub(super) retry_after: Option<Duration>,
    /// The conversation is longer than what the server's model takes.
    pub(super) is_too_long: bool,
}

impl Fault {
    fn transient(reason: String) -> Self {
        Self { is_transient: true, ..Self::lasting(reason) }
    }

    fn lasting(reason: String) -> Self {
        Self { reason, is_transient: false, retry_after: None, is_too_long: false }
    }
}

/// Posts to `base` + `path`, inside the endpoint's time-out.
pub(super) async fn post(
    config: &EndpointConfig,
    path: &str,
    body: &Value,
) -> Result<Value, Fault> {
    let key = match &config.key_file {
        None => None,
        // Read every time: keys are changed.
        Some(file) => Some(tokio::fs::read_to_string(file).await.map_err(|error| {
            Fault::lasting(format!("is not asked: read {}: {error}", file.display()))
        })?),
    };
    let request = request(config, path, key.as_deref().map(str::trim), body)?;
    let refused = |error: std::io::Error| Fault::transient(format!("does not answer: {error}"));
    let asked = async {
        match &config.address {
            Address::Tcp(host) => {
                send(TcpStream::connect(host).await.map_err(refused)?, request).await
            }
            Address::Unix(path) => {
                send(UnixStream::connect(path).await.map_err(refused)?, request).await
            }
        }
    };
    match tokio::time::timeout(config.timeout, asked).await {
        Ok(reply) => reply,
        Err(_) => {
            let seconds = config.timeout.as_secs_f64();
            Err(Fault::transient(format!("does not answer within {seconds} s")))
        }
    }
}

fn request(
    config: &EndpointConfig,
    path: &str,
    key: Option<&str>,
    body: &Value,
) -> Result<Request<Full<Bytes>>, Fault> {
    let host = match &config.address {
        Address::Tcp(host) => host.as_str(),
        Address::Unix(_) => "localhost",
    };
    let mut request = Request::post(format!("{}{path}", config.base))
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(Full::new(body.to_string().into())).map_err(|error| {
        Fault::lasting(format!("cannot be asked: {error} in `endpoint` or `key_file`"))
    })
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Value, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: hyper::Error| Fault::transient(format!("breaks off: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let reply = async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_REPLY).collect().await;
        let body = body.map_err(|error| Fault::transient(format!("breaks off: {error}")))?;
        read(head.status, head.headers.get(header::RETRY_AFTER), &body.to_bytes())
    };
    drive(reply, connection).await
}

/// Polls a connection for as long as its reply needs it.
async fn drive<T>(reply: impl Future<Output = T>, connection: impl Future) -> T {
    let mut reply = pin!(reply);
    tokio::select! {
        biased;
        reply = &mut reply => return reply,
        // The server may close as soon as it has answered.
        _ = connection => {}
    }
    reply.await
}

fn read(
    status: StatusCode,
    retry_after: Option<&header::HeaderValue>,
    body: &[u8],
) -> Result<Value, Fault> {
    let json = serde_json::from_slice::<Value>(body);
    if status.is_success() {
        return json.map_err(|error| Fault::lasting(format!("does not answer in JSON: {error}")));
    }
    let json = json.unwrap_or_default();
    // Some servers put nothing around it.
    let error = json.get("error").unwrap_or(&json);
    let said = error["message"].as_str().or(error.as_str()).unwrap_or_default();
    let is_too_long = is_too_long(status, error, said);
    let said: String = said.chars().take(300).collect();
    let is_transient = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    let seconds = retry_after.and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
    Err(Fault {
        reason: format!("answers with status {}: {said}", status.as_u16()),
        is_transient,
        retry_after: seconds.map(Duration::from_secs),
        is_too_long,
    })
}

/// OpenAI has a code for it and llama-server a type; others have a sentence alone.
fn is_too_long(status: StatusCode, error: &Value, said: &str) -> bool {
    let said = said.to_lowercase();
    let has_one_of = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let is_said = said.contains("context")
        && has_one_of(&["length", "size", "window"])
        && has_one_of(&["exceed", "maximum", "too long", "too large", "too many", "larger than"]);
    error["code"] == "context_length_exceeded"
        || error["type"] == "exceed_context_size_error"
        || status == StatusCode::BAD_REQUEST && is_said
}
