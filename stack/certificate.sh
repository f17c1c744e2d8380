#!/bin/sh
# Makes a certificate for the host $1 (a name or an IPv4 address) that signs itself, in the directory $2 (default:
# secrets/tls), for a year: tls.crt, which clients are given to trust, and tls.key.
set -eu
host=$1
directory=${2:-secrets/tls}
case $host in *[!0-9.]*) kind=DNS ;; *) kind=IP ;; esac
mkdir -p "$directory"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 365 -config - \
  -keyout "$directory/tls.key" -out "$directory/tls.crt" 2> /dev/null << END
[req]
prompt = no
distinguished_name = name
x509_extensions = server
[name]
CN = $host
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $kind:$host
END
# Whoever runs the load balancer in its container is none of this host's users; secrets/ is its owner's alone.
chmod 444 "$directory/tls.crt" "$directory/tls.key"
echo "made $directory/tls.crt and $directory/tls.key"
