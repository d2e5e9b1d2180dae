module wasilet.dev/go-overlay

go 1.24
