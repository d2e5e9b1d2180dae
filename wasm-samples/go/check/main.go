// Check is a Go program for Unix that tries what such programs use: sockets, signals, pipes, other programs, users and
// file modes. It prints a line for each thing and one with the count.
//
// Started with another name it is one of the programs that it starts itself: see children.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

type check struct {
	name string
	run  func() error
}

func main() {
	if len(os.Args) > 1 {
		if child, ok := children[os.Args[1]]; ok {
			os.Exit(child(os.Args[2:]))
		}
		fmt.Fprintln(os.Stderr, "go-check: no child is called", os.Args[1])
		os.Exit(2)
	}
	failed, total := 0, 0
	for _, group := range [][]check{networkChecks, signalChecks, processChecks, fileChecks} {
		for _, c := range group {
			total++
			err := within(30*time.Second, c.run)
			if err == nil {
				fmt.Println("ok  ", c.name)
				continue
			}
			failed++
			fmt.Println("FAIL", c.name+":", err)
		}
	}
	fmt.Printf("go-check: %d passed, %d failed\n", total-failed, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// within gives a check a time: one that hangs is one that failed, and the others still run.
func within(limit time.Duration, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("nothing after %v", limit)
	}
}

func equal[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, not %v", what, got, want)
	}
	return nil
}

func isError(what string, got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("%s gives %v, not %v", what, got, want)
	}
	return nil
}

func contains(what, got, want string) error {
	if !strings.Contains(got, want) {
		return fmt.Errorf("%s is %q without %q", what, got, want)
	}
	return nil
}

// all is the first error.
func all(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
