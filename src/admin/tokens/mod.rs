//! Tokens of the API: who may do what. What is stored is a hash; the token itself is told once.

mod store;

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng as _;
use uuid::Uuid;

use super::wire::{Role, Token};
use crate::db::{DbError, Tx};

/// What every token begins with, so that one that leaked is recognised.
const MARK: &str = "onceflow_";

/// A token as it is told to its owner.
pub(super) struct Secret(String);

impl Secret {
    fn new() -> Self {
        let bytes: [u8; 32] = rand::rng().random();
        Self(format!("{MARK}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// For the one answer that tells it.
    pub(super) fn tell(self) -> String {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Whose token this is, if it is valid.
pub(super) async fn owner(tx: &Tx, token: &str) -> Result<Option<(String, Role)>, DbError> {
    store::owner(tx, &hash(token)).await
}

/// Whether any token is valid: then nobody is let in without one.
pub(super) async fn any(tx: &Tx) -> Result<bool, DbError> {
    store::any(tx).await
}

/// All tokens, the newest first.
pub(super) async fn list(tx: &Tx) -> Result<Vec<Token>, DbError> {
    store::list(tx).await
}

/// What came of making a token.
pub(super) enum Made {
    /// The token and what is to be told once.
    Token(Token, Secret),
    /// A valid one has the name already.
    NameTaken,
    /// Nobody could make or end tokens any more.
    NoAdmin,
}

/// What came of ending a token.
pub(super) enum Ended {
    /// It is no longer valid.
    Token(Token),
    /// No valid one has the name.
    Unknown,
    /// Others would be left that nobody could end any more.
    LastAdmin,
}

/// Makes a token. The first is an admin's unless the configuration has one (`configured`), for as soon as there is one nobody is let
/// in without.
pub(super) async fn create(
    tx: &Tx,
    (name, role): (&str, Role),
    actor: &str,
    configured: bool,
) -> Result<Made, DbError> {
    let left = store::left(tx, name).await?;
    if role != Role::Admin && left.admins == 0 && !configured {
        return Ok(Made::NoAdmin);
    }
    let (id, secret) = (Uuid::now_v7(), Secret::new());
    let Some(token) = store::insert(tx, id, (name, role, actor), &hash(&secret.0)).await? else {
        return Ok(Made::NameTaken);
    };
    store::audit(tx, (actor, "token.create", name), role).await?;
    Ok(Made::Token(token, secret))
}

/// Ends a token, by its name.
pub(super) async fn revoke(tx: &Tx, name: &str, actor: &str, configured: bool) -> Result<Ended, DbError> {
    let left = store::left(tx, name).await?;
    if left.is_admin && left.admins == 1 && left.others > 0 && !configured {
        return Ok(Ended::LastAdmin);
    }
    let Some(token) = store::revoke(tx, name, actor).await? else { return Ok(Ended::Unknown) };
    store::audit(tx, (actor, "token.revoke", name), token.role).await?;
    Ok(Ended::Token(token))
}

fn hash(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_differ_and_do_not_show_in_debug_output() {
        let (one, other) = (Secret::new(), Secret::new());
        assert_eq!(format!("{one:?}"), "Secret");
        let (one, other) = (one.tell(), other.tell());
        assert!(one.starts_with(MARK) && one.len() == MARK.len() + 43 && one != other);
    }
}
