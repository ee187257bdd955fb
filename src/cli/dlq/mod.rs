//! `onceflow dlq …`: dead letters.

mod archive;
mod bulk;
mod change;
mod edit;
mod groups;
mod list;
mod note;
mod payload;
mod plan;
mod select;
mod show;
mod wait;

pub(super) use bulk::rate;
pub(super) use plan::say_hints;

use clap::Subcommand;

use super::context::Context;
use super::exit::Ending;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Dead letters, newest first.
    #[command(after_help = list::EXAMPLES)]
    List(list::Args),
    /// Dead letters by how they failed, most first.
    #[command(after_help = groups::EXAMPLES)]
    Groups(groups::Args),
    /// Say what a group is about, or who cares for it.
    #[command(after_help = note::EXAMPLES)]
    Note(note::Args),
    /// One dead letter with its payload (masked), headers, errors and what has to do with it.
    #[command(after_help = show::EXAMPLES)]
    Show(show::Args),
    /// What replaying all that match would do: how many, which are left out and why, how long.
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::Args),
    /// Send dead letters again, only to the consumer that failed.
    #[command(after_help = change::REPLAY_EXAMPLES)]
    Replay(change::ReplayArgs),
    /// Close dead letters for good; they stay readable.
    #[command(after_help = change::DISCARD_EXAMPLES)]
    Discard(change::DiscardArgs),
    /// Send an edited copy in the place of a dead letter; off by default.
    #[command(after_help = edit::EXAMPLES)]
    Edit(edit::Args),
    /// What an edit changed, and what became of the copy.
    #[command(after_help = edit::DIFF_EXAMPLES)]
    Diff(edit::DiffArgs),
    /// Put dead letters away; they can be restored.
    #[command(after_help = archive::EXAMPLES)]
    Archive(archive::Args),
    /// Open archived dead letters again.
    #[command(after_help = archive::RESTORE_EXAMPLES)]
    Restore(archive::RestoreArgs),
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::List(args) => list::run(context, &args).await,
        Command::Groups(args) => groups::run(context, &args).await,
        Command::Note(args) => note::run(context, &args).await,
        Command::Show(args) => show::run(context, &args).await,
        Command::Plan(args) => plan::run(context, &args).await,
        Command::Replay(args) => change::replay(context, &args).await,
        Command::Discard(args) => change::discard(context, &args).await,
        Command::Edit(args) => edit::run(context, &args).await,
        Command::Diff(args) => edit::diff(context, &args).await,
        Command::Archive(args) => archive::run(context, &args).await,
        Command::Restore(args) => archive::restore(context, &args).await,
    }
}
