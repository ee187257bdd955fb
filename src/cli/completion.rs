//! `onceflow completion SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use super::context::Context;
use super::exit::{Ending, Exit};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow completion bash > /etc/bash_completion.d/onceflow
  onceflow completion zsh > ~/.zfunc/_onceflow
  onceflow completion fish > ~/.config/fish/completions/onceflow.fish";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(context: &Context, args: &Args) -> Ending {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "onceflow", &mut script);
    context.out.bytes(&script)?;
    Ok(Exit::Ok)
}
