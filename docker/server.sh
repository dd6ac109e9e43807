#!/bin/sh
# The server's container. With arguments: sl-server's own (check, simulate, export, …). Without: begin the run that RUN_FILE
# describes in RUN_DIR, or go on with it, from its newest checkpoint; then, with AFTER_RUN=serve, answer split inference with what it
# has learned.
set -eu
[ $# -eq 0 ] || exec sl-server "$@"
file=${RUN_FILE:-/etc/cutlayer/run.toml}
dir=${RUN_DIR:-/runs/first}
after=${AFTER_RUN:-exit}
case $after in exit | serve) ;; *)
    echo "AFTER_RUN=$after: exit or serve" >&2
    exit 2
    ;;
esac
if [ -e "$dir/summary.json" ] && grep -q '"finished": true' "$dir/summary.json"; then
    echo "$dir holds a run that is over: for a new one set another RUN_NAME, or docker compose down --volumes"
elif [ ! -w "$(dirname "$dir")" ]; then
    echo "$(dirname "$dir") cannot be written to by user $(id -u): mount a volume there, or a folder that belongs to this user" >&2
fi
[ "$after" = serve ] || exec sl-server run "$file" --resume "$dir"

sl-server run "$file" --resume "$dir" &
run=$!
stopped=
trap 'stopped=1; kill -TERM $run' TERM
trap 'stopped=1; kill -INT $run' INT
code=0
wait $run || code=$?
while kill -0 $run 2>/dev/null; do # a signal ends the wait, not the run
    code=0
    wait $run || code=$?
done
[ -z "$stopped" ] && [ $code -eq 0 ] || exit $code
trap - TERM INT
exec sl-server serve "$dir"
