module wasilet.dev/samples/check

go 1.24
