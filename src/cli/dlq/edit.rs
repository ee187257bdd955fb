//! `onceflow dlq edit` and `onceflow dlq diff`: an edited copy in the place of a dead letter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use uuid::Uuid;

use super::super::context::Context;
use super::super::events::message::set;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{Rows, time};
use super::show::Sight;
use crate::admin::wire::{EditRequest, UnmaskRequest};
use crate::replay::DeadLetter;
use crate::replay::edit::{Diff, EditMade, EditShown};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq edit 0197a1b2-… --set parent_id=42 --dry-run        what would differ
  onceflow dlq edit 0197a1b2-… --set parent_id=42 --reason 'wrong parent, told by hr'
  onceflow dlq show 0197a1b2-… --unmask -o json | jq -r .payload_text > new.json
  onceflow dlq edit 0197a1b2-… --file new.json --reason 'mended by hand'
  onceflow dlq edit 0197a1b2-… --header amqp:content_type=application/json --reason 'sent as text'

Needs `edit = true` under [replay] in the service's configuration, and the role admin where there are tokens. The copy is an event of
its own with a new id; what else says which event it is (source, type, tenant, subject, ordering key, …) stays. Its consumer must be
able to read it. Of the original and its copy exactly one is ever applied: whatever arrives of the original from now on is a
duplicate, and where it was applied meanwhile the edit is refused (exit 5).";

pub(super) const DIFF_EXAMPLES: &str = "\
Examples:
  onceflow dlq diff 0197a1b2-…        the dead letter that was edited, or the one that its copy became
  onceflow dlq diff 0197a1b2-… --unmask --reason 'was it the number?'
  onceflow dlq diff 0197a1b2-… -o json | jq .copy_state

What looks like a secret or a phone number is masked; a viewer is shown no values. With --unmask they are as they are, which needs
the role operator, and the audit tells who has seen them.";

/// The service refuses larger ones.
const MAX_INPUT: u64 = 8 * 1024 * 1024;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["file", "set", "header"]).required(true).multiple(true))]
pub(in crate::cli) struct Args {
    /// The dead letter
    #[arg(value_name = "ID")]
    id: Uuid,
    /// The whole new payload, or - for stdin; protobuf as bytes
    #[arg(short, long, value_name = "FILE|-")]
    file: Option<String>,
    /// Change a field of a JSON payload; JSON where it is JSON, text otherwise
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Change a header of the sender's own, or `amqp:content_type`; without a value it goes
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    reason: Option<String>,
    /// Only tell what would differ
    #[arg(short = 'n', long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DiffArgs {
    /// The dead letter that was edited, or the one that its copy became
    #[arg(value_name = "ID")]
    id: Uuid,
    #[command(flatten)]
    sight: Sight,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let client = context.client()?;
    let mut payload = args.file.as_deref().map(read).transpose()?;
    if !args.set.is_empty() {
        let text = match payload {
            Some(bytes) => bytes,
            None => {
                let why = UnmaskRequest { reason: args.reason.clone() };
                stored(&client.post(&format!("dlq/{}/unmask", args.id), &why).await?)?
            }
        };
        payload = Some(assigned(&text, &args.set)?);
    }
    let request = request(args, payload)?;
    let made: EditMade = client.post(&format!("dlq/{}/edit", args.id), &request).await?;
    context.out.data("onceflow.dlq.edit/1", &made, || table(&made.diff))?;
    remark(context, &made.diff);
    match &made.copy_event_id {
        None => context.out.say("nothing was changed; --reason instead of --dry-run does it"),
        Some(copy) => {
            context.out.say(&format!("event {copy} takes the place of {}", made.event_id));
            context.out.say(&format!("  -> onceflow events trace {copy}"));
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn diff(context: &Context, args: &DiffArgs) -> Ending {
    let path = format!("dlq/{}/diff", args.id);
    let shown: EditShown = args.sight.ask(&context.client()?, &path, &path).await?;
    context.out.data("onceflow.dlq.diff/1", &shown, || table(&shown.diff))?;
    remark(context, &shown.diff);
    let edited = &shown.edited;
    let (original, copy, at) = (&edited.event_id, &edited.copy_event_id, time(edited.edited_at));
    context.out.say(&format!("edited {at} by {}: {}", edited.edited_by, edited.reason));
    context.out.say(&format!("event {copy} ({}) took the place of {original}", edited.copy_state));
    if let Some(id) = edited.copy_dead_letter {
        context.out.say(&format!("  -> onceflow dlq show {id}"));
    }
    Ok(Exit::Ok)
}

fn request(args: &Args, payload: Option<Vec<u8>>) -> Result<EditRequest, Failure> {
    let (text, bytes) = match payload.map(String::from_utf8) {
        None => (None, None),
        Some(Ok(text)) => (Some(text), None),
        Some(Err(no_text)) => (None, Some(BASE64.encode(no_text.as_bytes()))),
    };
    Ok(EditRequest {
        payload: text,
        payload_base64: bytes,
        headers: args.header.iter().map(|text| header(text)).collect::<Result<BTreeMap<_, _>, _>>()?,
        reason: args.reason.clone(),
        dry_run: args.dry_run,
    })
}

/// `name=value`; `name=` takes it away.
fn header(text: &str) -> Result<(String, Value), Failure> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("--header {text:?}")).because("there is no =").or_try("--header name=value")
    })?;
    let value = if value.is_empty() { Value::Null } else { Value::from(value) };
    Ok((name.to_owned(), value))
}

fn read(path: &str) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Usage, format!("can't read {path}")).because(e);
    let mut bytes = Vec::new();
    let read = match path {
        "-" => std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes),
        path => File::open(path).map_err(failed)?.take(MAX_INPUT + 1).read_to_end(&mut bytes),
    };
    let size = read.map_err(failed)?;
    if u64::try_from(size).is_ok_and(|size| size > MAX_INPUT) {
        return Err(Failure::new(Exit::Usage, format!("{path} is larger than {MAX_INPUT} bytes")));
    }
    Ok(bytes)
}

/// The payload as the dead letter has it.
fn stored(letter: &DeadLetter) -> Result<Vec<u8>, Failure> {
    let text = letter.payload_text.as_ref().map(|text| text.clone().into_bytes());
    text.ok_or_else(|| Failure::new(Exit::Usage, "--set changes JSON, and this payload is no text").or_try("--file"))
}

fn assigned(payload: &[u8], assignments: &[String]) -> Result<Vec<u8>, Failure> {
    let no_json =
        |e| Failure::new(Exit::Usage, "--set changes JSON, and the payload is none").because(e).or_try("--file");
    let mut value: Value = serde_json::from_slice(payload).map_err(no_json)?;
    if numbers(&String::from_utf8_lossy(payload)) != numbers(&value.to_string()) {
        let why = "a number of the payload would lose digits, or is written in another way";
        return Err(Failure::new(Exit::Usage, "--set can't be used here").because(why).or_try("--file"));
    }
    for assignment in assignments {
        set(&mut value, assignment)?;
    }
    Ok(value.to_string().into_bytes())
}

/// The numbers of a JSON text as they are written, in no order of their own.
fn numbers(json: &str) -> Vec<String> {
    let mut outside = String::with_capacity(json.len());
    let (mut in_text, mut escaped) = (false, false);
    for c in json.chars() {
        if in_text {
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            in_text = c == '"';
            outside.push(c);
        }
    }
    let tokens = outside.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-')));
    let mut numbers: Vec<String> =
        tokens.filter(|token| token.contains(|c: char| c.is_ascii_digit())).map(str::to_owned).collect();
    numbers.sort_unstable();
    numbers
}

fn table(diff: &Diff) -> Rows {
    let mut rows = Rows::new(&["FIELD", "BEFORE", "AFTER"]);
    let told = |value: &Option<Value>| value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
    for field in &diff.fields {
        rows.push(vec![field.path.clone(), told(&field.before), told(&field.after)]);
    }
    rows
}

fn remark(context: &Context, diff: &Diff) {
    if diff.only_in_form {
        context.out.say("the payload differs only in form: spaces, the order of fields, the digits of a number");
    }
    if diff.cut {
        context.out.say("more fields differ than are listed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_set_or_taken_away() {
        assert_eq!(header("region=eu=1").unwrap(), ("region".to_owned(), Value::from("eu=1")));
        assert_eq!(header("region=").unwrap(), ("region".to_owned(), Value::Null));
        assert_eq!(header("=x").unwrap_err().exit, Exit::Usage);
        assert_eq!(header("region").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn only_json_can_be_set_field_by_field() {
        let set = ["a.b=2".to_owned()];
        assert_eq!(assigned(b"{\"a\":{\"b\":1}}", &set).unwrap(), b"{\"a\":{\"b\":2}}");
        assert_eq!(assigned(b"\xff", &set).unwrap_err().exit, Exit::Usage);
        let exact = assigned(b"{\"a\":{\"b\":1},\"t\":\"1e5\",\"n\":9007199254740993,\"f\":-0.5}", &set);
        assert_eq!(exact.unwrap(), b"{\"a\":{\"b\":2},\"f\":-0.5,\"n\":9007199254740993,\"t\":\"1e5\"}");
        let lossy = assigned(b"{\"a\":{\"b\":1},\"n\":12345678901234567890123}", &set);
        assert_eq!(lossy.unwrap_err().exit, Exit::Usage, "digits of another field would be lost");
    }
}
