//! `POST /v1/feedback`: the owner's rating or edit of an answer, by receipt. An edit becomes an
//! answer of its own; `learn` decides what the rating means for training.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::read::Body;
use config::Agent;
use store::{CandidateId, Exchange, Feedback};

pub(super) async fn store(
    State(api): State<Api>,
    Body(feedback): Body<Feedback>,
) -> Result<Json<Value>, ApiError> {
    check(&feedback)?;
    let exchange = api.parts.store.exchange(feedback.exchange).await?;
    let agent = api.config().agents.get(&exchange.agent).cloned();
    let candidate = about(&exchange, &feedback)?;
    check_aspect(agent.as_deref(), &feedback)?;
    let feedback = Feedback { candidate: Some(candidate), ..feedback };
    let Some(text) = feedback.edit.as_deref().map(str::trim) else {
        api.parts.store.add_feedback(feedback).await?;
        return Ok(Json(json!({ "stored": true })));
    };
    let agent = agent.ok_or_else(|| {
        let message = format!("agent {} is not configured any more", exchange.agent);
        ApiError::invalid("exchange", message)
    })?;
    let edit = api.parts.reflector.edited(&agent, &exchange, candidate, text).await?;
    let id = api.parts.store.add_edit(feedback, edit).await?;
    Ok(Json(json!({ "stored": true, "edit": id })))
}

/// Checks that need nothing but the body.
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
        Feedback { edit: Some(edit), .. } if edit.trim().is_empty() => {
            Err(ApiError::invalid("edit", "an edit is the whole better answer and is not empty"))
        }
        _ => Ok(()),
    }
}

/// Which answer is spoken of: the one that is named, or the one that was served.
fn about(exchange: &Exchange, feedback: &Feedback) -> Result<CandidateId, ApiError> {
    let candidate = feedback.candidate.or(exchange.served).ok_or_else(|| {
        ApiError::invalid("candidate", "no answer of this exchange was served: name a candidate")
    })?;
    let is_there = exchange.candidates.iter().any(|it| it.id == candidate);
    is_there.then_some(candidate).ok_or_else(|| {
        ApiError::NotFound(format!("exchange {} has no candidate {candidate}", exchange.id))
    })
}

/// A misspelled aspect would be stored and never count.
fn check_aspect(agent: Option<&Agent>, feedback: &Feedback) -> Result<(), ApiError> {
    let (Some(agent), Some(aspect)) = (agent, &feedback.aspect) else { return Ok(()) };
    let names: Vec<&str> = agent.aspects.iter().map(|it| it.aspect.name.as_str()).collect();
    if names.contains(&aspect.as_str()) {
        return Ok(());
    }
    let message = format!("agent {} has the aspects {}", agent.name, names.join(", "));
    Err(ApiError::invalid("aspect", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::ExchangeId;

    #[test]
    fn feedback_says_something_and_rates_within_the_three_levels() {
        let nothing = Feedback {
            exchange: ExchangeId(1),
            candidate: None,
            rating: None,
            aspect: None,
            edit: None,
        };
        check(&nothing).unwrap_err();
        check(&Feedback { rating: Some(2), ..nothing.clone() }).unwrap_err();
        check(&Feedback { rating: Some(-1), ..nothing.clone() }).unwrap();
        check(&Feedback { edit: Some(" \n".into()), ..nothing.clone() }).unwrap_err();
        let edit = Feedback { edit: Some("4".into()), ..nothing };
        check(&edit).unwrap();
        check(&Feedback { aspect: Some("insight".into()), ..edit }).unwrap_err();
    }
}
