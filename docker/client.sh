#!/bin/sh
# The client's container. With arguments: sl-client's own (doctor, …). Without: take part in a run.
# Where CERTS names a folder with c0.pem, c0.key, c1.pem, … it goes by the one of its number in a Kubernetes job, else by the first that
# no other container holds.
set -eu
[ $# -eq 0 ] || exec sl-client "$@"
if [ -n "${CERTS:-}" ]; then
    for cert in "$CERTS"/c*.pem; do
        name=$(basename "$cert" .pem)
        case $name in c*[!0-9]* | c) continue ;; esac
        [ "$name" = "c${JOB_COMPLETION_INDEX:-${name#c}}" ] || continue
        exec 9> "$SL_STATE/$name.lock" # held until the process ends
        if flock -n 9; then
            export SL_CA="$CERTS/ca.pem" SL_CERT="$cert" SL_KEY="$CERTS/$name.key"
            break
        fi
    done
    if [ -z "${SL_CERT:-}" ]; then
        echo "every certificate in $CERTS belongs to a client that runs already, or there is none: raise CLIENTS" >&2
        exit 2
    fi
fi
exec sl-client run
