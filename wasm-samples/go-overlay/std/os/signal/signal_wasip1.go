package signal

import (
	"os"
	"sync"
	"syscall"
)

// Signals come from /dev/signal, one byte each. While it is open the process is told of all signals; as long as it
// is not, each does what it does to a program that has not asked for it. So it is open when, and only when, a
// program has.

const numSig = 65

var listen struct {
	sync.Mutex
	wanted  [numSig]bool
	ignored [numSig]bool
	file    *os.File
	opened  chan *os.File
}

func init() {
	listen.opened = make(chan *os.File, 1)
	watchSignalLoop = loop
}

func loop() {
	var buf [64]byte
	for file := range listen.opened {
		for {
			n, err := file.Read(buf[:])
			if err != nil {
				break // closed, and perhaps opened again
			}
			for _, sig := range buf[:n] {
				deliver(int(sig))
			}
		}
	}
}

func deliver(sig int) {
	if sig <= 0 || sig >= numSig {
		return
	}
	listen.Lock()
	wanted, ignored := listen.wanted[sig], listen.ignored[sig]
	listen.Unlock()
	switch {
	case wanted:
		process(syscall.Signal(sig))
	case ignored || ignoredByDefault(syscall.Signal(sig)):
	default:
		// The default action, which is the host's once nobody listens.
		listen.Lock()
		if listen.file != nil {
			listen.file.Close()
		}
		syscall.Kill(syscall.Getpid(), syscall.Signal(sig))
		os.Exit(128 + sig)
	}
}

func ignoredByDefault(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH, syscall.SIGSTOP, syscall.SIGTSTP,
		syscall.SIGTTIN, syscall.SIGTTOU:
		return true
	}
	return false
}

// update opens or closes the device to fit what is asked for. The caller holds the lock.
func update() {
	need := false
	for sig := range listen.wanted {
		need = need || listen.wanted[sig] || listen.ignored[sig]
	}
	switch {
	case need && listen.file == nil:
		fd, err := syscall.Open("/dev/signal", syscall.O_RDONLY, 0)
		if err != nil {
			return // no device, no signals
		}
		if err := syscall.SetNonblock(fd, true); err != nil {
			syscall.Close(fd)
			return
		}
		listen.file = os.NewFile(uintptr(fd), "/dev/signal")
		// The loop may not have taken one that was closed since.
		select {
		case <-listen.opened:
		default:
		}
		listen.opened <- listen.file
		// Ignore alone does not start it.
		watchSignalLoopOnce.Do(func() { go watchSignalLoop() })
	case !need && listen.file != nil:
		listen.file.Close()
		listen.file = nil
	}
}

func signum(sig os.Signal) int {
	switch sig := sig.(type) {
	case syscall.Signal:
		if i := int(sig); i >= 0 && i < numSig {
			return i
		}
	}
	return -1
}

func enableSignal(sig int) {
	listen.Lock()
	defer listen.Unlock()
	listen.wanted[sig], listen.ignored[sig] = true, false
	update()
}

func disableSignal(sig int) {
	listen.Lock()
	defer listen.Unlock()
	listen.wanted[sig], listen.ignored[sig] = false, false
	update()
}

func ignoreSignal(sig int) {
	listen.Lock()
	defer listen.Unlock()
	listen.wanted[sig], listen.ignored[sig] = false, true
	update()
}

func signalIgnored(sig int) bool {
	listen.Lock()
	defer listen.Unlock()
	return listen.ignored[sig]
}
