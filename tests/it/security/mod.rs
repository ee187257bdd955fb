//! The security must-haves of `spec/reliability.md` §7: a name ends with the id that it proves (`s7_1`). Those that need no server
//! stand beside their code; `SECURITY.md` lists all of them.

mod admin;
mod authority;
mod canary;
mod deploy;
mod erasure;
mod files;
mod fuzz;
mod login;
mod producers;
mod sight;
mod tls;
