#!/bin/sh
# Makes proto/rotor/v1/*.pb.go and *.connect.go from the .proto file. Needs on the PATH, in these versions:
#   pip install grpcio-tools==1.85.1
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
#   go install connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
set -eu
cd "$(dirname "$0")"
python3 -m grpc_tools.protoc -I . --go_out=. --go_opt=paths=source_relative \
  --connect-go_out=. --connect-go_opt=paths=source_relative,package_suffix="" rotor/v1/rotor.proto rotor/v1/roots.proto
