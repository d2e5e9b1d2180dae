module wasilet.dev/samples/http-server

go 1.24
