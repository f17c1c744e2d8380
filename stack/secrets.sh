#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, in the directory $1 (default: secrets); one that is there stays.
# The directory is its owner's alone. The files in it can be read by the containers' users, which are none of this host's.
set -eu
directory=${1:-secrets}
mkdir -p "$directory"
chmod 700 "$directory"
for name in postgres mlflow_admin mlflow_sessions trainer promoter replica reader serve_key grafana_admin; do
  [ -s "$directory/$name" ] && continue
  od -An -tx1 -N24 /dev/urandom | tr -d ' \n' > "$directory/$name"
  chmod 444 "$directory/$name"
  echo "made $directory/$name"
done
# Nobody can make up the keys to a bucket: docs/compose.md says what goes here, and without a bucket nothing does.
if [ ! -e "$directory/aws" ]; then
  echo "# MLflow's keys to its bucket, as in ~/.aws/credentials" > "$directory/aws"
  chmod 444 "$directory/aws"
  echo "made $directory/aws"
fi
