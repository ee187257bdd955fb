//! Tokens: list, create, revoke. For administrators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};

use super::super::problem::Problem;
use super::super::state::{AdminState, end_change, end_read};
use super::super::tokens::{self, Ended, Made};
use super::super::wire::{NewToken, Token, TokenName, TokenRequest, Tokens};
use super::{actor, words};

/// A name stands in the audit beside what was done with the token.
const MAX_NAME: usize = 100;

type Body<T> = Result<Json<T>, JsonRejection>;

pub(super) async fn list(State(state): State<Arc<AdminState>>) -> Result<Json<Tokens>, Problem> {
    let tx = state.begin_read().await?;
    let items = tokens::list(&tx).await;
    end_read(tx, items).await.map(|items| Json(Tokens { items }))
}

pub(super) async fn create(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<TokenRequest>,
) -> Result<Json<NewToken>, Problem> {
    let Json(TokenRequest { name, role }) = body?;
    let (actor, name) = (actor(&headers)?, name_of(&name)?);
    let tx = state.begin().await?;
    let result = tokens::create(&tx, (&name, role), &actor, state.token.is_some()).await;
    let (token, secret) = match end_change(tx, result, true).await? {
        Made::Token(token, secret) => (token, secret),
        Made::NameTaken => {
            let detail = format!("there is a valid token {name:?} already; revoke it first, or take another name");
            return Err(Problem::new(StatusCode::CONFLICT, "token_exists", detail));
        }
        Made::NoAdmin => {
            let detail = "make an admin's token first: once there is a token nobody is let in without one, and only an admin \
                          makes and revokes tokens";
            return Err(Problem::new(StatusCode::CONFLICT, "no_admin", detail));
        }
    };
    tracing::info!(actor, token = name, role = role.as_str(), "token {name} was made");
    Ok(Json(NewToken { token, secret: secret.tell() }))
}

pub(super) async fn revoke(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<TokenName>,
) -> Result<Json<Token>, Problem> {
    let Json(TokenName { name }) = body?;
    let (actor, name) = (actor(&headers)?, name_of(&name)?);
    let tx = state.begin().await?;
    let result = tokens::revoke(&tx, &name, &actor, state.token.is_some()).await;
    let token = match end_change(tx, result, true).await? {
        Ended::Token(token) => token,
        Ended::Unknown => return Err(Problem::not_found(&format!("a valid token {name:?}"))),
        Ended::LastAdmin => {
            let detail = format!("{name:?} is the last admin: make another one first, or revoke the others before");
            return Err(Problem::new(StatusCode::CONFLICT, "last_admin", detail));
        }
    };
    tracing::info!(actor, token = name, "token {name} was revoked");
    Ok(Json(token))
}

fn name_of(text: &str) -> Result<String, Problem> {
    let name = words("name", text)?;
    if name.len() > MAX_NAME || !name.is_ascii() {
        return Err(Problem::invalid("invalid_words", format!("name: at most {MAX_NAME} ASCII characters")));
    }
    Ok(name)
}
