#!/bin/sh
# Make the certificates of the profile `tls` once: an authority, the server's, one for the health check, one for each client. The authority's
# key stays in a volume that no other container mounts; server and clients get volumes with what is theirs.
set -eu
clients=${CLIENTS:-4}
root=${CERTS_ROOT:-/certs}
authority=$root/authority
if [ ! -e "$authority/ca.pem" ]; then
    sl-server certs "$authority" --clients "$clients" --host server
    sl-server certs "$authority" --add --name health
fi
n=0
while [ "$n" -lt "$clients" ]; do
    [ -e "$authority/c$n.pem" ] || sl-server certs "$authority" --add --name "c$n"
    n=$((n + 1))
done
give() { # FOLDER FILE…: whole whenever somebody looks
    to=$1
    shift
    for file in "$@"; do
        cp -p "$authority/$file" "$to/.new"
        mv "$to/.new" "$to/$file"
    done
}
give "$root/server" ca.pem revoked.pem server.pem server.key health.pem health.key
give "$root/clients" ca.pem
for cert in "$authority"/c[0-9]*.pem; do
    name=$(basename "$cert" .pem)
    give "$root/clients" "$name.key" "$name.pem"
done
