#!/bin/sh
# Makes proto/rotor/v1/*.pb.go and *.connect.go from the .proto file. Needs Python's grpcio-tools, protoc-gen-go and protoc-gen-connect-go.
set -eu
cd "$(dirname "$0")"
python3 -m grpc_tools.protoc -I . --go_out=. --go_opt=paths=source_relative \
  --connect-go_out=. --connect-go_opt=paths=source_relative,package_suffix="" rotor/v1/rotor.proto
