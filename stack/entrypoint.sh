#!/bin/sh
# Sets NAME to what is in the file that NAME__FILE names, for every such variable: secrets come as files, and neither the
# compose file nor `inspect` shows them.
set -eu
for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)__FILE=.*/\1/p'); do
  file=$(printenv "${name}__FILE")
  if [ ! -s "$file" ]; then
    echo "$name is to be read from $file, which is empty or not there: see stack/secrets.sh" >&2
    exit 78
  fi
  value=$(cat "$file")
  export "$name=$value"
  unset "${name}__FILE"
done
exec "$@"
