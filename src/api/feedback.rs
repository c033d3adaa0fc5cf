//! `POST /v1/feedback`: the owner's word on an answer, by receipt.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::read::Body;
use crate::store::Feedback;

pub(super) async fn store(
    State(api): State<Api>,
    Body(feedback): Body<Feedback>,
) -> Result<Json<Value>, ApiError> {
    check(&feedback)?;
    api.parts.store.add_feedback(feedback).await?;
    Ok(Json(json!({ "stored": true })))
}

fn check(feedback: &Feedback) -> Result<(), ApiError> {
    match feedback {
        Feedback { rating: Some(rating), .. } if !(-1..=1).contains(rating) => {
            Err(ApiError::invalid("rating", "use -1, 0 or 1"))
        }
        Feedback { rating: None, edit: None, .. } => {
            Err(ApiError::invalid("rating", "a rating or an edit is needed"))
        }
        Feedback { rating: None, aspect: Some(_), .. } => {
            Err(ApiError::invalid("aspect", "an aspect needs a rating"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ExchangeId;

    #[test]
    fn feedback_says_something_and_rates_within_the_three_levels() {
        let nothing = Feedback {
            exchange: ExchangeId(1),
            candidate: None,
            rating: None,
            aspect: None,
            edit: None,
        };
        assert!(check(&nothing).is_err());
        assert!(check(&Feedback { rating: Some(2), ..nothing.clone() }).is_err());
        assert!(check(&Feedback { rating: Some(-1), ..nothing.clone() }).is_ok());
        let edit = Feedback { edit: Some("4".into()), ..nothing };
        assert!(check(&edit).is_ok());
        assert!(check(&Feedback { aspect: Some("insight".into()), ..edit }).is_err());
    }
}
