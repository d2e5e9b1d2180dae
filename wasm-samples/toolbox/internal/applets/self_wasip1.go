package applets

import (
	"os"
	"sync"
)

// toolbox is where the node offers it.
const toolbox = "/.wasilet/toolbox"

// self is this program: an image may bring its own, and the pod want none of the node's.
var self = sync.OnceValue(func() string {
	path, err := os.Executable()
	if err != nil {
		return toolbox
	}
	return path
})
