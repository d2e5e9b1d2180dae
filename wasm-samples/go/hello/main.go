// Hello shows what a container sees of itself, from Go: its arguments, its host name, its environment.
//
// Usage: hello-go [WORD...]. Exit code 0.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strings"
)

func main() {
	fmt.Printf("Hello from WebAssembly, in Go! (%s, %s/%s)\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	fmt.Printf("args: %q\n", os.Args)
	if name, err := os.ReadFile("/etc/hostname"); err != nil {
		fmt.Println("hostname:", err)
	} else {
		fmt.Println("hostname:", strings.TrimSpace(string(name)))
	}
	variables := os.Environ()
	sort.Strings(variables)
	for _, variable := range variables {
		fmt.Println("env:", variable)
	}
}
