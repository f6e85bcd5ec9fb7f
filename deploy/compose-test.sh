#!/usr/bin/env bash
# `make compose-test`: builds the image, brings the compose project up and tries what a user relies on: publish, predict, the same
# answer from a new container on the same volume, an unprivileged process, a clean stop. Takes everything down again.
#
# Needs a Docker engine with compose v2, or TURRET_DOCKER_TOOLS: a folder with engine.sh, wheels.sh and base-image.sh that brings one up.
# Such an engine is stopped at the end; its images stay for the next run (`engine.sh purge` there removes them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=${TURRET_DOCKER_TOOLS:-../shared/tools/docker}
# Names of its own, so that it never meets a user's project, volume or image.
project=turret-compose-test
export TURRET_IMAGE=turret-server:compose-test TURRET_PORT=${TURRET_TEST_PORT:-18080}
unset TURRET_BACKBONE TURRET_LOG_LEVEL TURRET_MEMORY
url=http://127.0.0.1:$TURRET_PORT
package=examples/adapters/sms-spam.safetensors
scratch=$(mktemp -d)
started_engine='' started_wheels='' done=''

compose() { docker compose --project-name "$project" --file docker-compose.yml "$@"; }
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf 'compose-test: %s\n' "$*" >&2; exit 1; }
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"; }
quietly() { "$@" >"$scratch/log" 2>&1 || { tail -n 40 "$scratch/log" >&2; fail "failed: $*"; }; }
container() { compose ps --all --quiet turret; }
state() { docker inspect --format "$1" "$(container)"; }

clean_up() {
  status=$?
  trap - EXIT
  if [ "$status" -ne 0 ]; then compose logs --tail 40 >&2 2>/dev/null || true; fi
  compose down --volumes --timeout 10 >/dev/null 2>&1 || true
  if [ -n "$started_wheels" ]; then "$tools/wheels.sh" stop || true; fi
  if [ -n "$started_engine" ]; then "$tools/engine.sh" stop >/dev/null || true; fi
  rm -rf "$scratch"
  if [ -n "$done" ]; then step 'passed, all taken down'; else echo 'compose-test: FAILED' >&2; exit $((status ? status : 1)); fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Prints "<status> <body>" of a request.
call() {
  local status
  status=$(curl --silent --show-error --noproxy '*' --max-time 60 --output "$scratch/body" --write-out '%{http_code}' "$@") \
    || fail "no answer from $url"
  printf '%s %s\n' "$status" "$(cat "$scratch/body")"
}

push() { call --request PUT --header 'content-type: application/octet-stream' --data-binary "@$2" "$url/v1/adapters/$1"; }

# Prints digest, labels and scores of a prediction, to four digits.
predict() {
  local answer
  answer=$(call --header 'content-type: application/json' --data '{"model": "sms-spam", "inputs": "free cash!!"}' "$url/v1/predict")
  [[ $answer == 200\ * ]] || fail "predict answered $answer"
  python3 -c '
import json, sys
row = json.loads(sys.argv[1])["results"][0]
print(row["digest"], *("{label} {score:.4f}".format(**one) for one in row["output"]))' "${answer#* }"
}

# The engine

if docker info >/dev/null 2>&1; then
  step 'a Docker engine answers'
else
  [ -x "$tools/engine.sh" ] || fail 'no Docker engine answers: start one, or name a folder that holds engine.sh in TURRET_DOCKER_TOOLS'
  if ! "$tools/engine.sh" status >/dev/null 2>&1; then
    started_engine=yes
    quietly "$tools/engine.sh" start
  fi
  eval "$("$tools/engine.sh" env)"
  step 'engine up'
  if ! docker image inspect python:3.11-slim-bookworm >/dev/null 2>&1; then
    quietly "$tools/base-image.sh"
    step 'base images made'
  fi
  export BUILD_NETWORK=host
  wheels=$("$tools/wheels.sh" args || true)
  if [ -z "$wheels" ]; then
    started_wheels=yes
    "$tools/wheels.sh" start >/dev/null
    wheels=$("$tools/wheels.sh" args || true)
  fi
  export PIP_FIND_LINKS=${wheels#*=}
fi
docker compose version >/dev/null 2>&1 || fail 'docker compose (version 2) is missing'

# The image

compose config --quiet
if command -v hadolint >/dev/null; then hadolint --failure-threshold warning Dockerfile; step 'hadolint is content'; fi
quietly compose build
step "image built: $(($(docker image inspect --format '{{.Size}}' "$TURRET_IMAGE") / 1000000)) MB"
if docker run --rm --network none "$TURRET_IMAGE" >"$scratch/log" 2>&1; then fail 'the bare image opened itself to others'; fi
grep -q -- '--insecure' "$scratch/log" || fail "the bare image stopped for another reason: $(tail -n 3 "$scratch/log")"
step 'the bare image refuses to open itself to others'

# The service

compose down --volumes >/dev/null 2>&1
quietly compose up --detach --no-build --wait
same 'health' healthy "$(state '{{.State.Health.Status}}')"
step 'up and healthy'

process=$(compose exec -T turret cat /proc/1/status)
same 'user ids of the process' '10001 10001 10001 10001' "$(awk '/^Uid:/ {print $2, $3, $4, $5}' <<<"$process")"
same 'capabilities of the process' 0000000000000000 "$(awk '/^CapBnd:/ {print $2}' <<<"$process")"
same 'no new privileges' 1 "$(awk '/^NoNewPrivs:/ {print $2}' <<<"$process")"
same 'read-only root' true "$(state '{{.HostConfig.ReadonlyRootfs}}')"
same 'published on' "127.0.0.1:$TURRET_PORT" "$(compose port turret 8080)"
step 'not root, no capabilities, read-only root, published on loopback'

answer=$(push sms-spam "$package")
[[ $answer == 201\ * ]] || fail "push answered $answer"
digest=sha256:$(sha256sum "$package" | cut -d ' ' -f 1)
before=$(predict)
same 'digest that answered' "$digest" "${before%% *}"
step "pushed, predicted: ${before#* }"

head -c 1000 /dev/zero | tr '\0' x >"$scratch/garbage"
answer=$(push garbage "$scratch/garbage")
[[ $answer == 422\ * ]] || fail "a push of garbage answered $answer"
step "garbage refused: $(cut -c 1-100 <<<"$answer")"

# A new container on the same volume

first=$(container)
quietly compose stop
code=$(state '{{.State.ExitCode}}')
[[ $code == 0 || $code == 143 ]] || fail "stopped with exit code $code"
step "stopped by SIGTERM, exit code $code"
quietly compose up --detach --no-build --wait --force-recreate
[ "$(container)" != "$first" ] || fail 'the container was not made anew'
same 'health' healthy "$(state '{{.State.Health.Status}}')"
same 'answer after the restart' "$before" "$(predict)"
step 'a new container answers the same from the same digest'

compose down --volumes >/dev/null 2>&1
[ -z "$(docker volume ls --quiet --filter "label=com.docker.compose.project=$project")" ] || fail 'a volume is left'
done=yes
