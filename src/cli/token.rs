//! `onceflow token …`

use clap::{Subcommand, ValueEnum};

use super::context::Context;
use super::exit::{Ending, Exit};
use super::output::{Rows, time};
use crate::admin::wire::{NewToken, Role, Token, TokenName, TokenRequest, Tokens};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token for the API. It is printed once and stored nowhere.
    #[command(after_help = "\
Examples:
  onceflow token create li --role operator > li.token
  ONCEFLOW_ADMIN_TOKEN_FILE=li.token onceflow dlq groups

A viewer looks, an operator also replays, discards, pauses and resumes, an admin also makes and revokes tokens, edits dead letters and erases persons.
As soon as there is one valid token, nobody is let in without one; `admin.token` of the configuration stays an admin's.")]
    Create(CreateArgs),
    /// The tokens: whose, which role, since when.
    #[command(after_help = "Examples:\n  onceflow token list\n  onceflow token list -o json")]
    List,
    /// End a token at once.
    #[command(after_help = "Examples:\n  onceflow token revoke li")]
    Revoke(NameArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Whose it is; stands in the audit
    #[arg(value_name = "NAME")]
    name: String,
    /// What it allows
    #[arg(long, value_enum, value_name = "ROLE")]
    role: RoleArg,
}

#[derive(Debug, clap::Args)]
pub(super) struct NameArgs {
    /// Whose it is
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Looks.
    Viewer,
    /// Also replays, discards, pauses and resumes.
    Operator,
    /// Also makes and revokes tokens.
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Viewer => Self::Viewer,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::Create(args) => create(context, args).await,
        Command::List => list(context).await,
        Command::Revoke(args) => revoke(context, args).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> Ending {
    let body = TokenRequest { name: args.name, role: args.role.into() };
    let made: NewToken = context.client()?.post("tokens", &body).await?;
    if context.out.format == super::output::Format::Table {
        context.out.text(&format!("{}\n", made.secret))?;
    } else {
        context.out.data("onceflow.token.create/1", &made, Rows::default)?;
    }
    let (name, role) = (&made.token.name, made.token.role.as_str());
    context.out.say(&format!("token {name} ({role}): keep it, it is not shown again"));
    context.out.say("  -> put it into a file and set ONCEFLOW_ADMIN_TOKEN_FILE, or --token-file");
    Ok(Exit::Ok)
}

async fn list(context: &Context) -> Ending {
    let tokens: Tokens = context.client()?.get("tokens", &()).await?;
    context.out.data("onceflow.token.list/1", &tokens, || table(&tokens.items))?;
    if tokens.items.is_empty() {
        context.out.say("no token yet: whoever asks from this machine is let in");
    }
    Ok(Exit::Ok)
}

async fn revoke(context: &Context, args: NameArgs) -> Ending {
    let token: Token = context.client()?.post("tokens/revoke", &TokenName { name: args.name }).await?;
    context.out.data("onceflow.token.revoke/1", &token, || table(std::slice::from_ref(&token)))?;
    Ok(Exit::Ok)
}

fn table(tokens: &[Token]) -> Rows {
    let mut rows = Rows::new(&["NAME", "ROLE", "CREATED", "BY", "REVOKED", "BY"]);
    for t in tokens {
        let revoked = (t.revoked_at.map(time).unwrap_or_default(), t.revoked_by.clone().unwrap_or_default());
        let role = t.role.as_str().to_owned();
        rows.push(vec![t.name.clone(), role, time(t.created_at), t.created_by.clone(), revoked.0, revoked.1]);
    }
    rows
}
