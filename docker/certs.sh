#!/bin/sh
# Make the certificates of the profile `tls` once: an authority, the server's, one for the health check, one for each client.
set -eu
clients=${CLIENTS:-4}
if [ ! -e /certs/ca.pem ]; then
    sl-server certs /certs --clients "$clients" --host server
    sl-server certs /certs --add --name health
    exit 0
fi
n=0
while [ "$n" -lt "$clients" ]; do
    [ -e "/certs/c$n.pem" ] || sl-server certs /certs --add --name "c$n"
    n=$((n + 1))
done
