//! Every way in which a request fails, and the one place where it becomes a status, a type and a
//! code. The public message says what to do; private detail goes to the log with the request id.
//! Used by every handler.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::wire::{ErrorBody, ErrorReply};
use crate::learn::LearnError;
use crate::reflect::ReflectError;
use engine::EngineError;
use prompt::PromptError;
use store::StoreError;

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("the body is not JSON: {0}")]
    InvalidJson(String),
    #[error("{message}")]
    InvalidValue { param: Option<String>, message: String },
    #[error(
        "prompt and answer need {needed} tokens but the model holds {limit}; shorten the messages \
         or lower max_tokens"
    )]
    ContextLength { needed: usize, limit: usize },
    #[error("user id {0} may not use this socket; add it to server.allow_uids")]
    UidNotAllowed(u32),
    #[error("no model `{0}`; GET /v1/models lists them")]
    ModelNotFound(String),
    #[error("{0}")]
    NotFound(String),
    #[error("this path does not take that method")]
    MethodNotAllowed,
    #[error("another long operation is under way: {0}")]
    LearnerBusy(&'static str),
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("too many requests at once; try again in {} s", retry_after.as_secs())]
    Overloaded { retry_after: Duration },
    #[error("something went wrong in reflectd; the log tells more under this x-request-id")]
    Internal(String),
    #[error("{0}")]
    NoPrompt(String),
    #[error("the daemon is stopping")]
    Draining,
    #[error("the model could not answer; the log tells why under this x-request-id")]
    EngineFailed(String),
}

impl ApiError {
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::InvalidValue { param: Some(param.to_owned()), message: message.into() }
    }

    /// Status, type and code: the only such table.
    fn spelling(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, REQUEST, "invalid_json"),
            Self::InvalidValue { .. } => (StatusCode::BAD_REQUEST, REQUEST, "invalid_value"),
            Self::ContextLength { .. } => {
                (StatusCode::BAD_REQUEST, REQUEST, "context_length_exceeded")
            }
            Self::UidNotAllowed(_) => {
                (StatusCode::FORBIDDEN, "permission_error", "uid_not_allowed")
            }
            Self::ModelNotFound(_) => (StatusCode::NOT_FOUND, REQUEST, "model_not_found"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, REQUEST, "not_found"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed")
            }
            Self::LearnerBusy(_) => (StatusCode::CONFLICT, REQUEST, "learner_busy"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "body_too_large"),
            Self::Overloaded { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded")
            }
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal"),
            Self::NoPrompt(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "chat_template")
            }
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "draining"),
            Self::EngineFailed(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "server_error", "engine_failed")
            }
        }
    }

    /// The body, also for errors that come after a stream has begun. Logs what the client is not
    /// told.
    pub(super) fn into_reply(self) -> ErrorReply {
        let (_, kind, code) = self.spelling();
        match &self {
            Self::Internal(detail) => tracing::error!(error = %detail, "A request failed."),
            Self::EngineFailed(detail) => {
                tracing::error!(error = %detail, "The engine failed a request.");
            }
            _ => tracing::debug!(code, error = %self, "A request was refused."),
        }
        let message = self.to_string();
        let param = match self {
            Self::InvalidValue { param, .. } => param,
            _ => None,
        };
        ErrorReply {
            error: ErrorBody { message, kind: kind.to_owned(), code: code.to_owned(), param },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, _) = self.spelling();
        let retry_after = match &self {
            Self::Overloaded { retry_after } => Some(retry_after.as_secs().max(1)),
            _ => None,
        };
        let mut response = (status, Json(self.into_reply())).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            EngineError::TooLong { needed, limit } => Self::ContextLength { needed, limit },
            EngineError::Invalid(message) => Self::InvalidValue { param: None, message },
            EngineError::NotLoaded(_) | EngineError::Load { .. } => {
                Self::Internal(error.to_string())
            }
            EngineError::Kernels(_) | EngineError::Failed(_) | EngineError::Stopped => {
                Self::EngineFailed(error.to_string())
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } => Self::NotFound(error.to_string()),
            StoreError::TooNew { .. } | StoreError::Database { .. } | StoreError::Stopped => {
                Self::Internal(with_causes(&error))
            }
        }
    }
}

impl From<LearnError> for ApiError {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::Busy(what) => Self::LearnerBusy(what),
            LearnError::Store(error) => error.into(),
            LearnError::Adapter(message) => Self::NotFound(message),
            LearnError::Unreadable(message) => Self::Internal(message),
            LearnError::Stopped => Self::Draining,
        }
    }
}

impl From<ReflectError> for ApiError {
    fn from(error: ReflectError) -> Self {
        match error {
            ReflectError::Engine(error) => error.into(),
            ReflectError::Store(error) => error.into(),
            ReflectError::Prompt(error @ PromptError::Unusable(_)) => {
                Self::NoPrompt(error.to_string())
            }
            // Chat templates raise an error to refuse a conversation, so the field is `messages`.
            ReflectError::Prompt(error) => Self::invalid("messages", error.to_string()),
            ReflectError::Verifier(error) => {
                Self::invalid("reflectd.verifier", with_causes(&error))
            }
            // A chat goes on when its judge fails; this is for requests that only judge.
            ReflectError::Judge(_)
            | ReflectError::Unjudgeable
            | ReflectError::Command(_)
            | ReflectError::NoModel(_) => Self::EngineFailed(error.to_string()),
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overloaded_reply_says_when_to_come_back() {
        let response =
            ApiError::Overloaded { retry_after: Duration::from_millis(300) }.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn private_detail_stays_out_of_the_reply() {
        let reply = ApiError::Internal("disk /secret is full".into()).into_reply();
        assert!(!reply.error.message.contains("secret"));
        assert_eq!(reply.error.code, "internal");
    }

    #[test]
    fn the_context_error_has_both_numbers() {
        let reply = ApiError::from(EngineError::TooLong { needed: 900, limit: 256 }).into_reply();
        assert_eq!(reply.error.code, "context_length_exceeded");
        assert!(reply.error.message.contains("900") && reply.error.message.contains("256"));
    }
}
