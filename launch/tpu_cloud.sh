# shellcheck shell=bash
# shellcheck disable=SC2154 # name, zone, project, dry_run and REMOTE are set by who sources it
# Sourced by launch/tpu_vm.sh: its calls of gcloud, and what there is by them.

say() { printf '%s\n' "$*" >&2; }

# tpu ASSUMED GROUP VERB...: runs gcloud for this zone; a dry run prints the command and answers
# ASSUMED.
tpu() {
  local assumed=$1 line
  shift
  line=(gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"})
  if "$dry_run"; then
    shown "${line[@]}" >&3
    if [ -n "$assumed" ]; then printf '%s\n' "$assumed"; fi
  else
    "${line[@]}"
  fi
}

on_workers() { # on_workers all|0 SCRIPT: by ssh
  tpu '' tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

# state_of ASSUMED GROUP FIELD: of what is called $name; nothing where there is none, UNKNOWN where
# gcloud cannot say (no network, no login): what may be there is neither ordered nor deleted then.
state_of() {
  local why
  { why=$(tpu "$1" "$2" describe "$name" "--format=value($3)" 2>&1 >&4) && return; } 4>&1
  [[ "$why" = *NOT_FOUND* ]] && return
  say "$why"
  echo UNKNOWN
}

queued_state() { state_of "$1" queued-resources state.state; } # queued_state ASSUMED

slice_state() { state_of READY tpu-vm state; }

codes() { # one word a worker: its exit code, or `running`, or `absent`
  tpu 0 tpu-vm ssh "$name" --worker=all "--command=if [ -e $REMOTE/run.rc ]; then cat \
$REMOTE/run.rc; elif [ -e $REMOTE/run.pid ] && kill -0 \"\$(cat $REMOTE/run.pid)\" 2>/dev/null; \
then echo running; else echo absent; fi" 2>/dev/null
}
