//go:build !wasip1

package main

import "os"

func streams() (in, out, err *os.File) { return os.Stdin, os.Stdout, os.Stderr }
