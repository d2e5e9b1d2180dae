module wasilet.dev/toolbox

go 1.26.0

require (
	github.com/benhoyt/goawk v0.0.0-00010101000000-000000000000
	golang.org/x/term v0.45.0
	mvdan.cc/sh/v3 v3.14.1
)

require golang.org/x/sys v0.47.0 // indirect

// Not to be had from every module proxy, and small: kept here as released.
replace github.com/benhoyt/goawk => ./third_party/goawk
