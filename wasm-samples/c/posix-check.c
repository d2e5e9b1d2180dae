/* The POSIX calls that C programs make and Rust's std does not: stdio with its buffers, directory streams with
 * seekdir, open flags by fcntl, access, the *at family, mkstemp, and errno by name.
 *
 * Usage: posix-check-c [DIRECTORY], default /tmp. Works in a folder of its own there and removes it. One line per
 * check, then "posix-check: N passed, M failed"; exit code 0 or 1.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int passed, failed;

/* Prints a check's line; a failed one shows where it was and what errno said. */
static void report(const char *name, bool ok, int line)
{
    int error = errno;
    if (ok) {
        passed++;
        printf("ok   %s\n", name);
    } else {
        failed++;
        printf("FAIL %s: line %d, errno %d (%s)\n", name, line, error, strerror(error));
    }
    errno = 0;
}

#define CHECK(name, condition) report((name), (condition), __LINE__)
#define FAILS(name, call, expected) report((name), (call) == -1 && errno == (expected), __LINE__)

static bool write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    return file != NULL && fputs(text, file) >= 0 && fclose(file) == 0;
}

static bool text_is(const char *path, const char *expected)
{
    char buffer[256];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    size_t length = fread(buffer, 1, sizeof buffer - 1, file);
    buffer[length] = '\0';
    return fclose(file) == 0 && strcmp(buffer, expected) == 0;
}

static void check_stdio(void)
{
    CHECK("fopen w, fputs, fclose, fopen r, fread",
          write_text("stdio", "line one\nline two\n") && text_is("stdio", "line one\nline two\n"));

    FILE *file = fopen("stdio", "r+");
    char line[32];
    CHECK("fgets reads a line", file && fgets(line, sizeof line, file) && strcmp(line, "line one\n") == 0);
    CHECK("ftell knows the position behind it", file && ftell(file) == 9);
    CHECK("fseek, fputc, fclose change one byte", file && fseek(file, 5, SEEK_SET) == 0 && fputc('O', file) == 'O' &&
                                                      fclose(file) == 0 && text_is("stdio", "line One\nline two\n"));

    file = fopen("stdio", "a+");
    CHECK("a+ appends wherever it was", file && fseek(file, 0, SEEK_SET) == 0 && fputs("end", file) >= 0 &&
                                            fclose(file) == 0 && text_is("stdio", "line One\nline two\nend"));

    file = fopen("stdio", "wx");
    CHECK("wx refuses what exists", file == NULL && errno == EEXIST);

    file = fopen("formatted", "w+");
    int number = 0;
    char word[16] = "";
    CHECK("fprintf, rewind, fscanf", file && fprintf(file, "%d %s", 42, "word") == 7 &&
                                         (rewind(file), fscanf(file, "%d %15s", &number, word)) == 2 && number == 42 &&
                                         strcmp(word, "word") == 0 && fclose(file) == 0);
    CHECK("remove", remove("formatted") == 0 && access("formatted", F_OK) == -1 && errno == ENOENT);
}

static void check_descriptors(void)
{
    int fd = open("fd", O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK("open O_CREAT gives a free descriptor above 2", fd > 2);
    CHECK("fcntl F_GETFL tells the flags", (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK("fcntl F_SETFL turns O_APPEND on", fcntl(fd, F_SETFL, O_APPEND) == 0 && (fcntl(fd, F_GETFL) & O_APPEND) != 0);
    CHECK("then writes go to the end",
          write(fd, "ab", 2) == 2 && lseek(fd, 0, SEEK_SET) == 0 && write(fd, "cd", 2) == 2 && text_is("fd", "abcd"));

    char one[2], two[8];
    struct iovec parts[2] = {{one, sizeof one}, {two, sizeof two}};
    CHECK("readv fills the parts in order", lseek(fd, 0, SEEK_SET) == 0 && readv(fd, parts, 2) == 4 &&
                                                memcmp(one, "ab", 2) == 0 && memcmp(two, "cd", 2) == 0);
    CHECK("read at the end is 0", read(fd, two, sizeof two) == 0);
    CHECK("ftruncate and fstat", ftruncate(fd, 1) == 0 && ({
                                     struct stat s;
                                     fstat(fd, &s) == 0 && s.st_size == 1 && S_ISREG(s.st_mode);
                                 }));
    CHECK("fsync and fdatasync", fsync(fd) == 0 && fdatasync(fd) == 0);

    struct timespec times[2] = {{1000000000, 5}, {1500000000, 7}};
    struct stat status;
    CHECK("futimens to the nanosecond", futimens(fd, times) == 0 && fstat(fd, &status) == 0 &&
                                            status.st_atim.tv_sec == 1000000000 && status.st_atim.tv_nsec == 5 &&
                                            status.st_mtim.tv_sec == 1500000000 && status.st_mtim.tv_nsec == 7);
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_nsec = UTIME_NOW;
    CHECK("UTIME_OMIT keeps and UTIME_NOW sets", utimensat(AT_FDCWD, "fd", times, 0) == 0 && stat("fd", &status) == 0 &&
                                                     status.st_atim.tv_nsec == 5 &&
                                                     time(NULL) - status.st_mtim.tv_sec <= 2);
    CHECK("close", close(fd) == 0);
    FAILS("a closed descriptor is EBADF", write(fd, "x", 1), EBADF);
    FAILS("a descriptor that never was is EBADF", (int)lseek(9999, 0, SEEK_SET), EBADF);
}

static void check_directories(void)
{
    CHECK("mkdir", mkdir("dir", 0755) == 0);
    FAILS("mkdir again is EEXIST", mkdir("dir", 0755), EEXIST);
    char name[32];
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "dir/entry%02d", i);
        if (!write_text(name, "x"))
            CHECK("fill a directory", false);
    }

    DIR *dir = opendir("dir");
    int entries = 0, dots = 0, inodes_agree = 0;
    long position = -1;
    char at_position[256] = "";
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            dots++;
            continue;
        }
        if (entries == 20)
            snprintf(at_position, sizeof at_position, "%s", entry->d_name);
        entries++;
        if (fstatat(dirfd(dir), entry->d_name, &status, 0) == 0 && status.st_ino == entry->d_ino)
            inodes_agree++;
        if (entries == 20)
            position = telldir(dir);
    }
    CHECK("readdir lists all of them, and `.` and `..`", entries == 50 && dots == 2);
    CHECK("d_ino is stat's inode", inodes_agree == 50);
    struct dirent *again = NULL;
    if (dir && position != -1) {
        seekdir(dir, position);
        again = readdir(dir);
    }
    CHECK("seekdir returns to where telldir was", again != NULL && strcmp(again->d_name, at_position) == 0);
    if (dir)
        rewinddir(dir);
    entries = 0;
    while (dir && readdir(dir) != NULL)
        entries++;
    CHECK("rewinddir starts over", entries == 52);
    CHECK("closedir", dir && closedir(dir) == 0);

    FAILS("rmdir of a full one is ENOTEMPTY", rmdir("dir"), ENOTEMPTY);
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "dir/entry%02d", i);
        unlink(name);
    }
    CHECK("rmdir of the emptied one", rmdir("dir") == 0);
}

static void check_at_family(void)
{
    struct stat status;
    char target[16] = "";
    CHECK("mkdir", mkdir("at", 0755) == 0);
    int dir = open("at", O_RDONLY | O_DIRECTORY);
    CHECK("a directory's descriptor", dir >= 0);
    int fd = openat(dir, "file", O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK("openat", fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
    CHECK("linkat",
          linkat(dir, "file", dir, "hard", 0) == 0 && fstatat(dir, "hard", &status, 0) == 0 && status.st_nlink == 2);
    CHECK("symlinkat and readlinkat", symlinkat("file", dir, "soft") == 0 &&
                                          readlinkat(dir, "soft", target, sizeof target) == 4 &&
                                          memcmp(target, "file", 4) == 0);
    CHECK("fstatat follows a link or does not", fstatat(dir, "soft", &status, 0) == 0 && S_ISREG(status.st_mode) &&
                                                    fstatat(dir, "soft", &status, AT_SYMLINK_NOFOLLOW) == 0 &&
                                                    S_ISLNK(status.st_mode));
    CHECK("readlink cuts to the buffer", readlinkat(dir, "soft", target, 2) == 2);
    CHECK("renameat", renameat(dir, "hard", dir, "renamed") == 0 && faccessat(dir, "renamed", F_OK, 0) == 0);
    CHECK("faccessat R_OK and W_OK", faccessat(dir, "file", R_OK | W_OK, 0) == 0);
    CHECK("mkdirat and unlinkat AT_REMOVEDIR",
          mkdirat(dir, "sub", 0700) == 0 && unlinkat(dir, "sub", AT_REMOVEDIR) == 0);
    CHECK("unlinkat",
          unlinkat(dir, "file", 0) == 0 && unlinkat(dir, "soft", 0) == 0 && unlinkat(dir, "renamed", 0) == 0);
    FAILS("openat relative to a file is ENOTDIR", ({
              int file = open("fd", O_RDONLY);
              int result = openat(file, "x", O_RDONLY);
              int error = errno;
              close(file);
              errno = error;
              result;
          }),
          ENOTDIR);
    CHECK("close and rmdir", close(dir) == 0 && rmdir("at") == 0);
}

static void check_working_directory(void)
{
    char before[256], here[256];
    CHECK("getcwd", getcwd(before, sizeof before) != NULL && before[0] == '/');
    CHECK("chdir, mkdir and a relative path", mkdir("wd", 0755) == 0 && chdir("wd") == 0 && write_text("inside", "i") &&
                                                  chdir(before) == 0 && text_is("wd/inside", "i"));
    CHECK("getcwd is where it was", getcwd(here, sizeof here) != NULL && strcmp(before, here) == 0);
    FAILS("chdir to a file is ENOTDIR", chdir("wd/inside"), ENOTDIR);
    FAILS("chdir to nothing is ENOENT", chdir("missing"), ENOENT);
    CHECK("clean up", unlink("wd/inside") == 0 && rmdir("wd") == 0);
}

static void check_clocks(void)
{
    struct timespec before, after, pause = {0, 20000000};
    CHECK("clock_gettime", clock_gettime(CLOCK_MONOTONIC, &before) == 0);
    CHECK("nanosleep sleeps that long",
          nanosleep(&pause, NULL) == 0 && clock_gettime(CLOCK_MONOTONIC, &after) == 0 &&
              (after.tv_sec - before.tv_sec) * 1000000000LL + (after.tv_nsec - before.tv_nsec) >= 20000000);
    CHECK("time is after 2020", time(NULL) > 1577836800);
    unsigned char bytes[64] = {0};
    int zeros = 0;
    CHECK("getentropy", getentropy(bytes, sizeof bytes) == 0);
    for (size_t i = 0; i < sizeof bytes; i++)
        zeros += bytes[i] == 0;
    CHECK("and it gave something", zeros < 32);
}

int main(int argc, char **argv)
{
    const char *parent = argc > 1 ? argv[1] : "/tmp";
    if (chdir(parent) != 0 || (mkdir("posix-check", 0755) != 0 && errno != EEXIST) || chdir("posix-check") != 0) {
        perror(parent);
        return 1;
    }
    errno = 0;
    check_stdio();
    check_descriptors();
    check_directories();
    check_at_family();
    check_working_directory();
    check_clocks();
    CHECK("the folder can be removed",
          unlink("stdio") == 0 && unlink("fd") == 0 && chdir("..") == 0 && rmdir("posix-check") == 0);
    printf("posix-check: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
