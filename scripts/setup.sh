#!/usr/bin/env bash
# Installs what `make demo` and `make test` need on Debian or Ubuntu, and nothing that is there already.
#
#   scripts/setup.sh              servers (RabbitMQ, PostgreSQL) and a C compiler
#   scripts/setup.sh --ci         also cargo-deny, for `make ci`
#   scripts/setup.sh --promtool   also promtool, to check the metrics
#   scripts/setup.sh --faults     also libfaketime, for `make faults`
#
# It never starts a system-wide server: Onceflow boots private ones of its own.
set -euo pipefail

readonly CARGO_DENY_VERSION=0.20.2
readonly POLICY=/usr/sbin/policy-rc.d
packages=()
policy_is_ours=no

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

# need PACKAGE WHY: remembers a package and says why it is wanted.
need() {
  packages+=("$1")
  say "missing: $1 ($2)"
}

have() { command -v "$1" >/dev/null 2>&1; }
have_file() { compgen -G "$1" >/dev/null; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

find_missing() {
  have_file '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server' ||
    need rabbitmq-server "the message broker; only its programs are used, by a private node"
  have_file '/usr/lib/postgresql/*/bin/initdb' ||
    need postgresql "the database; only its programs are used, by a private cluster"
  have gcc || need gcc "compiles the cryptography library and links the binary"
  have_file '/usr/include/stdlib.h' || have_file '/usr/include/*/stdlib.h' || need libc6-dev "C headers for the cryptography library"
  have openssl || need openssl "makes the certificates of the TLS tests"
  have make || need make "runs the Makefile"
  [ -s /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates "lets cargo check the registry's certificate"
  if [ "$want_faults" = yes ]; then
    have_file '/usr/lib/*/faketime/libfaketimeMT.so.1' || need libfaketime "moves the wall clock of a process under test"
  fi
  if [ "$want_promtool" = yes ] && ! have promtool; then need prometheus "holds promtool, which checks the metrics"; fi
}

require_root() {
  local commands="apt-get update && apt-get install --yes --no-install-recommends ${packages[*]}"
  have apt-get || fail "this system has no apt-get; install these with its own package manager: ${packages[*]}"
  [ "$(id -u)" -ne 0 ] || return 0
  have sudo || fail "not root and no sudo. Have an administrator run: $commands"
  sudo -v || fail "sudo was refused. Have an administrator run: $commands"
}

# Debian's packages start their servers on installation unless a policy says no (101 = not allowed).
forbid_server_start() {
  [ ! -e "$POLICY" ] || return 0
  policy_is_ours=yes
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
  as_root chmod 755 "$POLICY"
}

restore_policy() {
  if [ "$policy_is_ours" = yes ]; then as_root rm -f "$POLICY"; fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" >&2; }

install_packages() {
  [ "${#packages[@]}" -gt 0 ] || return 0
  require_root
  say "installing ${packages[*]} with apt-get; system-wide servers are not started"
  trap restore_policy EXIT
  forbid_server_start
  apt update --quiet=2 || { say "apt-get update failed, trying once more" && apt update --quiet=2; } ||
    say "apt-get update failed twice; going on with the package lists that are there"
  apt install --yes --quiet=2 --no-install-recommends "${packages[@]}" ||
    fail "apt-get could not install ${packages[*]}; its message is above"
  say "installed. On a machine with systemd the system-wide servers may start at the next boot;" \
    "'systemctl disable rabbitmq-server postgresql' prevents that, Onceflow does not need them"
}

check_cargo() {
  have cargo && return 0
  if [ -x "${HOME:-}/.cargo/bin/cargo" ]; then fail "cargo is in ~/.cargo/bin but not on PATH: run '. ~/.cargo/env' and try again"; fi
  fail "cargo is missing: install Rust from https://rustup.rs (rust-toolchain.toml names the version) and try again"
}

install_cargo_deny() {
  if have cargo-deny && [ "$(cargo-deny --version)" = "cargo-deny $CARGO_DENY_VERSION" ]; then return 0; fi
  say "installing cargo-deny $CARGO_DENY_VERSION (checks licences, sources and advisories; some minutes)"
  # Unoptimised: it runs for seconds, but optimising it takes longer than our own build.
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --debug --locked cargo-deny --version "$CARGO_DENY_VERSION" >&2
}

want_ci=no want_promtool=no want_faults=no
for argument in "$@"; do
  case "$argument" in
    --ci) want_ci=yes ;;
    --promtool) want_promtool=yes ;;
    --faults) want_faults=yes ;;
    *) fail "unknown argument '$argument'; known: --ci, --promtool, --faults" ;;
  esac
done

find_missing
install_packages
check_cargo
if [ "$want_ci" = yes ]; then install_cargo_deny; fi
