package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wasilet.dev/toolbox/internal/applets"
)

// TestMain builds nothing: the test's own executable is the toolbox when it is started as one.
func TestMain(m *testing.M) {
	if os.Getenv("TOOLBOX_SELF") != "" && !strings.HasSuffix(os.Args[0], ".test") {
		main()
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	os.Setenv("TOOLBOX_SELF", self)
	os.Exit(m.Run())
}

// run runs an applet with these arguments in dir.
func run(t *testing.T, dir, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv("TOOLBOX_SELF"))
	cmd.Args = args
	cmd.Dir = dir
	// Nothing of the machine's own programs: whatever is found is the toolbox's.
	cmd.Env = []string{"PATH=/nowhere", "HOME=/", "TOOLBOX_SELF=" + os.Getenv("TOOLBOX_SELF"), "TZ=UTC"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%v did not end; stdout %q, stderr %q", args, out.String(), errs.String())
	}
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), applets.ExitCode(err)
}

func sh(t *testing.T, dir, script string) (stdout, stderr string, code int) {
	t.Helper()
	return run(t, dir, "", "sh", "-c", script)
}

func TestScripts(t *testing.T) {
	for _, row := range []struct {
		name, script, stdout, stderr string
		code                         int
	}{
		{name: "the exit code is the last command's", script: `exit 3`, code: 3},
		{name: "an unknown command is 127", script: `nosuch; echo $?`, stdout: "127\n", stderr: "sh: nosuch: not found\n"},
		{name: "a directory is 126", script: `/; echo $?`, stdout: "126\n", stderr: "sh: /: Permission denied\n"},
		{name: "pipelines of three", script: `printf 'b\na\nc\n' | sort | head -2`, stdout: "a\nb\n"},
		{name: "the status of a pipeline is its last's", script: `false | true; echo $?; true | false; echo $?`, stdout: "0\n1\n"},
		{name: "a reader that leaves ends the writer", script: `yes | head -2; while true; do echo x; done | head -1`, stdout: "y\ny\nx\n"},
		{name: "the last of a pipeline is a subshell", script: `echo a | read x; echo "[$x]"; true | { exit 4; }; echo $?`, stdout: "[]\n4\n"},
		{name: "here-documents", script: "x=1\ncat <<EOF\na $x $((2+3))\nEOF\ncat <<'EOF'\n$x\nEOF\ncat <<-EOF\n\ttab\n\tEOF\n", stdout: "a 1 5\n$x\ntab\n"},
		{name: "a background job is waited for", script: `(sleep 0.1; echo late) & echo soon; wait; exit 5`, stdout: "soon\nlate\n", code: 5},
		{name: "a job's status comes by its pid", script: `(exit 7) & wait $!; echo $?`, stdout: "7\n"},
		{name: "a job knows the shell's variables, functions and arguments", script: `x="a  b"; f() { echo "$x|$1|$2"; }; set -- "p q"; f "$1" r & wait`, stdout: "a  b|p q|r\n"},
		{name: "a killed job is 143", script: `sleep 100 & kill $!; wait $!; echo $?`, stdout: "143\n"},
		{name: "kill of jobs by number", script: `sleep 100 & kill -KILL %1; wait $!; echo $?`, stdout: "137\n"},
		{name: "wait for somebody else's child", script: `wait 99999; echo $?`, stdout: "127\n", stderr: "sh: wait: pid 99999 is not a child of this shell\n"},
		{name: "the EXIT trap keeps the status", script: `trap 'echo bye' EXIT; exit 4`, stdout: "bye\n", code: 4},
		{name: "the EXIT trap of a subshell", script: `(trap 'echo sub' EXIT; exit 2); echo $?`, stdout: "sub\n2\n"},
		{name: "a trap of a signal", script: `trap 'echo term' TERM; kill -TERM $$; sleep 0.1; echo on`, stdout: "term\non\n"},
		{name: "a trap that exits", script: `trap 'exit 9' TERM; kill $$; while true; do sleep 0.05; done`, code: 9},
		{name: "a trap interrupts wait", script: `trap 'echo got; exit 0' USR1; sleep 100 & p=$!; (sleep 0.1; kill -USR1 $$) & wait $p; kill $p`, stdout: "got\n"},
		{name: "an ignored signal", script: `trap '' TERM; kill $$; sleep 0.1; echo alive`, stdout: "alive\n"},
		{name: "an untrapped signal ends the shell", script: `kill -TERM $$; sleep 1; echo no`, code: 143},
		{name: "traps are listed", script: `trap 'echo "x"' TERM EXIT; trap; trap - EXIT`, stdout: "trap -- 'echo \"x\"' EXIT\ntrap -- 'echo \"x\"' TERM\n"},
		{name: "umask", script: `umask; umask 077; umask; touch f; stat -c %a f; umask -S`, stdout: "0022\n0077\n600\nu=rwx,g=,o=\n"},
		{name: "descriptors above two", script: `exec 3>f; echo three >&3; exec 3>&-; cat f; exec 4<f; read x <&4; echo $x; echo e 3>&1 1>&2 2>&3`, stdout: "three\nthree\n", stderr: "e\n"},
		{name: "swapped streams", script: `{ echo out; echo err >&2; } 3>&1 1>&2 2>&3`, stdout: "err\n", stderr: "out\n"},
		{name: "a file that cannot be made", script: `echo x > /nosuch/f; echo $?`, stdout: "1\n", stderr: "sh: can't create /nosuch/f: No such file or directory\n"},
		{name: "a file that is not there", script: `cat < nosuch; echo $?`, stdout: "1\n", stderr: "sh: can't open nosuch: No such file or directory\n"},
		{name: "noclobber", script: `set -C; echo a > f; echo b > f; echo $?; echo c >| f; cat f`, stdout: "1\nc\n", stderr: "sh: can't create f: File exists\n"},
		{name: "errexit", script: `set -e; false || echo on; ! true; if false; then :; fi; false; echo no`, stdout: "on\n", code: 1},
		{name: "nounset", script: `set -u; echo $nosuch; echo no`, stderr: "sh: nosuch: unbound variable\n", code: 1},
		{name: "expansions", script: `a=path/to/file.txt; echo ${a##*/} ${a%.*} ${#a} ${b:-def} ${b:=set} $b`, stdout: "file.txt path/to/file 16 def set set\n"},
		{name: "arguments", script: `set -- a "b c" d; echo $#; shift; for x; do echo "<$x>"; done; echo "$*"`, stdout: "3\n<b c>\n<d>\nb c d\n"},
		{name: "case, while and arithmetic", script: `i=0; while [ $i -lt 3 ]; do case $i in 1) echo one;; *) echo n$i;; esac; i=$((i+1)); done`, stdout: "n0\none\nn2\n"},
		{name: "command substitution", script: "echo \"$(printf 'a\\n\\n')\" `echo b`; x=$(exit 6); echo $?", stdout: "a b\n6\n"},
		{name: "functions with locals", script: `x=1; f() { local x=2; echo $x; return 3; }; f; echo $? $x`, stdout: "2\n3 1\n"},
		{name: "cd and OLDPWD", script: `mkdir d; cd d; pwd | sed 's,.*/,,'; cd - >/dev/null; cd nosuch; echo $?`, stdout: "d\n1\n", stderr: "sh: cd: can't cd to nosuch: No such file or directory\n"},
		{name: "a script by its path", script: "printf '#!/bin/sh\\necho \"$0 $1\"; exit 8\\n' > s; chmod +x s; sh s arg; echo $?", stdout: "s arg\n8\n"},
		{name: "the name and arguments of -c", script: `sh -c 'echo $0 $1 $#' name one two`, stdout: "name one 2\n"},
		{name: "a script on standard input leaves the rest to its commands", script: "printf 'read x\\nthe line\\necho got $x\\n' | sh", stdout: "got the line\n"},
		{name: "sh -s with arguments", script: "echo 'echo $1-$2' | sh -s a b", stdout: "a-b\n"},
		{name: "a syntax error is 2", script: `sh -c 'if true; then'; echo $?`, stdout: "2\n", stderr: "*syntax error*"},
		{name: "exec replaces the shell", script: `exec echo gone; echo no`, stdout: "gone\n"},
		{name: "command -v", script: `command -v ls; command -v nosuch || echo none; type cd`, stdout: "/bin/ls\nnone\ncd is a shell builtin\n"},
		{name: "getopts", script: `while getopts ab: o -a -b val rest; do echo $o $OPTARG; done; echo $OPTIND`, stdout: "a\nb val\n4\n"},
		{name: "timeout", script: `timeout 0.1 sleep 5; echo $?; timeout 5 sh -c 'exit 3'; echo $?`, stdout: "143\n3\n"},
		{name: "env runs a program", script: `X=1 env Y=2 sh -c 'echo $X$Y'; env -i printenv; env nosuch; echo $?`, stdout: "12\n127\n", stderr: "env: can't execute 'nosuch': No such file or directory\n"},
		{name: "variables before a command", script: `X=1 sh -c 'echo $X'; echo "[$X]"`, stdout: "1\n[]\n"},
		{name: "globs", script: `touch b.txt a.txt c.md; echo *.txt; echo *.none; set -f; echo *`, stdout: "a.txt b.txt\n*.none\n*\n"},
		{name: "times a loop breaks", script: `for i in 1 2 3; do for j in 1 2; do [ $i$j = 21 ] && break 2; echo $i$j; done; done`, stdout: "11\n12\n"},
		{name: "ulimit has something to say", script: `ulimit -c; ulimit -f`, stdout: "0\nunlimited\n"},
		{name: "the first lines of each of some files", script: `printf 'a\nb\n' > f; head -n 1 f f`, stdout: "==> f <==\na\n\n==> f <==\na\n"},
		{name: "links to the toolbox need no process", script: `mkdir bin; ln -s "$TOOLBOX_SELF" bin/readlink; PATH=$PWD/bin; [ "$(readlink /proc/self)" = $$ ] && echo here`, stdout: "here\n"},
		{name: "the busybox way to call an applet", script: `busybox echo hi; busybox nosuch; echo $?`, stdout: "hi\n127\n", stderr: "nosuch: applet not found\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := sh(t, t.TempDir(), row.script)
			matches := stderr == row.stderr
			if strings.HasPrefix(row.stderr, "*") {
				matches = strings.Contains(stderr, strings.Trim(row.stderr, "*"))
			}
			if stdout != row.stdout || !matches || code != row.code {
				t.Errorf("%s\nstdout %q\n  want %q\nstderr %q\n  want %q\ncode %d, want %d", row.script, stdout, row.stdout, stderr, row.stderr, code, row.code)
			}
		})
	}
}

func TestMessagesBeginWithTheNameTheShellWasCalledBy(t *testing.T) {
	stdout, stderr, code := run(t, t.TempDir(), "", "/bin/sh", "-c", "echo x > /nosuch/f; echo $0")
	if stdout != "/bin/sh\n" || stderr != "/bin/sh: can't create /nosuch/f: No such file or directory\n" || code != 0 {
		t.Errorf("%q %q %d", stdout, stderr, code)
	}
}

func TestApplets(t *testing.T) {
	for _, row := range []struct {
		script, stdout, stderr string
		code                   int
	}{
		{script: `cat nosuch`, stderr: "cat: can't open 'nosuch': No such file or directory\n", code: 1},
		{script: `printf 'a\nb' | cat -n`, stdout: "     1\ta\n     2\tb"},
		{script: `mkdir d; echo x > d/f; ln -s f d/l; chmod 640 d/f; ls d; ls -l d | tail -n +2 | cut -c1-10`, stdout: "f\nl\n-rw-r-----\nlrwxrwxrwx\n"},
		{script: `ls nosuch`, stderr: "ls: nosuch: No such file or directory\n", code: 1},
		{script: `mkdir -p a/b/c; cp -r a z; find z | sort; rm -r a; ls; rmdir z/b/c; rm z`, stdout: "z\nz/b\nz/b/c\nz\n", stderr: "rm: 'z' is a directory\n", code: 1},
		{script: `echo 1 > a; touch -d '2020-01-02 03:04:05' a; chmod 4751 a; cp -p a b; stat -c '%a %Y %s %F' b; stat -c '%A' b`, stdout: "4751 1577934245 2 regular file\n-rwsr-x--x\n"},
		{script: `echo 1 > a; mv a b; mv a c`, stderr: "mv: can't rename 'a': No such file or directory\n", code: 1},
		{script: `rm nosuch; rm -f nosuch; echo $?`, stdout: "0\n", stderr: "rm: can't remove 'nosuch': No such file or directory\n"},
		{script: `mkdir x; mkdir x; mkdir -m 700 y; stat -c %a y`, stdout: "700\n", stderr: "mkdir: can't create directory 'x': File exists\n"},
		{script: `touch f; chmod u=rwx,g=rx,o= f; stat -c %a f; chmod a-x f; stat -c %a f; chmod +x f; stat -c %a f; chmod g+s f; stat -c %a f`, stdout: "750\n640\n751\n2751\n"},
		{script: `ln -s target l; readlink l; ln -sf other l; readlink l; touch file; realpath ./file | sed 's,.*/,,'`, stdout: "target\nother\nfile\n"},
		{script: `seq 20 | head -n 2; seq 5 | tail -n 2; seq 5 | tail -n +4; seq 5 | head -n -3; printf abcdef | tail -c 2`, stdout: "1\n2\n4\n5\n4\n5\n1\n2\nef"},
		{script: `printf 'one\ntwo\nTwo\n' | grep -n two; printf 'one\ntwo\nTwo\n' | grep -ic two; echo abc | grep -o '[bc]'; echo x | grep y; echo $?`, stdout: "2:two\n2\nb\nc\n1\n"},
		{script: `printf 'a\nb\nc\nd\ne\n' | grep -A1 -B1 c; echo ab12 | grep -E '^[a-z]+[0-9]{2}$'; echo 'a.c' | grep -F .c; echo aa | grep '\(a\)\1'`, stdout: "b\nc\nd\nab12\na.c\naa\n"},
		{script: `mkdir d; echo hit > d/f; grep -r hit d; grep -l hit d/f; grep x nosuch; echo $?; echo 'foo bar' | grep -w fo; echo $?`, stdout: "d/f:hit\nd/f\n2\n1\n", stderr: "grep: nosuch: No such file or directory\n"},
		{script: `printf 'hello world\n' | sed 's/o/0/g; s/\(h\)\(e\)/\2\1/'; seq 5 | sed -n '2,3p'; seq 3 | sed '2d'; seq 3 | sed '$!N;s/\n/-/'`, stdout: "ehll0 w0rld\n2\n3\n1\n3\n1-2\n3\n"},
		{script: `printf 'a\nb\n' > f; sed -i 's/a/x/' f; cat f; sed -i.bak '1i\top' f; cat f f.bak; echo k=v | sed -E 's/(.*)=(.*)/\2=\1/'`, stdout: "x\nb\ntop\nx\nb\nx\nb\nv=k\n"},
		{script: `seq 10 | sed -n '/3/,/5/p'; seq 3 | sed 's/2/two\nlines/'; echo abc | sed 'y/abc/xyz/'; seq 4 | sed -n '$='; echo a | sed 's/a/[&]/;t;s/x/y/'; seq 3 | sed 2q`, stdout: "3\n4\n5\n1\ntwo\nlines\n3\nxyz\n4\n[a]\n1\n2\n"},
		{script: `printf 'a b\nc d\n' | awk '{print $2, NR}'; echo a:b | awk -F: -v x=1 '{print $1 x}'; awk 'BEGIN{printf "%05.1f\n", 3.14159}'; seq 4 | awk '{s+=$1} END{print s}'`, stdout: "b 1\nd 2\na1\n003.1\n10\n"},
		{script: `printf '10\n9\n2\n' | sort; printf '10\n9\n2\n' | sort -n; printf 'b 1\na 2\n' | sort -k2 -r; printf 'a\na\nb\n' | sort -u; printf 'x:3\ny:1\n' | sort -t: -k2n`, stdout: "10\n2\n9\n2\n9\n10\na 2\nb 1\na\nb\ny:1\nx:3\n"},
		{script: `printf 'a\na\nb\n' | uniq -c; printf 'a\na\nb\n' | uniq -d; printf 'a b c\n' | wc; printf 'x\ny\n' | wc -l`, stdout: "      2 a\n      1 b\na\n        1         3         6\n2\n"},
		{script: `echo a:b:c | cut -d: -f2-; echo abcdef | cut -c2-3,5; echo hello | tr a-y b-z; echo aabb | tr -s a; echo a1b2 | tr -d '[:digit:]'; echo ab | tr '[:lower:]' '[:upper:]'`, stdout: "b:c\nbce\nifmmp\nabb\nab\nAB\n"},
		{script: `echo x | tee a b; cat a b; echo 'a b' c | xargs -n1 echo -; seq 3 | xargs; printf 'a b\n' | xargs -I{} echo '<{}>'; echo x | xargs false; echo $?`, stdout: "x\nx\nx\n- a\n- b\n- c\n1 2 3\n<a b>\n123\n"},
		{script: `mkdir -p d/e; touch d/a.txt d/e/b.md; find d -name '*.txt'; find d -type d | sort; find d -name '*.md' -exec echo got {} \;; find d -type f -delete; find d -type f`, stdout: "d/a.txt\nd\nd/e\ngot d/e/b.md\n"},
		{script: `seq 3; seq 2 4; seq 1 2 5; seq -w 8 10; seq -s, 3; seq 3 -1 1; seq 0.5 1.5`, stdout: "1\n2\n3\n2\n3\n4\n1\n3\n5\n08\n09\n10\n1,2,3\n3\n2\n1\n0.5\n1.5\n"},
		{script: `date -u -d @0 +%Y-%m-%dT%H:%M:%SZ; date -u -d '2024-02-29 12:00' '+%j %a %b'; date -u -d @86399 -R; date -d rubbish`, stdout: "1970-01-01T00:00:00Z\n060 Thu Feb\nThu, 01 Jan 1970 23:59:59 +0000\n", stderr: "date: invalid date 'rubbish'\n", code: 1},
		{script: `[ a = a ] && test 2 -gt 1 && [ -d / ] && [ ! -e nosuch ] && [ -n x -a -z '' ] && echo yes; [ 1 -eq x ]; echo $?`, stdout: "yes\n2\n", stderr: "*x*"},
		{script: `expr 1 + 2 '*' 3; expr abc : 'a\(.\)c'; expr length hello; expr 1 = 2; echo $?; expr substr hello 2 3; expr 5 / 0; echo $?`, stdout: "7\nb\n5\n0\n1\nell\n2\n", stderr: "expr: division by zero\n"},
		{script: `printf '%s-%d|%5.2f|%x\n' a 42 3.14159 255; printf '%s\n' a b; printf '%b' 'x\ty\n'; printf '%05d %c\n' 7 hello; printf '\101\n'`, stdout: "a-42| 3.14|ff\na\nb\nx\ty\n00007 h\nA\n"},
		{script: `echo -n a; echo -e 'b\tc'; echo -E 'd\te'; basename /a/b.txt .txt; dirname /a/b; dirname a; basename /`, stdout: "ab\tc\nd\\te\nb\n/a\n.\n/\n"},
		{script: `echo hello | base64; echo aGVsbG8K | base64 -d; printf hello | md5sum; printf hello | sha256sum | cut -c1-16; printf x > f; md5sum f > s; md5sum -c s`, stdout: "aGVsbG8K\nhello\n5d41402abc4b2a76b9719d911017c592  -\n2cf24dba5fb0a30e\nf: OK\n"},
		{script: `printf 'hi\n' | od -c; printf 'AB' | od -An -tx1; printf 'AB\n' | hexdump -C; printf 'ABC' | hexdump -v -e '/1 "%02x"'`, stdout: "0000000   h   i  \\n\n0000003\n 41 42\n00000000  41 42 0a                                          |AB.|\n00000003\n414243"},
		{script: `printf 'a\nb\nc\n' > x; printf 'a\nB\nc\n' > y; diff x y; echo $?; diff x x; echo $?; cmp x y; cmp -s x y; echo $?`, stdout: "--- x\n+++ y\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n1\n0\nx y differ: char 3, line 2\n1\n"},
		{script: `dd if=/dev/zero of=f bs=1k count=3 2>/dev/null; stat -c %s f; truncate -s 10 f; stat -c %s f; printf abcdef | dd bs=1 skip=2 count=2 2>/dev/null`, stdout: "3072\n10\ncd"},
		{script: `echo data > f; gzip f; ls; gunzip f.gz; cat f; gzip -c f | zcat; echo x | gzip | gunzip -c; echo bad | gunzip; echo $?`, stdout: "f.gz\ndata\ndata\nx\n1\n", stderr: "gunzip: invalid magic\n"},
		{script: `which sh; which nosuch; echo $?; nproc | grep -c '[0-9]'; uname -sm; whoami; id -u; hostname | wc -l; true; false; echo $?`, stdout: "/bin/sh\n1\n1\nWASI wasm32\nroot\n0\n1\n1\n"},
		{script: `mktemp -d ./x.XXXXXX | sed 's/......$/X/'; printf '3\n1\n' > a; split -l 1 a; cat xaa; paste a a; printf 'a\nb\n' | paste -sd,; printf 'ab\n' | rev; seq 3 | tac; echo abcdef | fold -w 4`, stdout: "./x.X\n3\n3\t3\n1\t1\na,b\nba\n3\n2\n1\nabcd\nef\n"},
		{script: `printf 'a\nb\n' > x; printf 'b\nc\n' > y; comm x y; comm -12 x y; printf 'x\n\ny\n' | nl; printf 'a\0long string\0' | strings`, stdout: "a\n\t\tb\n\tc\nb\n     1\tx\n       \n     2\ty\nlong string\n"},
		{script: `echo a > f; du -k f | cut -f2; df / | head -1 | cut -c1-10; sleep 0; sleep x; echo $?`, stdout: "f\nFilesystem\n1\n", stderr: "sleep: invalid number 'x'\n"},
		{script: `ls -@; echo $?`, stdout: "1\n", stderr: "ls: unrecognized option: @\n"},
		{script: `kill -l 15; kill -l TERM; kill -0 $$ && echo here; kill 999999; kill -NOSUCH 1; echo $?`, stdout: "TERM\n15\nhere\n1\n", stderr: "kill: can't kill pid 999999: No such process\nkill: bad signal name 'NOSUCH'\n"},
		{script: `[ "$(ps -o pid= -p $$ | tr -d ' ')" = $$ ] && echo here`, stdout: "here\n"},
	} {
		t.Run(row.script, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := sh(t, t.TempDir(), row.script)
			matches := stderr == row.stderr
			if strings.HasPrefix(row.stderr, "*") {
				matches = strings.Contains(stderr, strings.Trim(row.stderr, "*"))
			}
			if stdout != row.stdout || !matches || code != row.code {
				t.Errorf("stdout %q\n  want %q\nstderr %q\n  want %q\ncode %d, want %d", stdout, row.stdout, stderr, row.stderr, code, row.code)
			}
		})
	}
}

func TestTarKeepsModesTimesAndLinks(t *testing.T) {
	dir := t.TempDir()
	_, stderr, code := sh(t, dir, `mkdir -p src/sub out; echo one > src/sub/f; chmod 640 src/sub/f; touch -d @1000000000 src/sub/f
ln -s f src/sub/l; ln src/sub/f src/sub/hard; chmod 751 src/sub; touch -d @900000000 src/sub; tar cf - src | tar xf - -C out`)
	if code != 0 || stderr != "" {
		t.Fatal(code, stderr)
	}
	stdout, _, _ := sh(t, dir, `cd out/src/sub; stat -c '%n %a %Y' . f; readlink l; stat -c %h hard; cat f`)
	if want := ". 751 900000000\nf 640 1000000000\nf\n2\none\n"; stdout != want {
		t.Errorf("%q, want %q", stdout, want)
	}
	stdout, _, code = sh(t, dir, `tar czf a.tgz src; tar tf a.tgz | sort; tar xOf a.tgz src/sub/f; tar xf a.tgz nosuch`)
	if want := "src/\nsrc/sub/\nsrc/sub/f\nsrc/sub/hard\nsrc/sub/l\none\n"; stdout != want || code != 1 {
		t.Errorf("%q, want %q, code %d", stdout, want, code)
	}
}

func TestTarStaysInItsDirectory(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "bad.tar"))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(file)
	w.WriteHeader(&tar.Header{Name: "../escaped", Mode: 0o644, Size: 1, Typeflag: tar.TypeReg})
	w.Write([]byte("x"))
	w.Close()
	file.Close()
	_, stderr, code := sh(t, dir, `mkdir in; tar xf bad.tar -C in`)
	if _, err := os.Stat(filepath.Join(dir, "escaped")); err == nil || code == 0 {
		t.Errorf("escaped: %v, code %d, %q", err, code, stderr)
	}
}

func TestTheListOfAppletsIsWhatTheNodeKnows(t *testing.T) {
	text, err := os.ReadFile("applets.txt")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, name := range strings.Fields(string(text)) {
		listed[name] = true
		if _, ok := applets.Find(name); !ok {
			t.Errorf("%s is listed and missing", name)
		}
	}
	for _, name := range applets.Names() {
		if !listed[name] && name != "toolbox" {
			t.Errorf("%s is not listed", name)
		}
	}
}

// serveOnce answers one connection with these bytes and gives the request's head.
func serveOnce(t *testing.T, answers ...string) (address string, requests chan string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	requests = make(chan string, len(answers))
	go func() {
		for _, answer := range answers {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			buffer := make([]byte, 64*1024)
			n, _ := conn.Read(buffer)
			requests <- string(buffer[:n])
			conn.Write([]byte(answer))
			conn.Close()
		}
	}()
	return listener.Addr().String(), requests
}

func TestWgetAndCurl(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write([]byte("x"))
	w.Close()
	for _, row := range []struct {
		name, answer, command, stdout, stderr string
		code                                  int
	}{
		{"wget writes to stdout", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "wget -qO- http://%s/", "hello", "", 0},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "wget -qO- http://%s/", "abcde", "", 0},
		{"an error of the server", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "wget -q -O- http://%s/", "", "wget: server returned error: HTTP/1.1 404 Not Found\n", 1},
		{"a body that is cut off", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", "wget -qO- http://%s/", "hel", "wget: connection closed prematurely\n", 1},
		{"curl shows the body of an error", "HTTP/1.1 500 Bad\r\nContent-Length: 2\r\n\r\nno", "curl -s http://%s/", "no", "", 0},
		{"curl -f", "HTTP/1.1 500 Bad\r\nContent-Length: 2\r\n\r\nno", "curl -g -q -sSf http://%s/", "", "curl: (22) The requested URL returned error: 500\n", 22},
		{"curl -w", "HTTP/1.1 204 None\r\n\r\n", "curl -s -o /dev/null -w '%%{http_code}' http://%s/", "204", "", 0},
		{"nothing at all", "", "curl -sS http://%s/", "", "curl: (52) Empty reply from server\n", 52},
	} {
		t.Run(row.name, func(t *testing.T) {
			address, _ := serveOnce(t, row.answer)
			stdout, stderr, code := sh(t, t.TempDir(), fmt.Sprintf(row.command, address))
			if stdout != row.stdout || stderr != row.stderr || code != row.code {
				t.Errorf("stdout %q, stderr %q, code %d", stdout, stderr, code)
			}
		})
	}
	stdout, stderr, code := sh(t, t.TempDir(), `curl -sS http://127.0.0.1:1/; echo $?`)
	if stdout != "7\n" || !strings.Contains(stderr, "Connection refused") || code != 0 {
		t.Errorf("a port nobody has: %q %q %d", stdout, stderr, code)
	}
}

func TestNcAndHttpd(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr, _ := sh(t, dir, `echo page > index.html; httpd -f -p 127.0.0.1:18099 -h . & sleep 0.3; wget -qO- http://127.0.0.1:18099/; wget -qO- http://127.0.0.1:18099/../etc/passwd; kill $!`)
	if stdout != "page\n" || !strings.Contains(stderr, "404 Not Found") {
		t.Errorf("httpd: %q %q", stdout, stderr)
	}
	stdout, stderr, _ = sh(t, dir, `echo pong | nc -l -p 18098 > got & sleep 0.3; echo ping | nc -w 2 127.0.0.1 18098; wait; cat got`)
	if stdout != "pong\nping\n" || stderr != "" {
		t.Errorf("nc: %q %q", stdout, stderr)
	}
	if _, _, code := sh(t, dir, `nc -z -w 1 127.0.0.1 1`); code != 1 {
		t.Errorf("nc -z of a closed port: %d", code)
	}
}
