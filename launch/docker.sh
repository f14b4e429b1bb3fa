#!/usr/bin/env bash
# Builds the image and trains in a container.
#   launch/docker.sh [--extra=gpu|tpu|cpu] [--dry_run] -- --config=configs/joint.py
# The program runs as the user who calls; runs/ and, read-only, data/ and weights/ of the checkout
# are what it sees. --dry_run prints every command and runs none. Exit code: the program's.
set -euo pipefail

extra=gpu dry_run=false
while [ $# -gt 0 ]; do
  case "$1" in
    --extra=gpu | --extra=tpu | --extra=cpu) extra=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *)
      echo "launch/docker.sh: unknown option $1; the program's arguments follow --" >&2
      exit 2
      ;;
  esac
  shift
done
if [ $# -eq 0 ]; then
  echo "launch/docker.sh: nothing follows --: give at least --config" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/dry_run.sh
source launch/dry_run.sh

devices=()
if [ "$extra" = gpu ]; then devices=(--gpus all); fi
if [ "$extra" = tpu ]; then devices=(--privileged --net=host); fi
volumes=(--volume "$PWD/runs:/rvllm_jax/runs")
for folder in data weights; do
  if [ -d "$folder" ]; then volumes+=(--volume "$PWD/$folder:/rvllm_jax/$folder:ro"); fi
done
call mkdir -p runs
call docker build --file launch/Dockerfile --build-arg "EXTRA=$extra" --tag "rvllm_jax:$extra" .
# 100 frames of 64 clips are a gigabyte of shared memory; /dev/shm of a container has 64 MB.
call docker run --rm --init --shm-size=16g --user "$(id -u):$(id -g)" --env HOME=/tmp \
  "${devices[@]}" "${volumes[@]}" "rvllm_jax:$extra" "$@"
