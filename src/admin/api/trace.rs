//! The life of an event.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};

use super::super::problem::Problem;
use super::super::state::{AdminState, end_read};
use crate::db::{DbError, Tx};
use crate::replay::control;
use crate::replay::trace::{self, Question, Trace};

/// As long as the longest attribute of an event.
const MAX_TEXT: usize = 512;

pub(super) async fn trace(
    State(state): State<Arc<AdminState>>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Json<Trace>, Problem> {
    let question = checked(question?.0)?;
    let consumers: Vec<&str> = state.consumers.iter().map(|consumer| consumer.name).collect();
    let tx = state.begin_read().await?;
    let told = tell(&tx, &question, &consumers).await;
    end_read(tx, told).await.map(Json)
}

async fn tell(tx: &Tx, question: &Question, consumers: &[&str]) -> Result<Trace, DbError> {
    control::limit_statements(tx).await?;
    trace::trace(tx, question, consumers).await
}

fn checked(question: Question) -> Result<Question, Problem> {
    if question.id.is_some() == question.key.is_some() {
        return Err(Problem::invalid("invalid_question", "one of id and key is needed: which event, or whose events"));
    }
    let Question { id, key, tenant, source, consumer } = &question;
    for (name, text) in [("id", id), ("key", key), ("tenant", tenant), ("source", source), ("consumer", consumer)] {
        let Some(text) = text else { continue };
        // A plain message has no source, so that may be empty.
        let empty = text.is_empty() && name != "source";
        if empty || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            let detail = format!("{name}: 1 to {MAX_TEXT} bytes of printable text are needed");
            return Err(Problem::invalid("invalid_question", detail));
        }
    }
    Ok(question)
}
