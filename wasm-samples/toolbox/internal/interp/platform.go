package interp

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"mvdan.cc/sh/v3/syntax"
)

func mkfifo(string, uint32) error { return fmt.Errorf("process substitution: not supported") }

func getAtime(info fs.FileInfo) time.Time { return info.ModTime() }

func access(_ context.Context, path string, mode AccessMode) error {
	return syscall.Access(path, uint32(mode))
}

func (r *Runner) unTestOwnOrGrp(ctx context.Context, op syntax.UnTestOperator, x string) bool {
	info, err := r.stat(ctx, x)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	if op == syntax.TsUsrOwn {
		return int(stat.Uid) == os.Geteuid()
	}
	return int(stat.Gid) == os.Getegid()
}
