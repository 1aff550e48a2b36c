#!/bin/sh
# What has to be there before the gateway serves: tables, and the keys that the environment holds. Runs at each start of
# the stack and changes nothing the second time. Waits for PostgreSQL itself, since not every engine does.
set -eu

tries=0
until python -m service migrate; do
    tries=$((tries + 1))
    [ "$tries" -lt 30 ] || exit 1
    sleep 2
done

key() { # name, scope, secret
    printf '%s\n' "$3" | python -m service keys create --name "$1" --scope "$2" --secret-stdin
}
key prometheus infer "$METRICS_KEY"
key load infer "$LOAD_KEY"
# Prometheus reads its key from a file of a volume that nothing else mounts.
printf '%s' "$METRICS_KEY" >/var/lib/fovea/metrics-key
# Last, so that everything is there when the operator's key is taken: stack.py waits for that.
key operator admin "$FOVEA_KEY"
