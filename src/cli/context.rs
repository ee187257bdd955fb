//! The flags that every command has, and what is made of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;

use super::client::{Client, Server};
use super::exit::{Exit, Failure};
use super::output::{Color, Format, Output};
use crate::config::{self, Config, variable};
use crate::domains;

/// Where the admin port is unless somebody says otherwise.
const DEFAULT_SERVER: &str = "http://127.0.0.1:9463";

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Configuration file [default: ./onceflow.toml, ./.onceflow/dev/onceflow.toml or /etc/onceflow/onceflow.toml]
    #[arg(long, global = true, value_name = "FILE", env = "ONCEFLOW_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// Admin port of the running service [default: that of the configuration]
    #[arg(long, global = true, value_name = "URL", env = "ONCEFLOW_SERVER", hide_env = true)]
    server: Option<String>,
    /// How data is printed
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Print no talk but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Colour on stderr
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// Longest wait for an answer or a result, e.g. 30s, 2m
    #[arg(long, global = true, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    /// File with the admin token
    #[arg(long, global = true, value_name = "FILE", env = "ONCEFLOW_ADMIN_TOKEN_FILE", hide_env = true)]
    token_file: Option<PathBuf>,
    /// Who acts, for the audit [default: the user's name]
    #[arg(long, global = true, value_name = "NAME", env = "ONCEFLOW_ACTOR", hide_env = true)]
    actor: Option<String>,
}

/// What a command works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) out: Output,
    pub(super) timeout: Duration,
    verbose: u8,
    global: Global,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        let no_color = variable("NO_COLOR").is_some();
        let dumb = variable("TERM").as_deref() == Some("dumb");
        let out = Output { format: global.output, quiet: global.quiet, color: global.color.decide(no_color, dumb) };
        Self { out, timeout: global.timeout, verbose: global.verbose, global }
    }

    /// The configuration, complete and valid.
    pub(super) fn load_config(&self) -> Result<Config, Failure> {
        let consumers = domains::consumers();
        let names: Vec<&str> = consumers.iter().map(|c| c.name()).collect();
        config::load(self.global.config.as_deref(), &names).map_err(|errors| {
            let details = errors.0.iter().map(|p| match p.key.as_str() {
                "" => format!("{}: {}", p.place, p.what),
                key => format!("{}: {key}: {}", p.place, p.what),
            });
            let what = format!("the configuration has {} errors", errors.0.len());
            Failure::new(Exit::Configuration, what)
                .or_try("mend them all, then `onceflow check`")
                .with_details(details.collect())
        })
    }

    /// The log level: the configuration's, or what `-q` and `-v` say.
    pub(super) fn log_level(&self, configured: &str) -> String {
        match (self.out.quiet, self.verbose) {
            (true, _) => "warn".to_owned(),
            (_, 0) => configured.to_owned(),
            (_, 1) => "debug".to_owned(),
            _ => "trace".to_owned(),
        }
    }

    /// A client of the running service.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let (url, token) = self.server()?;
        Client::new(&Server { url, token, actor: self.actor(), timeout: self.timeout })
    }

    /// Who acts, for the audit.
    pub(super) fn actor(&self) -> String {
        let actor = self.global.actor.clone().or_else(|| variable("USER")).filter(|name| !name.trim().is_empty());
        actor.unwrap_or_else(|| "unknown".to_owned())
    }

    /// The flag, else the service that the configuration here describes, else the default.
    fn server(&self) -> Result<(String, Option<SecretString>), Failure> {
        let token = self.token()?;
        if let Some(url) = self.global.server.clone().filter(|url| !url.is_empty()) {
            return Ok((url, token));
        }
        match self.load_config() {
            Ok(config) => Ok((format!("http://{}", reachable(config.admin.listen)), token.or(config.admin.token))),
            Err(failure) if self.global.config.is_some() => Err(failure),
            // Without a configuration an operator's machine can still ask a service at the default address.
            Err(_) => Ok((DEFAULT_SERVER.to_owned(), token)),
        }
    }

    fn token(&self) -> Result<Option<SecretString>, Failure> {
        let Some(file) = &self.global.token_file else {
            return Ok(variable("ONCEFLOW_ADMIN_TOKEN").map(SecretString::from));
        };
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|e| Failure::new(Exit::Usage, format!("can't read {}", file.display())).because(e))?;
        Ok(Some(SecretString::from(text.trim())))
    }
}

/// A service that listens on every address answers on loopback.
fn reachable(mut listen: std::net::SocketAddr) -> std::net::SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}

/// `30s`, `500ms`, `1m 30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "a time such as 30s, 500ms or 2m is needed".to_owned())?;
    let span = Duration::try_from(span).map_err(|_| "a time can't be negative".to_owned())?;
    if span.is_zero() {
        return Err("a time above 0 is needed".to_owned());
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "30", "-3s", "0s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_on_every_address_is_asked_on_loopback() {
        assert_eq!(reachable("0.0.0.0:9463".parse().unwrap()).to_string(), "127.0.0.1:9463");
        assert_eq!(reachable("[::]:9463".parse().unwrap()).to_string(), "[::1]:9463");
        assert_eq!(reachable("10.0.0.1:9463".parse().unwrap()).to_string(), "10.0.0.1:9463");
    }
}
