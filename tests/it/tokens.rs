//! Who may use the API, and for what.

use std::process::Output;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::admin::{Door, answer, nowhere};
use crate::harness::Database;

/// The command line with a token in a file, as an operator has it.
async fn command(door: &Door, token: Option<&str>, args: &[&str]) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).args(["--server", &format!("http://{}", door.address)]).env_clear();
    if let Some(token) = token {
        std::fs::write(file.path(), token).unwrap();
        command.arg("--token-file").arg(file.path());
    }
    command.current_dir(std::env::temp_dir()).stdin(std::process::Stdio::null()).output().await.unwrap()
}

/// Asks with a token of the test's choice.
async fn ask(door: &Door, token: Option<&str>, method: Method, path: &str, body: Value) -> (u16, Value) {
    let mut request = Client::new().request(method.clone(), format!("http://{}/api/v1{path}", door.address));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method == Method::POST {
        request = request.json(&body);
    }
    answer(request.header("onceflow-actor", "claims to be wang").send().await.unwrap()).await
}

async fn token(door: &Door, by: Option<&str>, name: &str, role: &str) -> String {
    let (status, made) = ask(door, by, Method::POST, "/tokens", json!({ "name": name, "role": role })).await;
    assert_eq!(status, 200, "{made}");
    made["secret"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_viewer_looks_an_operator_changes_and_an_admin_makes_tokens() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let admin = token(&door, None, "chen", "admin").await;
    let operator = token(&door, Some(&admin), "li", "operator").await;
    let viewer = token(&door, Some(&admin), "zhao", "viewer").await;

    let pause = || json!({ "reason": "the bank is down" });
    let cases = [
        (Method::GET, "/dlq", Value::Null, [200, 200, 200]),
        (Method::POST, "/dlq/settled", json!({ "ids": [] }), [200, 200, 200]),
        (Method::POST, "/consumers/payment/pause", pause(), [403, 200, 200]),
        (Method::POST, "/dlq/replay", json!({ "selection": { "ids": [] } }), [403, 200, 200]),
        (Method::POST, "/dlq/archive", json!({ "selection": { "ids": [] }, "reason": "x" }), [403, 200, 200]),
        (Method::POST, "/dlq/restore", json!({ "selection": { "ids": [] }, "reason": "x" }), [403, 200, 200]),
        (Method::GET, "/dlq/00000000-0000-0000-0000-000000000000/diff", Value::Null, [404, 404, 404]),
        (Method::POST, "/dlq/00000000-0000-0000-0000-000000000000/diff", json!({}), [403, 404, 404]),
        (Method::POST, "/dlq/00000000-0000-0000-0000-000000000000/unmask", json!({}), [403, 404, 404]),
        (Method::GET, "/tokens", Value::Null, [403, 403, 200]),
        (Method::POST, "/tokens", json!({ "name": "x", "role": "viewer" }), [403, 403, 200]),
        (Method::POST, "/tokens/revoke", json!({ "name": "x" }), [403, 403, 200]),
    ];
    for (method, path, body, expected) in cases {
        for (token, expected) in [&viewer, &operator, &admin].into_iter().zip(expected) {
            let (status, answer) = ask(&door, Some(token), method.clone(), path, body.clone()).await;
            assert_eq!(status, expected, "{method} {path}: {answer}");
            if expected == 403 {
                assert_eq!(answer["code"], "not_permitted");
                assert!(answer["detail"].as_str().unwrap().contains("needs the role"), "{answer}");
            }
        }
    }
}

/// Editing is off here, which only those are told who could edit.
#[tokio::test]
async fn only_an_admin_edits_a_dead_letter() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let admin = token(&door, None, "chen", "admin").await;
    let operator = token(&door, Some(&admin), "li", "operator").await;
    let path = "/dlq/00000000-0000-0000-0000-000000000000/edit";
    for (token, expected) in [(&operator, (403, "not_permitted")), (&admin, (404, "not_found"))] {
        let (status, answer) = ask(&door, Some(token), Method::POST, path, json!({ "reason": "x" })).await;
        assert_eq!((status, answer["code"].as_str().unwrap()), expected, "{answer}");
    }
}

#[tokio::test]
async fn as_soon_as_there_is_a_token_nobody_is_let_in_without_a_valid_one() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    assert_eq!(ask(&door, None, Method::GET, "/dlq", Value::Null).await.0, 200);
    let admin = token(&door, None, "chen", "admin").await;
    for (token, method) in [(None, Method::GET), (Some("onceflow_wrong"), Method::GET), (Some(""), Method::GET)] {
        let (status, answer) = ask(&door, token, method, "/dlq", Value::Null).await;
        assert_eq!((status, &answer["code"]), (401, &json!("unauthorized")), "{token:?}");
    }
    let (status, _) = ask(&door, Some(&admin), Method::POST, "/tokens/revoke", json!({ "name": "chen" })).await;
    assert_eq!(status, 200);
    assert_eq!(ask(&door, Some(&admin), Method::GET, "/dlq", Value::Null).await.0, 401, "revoked");
    assert_eq!(ask(&door, None, Method::GET, "/dlq", Value::Null).await.0, 200, "no valid token is left");
}

#[tokio::test]
async fn what_is_done_with_a_token_stands_in_the_audit_under_its_name_whatever_the_caller_claims() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let admin = token(&door, None, "chen", "admin").await;
    let operator = token(&door, Some(&admin), "li", "operator").await;
    let body = json!({ "reason": "the bank is down" });
    assert_eq!(ask(&door, Some(&operator), Method::POST, "/consumers/payment/pause", body).await.0, 200);
    let client = database.client().await;
    let sql = "SELECT actor FROM onceflow.audit WHERE action <> 'token.create'";
    let actor: String = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(actor, "li (claims to be wang)");
    let sql = "SELECT subject, detail->>'role' FROM onceflow.audit WHERE action = 'token.create' AND subject = 'li'";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("li", "operator"));
}

#[tokio::test]
async fn a_token_is_told_once_and_only_its_hash_is_stored() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let secret = token(&door, None, "chen", "admin").await;
    let listed = ask(&door, Some(&secret), Method::GET, "/tokens", Value::Null).await.1;
    assert_eq!(listed["items"][0]["name"], "chen");
    assert!(!listed.to_string().contains(&secret));
    let row = database.client().await.query_one("SELECT t::text FROM onceflow.api_token t", &[]).await.unwrap();
    assert!(!row.get::<_, &str>(0).contains(&secret));
}

#[tokio::test]
async fn a_name_belongs_to_one_valid_token() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let admin = token(&door, None, "chen", "admin").await;
    let again = json!({ "name": "chen", "role": "viewer" });
    let (status, answer) = ask(&door, Some(&admin), Method::POST, "/tokens", again).await;
    assert_eq!((status, &answer["code"]), (409, &json!("token_exists")));
    for name in ["", "李", &"x".repeat(101)] {
        let body = json!({ "name": name, "role": "viewer" });
        assert_eq!(ask(&door, Some(&admin), Method::POST, "/tokens", body).await.0, 400, "{name:?}");
    }
}

#[tokio::test]
async fn while_the_database_is_away_one_may_look_without_a_token_and_change_nothing_o1() {
    let door = Door::open(nowhere(), None).await;
    assert_eq!(ask(&door, None, Method::GET, "/status", Value::Null).await.0, 200);
    let body = json!({ "reason": "the bank is down" });
    let (status, answer) = ask(&door, None, Method::POST, "/consumers/payment/pause", body).await;
    assert_eq!((status, &answer["code"]), (503, &json!("database_unreachable")));
}

#[tokio::test]
async fn a_token_goes_to_a_file_and_a_viewer_who_tries_more_is_told_so_with_exit_8() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let admin = command(&door, None, &["token", "create", "chen", "--role", "admin"]).await;
    let admin = String::from_utf8(admin.stdout).unwrap();
    assert!(
        admin.starts_with("onceflow_") && admin.trim().len() == admin.len() - 1,
        "nothing but the token: {admin:?}"
    );
    let viewer = command(&door, Some(&admin), &["token", "create", "zhao", "--role", "viewer"]).await.stdout;
    let viewer = String::from_utf8(viewer).unwrap();
    assert_eq!(command(&door, Some(&viewer), &["dlq", "groups"]).await.status.code(), Some(0));
    let pause = ["consumers", "pause", "payment", "--reason", "curious"];
    for (token, words) in [(Some(viewer.as_str()), "needs the role operator"), (None, "--token-file")] {
        let refused = command(&door, token, &pause).await;
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(8), "{said}");
        assert!(said.contains(words), "{said}");
    }
    let listed = command(&door, Some(&admin), &["token", "list", "-o", "json"]).await;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed}");
}

#[tokio::test]
async fn nobody_is_locked_out_by_a_token_without_an_admin() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let first = json!({ "name": "li", "role": "operator" });
    let (status, answer) = ask(&door, None, Method::POST, "/tokens", first).await;
    assert_eq!((status, &answer["code"]), (409, &json!("no_admin")), "{answer}");
    let admin = token(&door, None, "chen", "admin").await;
    token(&door, Some(&admin), "li", "operator").await;
    let revoke = |name: &str| json!({ "name": name });
    let (status, answer) = ask(&door, Some(&admin), Method::POST, "/tokens/revoke", revoke("chen")).await;
    assert_eq!((status, &answer["code"]), (409, &json!("last_admin")), "{answer}");
    assert_eq!(ask(&door, Some(&admin), Method::POST, "/tokens/revoke", revoke("li")).await.0, 200);
    assert_eq!(ask(&door, Some(&admin), Method::POST, "/tokens/revoke", revoke("chen")).await.0, 200);
}
