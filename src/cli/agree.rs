//! A person at a terminal agrees by typing a word.

use std::io::{self, BufRead as _};

use super::exit::{Exit, Failure};

/// Reads a line; `y` stands for `yes`.
///
/// # Errors
/// Another word was typed, or nothing.
pub(super) fn agreed(wanted: &str) -> Result<(), Failure> {
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == wanted || (wanted == "yes" && answer.trim() == "y") => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was changed").because("it was not agreed to")),
    }
}
