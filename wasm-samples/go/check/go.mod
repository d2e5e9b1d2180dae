module wasilet.dev/samples/check

go 1.24

require golang.org/x/net v0.38.0

require golang.org/x/sys v0.31.0 // indirect
