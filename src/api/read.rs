//! Extractors that fail as [`ApiError`]: a bounded JSON body, path parameters, query parameters.
//! Nothing is trusted here beyond its type; handlers check values. Used by every handler.

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::Api;
use super::error::ApiError;

/// A JSON body within `server.max_body_bytes`. An empty body means `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let limit = api.config().server.max_body_bytes;
        let body = Limited::new(request.into_body(), limit).collect().await;
        let bytes = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(ApiError::BodyTooLarge { limit });
            }
            Err(error) => return Err(ApiError::InvalidJson(error.to_string())),
        };
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// Path parameters.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, api).await {
            Ok(Path(value)) => Ok(Self(value)),
            // `/v1/runs/abc` names nothing that exists.
            Err(_) => Err(ApiError::NotFound("no such path".to_owned())),
        }
    }
}

/// Query parameters.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, api).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::InvalidValue { param: None, message: error.body_text() }),
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let param = Some(error.path().to_string()).filter(|path| path != ".");
        let error = error.into_inner();
        if error.is_data() {
            ApiError::InvalidValue { param, message: error.to_string() }
        } else {
            ApiError::InvalidJson(error.to_string())
        }
    })?;
    json.end().map_err(|error| ApiError::InvalidJson(error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::ChatBody;

    fn refused(body: &str) -> ApiError {
        parse::<ChatBody>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn text_that_is_not_json_is_told_from_a_wrong_type() {
        assert!(matches!(refused("{"), ApiError::InvalidJson(_)));
        assert!(matches!(refused("{} {}"), ApiError::InvalidJson(_)));
        assert!(matches!(
            refused("[1]x"),
            ApiError::InvalidJson(_) | ApiError::InvalidValue { .. }
        ));
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let ApiError::InvalidValue { param, .. } = refused(r#"{"messages":[{"role":3}]}"#) else {
            panic!("not a value error");
        };
        assert_eq!(param.as_deref(), Some("messages[0].role"));
        let ApiError::InvalidValue { param, .. } = refused(r#"{"max_tokens":-1}"#) else {
            panic!("not a value error");
        };
        assert_eq!(param.as_deref(), Some("max_tokens"));
    }

    #[test]
    fn unknown_fields_are_kept_for_a_look() {
        let body: ChatBody = parse(br#"{"user":"me","tools":[]}"#).unwrap();
        assert!(body.rest.contains_key("tools") && body.rest.contains_key("user"));
    }
}
