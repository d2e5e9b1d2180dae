//go:build tools

// Package caddy pins the version of Caddy that scripts/caddy.sh builds.
package caddy

import _ "github.com/caddyserver/caddy/v2/cmd/caddy"
