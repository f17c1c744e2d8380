#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, in the directory $1 (default: secrets); one that is there stays.
# The directory is its owner's alone. The files in it can be read by the containers' users, which are none of this host's.
set -eu
directory=${1:-secrets}
mkdir -p "$directory" "$directory/keys" "$directory/tls"
chmod 700 "$directory"
chmod 755 "$directory/keys" "$directory/tls"
make_secret() { # NAME BYTES MODE
  [ -s "$directory/$1" ] && return
  od -An -tx1 -v -N"$2" /dev/urandom | tr -d ' \n' > "$directory/$1"
  chmod "$3" "$directory/$1"
  echo "made $directory/$1"
}
for name in postgres mlflow_admin mlflow_sessions trainer promoter replica reader grafana_admin; do
  make_secret "$name" 24 444
done
# The endpoint's first two keys. No container gets them: replicas have their hashes, in keys/keys.json.
if [ ! -s "$directory/keys/keys.json" ]; then
  make_secret client_key 32 400
  make_secret operator_key 32 400
  hash_of() { sha256sum < "$directory/$1" | cut -c1-64; }
  cat > "$directory/keys/keys.json" << END
{
  "keys": {
    "client": {"sha256": "$(hash_of client_key)", "may": ["*", "@base"]},
    "operator": {"sha256": "$(hash_of operator_key)", "admin": true}
  }
}
END
  chmod 444 "$directory/keys/keys.json"
  echo "made $directory/keys/keys.json"
fi
# Nobody can make up the keys to a bucket: docs/compose.md says what goes here, and without a bucket nothing does.
if [ ! -e "$directory/aws" ]; then
  echo "# MLflow's keys to its bucket, as in ~/.aws/credentials" > "$directory/aws"
  chmod 444 "$directory/aws"
  echo "made $directory/aws"
fi
