//! The life of the process: allocator, TLS provider, command line, one runtime, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use onceflow::cli::{Cli, Exit};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Both TLS users would otherwise pick a provider of their own, or panic when they can't.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return fail("error: another TLS provider is already installed");
    }
    // The points of fault tests, from the variable FAILPOINTS; not in release builds.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return explain(&told),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("error: can't start the runtime | because {error}")),
    };
    let exit = runtime.block_on(cli.dispatch());
    // A blocking task that hangs (name look-up) must not keep the process from ending.
    runtime.shutdown_background();
    exit.into()
}

/// Help and version go to stdout and are a success; a wrong command line goes to stderr.
fn explain(told: &clap::Error) -> ExitCode {
    // Nobody is left to tell when the stream is gone.
    let _told = told.print();
    if told.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
}

fn fail(sentence: &str) -> ExitCode {
    let _told = writeln!(std::io::stderr().lock(), "{sentence}");
    Exit::Failed.into()
}
