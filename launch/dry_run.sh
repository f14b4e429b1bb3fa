# shellcheck shell=bash
# Sourced by the launchers, which set `dry_run` to true or false.

# shown COMMAND...: prints it, quoted for the shell.
shown() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# call COMMAND...: runs it, or prints it in a dry run.
call() {
  if "${dry_run:?}"; then shown "$@"; else "$@"; fi
}
