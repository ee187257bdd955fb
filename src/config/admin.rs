//! `[admin]`: `listen`, `metrics_listen`, `token`, `token_file`, `second_person_above`; `[log]`: `level`, `format`.

use std::net::SocketAddr;

use secrecy::SecretString;

use super::reader::Reader;
use crate::telemetry::logs::Form;

/// Where health, metrics and the API are served.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// Health and API. Another address than loopback needs a token.
    pub listen: SocketAddr,
    /// Metrics.
    pub metrics_listen: SocketAddr,
    /// Who knows it may use the API.
    pub token: Option<SecretString>,
    /// Jobs with more dead letters are approved by a second person; 0 for none.
    pub second_person_above: u32,
}

/// What is logged and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A filter such as `info` or `onceflow=debug`.
    pub level: String,
    /// The form of a line.
    pub form: Form,
}

/// Shortest token that is accepted: anything shorter can be guessed.
const MIN_TOKEN: usize = 16;

pub(super) fn read(reader: &mut Reader) -> AdminSettings {
    let settings = AdminSettings {
        listen: address(reader, "admin.listen", SocketAddr::from(([127, 0, 0, 1], 9463))),
        metrics_listen: address(reader, "admin.metrics_listen", SocketAddr::from(([127, 0, 0, 1], 9464))),
        token: reader.secret("admin.token"),
        second_person_above: reader.get("admin.second_person_above", 0),
    };
    let length = settings.token.as_ref().map(|t| secrecy::ExposeSecret::expose_secret(t).len());
    if length.is_some_and(|length| length < MIN_TOKEN) {
        reader.problem("admin.token", format!("is shorter than {MIN_TOKEN} characters: it could be guessed"));
    }
    if !settings.listen.ip().is_loopback() && settings.token.is_none() {
        let what = format!(
            "{} can be reached from other machines: set admin.token (or ONCEFLOW_ADMIN_TOKEN_FILE), or listen on 127.0.0.1",
            settings.listen
        );
        reader.problem("admin.listen", what);
    }
    settings
}

fn address(reader: &mut Reader, key: &str, default: SocketAddr) -> SocketAddr {
    let text: String = reader.get(key, default.to_string());
    text.parse().unwrap_or_else(|_| {
        reader.problem(key, format!("{text:?} is no address: give host and port as numbers, e.g. {default}"));
        default
    })
}

pub(super) fn read_log(reader: &mut Reader) -> LogSettings {
    let level = reader.get("log.level", "info".to_owned());
    let text: String = reader.get("log.format", "auto".to_owned());
    let form = match text.as_str() {
        "auto" => Form::Auto,
        "json" => Form::Json,
        "text" => Form::Text,
        other => {
            reader.problem("log.format", format!("{other:?} is none of auto, json, text"));
            Form::Auto
        }
    };
    LogSettings { level, form }
}
