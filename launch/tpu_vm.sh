#!/usr/bin/env bash
# One training job on a Cloud TPU slice, from the order of the machines to the last line of its log.
#
#   launch/tpu_vm.sh run --name=vicuna --zone=us-west4-a --type=v5litepod-64 --spot \
#     --bucket=my-runs -- --config=configs/joint.py:paper --workdir=../bucket/vicuna
#
# COMMAND is one of
#   run      create, mount, install, start and follow; after a preemption again from `create`, the
#            training going on from its last checkpoint. Ended by Ctrl-C it leaves the program
#            running; called again it follows it. The slice is there until `delete`
#   create   order the slice as a queued resource, or take the one of this name, and wait for it
#   install  copy the checkout to every worker and make its environment there
#   start    start the program on every worker
#   follow   print worker 0's log until the program ends on every worker
#   status   print the states of queued resource, slice and program
#   stop     SIGTERM: every worker saves the same step and ends with code 75; a `run` that follows
#            goes on from there, so end it first
#   delete   give the slice back
# What follows `--` goes to `python -m rvllm_jax.main --multihost`. Options:
#   --name=NAME      of the queued resource and of the slice
#   --zone=ZONE      --project=PROJECT (gcloud's own by default)
#   --type=TYPE      accelerator type, such as v5litepod-8, v5litepod-64, v6e-64, v5p-128
#   --runtime=NAME   software version; by default that of the type
#   --spot           may be preempted, at a fraction of the price; otherwise on demand
#   --bucket=BUCKET  mounted as ~/bucket on every worker (gcsfuse): `../bucket` as the program sees
#                    it. Give it a hierarchical namespace: checkpoints are renamed when complete
#   --restarts=N     preemptions and interruptions after which `run` goes on; 20 by default
#   --poll=SECONDS   between two looks at the job; 30 by default
#   --dry_run        print every command and run none
# Exit codes: 0 done; 1 failed on a worker, whose last lines are printed; 2 wrong usage.
set -euo pipefail

REMOTE=rvllm_jax # the folder on the workers; of tpu_cloud.sh, too
ENDED=75         # the program's exit code after SIGTERM

usage() {
  echo "launch/tpu_vm.sh: $1; the head of the file says how it is called" >&2
  exit 2
}

default_runtime() {
  case "$1" in
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v6e*) echo v2-alpha-tpuv6e ;;
    v4* | v3* | v2*) echo tpu-ubuntu2204-base ;;
    *) usage "--type=$1 is unknown; give its software version by --runtime" ;;
  esac
}

order() {
  local spot=()
  if "$spot_vm"; then spot=(--spot); fi
  tpu '' queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" "${spot[@]}"
  may_order=false ordered=ACTIVE
}

create() {
  local state ordered=''
  [ -n "$type" ] || usage "--type is missing"
  runtime=${runtime:-$(default_runtime "$type")}
  until state=$(queued_state "$ordered") && [ "$state" = ACTIVE ]; do
    if [ -z "$state" ] && "$may_order"; then
      order
      continue
    elif [ -z "$state" ]; then
      say "$name was deleted, not preempted: it is not ordered anew"
      exit 1
    elif [ "$state" = FAILED ] && [ -n "$ordered" ]; then
      say "$name could not be had: gcloud compute tpus queued-resources describe $name says why"
      exit 1
    elif [[ "$state" = FAILED || "$state" = SUSPEND* ]]; then
      say "$name is $state: it is deleted and ordered anew"
      delete && continue
    fi
    say "$name: $state; waiting"
    sleep "$poll"
  done
  [ -n "$ordered" ] || say "$name is there already"
  may_order=false
}

mount_bucket() {
  [ -n "$bucket" ] || return 0
  # gcsfuse names its package source by the system's release.
  on_workers all "set -e
if ! command -v gcsfuse >/dev/null; then
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse # a new machine updates itself
fi
mkdir -p ~/bucket
mountpoint -q ~/bucket || gcsfuse --implicit-dirs --rename-dir-limit=200000 $(printf %q "$bucket") ~/bucket"
}

install_program() {
  local archive failed=0
  archive=$(mktemp -d)/rvllm_jax.tar.gz
  "$dry_run" || git ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- --ignore-failed-read -czf "$archive" || failed=$?
  [ "$failed" != 0 ] || tpu '' tpu-vm scp "$archive" "$name:rvllm_jax.tar.gz" --worker=all ||
    failed=$?
  rm -r "$(dirname "$archive")"
  [ "$failed" = 0 ] || return "$failed" # an older archive there would be unpacked instead
  on_workers all "set -e
mkdir -p $REMOTE && tar -xzf rvllm_jax.tar.gz -C $REMOTE && cd $REMOTE
if ! command -v python3.12 >/dev/null && ! command -v python3.11 >/dev/null && [ ! -x .venv/bin/python ]; then
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv python install --quiet 3.12
  export PYTHON=\$(~/.local/bin/uv python find 3.12)
fi
source launch/environment.sh
make_environment
install tpu --constraint requirements.lock -e '.[tpu]'"
}

start() {
  local program
  program=$(printf '%q ' .venv/bin/python -m rvllm_jax.main --multihost "${arguments[@]}")
  on_workers all "set -e
cd $REMOTE
if [ ! -e run.rc ] && [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
  echo \"the program runs already on \$(hostname): follow or stop it\" >&2
  exit 1
fi
rm -f run.rc run.pid
nohup bash -c $(printf %q "$program & echo \$! > run.pid; wait \$!; echo \$? > rc; mv rc run.rc") >> run.log 2>&1 < /dev/null &
for _ in \$(seq 100); do [ -e run.pid ] && break; sleep 0.1; done"
}

new_lines() { # of worker 0's log, behind the first $seen bytes
  tpu '' tpu-vm ssh "$name" --worker=0 \
    "--command=tail -c +$((seen + 1)) $REMOTE/run.log" 2>/dev/null || true
}

print_new_lines() {
  local lines
  lines=$(new_lines; printf x) # the x keeps the line breaks at the end
  lines=${lines%x}
  seen=$((seen + $(printf %s "$lines" | wc -c)))
  printf %s "$lines"
}

stop() {
  on_workers all "if [ -e $REMOTE/run.pid ]; then kill -TERM \"\$(cat $REMOTE/run.pid)\" || true; fi"
}

# Returns 0 where all workers ended well, 1 where one failed, $ENDED where they were interrupted.
follow() {
  local found='' word missed=0
  seen=0
  while true; do
    if found=$(codes) && [ -n "$found" ]; then
      missed=0
      print_new_lines
      [[ " ${found//$'\n'/ } " = *" running "* ]] || break
      for word in $found; do # one that failed while others wait for it
        [[ "$word" = @(running|absent|0|"$ENDED") ]] || break 2
      done
    else
      missed=$((missed + 1))
      [[ "$(slice_state)" = @(READY|UNKNOWN) && "$missed" -lt 10 ]] || return "$ENDED"
    fi
    sleep "$poll"
  done
  print_new_lines
  for word in $found; do
    [[ "$word" = @(running|absent|0|"$ENDED") ]] && continue
    # Where a machine was started anew the other hosts end for the one that they lost.
    [[ "$word" = 1 && "$found" = *absent* ]] && continue
    say "a worker ended with code $word; the last lines of each:"
    on_workers all "echo \"== \$(hostname)\"; tail -n 20 $REMOTE/run.log" >&2 || true
    stop || true
    return 1
  done
  for word in $found; do
    [ "$word" = 0 ] || return "$ENDED"
  done
}

delete() {
  tpu '' queued-resources delete "$name" --force --quiet && may_order=true
}

status() {
  echo "queued resource: $(queued_state ACTIVE)"
  echo "slice: $(slice_state)"
  echo "program, by worker: $(codes | tr '\n' ' ' || true)"
}

kept() { # said at every end of `run`
  "$dry_run" || say "$name is left as it is, and paid for while it is there: follow, stop or delete" \
    "--name=$name --zone=$zone; \`run\` follows what runs there already"
}

# prepare: 0 where the program runs on the workers, or does so already.
prepare() {
  local found
  if found=$(codes) && [[ "$found" = *running* ]]; then
    say "the program runs on $name already: its log follows"
  else
    mount_bucket && install_program && start
  fi
}

run() {
  local round ended unmade=0 state
  trap kept EXIT
  for ((round = 0; round <= restarts; round++)); do
    create
    until state=$(slice_state) && [ "$state" = READY ]; do
      # Behind a preemption the slice may be gone while its order is still ACTIVE.
      if [[ "$state" != @(UNKNOWN|CREATING|STARTING|RESTARTING|REPAIRING) ]]; then
        say "$name is ${state:-gone}: it is deleted and ordered anew"
        delete || sleep "$poll"
        continue 2
      fi
      say "$name: $state; waiting"
      sleep "$poll"
    done
    ended=0
    if prepare; then
      unmade=0
      follow || ended=$?
    else
      ended=$ENDED unmade=$((unmade + 1))
      # Once or twice ssh may not answer yet; what fails thrice on machines that are there is no
      # preemption.
      if [ "$unmade" = 3 ] && [ "$(slice_state)" = READY ]; then
        say "installing or starting failed three times on $name, which is there: see above why"
        return 1
      fi
    fi
    case "$ended" in
      0) return 0 ;;
      "$ENDED") say "interrupted; going on from the last checkpoint ($((round + 1)) of $restarts)" ;;
      *) return "$ended" ;;
    esac
  done
  say "interrupted more than --restarts=$restarts times"
  return 1
}

command=${1:-}
[ $# -gt 0 ] && shift
name='' zone='' project='' type='' runtime='' bucket='' spot_vm=false dry_run=false
restarts=20 poll=30 seen=0 may_order=true
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --spot) spot_vm=true ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) usage "unknown option $1" ;;
  esac
  shift
done
[ -n "$name" ] || usage "--name is missing"
[ -n "$zone" ] || usage "--zone is missing"
[[ "$restarts" =~ ^[0-9]+$ ]] || usage "--restarts=$restarts: expected a whole number"
[[ "$poll" =~ ^[0-9]+([.][0-9]+)?$ ]] || usage "--poll=$poll: expected seconds"
if [[ "$command" = run || "$command" = start ]] && [ ${#arguments[@]} -eq 0 ]; then
  usage "nothing follows --: give at least --config" # before machines are ordered and paid for
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/dry_run.sh
source launch/dry_run.sh
# shellcheck source=launch/tpu_cloud.sh
source launch/tpu_cloud.sh
exec 3>&1 # what a dry run prints, also from within $(...)
case "$command" in
  run | create | start | follow | status | stop | delete) "$command" ;;
  install) install_program ;;
  mount) mount_bucket ;;
  *) usage "unknown command '$command'" ;;
esac
