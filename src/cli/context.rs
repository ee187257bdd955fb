//! The flags that every command has, and what is made of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::SecretString;

use super::client::{Client, Server};
use super::exit::{Exit, Failure};
use super::output::{Color, Format, Output};

/// Where the admin port is unless somebody says otherwise.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:8480";

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Configuration file [default: ./onceflow.toml where it exists]
    #[arg(long, global = true, value_name = "FILE", env = "ONCEFLOW_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// Admin port of the running service
    #[arg(long, global = true, value_name = "URL", env = "ONCEFLOW_SERVER", hide_env = true, default_value = DEFAULT_SERVER)]
    server: String,
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
    /// Read from the environment only: a flag would show it to every user of the machine.
    #[arg(long = "token-from-environment", global = true, env = "ONCEFLOW_ADMIN_TOKEN", hide = true)]
    token: Option<SecretString>,
    #[arg(long = "user-from-environment", global = true, env = "USER", hide = true)]
    user: Option<String>,
    #[arg(long = "no-color-from-environment", global = true, env = "NO_COLOR", hide = true)]
    no_color: Option<String>,
    #[arg(long = "term-from-environment", global = true, env = "TERM", hide = true)]
    term: Option<String>,
}

/// What a command works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) out: Output,
    pub(super) config: Option<PathBuf>,
    pub(super) verbose: u8,
    pub(super) timeout: Duration,
    server: Server,
}

impl Context {
    pub(super) fn new(global: Global) -> Result<Self, (Output, Failure)> {
        let no_color = global.no_color.as_deref().is_some_and(|v| !v.is_empty());
        let dumb = global.term.as_deref() == Some("dumb");
        let out =
            Output { format: global.output, quiet: global.quiet, color: global.color.decide(no_color, dumb) };
        let token = token(global.token, global.token_file).map_err(|failure| (out, failure))?;
        let actor = global.actor.or(global.user).filter(|name| !name.trim().is_empty());
        let server = Server {
            url: global.server,
            token,
            actor: actor.unwrap_or_else(|| "unknown".to_owned()),
            timeout: global.timeout,
        };
        Ok(Self { out, config: global.config, verbose: global.verbose, timeout: global.timeout, server })
    }

    pub(super) fn server_url(&self) -> &str {
        self.server.url.trim_end_matches('/')
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.server)
    }
}

fn token(given: Option<SecretString>, file: Option<PathBuf>) -> Result<Option<SecretString>, Failure> {
    if given.is_some() {
        return Ok(given);
    }
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(&file);
    let text = text.map_err(|e| Failure::new(Exit::Usage, format!("can't read {}", file.display())).because(e))?;
    Ok(Some(SecretString::from(text.trim())))
}

/// `30s`, `500ms`, `1m 30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "a time such as 30s, 500ms or 2m is needed".to_owned())?;
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
}
