package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

var signalChecks = []check{
	{"signal: one that was asked for arrives", signalArrives},
	{"signal: NotifyContext ends its context", signalContext},
	{"signal: one that is ignored does nothing", signalIgnored},
	{"signal: Stop returns although nothing is delivered", signalStop},
	{"signal: waiting for one leaves others the CPU", signalIdle},
	{"signal: a child without a handler dies of it", signalDefault},
	{"signal: a child that asked for another one dies of it as well", signalOther},
	{"signal: a child with a handler ends as it wants", signalHandled},
	{"signal: a child that asked for another one outlives what does nothing by default", signalHarmless},
}

func signalArrives() error {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGUSR1, syscall.SIGHUP)
	defer signal.Stop(arrived)
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			return err
		}
		if got := <-arrived; got != sig {
			return fmt.Errorf("%v arrived, not %v", got, sig)
		}
	}
	return nil
}

func signalContext() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func signalIgnored() error {
	signal.Ignore(syscall.SIGUSR2)
	defer signal.Reset(syscall.SIGUSR2)
	if !signal.Ignored(syscall.SIGUSR2) {
		return errors.New("it is not said to be ignored")
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR2); err != nil {
		return err
	}
	time.Sleep(20 * time.Millisecond) // to die in
	return nil
}

func signalStop() error {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGUSR1)
	signal.Stop(arrived)
	return nil
}

func signalIdle() error {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGUSR1)
	defer signal.Stop(arrived)
	before := cpuTime()
	time.Sleep(500 * time.Millisecond)
	if used := cpuTime() - before; used > 250*time.Millisecond {
		return fmt.Errorf("it used %v of half a second", used)
	}
	return nil
}

// cpuTime is what the container has used, from its own cgroup file.
func cpuTime() time.Duration {
	text, _ := os.ReadFile("/sys/fs/cgroup/cpu.stat")
	var used int64
	fmt.Sscanf(string(text), "usage_usec %d", &used)
	return time.Duration(used) * time.Microsecond
}

func signalDefault() error { return signalled("sleep", syscall.SIGTERM, "signal: terminated") }

func signalOther() error { return signalled("handle-hup", syscall.SIGINT, "signal: interrupt") }

func signalHandled() error { return signalled("handle-hup", syscall.SIGHUP, "exit status 42") }

func signalHarmless() error {
	return signalled("handle-hup", syscall.SIGHUP, "exit status 42", syscall.SIGWINCH, syscall.SIGCHLD, syscall.SIGCONT)
}

// signalled sends a child these signals, one after the other, the last of which ends it.
func signalled(child string, last syscall.Signal, want string, before ...syscall.Signal) error {
	cmd := self(child)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := out.Read(make([]byte, 16)); err != nil { // it is ready
		return err
	}
	for _, sig := range append(before, last) {
		if err := cmd.Process.Signal(sig); err != nil {
			return err
		}
	}
	err = cmd.Wait()
	if err == nil {
		return errors.New("it ended well")
	}
	return equal("its end", err.Error(), want)
}
