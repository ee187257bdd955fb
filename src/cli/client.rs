//! The admin API's client: every verb that needs the running service goes through it.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::exit::{Exit, Failure};
use crate::admin::wire::{ACTOR_HEADER, ProblemBody};

/// Where the service is, and who asks.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// Base URL of the admin port.
    pub(super) url: String,
    /// Token, where the service wants one.
    pub(super) token: Option<SecretString>,
    /// Written into the audit.
    pub(super) actor: String,
    /// Longest wait for one answer.
    pub(super) timeout: Duration,
}

/// A client of one service.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// Without user and password, for messages.
    address: String,
}

impl Client {
    /// Prepares the client; connects on first use.
    ///
    /// # Errors
    /// When the URL or the token can't be used.
    pub(super) fn new(server: &Server) -> Result<Self, Failure> {
        let base = base_url(&server.url)?;
        let mut builder = reqwest::Client::builder()
            .default_headers(headers(server)?)
            .timeout(server.timeout)
            .connect_timeout(server.timeout.min(Duration::from_secs(5)))
            .redirect(reqwest::redirect::Policy::none());
        if is_local(&base) {
            // A proxy of the environment can't reach this machine's loopback.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| Failure::new(Exit::Failed, "can't make an HTTP client").because(e))?;
        let address = without_user(base.as_str()).trim_end_matches('/').to_owned();
        Ok(Self { http, base, address })
    }

    /// Reads.
    ///
    /// # Errors
    /// When the service can't be reached or says no.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> Result<T, Failure> {
        self.answer(self.request(Method::GET, path)?.query(query)).await
    }

    /// Asks for a change, or a question too long for a URL.
    ///
    /// # Errors
    /// When the service can't be reached or says no.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.answer(self.request(Method::POST, path)?.json(body)).await
    }

    /// The server's address without anything secret.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, Failure> {
        let url = self.base.join(&format!("api/v1/{path}"));
        let url = url.map_err(|e| Failure::new(Exit::Usage, format!("{path:?} is no path")).because(e))?;
        Ok(self.http.request(method, url))
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        let status = response.status();
        let problem = response.headers().get(CONTENT_TYPE).is_some_and(|t| t == "application/problem+json");
        let body = response.bytes().await.map_err(|e| self.no_answer(&e))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.stranger(status, &e.to_string()));
        }
        match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(body) if problem => Err(refused(status, &body)),
            _ => Err(self.stranger(status, "no problem description")),
        }
    }

    fn no_answer(&self, error: &reqwest::Error) -> Failure {
        let what = format!("no answer from the service at {}", self.address());
        let remedy = "start it with `onceflow run` or `onceflow dev`, or name another with --server or ONCEFLOW_SERVER";
        let exit = if error.is_timeout() && !error.is_connect() { Exit::TimedOut } else { Exit::Unreachable };
        Failure::new(exit, what).because(innermost(error)).or_try(remedy)
    }

    fn stranger(&self, status: StatusCode, why: &str) -> Failure {
        let what = format!("{} answered {status} in an unknown form", self.address());
        Failure::new(Exit::Failed, what)
            .because(why)
            .or_try("check --server: it must be the admin port of the same version")
    }
}

fn refused(status: StatusCode, body: &ProblemBody) -> Failure {
    let (exit, remedy) = match status.as_u16() {
        403 if body.code == "edit_off" => (Exit::Denied, None),
        401 | 403 | 429 => (Exit::Denied, Some("--token-file FILE or ONCEFLOW_ADMIN_TOKEN")),
        404 => (Exit::NotFound, None),
        409 if body.code == "count_differs" => (Exit::Conflict, Some("look again, then repeat with the new count")),
        409 => (Exit::Conflict, None),
        400 | 413 | 415 | 422 => (Exit::Usage, None),
        503 => (Exit::Unreachable, Some("`onceflow status` says what it waits for")),
        504 => (Exit::TimedOut, None),
        _ => (Exit::Failed, Some("the service's log says more")),
    };
    let failure = Failure::new(exit, format!("{} ({})", body.detail, body.code));
    match remedy {
        Some(remedy) => failure.or_try(remedy),
        None => failure,
    }
}

fn headers(server: &Server) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    // Headers are ASCII; a name in other letters is shown without them.
    let actor: String = server.actor.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    let actor = HeaderValue::from_str(&actor).map_err(|e| Failure::new(Exit::Usage, "--actor").because(e))?;
    headers.insert(HeaderName::from_static(ACTOR_HEADER), actor);
    if let Some(token) = &server.token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret().trim()));
        let mut value = value.map_err(|_| Failure::new(Exit::Usage, "the token holds characters that no token has"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn base_url(text: &str) -> Result<Url, Failure> {
    let wrong = |why: String| {
        Failure::new(Exit::Usage, format!("--server {:?} is no URL", without_user(text)))
            .because(why)
            .or_try("http://HOST:PORT")
    };
    let text = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
    let url = Url::parse(&text).map_err(|e| wrong(e.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(url),
        scheme => Err(wrong(format!("{scheme:?} is neither http nor https"))),
    }
}

/// What may be shown of a URL.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if scheme.is_empty() { format!("{host}{path}") } else { format!("{scheme}://{host}{path}") }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// The client's own words repeat the URL; the cause at the bottom is what helps.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prefix_of_the_server_is_kept() {
        let base = base_url("http://127.0.0.1:8080/onceflow").unwrap();
        assert_eq!(base.join("api/v1/dlq").unwrap().as_str(), "http://127.0.0.1:8080/onceflow/api/v1/dlq");
    }

    #[test]
    fn a_password_in_the_servers_url_is_never_shown_s7_4() {
        let server = |url: &str| Server {
            url: url.to_owned(),
            token: None,
            actor: "li".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let client = Client::new(&server("https://li:hunter2@proxy/x")).unwrap();
        assert_eq!(client.address(), "https://proxy/x");
        for wrong in ["ftp://li:hunter2@proxy", "li:hunter2@proxy", "http://li:hunter2@proxy:x/@"] {
            let told = Client::new(&server(wrong)).unwrap_err();
            assert!(!format!("{told}").contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn statuses_become_exit_codes() {
        let body = |status| ProblemBody {
            kind: String::new(),
            title: String::new(),
            status,
            code: "x".into(),
            detail: "y".into(),
        };
        for (status, exit) in
            [(401, Exit::Denied), (404, Exit::NotFound), (409, Exit::Conflict), (503, Exit::Unreachable)]
        {
            let code = StatusCode::from_u16(status).unwrap();
            assert_eq!(refused(code, &body(status)).exit, exit);
        }
    }

    #[test]
    fn a_wrong_server_is_a_usage_error() {
        assert_eq!(base_url("nowhere").unwrap_err().exit, Exit::Usage);
        assert_eq!(base_url("ftp://x").unwrap_err().exit, Exit::Usage);
    }
}
