//! `onceflow person …`: what is kept of somebody, and erasing it.

use std::io::{self, IsTerminal as _, Read as _};

use clap::Subcommand;

use super::agree::agreed;
use super::client::Client;
use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::Rows;
use crate::admin::wire::{EraseRequest, PersonRequest};
use crate::replay::person::Found;

/// Longest line that is read instead of an argument.
const LONGEST_LINE: u64 = 1_000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What is kept of somebody, and where. Changes nothing.
    #[command(after_help = "\
Examples:
  onceflow person find --phone +8613800138000
  onceflow person find --user emp-01742 --text li@example.com
  onceflow person find --phone - < number.txt           not in the list of processes
  onceflow person find --user emp-01742 -o json | jq -r '.dead_letters[]'

Dead letters, whatever became of them, are found by payload, headers, subject and key; so are held events and parked rows of the
outbox, and the rows of each consumer. What several options name is found by any of them.")]
    Find(Who),
    /// Erase what is kept of somebody. It can't be undone.
    #[command(after_help = "\
Examples:
  onceflow person find --phone +8613800138000           look first: it finds the same
  onceflow person erase --phone +8613800138000 --reason 'request 2026-117'

Dead letters are removed, with their edits and attempts; open ones are discarded before: their events are not applied unless they are sent again.
Requests for text messages keep their ids and lose number, parameters and hashes. The audit keeps who erased whom and why: the id
of a user, of a number its last two digits. Ends with 4 where something had to be left; the table says why. What the broker, backups
and other systems have is not reached: docs/OPERATIONS.md says what to do there.")]
    Erase(EraseArgs),
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("mark").required(true).multiple(true).args(["user", "phone", "text"]))]
pub(super) struct Who {
    /// Whose data it is
    #[arg(long, value_name = "NAME", default_value = crate::event::DEFAULT_TENANT)]
    tenant: String,
    /// A user's id in the directory
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// A phone number with its country; `-` reads it from standard input
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    phone: Option<String>,
    /// Any other text, such as a mail address or a name; `-` reads it from standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,
}

/// Without what is known of the person.
impl std::fmt::Debug for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Who").finish_non_exhaustive()
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct EraseArgs {
    #[command(flatten)]
    who: Who,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Don't ask on a terminal
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::Find(who) => find(context, &who).await,
        Command::Erase(args) => erase(context, &args).await,
    }
}

async fn find(context: &Context, who: &Who) -> Ending {
    let (client, person) = (context.client()?, who.request()?);
    let found = search(context, &client, person, None).await?;
    context.out.data("onceflow.person.find/1", &found, || what_is_kept(&found))?;
    let nothing = if found.items.is_empty() { "nothing was found; " } else { "" };
    context.out.say(&format!("{nothing}{} dead letters were looked at", found.looked));
    Ok(Exit::Ok)
}

async fn erase(context: &Context, args: &EraseArgs) -> Ending {
    let (client, person) = (context.client()?, args.who.request()?);
    if !args.yes && io::stdin().is_terminal() {
        let found = search(context, &client, person.clone(), None).await?;
        if found.items.is_empty() {
            return Err(nothing());
        }
        context.out.say(what_is_kept(&found).render().trim_end());
        context.out.say("erase this for good? Type yes to go on:");
        agreed("yes")?;
    }
    let erased = search(context, &client, person, Some(&args.reason)).await?;
    context.out.data("onceflow.person.erase/1", &erased, || what_was_erased(&erased))?;
    match erased.items.iter().any(|item| item.erased < item.found) {
        _ if erased.items.is_empty() => Err(nothing()),
        true => Ok(Exit::Partly),
        false => Ok(Exit::Ok),
    }
}

fn nothing() -> Failure {
    Failure::new(Exit::NotFound, "nothing is kept of this person")
        .or_try("onceflow person find, with another mark or --tenant")
}

/// Asks until all was looked at, and adds up the answers.
async fn search(
    context: &Context,
    client: &Client,
    mut person: PersonRequest,
    reason: Option<&String>,
) -> Result<Found, Failure> {
    let mut sum = Found::default();
    loop {
        let found: Found = match reason {
            Some(reason) => {
                let body = EraseRequest { person: person.clone(), reason: reason.clone() };
                client.post("persons/erase", &body).await?
            }
            None => client.post("persons/find", &person).await?,
        };
        person.after = found.next;
        sum.join(found);
        if person.after.is_none() {
            return Ok(sum);
        }
        context.out.say(&format!("{} dead letters looked at so far", sum.looked));
    }
}

impl Who {
    fn request(&self) -> Result<PersonRequest, Failure> {
        if self.phone.as_deref() == Some("-") && self.text.as_deref() == Some("-") {
            return Err(Failure::new(Exit::Usage, "only one of --phone and --text can be read from standard input"));
        }
        Ok(PersonRequest {
            tenant: Some(self.tenant.clone()),
            user: self.user.clone(),
            phone: given(self.phone.as_ref())?,
            text: given(self.text.as_ref())?,
            after: None,
        })
    }
}

fn given(argument: Option<&String>) -> Result<Option<String>, Failure> {
    let Some("-") = argument.map(String::as_str) else { return Ok(argument.cloned()) };
    let mut line = String::new();
    let read = io::stdin().lock().take(LONGEST_LINE).read_to_string(&mut line);
    read.map_err(|e| Failure::new(Exit::Usage, "standard input can't be read").because(e))?;
    Ok(Some(line.trim().to_owned()))
}

fn what_is_kept(found: &Found) -> Rows {
    let mut rows = Rows::new(&["WHAT", "FOUND", "STAYS BECAUSE"]);
    for item in &found.items {
        rows.push(vec![item.what.clone(), item.found.to_string(), item.why.clone().unwrap_or_default()]);
    }
    rows
}

fn what_was_erased(found: &Found) -> Rows {
    let mut rows = Rows::new(&["WHAT", "FOUND", "ERASED", "LEFT BECAUSE"]);
    for item in &found.items {
        let why = item.why.clone().unwrap_or_default();
        rows.push(vec![item.what.clone(), item.found.to_string(), item.erased.to_string(), why]);
    }
    rows
}
