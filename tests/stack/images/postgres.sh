#!/bin/sh
# Of what the official image's entry point does, that which docker-compose.yml uses: a cluster with one user, whose
# password is in a file. Its socket is in /tmp: podman gives a tmpfs below /run to root alone.
set -eu
export PGHOST=/tmp
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --encoding=UTF8 --locale=C.UTF-8 --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=scram-sha-256 --auth-local=trust
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  pg_ctl -w -o "-c listen_addresses= -c unix_socket_directories=/tmp" start
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl -w stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
