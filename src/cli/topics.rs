//! Help texts that belong to no single command.

use std::fmt::Write as _;

use super::exit::Exit;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow events types                     what can be published
  onceflow events publish org.user.upserted.v1
  onceflow status                           what runs, what waits and for what
  onceflow dlq groups                       why events failed
  onceflow dlq replay --group 1a2b3c4d --reason 'parent fixed'

More: onceflow help exit-codes | onceflow help environment";

pub(super) const ENVIRONMENT: &str = "\
Environment variables (a flag wins over the environment, the environment over the file):
  ONCEFLOW_AMQP_URL            amqp[s]://user:password@host:port/vhost
  ONCEFLOW_DATABASE_URL        postgres://user:password@host:port/database
  ONCEFLOW_ADMIN_LISTEN        address of health and API (loopback unless a token is set)
  ONCEFLOW_METRICS_LISTEN      address of /metrics
  ONCEFLOW_ADMIN_TOKEN         bearer token of the API; the command line sends it
  ONCEFLOW_CONFIG              configuration file, as --config
  ONCEFLOW_SERVER              admin port that the command line talks to, as --server
  ONCEFLOW_ACTOR               who acts, for the audit, as --actor
  NO_COLOR, TERM=dumb          no colour
Every secret can also come from a file: ONCEFLOW_AMQP_URL_FILE, ONCEFLOW_DATABASE_URL_FILE, ONCEFLOW_ADMIN_TOKEN_FILE.
";

/// The exit codes as a text.
pub(super) fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in Exit::ALL {
        // Writing to a string can't fail.
        let _written = writeln!(text, "  {}  {meaning}", exit as u8);
    }
    text
}
