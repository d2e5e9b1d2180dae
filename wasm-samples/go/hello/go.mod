module wasilet.dev/samples/hello

go 1.21
